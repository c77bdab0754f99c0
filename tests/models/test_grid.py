import jax
import jax.numpy as jnp
import numpy as np

from lamjax.models.fdm import make_fdm
from lamjax.models.grid import GridConfig, GridFDMConfig, GridTrunk, patches
from lamjax.models.mlp import MLPFDMConfig
from lamjax.models.trunk import make_trunk
from lamjax.training import driver


def grids(*shape):
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)


def test_a_product_over_patches_is_a_convolution():
    x, kernel = grids(2, 5, 7, 3), grids(3, 3, 3, 4)
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(patches(x) @ kernel.reshape(27, 4), expected, atol=1e-5)


def test_trunk_has_impalas_parts():
    module = make_trunk(GridConfig(channels=(4, 5), hidden=(6,), features=7))
    assert isinstance(module, GridTrunk)
    x = grids(3, 5, 5, 2)
    params = driver.jit_once(module.init)(jax.random.key(0), x)["params"]
    assert set(params) == {"convs", "fc"}
    assert params["convs"]["Dense_1"]["linear"]["kernel"].shape == (36, 5)
    assert params["convs"]["Dense_2"]["linear"]["kernel"].shape == (5 * 5 * 5, 6)
    features = module.apply({"params": params}, x)
    convs = module.apply({"params": params}, x, method=lambda m, x: m.convs(x))
    assert features.shape == (3, 7) and convs.shape == (3, 6)
    assert (np.asarray(convs) >= 0).all() and (np.asarray(features) >= 0).all() and np.asarray(features).any()


def test_an_empty_grid_is_zero_to_the_first_layer():
    module = make_trunk(GridConfig(channels=(), hidden=(6,), features=7))
    empty = np.full((1, 4, 4, 2), -0.5, np.float32)
    params = driver.jit_once(module.init)(jax.random.key(0), empty)["params"]
    convs = module.apply({"params": params}, empty, method=lambda m, x: m.convs(x))
    np.testing.assert_allclose(convs[0], np.maximum(params["convs"]["Dense_0"]["linear"]["bias"], 0), atol=1e-6)


def check_fdm(config, shape):
    """Starts as o_t; afterwards both frames and the latent matter; returns module and parameters."""
    channels = shape[-1]
    module = make_fdm(config, channels)
    frames, latent = grids(2, *shape[:-1], 2 * channels), grids(2, 6)
    start = driver.jit_once(module.init)(jax.random.key(0), frames, latent)
    assert set(start) == {"params"}
    np.testing.assert_allclose(module.apply(start, frames, latent), frames[..., channels:])
    keys = iter(jax.random.split(jax.random.key(1), 100))
    moved = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), start)
    predicted = np.asarray(module.apply(moved, frames, latent, train=True))
    assert predicted.shape == (2, *shape) and predicted.dtype == np.float32
    earlier = np.concatenate([frames[..., :channels] + 1, frames[..., channels:]], -1)
    for changed in (module.apply(moved, frames, latent + 1), module.apply(moved, earlier, latent)):
        assert (np.abs(np.asarray(changed) - predicted).max(-1) > 1e-4).all()
    return module, moved, frames, latent


def test_grid_forward_model_sees_as_far_as_it_says():
    module, params, frames, latent = check_fdm(GridFDMConfig(channels=8, blocks=1), (9, 9, 2))
    touched = frames.copy()
    touched[:, 4, 4] += 1
    differs = np.abs(module.apply(params, touched, latent) - module.apply(params, frames, latent)).max((0, 3)) > 1e-6
    expected = np.zeros((9, 9), bool)
    expected[2:7, 2:7] = True  # 2 * blocks + 3 cells of a side
    np.testing.assert_array_equal(differs, expected)


def test_vector_forward_model():
    check_fdm(MLPFDMConfig(hidden=(8, 8)), (5,))


def test_bfloat16_activations_give_float32():
    for config, shape in ((GridFDMConfig(4, 1), (4, 4, 2)), (MLPFDMConfig((4,)), (2,))):
        module = make_fdm(config, 2, jnp.bfloat16)
        frames = grids(1, *shape[:-1], 4)
        out = jax.eval_shape(lambda m=module, f=frames: m.init_with_output(jax.random.key(0), f, grids(1, 3))[0])
        assert out.dtype == jnp.float32
