"""Layers with PyTorch's default initialisation, which LAPO uses everywhere: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

Kernels and biases share the bound. For a transposed convolution PyTorch counts the fan-in of the *output* channels.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def uniform_bound(fan_in: int):
    """An initializer U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """A linear layer ``[..., I] -> [..., O]`` with PyTorch's start."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer to the last axis."""
        init = uniform_bound(x.shape[-1])
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=init, bias_init=init, name="linear")(x)


class Conv(nn.Module):
    """A convolution ``[B, H, W, I] -> [B, H', W', O]`` with PyTorch's start; pads to keep the size by default."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Any = "SAME"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer."""
        init = uniform_bound(self.kernel_size[0] * self.kernel_size[1] * x.shape[-1])
        return nn.Conv(
            self.features,
            self.kernel_size,
            self.strides,
            padding=self.padding,
            dtype=self.dtype,
            kernel_init=init,
            bias_init=init,
            name="conv",
        )(x)


class ConvTranspose(nn.Module):
    """A transposed convolution whose stride is its kernel size, ``[B, H, W, I] -> [B, kH, kW, O]``."""

    features: int
    kernel_size: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer."""
        init = uniform_bound(self.kernel_size[0] * self.kernel_size[1] * self.features)
        return nn.ConvTranspose(
            self.features,
            self.kernel_size,
            self.kernel_size,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=init,
            bias_init=init,
            name="conv",
        )(x)
