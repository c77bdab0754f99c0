import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.models.norm import BatchNorm

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
    return BatchNorm().apply(variables, x, train=True, axis_name=axis_name, mutable=["batch_stats"])


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
