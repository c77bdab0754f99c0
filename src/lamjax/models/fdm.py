"""Forward models by the shape of the observation: a U-Net for images, small convolutions for grids, an MLP."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lamjax.models.grid import GridFDM, GridFDMConfig
from lamjax.models.mlp import MLPFDM, MLPFDMConfig
from lamjax.models.unet import UNet, UNetConfig

FDMConfig = UNetConfig | GridFDMConfig | MLPFDMConfig

_MODULES = {UNetConfig: UNet, GridFDMConfig: GridFDM, MLPFDMConfig: MLPFDM}


def make_fdm(config: FDMConfig, out_channels: int, dtype: Any = jnp.float32) -> nn.Module:
    """The module of a config: frames ``[B, *S, (k + 1) C]`` and latents ``[B, Z]`` to the next frame ``[B, *S, C]``.

    Args:
      config: its sizes.
      out_channels: C, the last size of an observation.
      dtype: type of the activations.
    """
    return _MODULES[type(config)](config, out_channels, dtype)
