"""Multilayer perceptrons: the decoders of latent actions, and the trunk and forward model for vector observations."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lamjax.checks import check_fields
from lamjax.models.layers import Dense


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Sizes of a trunk for vector observations.

    Attributes:
      hidden: widths of the layers before the last.
      features: width F of the last layer.
    """

    convolves: ClassVar[bool] = False  # see `lamjax.training.driver`

    hidden: tuple[int, ...] = (256,)
    features: int = 256

    def __post_init__(self):
        check_fields(self, "trunk", at_least_1=("hidden", "features"), not_empty=("hidden",))


@dataclasses.dataclass(frozen=True)
class MLPFDMConfig:
    """Sizes of a forward model for vector observations.

    Attributes:
      hidden: widths of the hidden layers.
    """

    convolves: ClassVar[bool] = False

    hidden: tuple[int, ...] = (256, 256)

    def __post_init__(self):
        check_fields(self, "fdm", at_least_1=("hidden",), not_empty=("hidden",))


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


class MLPFDM(nn.Module):
    """A forward model for vectors ``[D]`` that predicts their change."""

    config: MLPFDMConfig
    out_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, latent: jax.Array, *, train: bool = False) -> jax.Array:
        """Predicts o_{t+1}; see `UNet`. It has no batch statistics, so `train` changes nothing.

        Args:
          frames: float32 ``[B, (k + 1) D]``, o_{t-k} to o_t joined.
          latent: float32 ``[B, Z]``.
          train: as for `UNet`.

        Returns:
          float32 ``[B, D]``, which starts as o_t.
        """
        x = nn.relu(MLP(self.config.hidden, self.dtype)(jnp.concatenate([frames, latent], -1).astype(self.dtype)))
        zero = nn.initializers.zeros
        change = nn.Dense(self.out_channels, kernel_init=zero, bias_init=zero, name="head_change")(x)
        return frames[..., -self.out_channels :] + change.astype(jnp.float32)
