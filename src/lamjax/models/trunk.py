"""Trunks by the shape of the observation: IMPALA for images, small convolutions for grids, an MLP for vectors."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lamjax.models.grid import GridConfig, GridTrunk
from lamjax.models.impala import Impala, ImpalaConfig
from lamjax.models.mlp import MLPConfig, MLPTrunk

TrunkConfig = ImpalaConfig | GridConfig | MLPConfig

LARGEST_GRID = 32  # cells per side; anything larger counts as an image

_MODULES = {ImpalaConfig: Impala, GridConfig: GridTrunk, MLPConfig: MLPTrunk}


def make_trunk(config: TrunkConfig, dtype: Any = jnp.float32) -> nn.Module:
    """The module for a config: ``[B, *obs_shape] -> [B, F]``, non-negative features."""
    return _MODULES[type(config)](config, dtype)


def is_grid(obs_shape: tuple[int, ...]) -> bool:
    """Whether observations are grids ``[H, W, C]``, not images."""
    return len(obs_shape) == 3 and max(obs_shape[:2]) <= LARGEST_GRID


def default_trunk(obs_shape: tuple[int, ...]) -> TrunkConfig:
    """The trunk for observations of a shape: images ``[H, W, C]``, grids (small images), or vectors ``[D]``."""
    if len(obs_shape) != 3:
        return MLPConfig()
    return GridConfig() if is_grid(obs_shape) else ImpalaConfig()
