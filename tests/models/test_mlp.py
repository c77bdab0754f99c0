import jax
import jax.numpy as jnp
import numpy as np

from lamjax.models.mlp import MLP, MLPConfig, MLPTrunk
from lamjax.training import driver


def linear(params, x):
    return x @ np.asarray(params["linear"]["kernel"]) + np.asarray(params["linear"]["bias"])


def test_mlp_rectifies_between_its_layers_and_not_after_the_last():
    module = MLP((6, 5, 4))
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    params = driver.jit_once(module.init)(jax.random.key(0), x)["params"]
    layers = [params[name] for name in sorted(params)]
    h = np.maximum(linear(layers[1], np.maximum(linear(layers[0], x), 0)), 0)
    out = module.apply({"params": params}, x)
    np.testing.assert_allclose(out, linear(layers[2], h), atol=1e-5)
    assert (out < 0).any()


def test_decoders_have_the_papers_sizes():
    def count(sizes):
        params = jax.eval_shape(MLP(sizes).init, jax.random.key(0), jnp.zeros((1, 128)))
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    assert count((192, 128, 64, 15)) == 58_703


def test_trunk_has_impalas_parts():
    module = MLPTrunk(MLPConfig(hidden=(6, 5), features=4))
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    params = driver.jit_once(module.init)(jax.random.key(0), x)["params"]
    assert set(params) == {"convs", "fc"}
    h = np.maximum(MLP((6, 5)).apply({"params": params["convs"]}, x), 0)
    out = module.apply({"params": params}, x)
    np.testing.assert_allclose(out, np.maximum(linear(params["fc"], h), 0), atol=1e-5)
    # Observations of any shape are flattened.
    np.testing.assert_allclose(module.apply({"params": params}, x.reshape(7, 1, 3)), out, atol=1e-6)
