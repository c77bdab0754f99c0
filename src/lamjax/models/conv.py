"""The convolution that LAPO's networks consist of, with a filter gradient that is fast on a CPU.

Dimension keys: B batch, H and W image size, I and O channels in and out.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Winograd's F(2 x 2, 3 x 3) ("Fast Algorithms for Convolutional Neural Networks", Lavin and Gray, arXiv 1509.09308): of
# the 4 x 4 pixels d that it sees, a 2 x 2 piece of the output is A' [(G k G') * (B' d B)] A.
_A = np.array([[1, 0], [1, 1], [1, -1], [0, -1]])
_B = np.array([[1, 0, 0, 0], [0, 1, -1, 1], [-1, 1, 1, 0], [0, 0, 0, -1]])
_G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2
# Below, XLA:CPU's own gradient is as fast, and takes less time to compile.
_SIZE, _CHANNELS = 8, 24


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of stride 1 that keeps the image's size: ``[B, H, W, I]`` and ``[h, w, I, O]`` to ``[B, H, W, O]``.

    On a CPU, `filter_gradient` is the gradient of large enough 3 x 3 ones in float32: the same up to rounding.
    """
    large = all(n >= _SIZE and n % 2 == 0 for n in x.shape[1:3]) and min(kernel.shape[2:]) >= _CHANNELS
    single = x.dtype == kernel.dtype == jnp.float32
    if jax.default_backend() == "cpu" and kernel.shape[:2] == (3, 3) and large and single:
        return _conv_on_cpu(x, kernel)
    return _conv(x, kernel)


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def _conv_on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _conv(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (of_x,) = jax.linear_transpose(lambda x: _conv(x, kernel), x)(g)
    # XLA would compute what x and g come from anew in each of the 32 transforms, but does not fuse into a conditional.
    # This one is true unless the kernel is NaN, and then so is the gradient.
    one = kernel[0, 0, 0, 0]
    of_kernel = jax.lax.cond(one == one, filter_gradient, lambda x, g: jnp.full(kernel.shape, jnp.nan), x, g)
    return of_x, of_kernel


_conv_on_cpu.defvjp(_forward, _backward)


def filter_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """The gradient of a 3 x 3 `conv` by its kernel, with 16 products for each 2 x 2 piece of the output instead of 36.

    ``G' [sum over pieces of (B' d B) * (A e A')] G``, d the 4 x 4 pixels of x that a piece sees and e the piece of g.

    Args:
      x: ``[B, H, W, I]``, H and W even.
      g: ``[B, H, W, O]``, the gradient by the output.

    Returns:
      ``[3, 3, I, O]``.
    """
    seen = _transformed(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), _B.T)
    given = _transformed(g, _A)
    # A product with more columns than rows is the faster one.
    wide = x.shape[-1] <= g.shape[-1]
    sums = [d.T @ e if wide else (e.T @ d).T for d, e in zip(seen, given, strict=True)]
    sums = jnp.stack(sums).reshape(4, 4, x.shape[-1], g.shape[-1])
    matrix = _G.astype(x.dtype)
    return jnp.einsum("pm,pqio,qn->mnio", matrix, sums, matrix)


def _transformed(image: jax.Array, matrix: np.ndarray) -> list[jax.Array]:
    """``matrix p matrix'`` of the square patches p at every second pixel: 16 arrays ``[patches, C]``, row by row."""
    size = matrix.shape[1]
    last = [n - size + 1 for n in image.shape[1:3]]  # where the last patch begins, and one
    rows = [image[:, i : i + last[0] : 2] for i in range(size)]
    down = [_combined(weights, rows) for weights in matrix]
    both = [
        _combined(weights, [part[:, :, j : j + last[1] : 2] for j in range(size)])
        for part in down
        for weights in matrix
    ]
    return [part.reshape(-1, image.shape[-1]) for part in both]


def _combined(weights: np.ndarray, arrays: list[jax.Array]) -> jax.Array:
    """The arrays' sum with weights of 1, 0 and -1, which cost no product."""
    signed = [array if weight > 0 else -array for weight, array in zip(weights, arrays, strict=True) if weight]
    return sum(signed[1:], signed[0])
