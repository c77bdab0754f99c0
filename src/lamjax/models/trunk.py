"""Trunks by the shape of the observation: IMPALA for images, a multilayer perceptron for vectors."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lamjax.models.impala import Impala, ImpalaConfig
from lamjax.models.mlp import MLPConfig, MLPTrunk

TrunkConfig = ImpalaConfig | MLPConfig


def make_trunk(config: TrunkConfig, dtype: Any = jnp.float32) -> nn.Module:
    """The module of a config: ``[B, *obs_shape] -> [B, F]``, non-negative features."""
    if isinstance(config, ImpalaConfig):
        return Impala(config, dtype)
    return MLPTrunk(config, dtype)
