"""Layers with PyTorch's default initialisation, which LAPO uses everywhere, and its batch normalisation.

Kernels and biases start at U(-1/sqrt(fan_in), 1/sqrt(fan_in)). For a transposed convolution PyTorch counts the fan-in
of the *output* channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lamjax import parallel
from lamjax.models.conv import conv


def uniform_bound(fan_in: int):
    """An initializer U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.Module):
    """A linear layer ``[..., I] -> [..., O]`` with PyTorch's initialisation."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer to the last axis."""
        init = uniform_bound(x.shape[-1])
        return nn.Dense(self.features, dtype=self.dtype, kernel_init=init, bias_init=init, name="linear")(x)


class _ConvWeights(nn.Module):
    """Kernel and bias with the names, and the random draws, of ``flax.linen.Conv`` and ``ConvTranspose``."""

    shape: tuple[int, int, int, int]
    start: Any

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        return self.param("kernel", self.start, self.shape), self.param("bias", self.start, self.shape[-1:])


class Conv(nn.Module):
    """A convolution ``[B, H, W, I] -> [B, H', W', O]`` with PyTorch's initialisation; by default it keeps the size."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Any = "SAME"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel, bias = _ConvWeights(shape, uniform_bound(math.prod(shape[:3])), name="conv")()
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.padding != "SAME" or self.strides != (1, 1):
            padding = [(self.padding,) * 2] * 2 if isinstance(self.padding, int) else self.padding
            x = jax.lax.conv_general_dilated(
                x, kernel, self.strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        elif all(2 * n - 1 <= k for n, k in zip(x.shape[1:3], self.kernel_size, strict=True)):
            x = _conv_of_few_pixels(x, kernel)
        else:
            x = conv(x, kernel)
        return _biased(x, bias)


def _biased(x: jax.Array, bias: jax.Array) -> jax.Array:
    """``x + bias`` in the type of x, ``[B, H, W, O]``; added in float32, because the bias' gradient sums all pixels."""
    return (x.astype(jnp.float32) + bias[None, None, None]).astype(x.dtype)


def _conv_of_few_pixels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A same-padded convolution where each pixel sees all others: one matrix product, with a tap for each pair.

    XLA:CPU has no fast convolution of such images: the four of LAPO's forward model on 2 x 2 pixels took a twelfth of a
    step of stage 1.
    """
    (h, w), (rows, columns) = x.shape[1:3], ((k - 1) // 2 for k in kernel.shape[:2])
    taps = jnp.stack(
        [
            jnp.stack([kernel[rows - i : rows - i + h, columns - j : columns - j + w] for j in range(w)])
            for i in range(h)
        ]
    )
    return jnp.einsum("bhwi,yxhwio->byxo", x, taps)


class TiledConv(nn.Module):
    """`Conv` of an image joined with a vector that is repeated at each pixel, without actually repeating it.

    It computes ``Conv(features, kernel_size)(concatenate([x, tile(v)], -1))``, with the same parameters and, up to
    rounding, the same result. What the vector adds to a pixel depends only on which taps fall outside the image: one
    product of v with each tap of the kernel, summed over the taps inside, replaces a convolution over Z channels.
    """

    features: int
    kernel_size: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """Maps ``[B, H, W, I]`` and ``[B, Z]`` to ``[B, H, W, O]``."""
        shape = (*self.kernel_size, x.shape[-1] + v.shape[-1], self.features)
        init = uniform_bound(math.prod(shape[:3]))
        kernel, bias = _ConvWeights(shape, init, name="conv")()
        x, v, kernel = x.astype(self.dtype), v.astype(self.dtype), kernel.astype(self.dtype)
        over_x, over_v = jnp.split(kernel, [x.shape[-1]], axis=2)
        rows, columns = (_inside(n, k, self.dtype) for n, k in zip(x.shape[1:3], self.kernel_size, strict=True))
        taps = jnp.einsum("bz,ijzo->bijo", v, over_v)
        constant = jnp.einsum("hi,wj,bijo->bhwo", rows, columns, taps)
        return _biased(conv(x, over_x) + constant, bias)


def _inside(size: int, kernel: int, dtype: Any) -> np.ndarray:
    """``[size, kernel]``, 1 where a tap of a same-padded convolution lies inside the image, else 0."""
    at = np.arange(size)[:, None] + np.arange(kernel)[None] - (kernel - 1) // 2
    return ((at >= 0) & (at < size)).astype(dtype)


class ConvTranspose(nn.Module):
    """A transposed convolution whose stride is its kernel size, ``[B, H, W, I] -> [B, kH, kW, O]``.

    Then pixels do not overlap, so it is one matrix product, and written as one: XLA:CPU takes ten times as long for the
    filter gradient of its own transposed convolution.
    """

    features: int
    kernel_size: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer."""
        b, h, w, channels = x.shape
        rows, columns = self.kernel_size
        init = uniform_bound(rows * columns * self.features)
        shape = (rows, columns, channels, self.features)
        kernel, bias = _ConvWeights(shape, init, name="conv")()
        # Flipped, as flax and XLA apply it.
        kernel = kernel.astype(self.dtype)[::-1, ::-1].transpose(2, 0, 1, 3).reshape(channels, -1)
        x = x.astype(self.dtype).reshape(-1, channels) @ kernel
        x = x.reshape(b, h, w, rows, columns, self.features).transpose(0, 1, 3, 2, 4, 5)
        return _biased(x.reshape(b, h * rows, w * columns, self.features), bias)


class BatchNorm(nn.Module):
    """Normalises each channel over batch and space, then scales and shifts it.

    Unlike ``flax.linen.BatchNorm``, and like PyTorch, it keeps a running average of the unbiased variance. Statistics
    are computed in two passes. All of it is float32; only the result is rounded to `dtype`.

    Attributes:
      momentum: share of the old running statistics that a training step keeps.
      epsilon: added to the variance.
      dtype: type of the result.
      axis_name: devices that share batch statistics.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps ``[B, H, W, C]`` to the same shape; `train` uses and updates batch statistics."""
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        size = x.size // x.shape[-1]
        x = x.astype(jnp.float32)
        if train:
            mean = parallel.pmean(x.mean((0, 1, 2)), self.axis_name)
            var = parallel.pmean(jnp.square(x - mean[None, None, None]).mean((0, 1, 2)), self.axis_name)
            if not self.is_initializing():
                count = parallel.psum(jnp.float32(size), self.axis_name)
                unbiased = var * count / jnp.maximum(count - 1, 1)
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        # The mean comes first: folding it into one shift would lose what it cancels. Nothing is rounded before the end,
        # because the gradient is a small difference of large sums, which intermediate rounding would spoil.
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return ((x - mean[None, None, None]) * factor[None, None, None] + bias[None, None, None]).astype(self.dtype)
