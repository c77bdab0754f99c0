import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.models.conv import conv, filter_gradient

LARGE = ((2, 8, 10, 24), (3, 3, 24, 32))


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def flaxs(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolutions(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("conv_general_dilated[")


def test_filter_gradient_by_hand():
    # One pixel, in the second row and the first column of a 2 x 2 image: the output's pixel (i, j) sees it by the
    # kernel's tap (2 - i, 1 - j), counted from 0, and those at j = 1 by the tap in column 0.
    x = jnp.zeros((1, 2, 2, 1)).at[0, 1, 0, 0].set(10.0)
    g = jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    np.testing.assert_allclose(filter_gradient(x, g)[..., 0, 0], [[0, 0, 0], [40, 30, 0], [20, 10, 0]], atol=1e-5)


@pytest.mark.parametrize(
    ("size", "channels"),
    [((4, 6), (3, 5)), ((2, 2), (1, 1)), ((8, 2), (5, 2)), ((32, 32), (32, 16))],
)
def test_filter_gradient_is_the_sum_of_products_by_tap(size, channels):
    x, g = drawn((3, *size, channels[0]), (3, *size, channels[1]))
    padded, (h, w) = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0))), size
    taps = [[np.einsum("bhwi,bhwo->io", padded[:, i : i + h, j : j + w], g) for j in range(3)] for i in range(3)]
    found = np.abs(filter_gradient(x, g) - np.array(taps)).max() / np.abs(taps).max()
    assert found < 2e-6  # XLA's own: 2e-6 at 32 x 32


@pytest.mark.parametrize("outer", [jax.jit, lambda f: jax.vmap(f, in_axes=(0, None))])
def test_gradients_are_those_of_the_plain_convolution(outer):
    x, kernel = drawn(*LARGE)
    x = jnp.stack([x, 2 * x, x - 1])

    def loss(convolve, x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel)))

    if outer is jax.jit:
        x = x[0]
    ours, plain = (outer(jax.grad(lambda x, k, f=f: loss(f, x, k), argnums=(0, 1)))(x, kernel) for f in (conv, flaxs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, plain)


def test_only_large_convolutions_in_single_precision_take_the_other_way():
    def backward(x, kernel):
        return jax.grad(lambda *args: conv(*args).sum(), argnums=(0, 1))(x, kernel)

    x, kernel = drawn(*LARGE)
    assert convolutions(conv, x, kernel) == 1
    assert convolutions(backward, x, kernel) == 2  # not the filter gradient
    few, odd, tall = (x[:, :4, :4], kernel), (x[:, :, :9], kernel), (x, jnp.ones((5, 3, 24, 32)))
    half, thin = (x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)), (x[..., :8], kernel[:, :, :8])
    for args in (few, odd, tall, half, thin):
        assert convolutions(backward, *args) == 3


def test_a_kernel_that_is_not_a_number_has_no_gradient():
    x, kernel = drawn(*LARGE)
    gradient = jax.grad(lambda kernel: conv(x, kernel).sum())
    assert np.isfinite(gradient(kernel)).all()
    assert np.isnan(gradient(jnp.full_like(kernel, jnp.nan))).all()
