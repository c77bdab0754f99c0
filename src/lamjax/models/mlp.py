"""Multilayer perceptrons: the decoders of latent actions, and the trunk for vector observations."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lamjax.models.init import Dense


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Sizes of a trunk for vector observations.

    Attributes:
      hidden: widths of the layers before the last.
      features: width F of the last.
    """

    hidden: tuple[int, ...] = (256,)
    features: int = 256


class MLP(nn.Module):
    """Linear layers with ReLU between them, none after the last."""

    sizes: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[B, I]`` to ``[B, sizes[-1]]``."""
        for size in self.sizes[:-1]:
            x = nn.relu(Dense(size, dtype=self.dtype)(x))
        return Dense(self.sizes[-1], dtype=self.dtype)(x)


class MLPTrunk(nn.Module):
    """Vectors ``[B, I]`` to features ``[B, F]``, non-negative."""

    config: MLPConfig
    dtype: Any = jnp.float32

    def setup(self):
        """Names the two parts as `Impala` does."""
        self.convs = MLP(self.config.hidden, self.dtype)
        self.fc = Dense(self.config.features, dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the trunk."""
        return nn.relu(self.fc(nn.relu(self.convs(x.reshape(x.shape[0], -1)))))
