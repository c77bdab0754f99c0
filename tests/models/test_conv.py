import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lamjax import parallel
from lamjax.models.conv import by_rows, conv, filter_gradient, padded, unfused
from tests.trees import close

LARGE = ((2, 8, 12, 24), (3, 3, 24, 32))


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def flaxs(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolutions(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("conv_general_dilated[")


def taps(x):
    """In double precision, the image under each tap of a 3 x 3 kernel: ``[3, 3, B, H, W, I]``."""
    framed, (h, w) = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0))), x.shape[1:3]
    return np.array([[framed[:, i : i + h, j : j + w] for j in range(3)] for i in range(3)])


def test_rows_by_hand():
    # One pixel, in the second row and the third column: the output around it is the kernel, turned by half.
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2, 0].set(2.0)
    kernel = jnp.arange(1.0, 10).reshape(3, 3, 1, 1)
    expected = [[0, 18, 16, 14], [0, 12, 10, 8], [0, 6, 4, 2], [0, 0, 0, 0]]
    np.testing.assert_allclose(by_rows(x, kernel)[0, ..., 0], expected, atol=1e-5)


def test_filter_gradient_by_hand():
    # One pixel, in the second row and the first column: the output's pixel (i, j) sees it by the kernel's tap
    # (2 - i, 1 - j), counted from 0, and those at j = 1 by the tap in column 0.
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 0, 0].set(10.0)
    g = jnp.zeros((1, 4, 4, 1)).at[0, :2, :2, 0].set(jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_allclose(filter_gradient(x, g)[..., 0, 0], [[0, 0, 0], [40, 30, 0], [20, 10, 0]], atol=1e-4)


SIZES = [((4, 8), (3, 5)), ((4, 4), (1, 1)), ((8, 4), (5, 2)), ((32, 32), (32, 16))]


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_rows_are_the_sum_of_products_by_tap(size, channels):
    x, kernel = drawn((3, *size, channels[0]), (3, 3, *channels))
    exact = np.einsum("mnbhwi,mnio->bhwo", taps(x), kernel)
    assert np.abs(by_rows(x, kernel) - exact).max() / np.abs(exact).max() < 2e-6  # XLA's own: 3e-7 at 32 x 32


@pytest.mark.parametrize(("size", "channels"), SIZES)
def test_filter_gradient_is_the_sum_of_products_by_tap(size, channels):
    x, g = drawn((3, *size, channels[0]), (3, *size, channels[1]))
    exact = np.einsum("mnbhwi,bhwo->mnio", taps(x), g)
    assert np.abs(filter_gradient(x, g) - exact).max() / np.abs(exact).max() < 4e-6  # XLA's own: 4e-7 at 32 x 32


@pytest.mark.parametrize("axes", [None, (0, None), (0, 0)])
def test_gradients_are_those_of_the_plain_convolution(axes):
    x, kernel = drawn(*LARGE)
    kernel /= 15
    if axes:
        x = jnp.stack([x, 2 * x, x - 1])
        kernel = jnp.stack([kernel, -kernel, kernel / 2]) if axes[1] == 0 else kernel

    def gradients(convolve):
        of_one = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel))), argnums=(0, 1))
        return jax.jit(jax.vmap(of_one, in_axes=axes) if axes else of_one)(x, kernel)

    jax.tree.map(
        lambda ours, plain: np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4),
        gradients(conv),
        gradients(flaxs),
    )


def test_devices_convolve_their_own_images():
    x, kernel = drawn(*LARGE)
    kernel /= 15

    def gradients(x, kernel, axis_name=None):
        loss = lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel)))  # noqa: E731
        by_x, by_kernel = jax.grad(loss, argnums=(0, 1))(x, parallel.vary(kernel, axis_name))
        return conv(x, kernel), by_x, parallel.psum(by_kernel, axis_name)

    mesh = Mesh(jax.local_devices()[:2], ("devices",))
    on_devices = jax.shard_map(
        functools.partial(gradients, axis_name="devices"),
        mesh=mesh,
        in_specs=(P("devices"), P()),
        out_specs=(P("devices"), P("devices"), P()),
    )
    close(jax.jit(on_devices)(x, kernel), jax.jit(gradients)(x, kernel), rtol=1e-4, atol=1e-4)


def test_only_large_convolutions_in_single_precision_take_the_other_way():
    def backward(x, kernel):
        return jax.grad(lambda *args: conv(*args).sum(), argnums=(0, 1))(x, kernel)

    x, kernel = drawn(*LARGE)
    assert convolutions(conv, x, kernel) == 6
    assert convolutions(backward, x, kernel) == 12  # none in the filter gradient
    between = x[..., :12], kernel[:, :, :12]
    assert convolutions(conv, *between) == 1
    assert convolutions(backward, *between) == 2
    few, odd, tall = (x[:, :4, :4], kernel), (x[:, :, :10], kernel), (x, jnp.ones((5, 3, 24, 32)))
    half, thin = (x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)), (x[..., :8], kernel[:, :, :8])
    for args in (few, odd, tall, half, thin):
        assert convolutions(conv, *args) == 1
        assert convolutions(backward, *args) == 3


def test_what_is_not_a_number_stays_so():
    x, kernel = drawn(*LARGE)
    gradients = jax.grad(lambda x, kernel: conv(x, kernel).sum(), argnums=(0, 1))
    for array in (conv(x, kernel), *gradients(x, kernel)):
        assert np.isfinite(array).all()
    lost = jnp.full_like(kernel, jnp.nan)
    for array in (conv(x, lost), gradients(x, lost)[0], gradients(x * jnp.nan, kernel)[1]):
        assert np.isnan(array).all()


@pytest.mark.parametrize("channels", [(9, 64), (30, 24), (24, 3), (8, 16)])
def test_padded_channels_change_nothing(channels):
    x, kernel = drawn((2, 6, 6, channels[0]), (3, 3, *channels))
    np.testing.assert_allclose(padded(x, kernel), conv(x, kernel), rtol=1e-5, atol=1e-4)
    gradients = [
        jax.grad(lambda *args, f=function: jnp.sum(jnp.sin(f(*args))), argnums=(0, 1))(x, kernel)
        for function in (padded, conv)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), *gradients)
    inside = str(jax.make_jaxpr(padded)(x, kernel))
    whole = [-(-n // 8) * 8 for n in channels]
    assert f"f32[2,6,6,{whole[1]}] = conv_general_dilated" in inside and f"f32[3,3,{whole[0]},{whole[1]}]" in inside


def both(x, y):
    return {"sum": x + y, "products": [x * 2.0, y[:1] * 3]}


X, Y = jnp.array([1, 2, 3]), jnp.array([0.5, 1.0, 1.5])


def over_last(function):
    return jax.vmap(lambda x, y: function(x, y[None]), in_axes=(None, 0))


@pytest.mark.parametrize("outer", [lambda function: function, jax.jit, over_last])
def test_results_are_the_functions(outer):
    found = outer(lambda x, y: unfused(both, x, y))(X, Y)
    jax.tree.map(np.testing.assert_array_equal, found, outer(both)(X, Y))


def test_a_last_argument_that_begins_with_nan_gives_nan():
    for array in jax.tree.leaves(unfused(lambda x, y: {"sum": x + y, "double": 2.0 * x}, X, Y.at[0].set(jnp.nan))):
        assert np.isnan(array).all()
    np.testing.assert_array_equal(unfused(jnp.add, X, Y.at[1].set(jnp.nan)), [1.5, np.nan, 4.5])


def test_xla_does_not_compute_the_arguments_in_each_loop():
    def sums(y):
        return [y[i:] + y[: 8 - i] for i in range(1, 8)]

    def sines(function):
        return jax.jit(lambda x: function(jnp.sin(x))).lower(jnp.ones(8)).compile().as_text().count(" sine(")

    assert sines(lambda y: unfused(sums, y)) <= 2  # of the argument, and of the number that says whether it is NaN
    assert sines(sums) > 2
