import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.models.impala import (
    Impala,
    ImpalaConfig,
    ImpalaConvs,
    ResidualBlock,
    depth_to_space,
    max_pool,
    pad_to_multiple,
    space_to_depth,
)
from lamjax.models.mlp import MLPConfig, MLPTrunk
from lamjax.models.trunk import make_trunk
from lamjax.training import driver


def image(values):
    return jnp.array(values, jnp.float32)[None, :, :, None]


def pooled_by_hand(x, window, stride):
    """PyTorch's ``max_pool2d`` with padding ``window // 2``, or none where windows do not overlap."""
    pad = window // 2 if window > stride else 0
    b, h, w, c = x.shape
    padded = np.full((b, h + 2 * pad, w + 2 * pad, c), -np.inf, np.float32)
    padded[:, pad : pad + h, pad : pad + w] = x
    rows, columns = ((size + 2 * pad - window) // stride + 1 for size in (h, w))
    out = np.zeros((b, rows, columns, c), np.float32)
    for i in range(rows):
        for j in range(columns):
            cut = padded[:, i * stride : i * stride + window, j * stride : j * stride + window]
            out[:, i, j] = cut.max((1, 2))
    return out


# Max-pool


def test_max_pool_pads_both_sides_as_pytorch_does():
    x = image(np.arange(16).reshape(4, 4))
    # Windows of 3 at rows and columns -1..1 and 1..3; "SAME" would take 0..2 and 2..4, and give 10, 11, 14, 15.
    np.testing.assert_array_equal(max_pool(x, 3, 2)[0, :, :, 0], [[5, 7], [13, 15]])
    np.testing.assert_array_equal(max_pool(-x, 3, 2)[0, :, :, 0], [[0, -1], [-4, -5]])  # not padded by zeros
    np.testing.assert_array_equal(max_pool(x, 2, 2)[0, :, :, 0], [[5, 7], [13, 15]])
    np.testing.assert_array_equal(max_pool(-x, 2, 2)[0, :, :, 0], [[0, -2], [-8, -10]])


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 5, 7, 2), (1, 2, 2, 1), (1, 6, 9, 1)])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (3, 1)])
def test_max_pool_on_any_image(shape, window, stride):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(max_pool(jnp.array(x), window, stride), pooled_by_hand(x, window, stride))


def pooled_by_xla(x, window, stride):
    pad = window // 2 if window > stride else 0
    pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, window, window, 1), (1, stride, stride, 1), pads)


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (3, 1), (5, 2), (3, 3), (2, 3)])
@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 9, 7, 2), (1, 6, 5, 1), (1, 1, 2, 1)])
@pytest.mark.parametrize("levels", [1000, 3])  # without and with equal pixels
def test_gradient_of_max_pool_is_xlas(shape, window, stride, levels):
    rng = np.random.default_rng(0)
    x = jnp.array(rng.permutation(np.arange(np.prod(shape)) % levels).reshape(shape), jnp.float32)
    weights = jnp.array(rng.normal(size=pooled_by_xla(x, window, stride).shape), jnp.float32)
    ours, xlas = (
        jax.grad(lambda x, pool=pool: (pool(x, window, stride) * weights).sum())(x)
        for pool in (max_pool, pooled_by_xla)
    )
    np.testing.assert_allclose(ours, xlas, atol=1e-6)


def test_gradient_of_max_pool_goes_to_the_first_of_the_largest():
    gradient = jax.grad(lambda x: (max_pool(x, 3, 2) * image([[1, 2], [3, 4]])).sum())
    # Each window's first pixel in reading order, padding left out: (0, 0), (0, 1), (1, 0) and (1, 1).
    expected = np.zeros((4, 4))
    expected[:2, :2] = [[1, 2], [3, 4]]
    np.testing.assert_array_equal(gradient(jnp.zeros((1, 4, 4, 1)))[0, :, :, 0], expected)
    # Without ties, to the largest: pixel 5 is that of one window, and 15 of another.
    expected = np.zeros(16)
    expected[[5, 7, 13, 15]] = 1, 2, 3, 4
    np.testing.assert_array_equal(gradient(image(np.arange(16).reshape(4, 4))).ravel(), expected)


# Space to depth


def test_images_are_padded_to_whole_blocks_by_their_edges():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    assert pad_to_multiple(x, 1) is x and pad_to_multiple(x[:, :, :2], 2).shape == (1, 2, 2, 1)
    assert pad_to_multiple(x, 4)[0, :, :, 0].tolist() == [[0, 1, 2, 2], [0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]]


@pytest.mark.parametrize("shape", [(84, 84, 3), (50, 37, 1), (128, 128, 4)], ids=str)
def test_a_trunk_takes_images_of_every_size(shape):
    trunk = ImpalaConfig(channels=(2, 3), strides=(2, 2), blocks=0, features=5, stem=4, pool=False)
    for config in (trunk, dataclasses.replace(trunk, stem=1, pool=True)):
        out, _ = jax.eval_shape(lambda c=config: Impala(c).init_with_output(jax.random.key(0), jnp.zeros((1, *shape))))
        assert out.shape == (1, 5)


def test_space_to_depth_by_hand():
    x = image(np.arange(16).reshape(4, 4))
    folded = space_to_depth(x, 2)
    assert folded.shape == (1, 2, 2, 4)
    np.testing.assert_array_equal(folded[0, 0, 1], [2, 3, 6, 7])
    np.testing.assert_array_equal(folded[0, 1, 0], [8, 9, 12, 13])
    colours = space_to_depth(jnp.concatenate([x, x + 100], axis=-1), 2)
    np.testing.assert_array_equal(colours[0, 0, 0], [0, 100, 1, 101, 4, 104, 5, 105])


@pytest.mark.parametrize("block", [1, 2, 4])
def test_depth_to_space_is_its_inverse(block):
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    folded = space_to_depth(x, block)
    assert folded.shape == (2, 8 // block, 12 // block, 3 * block**2)
    np.testing.assert_array_equal(depth_to_space(folded, block), x)
    assert (space_to_depth(x, 1) == x).all()


def test_an_image_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="A 6 x 8 image cannot be cut into 4 x 4 blocks"):
        space_to_depth(jnp.zeros((1, 6, 8, 3)), 4)


# Blocks and trunk


def leaves(params, name):
    """The parameters whose path ends in `name`, in order."""
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == name]


def test_residual_block_adds_two_rectified_convolutions():
    block = ResidualBlock(hidden=2)
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 3)).astype(np.float32)
    params = driver.jit_once(block.init)(jax.random.key(0), x)["params"]
    assert [leaf.shape for leaf in leaves(params, "kernel")] == [(3, 3, 3, 2), (3, 3, 2, 3)]
    # Kernels that look at the middle pixel alone turn the block into two matrices.
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(3, 2)), rng.normal(size=(2, 3))
    bias_a, bias_b = rng.normal(size=2), rng.normal(size=3)
    new = [np.zeros((3, 3, 3, 2)), np.zeros((3, 3, 2, 3))]
    new[0][1, 1], new[1][1, 1] = a, b
    values = iter([bias_a, new[0], bias_b, new[1]])  # bias before kernel, as the leaves are ordered
    params = jax.tree.map(lambda _: jnp.array(next(values), jnp.float32), params)
    expected = x + np.maximum(np.maximum(x, 0) @ a + bias_a, 0) @ b + bias_b
    np.testing.assert_allclose(jax.jit(block.apply)({"params": params}, x), expected, atol=1e-5)


def test_residual_block_keeps_its_channels_by_default():
    params = jax.eval_shape(ResidualBlock().init, jax.random.key(0), jnp.zeros((1, 4, 4, 6)))
    assert [leaf.shape for leaf in leaves(params, "kernel")] == [(3, 3, 6, 6)] * 2


@pytest.mark.parametrize("pool", [True, False])
def test_convolutions_shrink_a_64_image_to_8(pool):
    def shape_of(config):
        x = jax.ShapeDtypeStruct((2, 64, 64, 9), jnp.float32)
        return jax.eval_shape(ImpalaConvs(config).init_with_output, jax.random.key(0), x)[0].shape

    assert shape_of(ImpalaConfig(pool=pool)) == (2, 8 * 8 * 128)
    assert shape_of(ImpalaConfig(channels=(4, 6), strides=(2, 4), stem=2, pool=pool)) == (2, 4 * 4 * 6)


def test_a_stage_is_convolution_pool_and_blocks():
    """With blocks that add nothing, one stage is a convolution, a pool and a ReLU."""
    config = ImpalaConfig(channels=(5,), strides=(2,), blocks=2)
    module = ImpalaConvs(config)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    params = driver.jit_once(module.init)(jax.random.key(0), x)["params"]
    assert len(leaves(params, "kernel")) == 1 + 2 * 2
    blocks = {name for name in params if "Residual" in name}
    assert len(blocks) == 2
    params = {n: jax.tree.map(jnp.zeros_like, p) if n in blocks else p for n, p in params.items()}
    (kernel,) = leaves({n: p for n, p in params.items() if n not in blocks}, "kernel")
    (bias,) = leaves({n: p for n, p in params.items() if n not in blocks}, "bias")
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel, bias = np.asarray(kernel), np.asarray(bias)
    conv = sum(padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3)) + bias
    expected = np.maximum(pooled_by_hand(conv, 3, 2), 0).reshape(2, -1)
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, x), expected, atol=1e-5)
    # Without a pool the convolution itself takes every other pixel, the first one included.
    strided = ImpalaConvs(ImpalaConfig(channels=(5,), strides=(2,), blocks=2, pool=False))
    expected = np.maximum(conv[:, ::2, ::2], 0).reshape(2, -1)
    np.testing.assert_allclose(jax.jit(strided.apply)({"params": params}, x), expected, atol=1e-5)


@functools.cache
def small_trunk():
    module = Impala(ImpalaConfig(channels=(4, 4), strides=(2, 2), blocks=1, features=7))
    x = jnp.array(np.random.default_rng(0).uniform(-0.5, 0.5, (3, 16, 16, 3)), jnp.float32)
    return module, x, driver.jit_once(module.init)(jax.random.key(0), x)


def test_trunk_has_the_two_parts_that_stage_three_tells_apart():
    module, x, variables = small_trunk()
    assert set(variables["params"]) == {"convs", "fc"}
    features = jax.jit(module.apply)(variables, x)
    assert features.shape == (3, 7) and features.dtype == jnp.float32
    assert (features >= 0).all() and (features > 0).any()
    flat = np.asarray(jax.jit(ImpalaConvs(module.config).apply)({"params": variables["params"]["convs"]}, x))
    assert (flat >= 0).all() and flat.shape == (3, 4 * 4 * 4)
    kernel, bias = (np.asarray(variables["params"]["fc"]["linear"][name]) for name in ("kernel", "bias"))
    np.testing.assert_allclose(features, np.maximum(flat @ kernel + bias, 0), atol=1e-5)


def test_bfloat16_activations_leave_the_parameters_in_float32():
    module, x, variables = small_trunk()
    half = Impala(module.config, jnp.bfloat16)
    features = jax.jit(half.apply)(variables, x)
    assert features.dtype == jnp.bfloat16
    np.testing.assert_allclose(features.astype(jnp.float32), jax.jit(module.apply)(variables, x), atol=0.03)
    shapes = jax.eval_shape(half.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_config_must_be_consistent():
    with pytest.raises(ValueError, match=r"channels \(4, 4\) and strides \(2,\) must have the same length"):
        ImpalaConfig(channels=(4, 4), strides=(2,))


def test_trunks_by_config():
    assert isinstance(make_trunk(ImpalaConfig()), Impala)
    assert isinstance(make_trunk(MLPConfig()), MLPTrunk)
    assert make_trunk(ImpalaConfig(), jnp.bfloat16).dtype == jnp.bfloat16
