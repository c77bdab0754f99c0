"""Batch normalisation with PyTorch's statistics, which can be shared over devices."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lamjax import parallel


class BatchNorm(nn.Module):
    """Normalises each channel over batch and space, then scales and shifts it.

    Differs from ``flax.linen.BatchNorm`` in what PyTorch does: the running variance is the unbiased one. Statistics
    are computed in two passes. All of it is float32; only the result is rounded to `dtype`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, axis_name: str | None = None) -> jax.Array:
        """Maps ``[B, H, W, C]`` to the same shape; `train` uses and updates batch statistics."""
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        size = x.size // x.shape[-1]
        x = x.astype(jnp.float32)
        if train:
            mean = parallel.pmean(x.mean((0, 1, 2)), axis_name)
            var = parallel.pmean(jnp.square(x - mean[None, None, None]).mean((0, 1, 2)), axis_name)
            if not self.is_initializing():
                count = parallel.psum(jnp.float32(size), axis_name)
                unbiased = var * count / jnp.maximum(count - 1, 1)
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        # The mean goes first: folding it into one shift would lose what it cancels. Nothing is rounded before the end:
        # the gradient is a small difference of large sums, which a rounding on the way would spoil.
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return ((x - mean[None, None, None]) * factor[None, None, None] + bias[None, None, None]).astype(self.dtype)
