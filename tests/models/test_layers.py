import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.models.layers import BatchNorm, Conv, ConvTranspose, Dense, TiledConv, uniform_bound
from lamjax.training import driver


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in"),
    [
        pytest.param(Dense(60), (1, 50), 50, id="dense"),
        pytest.param(Conv(40, (3, 3)), (1, 4, 4, 12), 108, id="convolution"),
        pytest.param(Conv(300, (2, 2), padding="VALID"), (1, 4, 4, 5), 20, id="convolution 2 x 2"),
        pytest.param(ConvTranspose(24, (2, 2)), (1, 4, 4, 50), 96, id="transposed: 4 x 24 out, not 4 x 50 in"),
    ],
)
def test_kernel_and_bias_are_uniform_within_pytorchs_bound(layer, shape, fan_in):
    params = driver.jit_once(layer.init)(jax.random.key(0), jnp.zeros(shape))["params"]
    bound = fan_in**-0.5
    kernel, bias = (
        np.concatenate(
            [np.ravel(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if name in str(path)]
        )
        for name in ("kernel", "bias")
    )
    assert kernel.size > 2000
    for values in (kernel, bias):
        assert np.abs(values).max() <= bound
        # The largest of n uniform draws misses the bound by more than 10 / n once in e^10 times.
        assert np.abs(values).max() > bound * (1 - 10 / values.size)
        # Mean 0, variance bound^2 / 3, the fourth moment that of a uniform.
        assert abs(values.mean()) < 5 * bound / np.sqrt(3 * values.size)
    assert np.square(kernel).mean() == pytest.approx(bound**2 / 3, rel=0.1)
    assert (kernel**4).mean() == pytest.approx(bound**4 / 5, rel=0.2)


def test_transposed_convolution_by_hand():
    layer = ConvTranspose(1, (2, 2))
    x = jnp.array([[[[1.0], [10.0]]]])  # one row of two pixels
    kernel = jnp.array([[4.0, 3.0], [2.0, 1.0]])[:, :, None, None]
    out = layer.apply({"params": {"conv": {"kernel": kernel, "bias": jnp.array([0.5])}}}, x)
    # The weights are stored flipped, as lax.conv_transpose takes them: a pixel is spread as [[1, 2], [3, 4]].
    np.testing.assert_array_equal(out[0, :, :, 0], [[1.5, 2.5, 10.5, 20.5], [3.5, 4.5, 30.5, 40.5]])


def test_transposed_convolution_is_flaxs():
    x = jnp.array(np.random.default_rng(0).normal(size=(2, 3, 5, 4)), jnp.float32)
    layer = ConvTranspose(6, (2, 2))
    params = layer.init(jax.random.key(0), x)["params"]
    flaxs = nn.ConvTranspose(6, (2, 2), (2, 2), padding="VALID")
    out = layer.apply({"params": params}, x)
    assert out.shape == (2, 6, 10, 6)
    np.testing.assert_allclose(out, flaxs.apply({"params": params["conv"]}, x), atol=1e-5)

    def loss(apply, params, x):
        return jnp.sum(jnp.sin(apply({"params": params}, x)))

    ours, theirs = (
        jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)(apply, weights, x)
        for apply, weights in ((layer.apply, params), (flaxs.apply, params["conv"]))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), (ours[0]["conv"], ours[1]), theirs)


def test_transposed_convolution_starts_as_flaxs():
    class Flaxs(nn.Module):
        @nn.compact
        def __call__(self, x):
            start = uniform_bound(4 * 6)
            return nn.ConvTranspose(
                6, (2, 2), (2, 2), padding="VALID", kernel_init=start, bias_init=start, name="conv"
            )(x)

    key, x = jax.random.key(0), jnp.ones((1, 2, 2, 3))
    jax.tree.map(np.testing.assert_array_equal, ConvTranspose(6, (2, 2)).init(key, x), Flaxs().init(key, x))


def test_convolution_keeps_the_size_unless_told_otherwise():
    x = jnp.ones((1, 6, 6, 2))
    shape = {
        "SAME": Conv(3, (3, 3)),
        "VALID": Conv(3, (2, 2), padding="VALID"),
        "strided": Conv(3, (3, 3), strides=(2, 2), padding=1),
    }
    shape = {
        name: jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0].shape for name, layer in shape.items()
    }
    assert shape == {"SAME": (1, 6, 6, 3), "VALID": (1, 5, 5, 3), "strided": (1, 3, 3, 3)}


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 5)])
def test_a_convolution_over_a_tiled_vector_is_one_over_its_copies(kernel):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 4, 6, 2)), jnp.float32)
    v = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    joined = jnp.concatenate([x, jnp.broadcast_to(v[:, None, None], (3, 4, 6, 5))], axis=-1)
    plain, tiled = Conv(7, kernel), TiledConv(7, kernel)
    params = driver.jit_once(plain.init)(jax.random.key(0), joined)
    # The same names and draws, so that checkpoints and seeds mean the same.
    jax.tree.map(np.testing.assert_array_equal, params, driver.jit_once(tiled.init)(jax.random.key(0), x, v))

    def loss(apply, params, *inputs):
        return jnp.sum(jnp.sin(apply(params, *inputs)))

    np.testing.assert_allclose(tiled.apply(params, x, v), plain.apply(params, joined), atol=2e-6)
    over_joined = jax.grad(loss, argnums=(1, 2))(plain.apply, params, joined)
    over_params, over_x, over_v = jax.grad(loss, argnums=(1, 2, 3))(tiled.apply, params, x, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), over_params, over_joined[0])
    np.testing.assert_allclose(over_x, over_joined[1][..., :2], atol=2e-6)
    np.testing.assert_allclose(over_v, over_joined[1][..., 2:].sum((1, 2)), atol=2e-5)


def test_a_convolution_starts_as_flaxs_and_is_it():
    class Flaxs(nn.Module):
        @nn.compact
        def __call__(self, x):
            start = uniform_bound(9 * 5)
            return nn.Conv(4, (3, 3), kernel_init=start, bias_init=start, name="conv")(x)

    x = jnp.array(np.random.default_rng(0).normal(size=(2, 6, 8, 5)), jnp.float32)
    params = Conv(4, (3, 3)).init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, Flaxs().init(jax.random.key(0), x))
    np.testing.assert_allclose(Conv(4, (3, 3)).apply(params, x), Flaxs().apply(params, x), atol=1e-6)


@pytest.mark.parametrize(("size", "kernel"), [((2, 2), (3, 3)), ((1, 1), (3, 3)), ((1, 2), (3, 3)), ((2, 1), (4, 2))])
def test_a_convolution_of_few_pixels_is_flaxs(size, kernel):
    x = jnp.array(np.random.default_rng(0).normal(size=(3, *size, 5)), jnp.float32)
    layer, flaxs = Conv(4, kernel), nn.Conv(4, kernel)
    params = layer.init(jax.random.key(0), x)["params"]
    bound = uniform_bound(5 * kernel[0] * kernel[1])
    same = nn.Conv(4, kernel, kernel_init=bound, bias_init=bound, name="conv")

    class Parent(nn.Module):
        @nn.compact
        def __call__(self, x):
            return same.clone(parent=self)(x)

    jax.tree.map(np.testing.assert_array_equal, params, Parent().init(jax.random.key(0), x)["params"])

    def loss(layer, params, x):
        out = layer.apply({"params": params}, x)
        return jnp.sum(jnp.sin(out)), out

    ours, of_flax = (
        jax.value_and_grad(lambda p, x, layer=layer: loss(layer, p, x), argnums=(0, 1), has_aux=True)(p, x)
        for layer, p in ((layer, params), (flaxs, params["conv"]))
    )
    np.testing.assert_allclose(ours[0][1], of_flax[0][1], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours[1][0]["conv"], of_flax[1][0])
    np.testing.assert_allclose(ours[1][1], of_flax[1][1], atol=1e-5)
    assert "convolution" not in jax.jit(layer.apply).lower({"params": params}, x).as_text()


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(Conv(2, (3, 3), dtype=jnp.bfloat16), id="same"),
        pytest.param(Conv(2, (3, 3), strides=(2, 2), padding=1, dtype=jnp.bfloat16), id="strided"),
        pytest.param(ConvTranspose(2, (2, 2), dtype=jnp.bfloat16), id="transposed"),
    ],
)
def test_a_bias_in_bfloat16_hears_of_every_pixel(layer):
    """Each of n pixels adds 1 to the gradient; a sum in bfloat16 would stop growing at 256."""
    x = jnp.zeros((5, 32, 32, 3), jnp.bfloat16)
    params = driver.jit_once(layer.init)(jax.random.key(0), x)
    y, gradient = jax.jit(lambda p: jax.vjp(lambda p: layer.apply(p, x), p))(params)
    assert y.dtype == jnp.bfloat16
    (grads,) = gradient(jnp.ones_like(y))
    pixels = y.size // 2
    assert pixels >= 5 * 16 * 16
    np.testing.assert_array_equal(grads["params"]["conv"]["bias"], [pixels, pixels])


C = 3


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(4, 5, 6, C)) * [1, 3, 0.1] + [0, 5, -2]).astype(np.float32)


@pytest.fixture
def variables():
    params = {"scale": jnp.array([1.0, 2.0, 0.5]), "bias": jnp.array([0.0, -1.0, 3.0])}
    stats = {"mean": jnp.array([0.5, 1.0, 2.0]), "var": jnp.array([1.0, 4.0, 9.0])}
    return {"params": params, "batch_stats": stats}


def normalised(x, mean, var, params):
    return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(params["scale"]) + np.asarray(params["bias"])


def train(variables, x, axis_name=None):
    return BatchNorm(axis_name=axis_name).apply(variables, x, train=True, mutable=["batch_stats"])


def test_training_uses_the_batchs_statistics_and_keeps_unbiased_ones(x, variables):
    out, updated = train(variables, x)
    mean, var = x.mean((0, 1, 2), dtype=np.float64), x.var((0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(out, normalised(x, mean, var, variables["params"]), atol=1e-4)
    stats, n = variables["batch_stats"], 4 * 5 * 6
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.9 * stats["mean"] + 0.1 * mean, rtol=1e-5)
    unbiased = var * n / (n - 1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 * stats["var"] + 0.1 * unbiased, rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_moves_nothing(x, variables):
    out, updated = BatchNorm().apply(variables, x, train=False, mutable=["batch_stats"])
    stats = variables["batch_stats"]
    expected = normalised(x, np.asarray(stats["mean"]), np.asarray(stats["var"]), variables["params"])
    np.testing.assert_allclose(out, expected, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], stats)


@pytest.mark.parametrize("mode", [True, False])
def test_starts_as_the_identity_of_new_statistics(x, mode):
    variables = BatchNorm().init(jax.random.key(0), x, train=mode)
    for collection, values in (("params", {"scale": 1, "bias": 0}), ("batch_stats", {"mean": 0, "var": 1})):
        for name, value in values.items():
            np.testing.assert_array_equal(variables[collection][name], np.full(C, value))
    np.testing.assert_allclose(BatchNorm().apply(variables, x, train=False), x, rtol=1e-4)


def test_two_devices_normalise_as_one_does_on_the_joined_batch(x, variables):
    x = x + np.arange(4, dtype=np.float32)[:, None, None, None]  # the devices' means differ
    weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)

    def loss(variables, x, weight, axis_name=None):
        out, updated = train(variables, x, axis_name)
        return jnp.sum(out * weight), (out, updated)

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (by_variables, by_x), (out, updated) = gradient(variables, x, weight)
    halves = [v.reshape(2, 2, *v.shape[1:]) for v in (x, weight)]
    on_each = jax.pmap(functools.partial(gradient, axis_name="devices"), axis_name="devices", in_axes=(None, 0, 0))
    (parts_by_variables, parts_by_x), (parts, parts_updated) = on_each(variables, *halves)
    np.testing.assert_allclose(parts.reshape(out.shape), out, atol=1e-4)
    np.testing.assert_allclose(parts_by_x.reshape(x.shape), by_x, atol=1e-3)
    for name in ("scale", "bias"):
        np.testing.assert_allclose(
            parts_by_variables["params"][name].sum(0), by_variables["params"][name], rtol=1e-4, atol=1e-3
        )
    for device in range(2):
        for name in ("mean", "var"):
            np.testing.assert_allclose(
                parts_updated["batch_stats"][name][device], updated["batch_stats"][name], rtol=1e-4
            )


def test_statistics_stay_float32_under_bfloat16(x, variables):
    out, updated = BatchNorm(dtype=jnp.bfloat16).apply(
        variables, x.astype(jnp.bfloat16), train=True, mutable=["batch_stats"]
    )
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    # Of 120 equal bfloat16 values the mean is exact; summed in bfloat16 it would not be.
    constant = jnp.full((4, 5, 6, C), 1.0078125, jnp.bfloat16)
    _, updated = BatchNorm(dtype=jnp.bfloat16).apply(variables, constant, train=True, mutable=["batch_stats"])
    expected = 0.9 * variables["batch_stats"]["mean"] + 0.1 * 1.0078125
    np.testing.assert_allclose(updated["batch_stats"]["mean"], expected, rtol=1e-6)


def test_the_gradient_in_bfloat16_is_that_of_float32():
    """The norm takes off a gradient's mean and its part along x: what is left must not be the rounding of these."""
    rng = np.random.default_rng(1)
    x = (3 + rng.normal(size=(4, 16, 16, C))).astype(jnp.bfloat16)
    g = (5 + rng.normal(size=x.shape)).astype(jnp.bfloat16)  # most of it is its mean

    def gradient(dtype):
        module = BatchNorm(dtype=dtype)
        variables = module.init(jax.random.key(0), x, train=False)

        def output(params, x):
            return module.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])[0]

        _, pull = jax.vjp(output, variables["params"], x.astype(dtype))
        params, at_x = pull(g.astype(dtype))
        return np.asarray(at_x, np.float64), np.asarray(params["bias"])

    (half, half_bias), (exact, exact_bias) = gradient(jnp.bfloat16), gradient(jnp.float32)
    assert np.linalg.norm(half - exact) < 0.005 * np.linalg.norm(exact)
    np.testing.assert_allclose(half_bias, exact_bias, rtol=1e-6)
