"""Trunks by the shape of the observation: IMPALA for images, small convolutions for grids, an MLP for vectors."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lamjax.models.grid import GridConfig, GridTrunk
from lamjax.models.impala import Impala, ImpalaConfig
from lamjax.models.mlp import MLPConfig, MLPTrunk

TrunkConfig = ImpalaConfig | GridConfig | MLPConfig

_MODULES = {ImpalaConfig: Impala, GridConfig: GridTrunk, MLPConfig: MLPTrunk}


def make_trunk(config: TrunkConfig, dtype: Any = jnp.float32) -> nn.Module:
    """The module of a config: ``[B, *obs_shape] -> [B, F]``, non-negative features."""
    return _MODULES[type(config)](config, dtype)
