"""Forward models by the shape of the observation: a U-Net for images, small convolutions for grids, an MLP."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lamjax.models.grid import GridFDM, GridFDMConfig
from lamjax.models.mlp import MLPFDM, MLPFDMConfig
from lamjax.models.unet import UNet, UNetConfig

FDMConfig = UNetConfig | GridFDMConfig | MLPFDMConfig


def make_fdm(config: FDMConfig, out_channels: int, dtype: Any = jnp.float32, axis_name: str | None = None) -> nn.Module:
    """The module of a config: frames ``[B, *S, (k + 1) C]`` and latents ``[B, Z]`` to the next frame ``[B, *S, C]``.

    Args:
      config: its sizes.
      out_channels: C, the last size of an observation.
      dtype: type of the activations.
      axis_name: devices that share the batch statistics of a U-Net; the others have none.
    """
    if isinstance(config, UNetConfig):
        return UNet(config, out_channels, dtype, axis_name)
    if isinstance(config, GridFDMConfig):
        return GridFDM(config, out_channels, dtype)
    return MLPFDM(config, out_channels, dtype)
