"""The convolution of LAPO's networks, made fast on each backend: on a CPU by Winograd's algorithm.

Dimension keys: B batch, H and W image size, I and O channels in and out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Winograd's F(4, 3) ("Fast Algorithms for Convolutional Neural Networks", Lavin and Gray, arXiv 1509.09308): 4 pixels
# of the output are A' [(G k) * (B d)] of the 6 pixels d that they see, 6 products instead of 12. A and G evaluate
# polynomials of 4 and 3 coefficients at 5 points and at infinity, B is Lagrange's interpolation, transposed. With these
# points fewer digits are lost than with whole numbers.
_POINTS = np.array([0, 1, -1, 2, -2]) * 0.5**0.5
_OTHERS = [np.delete(_POINTS, i) for i in range(len(_POINTS))]
_SCALES = [np.prod(point - others) for point, others in zip(_POINTS, _OTHERS, strict=True)]
_A = np.vstack([np.vander(_POINTS, 4, increasing=True), [0, 0, 0, 1]])
_G = np.vstack([np.vander(_POINTS, 3, increasing=True) / np.array(_SCALES)[:, None], [0, 0, 1]])
_B = np.vstack([[*np.poly(others)[::-1], 0] for others in _OTHERS] + [np.poly(_POINTS)[::-1]]).round(12)
_STEP = _A.shape[1]
# XLA:CPU's own convolutions are as fast on smaller images and with fewer channels, and they compile sooner.
_SIZE, _WIDE, _THIN = 8, 24, 12
_WHOLE = 8  # bfloat16 channels in 16 bytes, which a GPU loads at once


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of stride 1 that keeps the image's size: ``[B, H, W, I]`` and ``[h, w, I, O]`` to ``[B, H, W, O]``.

    On a CPU, sufficiently large 3 x 3 convolutions in float32 and both of their gradients use `by_rows` and
    `filter_gradient`, with the same result up to rounding.
    """
    thin, wide = sorted(kernel.shape[2:])
    large = thin >= _THIN and wide >= _WIDE and all(n >= _SIZE and n % _STEP == 0 for n in x.shape[1:3])
    single = x.dtype == kernel.dtype == jnp.float32
    if jax.default_backend() == "cpu" and kernel.shape[:2] == (3, 3) and large and single:
        return _conv_on_cpu(x, kernel)
    if jax.default_backend() == "gpu" and x.dtype == jnp.bfloat16:
        return padded(x, kernel)
    return _conv(x, kernel)


def padded(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv`, exactly, with channels that zeros pad to whole multiples of 8, which a GPU's matrix units need.

    XLA does so itself only if the array grows by less than a third, so not for the 3, 6 or 9 channels of frames.
    """
    more_in, more_out = (-channels % _WHOLE for channels in kernel.shape[2:])
    y = _conv(
        jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more_in))),
        jnp.pad(kernel, ((0, 0), (0, 0), (0, more_in), (0, more_out))),
    )
    return y[..., : kernel.shape[3]]


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def _conv_on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return unfused(by_rows, x, kernel) if min(kernel.shape[2:]) >= _WIDE else _conv(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv_on_cpu(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return _conv_on_cpu(g, kernel[::-1, ::-1].swapaxes(2, 3)), filter_gradient(x, g)


_conv_on_cpu.defvjp(_forward, _backward)


def by_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3 x 3 `conv` by convolutions of 1 x 3 pixels: 6 for each 4 rows of the output instead of 12.

    Args:
      x: ``[B, H, W, I]``, H a multiple of 4.
      kernel: ``[3, 3, I, O]``.

    Returns:
      ``[B, H, W, O]``.
    """
    inputs = _transformed(_B, x, axis=1)
    taps = jnp.einsum("ph,hwio->pwio", _G.astype(x.dtype), kernel)
    products = [_conv(rows, tap[None]) for rows, tap in zip(inputs, taps, strict=True)]
    return jnp.stack([_combined(weights, products) for weights in _A.T], 2).reshape(*x.shape[:3], -1)


def filter_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """The gradient of a 3 x 3 `conv` with respect to its kernel, with 36 products per 4 x 4 pixels instead of 144.

    ``G' [sum over pieces of (B d B') * (A e A')] G``, e a piece of g and d the 6 x 6 pixels of x that it saw.

    Args:
      x: ``[B, H, W, I]``, H and W multiples of 4.
      g: ``[B, H, W, O]``, the gradient with respect to the output.

    Returns:
      ``[3, 3, I, O]``.
    """
    x_rows, g_rows = unfused(lambda x, g: (_transformed(_B, x, 1), _transformed(_A, g, 1)), x, g)
    inputs = [pixels.reshape(-1, x.shape[-1]) for rows in x_rows for pixels in _transformed(_B, rows, 2)]
    gradients = [pixels.reshape(-1, g.shape[-1]) for rows in g_rows for pixels in _transformed(_A, rows, 2)]
    # A product with more columns than rows is the faster one.
    wide = x.shape[-1] <= g.shape[-1]
    sums = [d.T @ e if wide else (e.T @ d).T for d, e in zip(inputs, gradients, strict=True)]
    gradient = jnp.asarray(np.kron(_G, _G).T, x.dtype) @ jnp.stack(sums).reshape(len(sums), -1)
    return gradient.reshape(3, 3, x.shape[-1], g.shape[-1])


def _transformed(matrix: np.ndarray, image: jax.Array, axis: int) -> list[jax.Array]:
    """``matrix p`` for an axis' pieces p of 4 pixels, or 6 with one to each side: one array per row of the matrix."""
    pieces = [jax.lax.slice_in_dim(image, i, None, _STEP, axis) for i in range(_STEP)]
    if matrix.shape[1] > _STEP:
        pieces = [_shifted(pieces[-1], 1, axis), *pieces, _shifted(pieces[0], -1, axis)]
    return [_combined(weights, pieces) for weights in matrix]


def _shifted(image: jax.Array, by: int, axis: int) -> jax.Array:
    """The image, moved along an axis; zeros come in."""
    edges = [(by, -by, 0) if axis == other else (0, 0, 0) for other in range(image.ndim)]
    return jax.lax.pad(image, image.dtype.type(0), edges)


def _combined(weights: np.ndarray, arrays: list[jax.Array]) -> jax.Array:
    """The arrays' weighted sum, without those that have no weight."""
    terms = [a * a.dtype.type(w) for w, a in zip(weights, arrays, strict=True) if w]
    return sum(terms[1:], terms[0])


def unfused(function: Callable[..., Any], *args: jax.Array) -> Any:
    """``function(*args)``, on a CPU kept apart from its surroundings, and NaN if the last argument begins with NaN.

    XLA:CPU recomputes the arguments in each loop that reads them, however many loops there are. It does not fuse into a
    conditional (and ignores `jax.lax.optimization_barrier`). It cannot know that this condition is always true, unless
    the training is lost.

    Args:
      function: of arrays, to arrays of floats in any tree.
      *args: not empty, the last one floats.
    """
    if jax.default_backend() != "cpu":
        return function(*args)
    first = args[-1].ravel()[0]
    results = jax.eval_shape(function, *args)

    def lost(*args: jax.Array) -> Any:
        # Not a constant: `jax.shard_map` wants both branches to vary over the same devices.
        nan = sum(arg.ravel()[0] for arg in args)
        return jax.tree.map(lambda result: jnp.full(result.shape, nan, result.dtype), results)

    return jax.lax.cond(first == first, function, lost, *args)
