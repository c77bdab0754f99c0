import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.models.unet import UNet, UNetConfig
from lamjax.presets import PRESETS
from lamjax.training import driver

SMALL = UNetConfig(channels=(4,), bottleneck=8)  # 4 x 4 images
DEEP = UNetConfig(channels=(4, 6), bottleneck=8)  # 8 x 8 images
Z = 5


def inputs(config, batch=4, seed=0):
    """Frames and latents; the frames of the batch differ in their mean."""
    rng = np.random.default_rng(seed)
    size = config.stem * 2 ** (len(config.channels) + 1)
    frames = rng.uniform(-0.3, 0.3, (batch, size, size, 6)) + np.linspace(-0.2, 0.2, batch)[:, None, None, None]
    return frames.astype(np.float32), rng.normal(size=(batch, Z)).astype(np.float32)


@functools.cache
def compiled(config):
    """``(variables, apply, train)`` of a U-Net whose parameters are drawn by numpy.

    XLA takes half a minute to compile the initialisation of a network, whatever its size. What starts at zero, or as
    the identity of a batch norm, starts so here too; see the test of the start.
    """
    module = UNet(config)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        names = [key.key for key in path]
        if names[0] == "batch_stats" or "BatchNorm" in names[-2]:
            return np.full(leaf.shape, names[-1] in ("scale", "var"), np.float32)
        if names[1] in ("head_change", "scroll_out"):
            return np.zeros(leaf.shape, np.float32)
        bound = np.prod(leaf.shape[:-1]) ** -0.5
        return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs(config))
    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    train = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    return variables, jax.jit(module.apply), jax.jit(train)


VARIANTS = {
    "paper's form": DEEP,
    "stem": dataclasses.replace(SMALL, stem=2),
    "bias": dataclasses.replace(SMALL, latent_input="bias"),
    "change": dataclasses.replace(SMALL, predict="change"),
    "change, stem, bias": dataclasses.replace(SMALL, predict="change", stem=2, latent_input="bias"),
    "shift": dataclasses.replace(SMALL, predict="change", shift=2),
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def test_parameter_count_at_the_papers_size():
    frames = jax.ShapeDtypeStruct((2, 64, 64, 6), jnp.float32)
    latent = jax.ShapeDtypeStruct((2, 128), jnp.float32)
    out, variables = jax.eval_shape(UNet(UNetConfig()).init_with_output, jax.random.key(0), frames, latent)
    assert out.shape == (2, 64, 64, 3) and out.dtype == jnp.float32
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 7_814_139
    # A running mean and a running variance for each channel of 5 levels down and 6 up.
    statistics = sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"]))
    assert statistics == 2 * (24 + 48 + 96 + 192 + 384 + 384 + 192 + 96 + 48 + 24 + 24)


@variants
def test_prediction_has_the_form_of_a_frame(config):
    frames, latent = inputs(config)
    variables, apply, _ = compiled(config)
    out = apply(variables, frames, latent)
    assert out.shape == (*frames.shape[:3], 3) and out.dtype == jnp.float32
    assert np.abs(out).max() <= 0.5


@variants
def test_training_moves_the_statistics_and_evaluation_does_not_use_the_batch(config):
    frames, latent = inputs(config)
    variables, apply, train = compiled(config)
    _, updated = train(variables, frames, latent)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), updated["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(moved))
    # One frame's prediction does not depend on the others.
    out = apply(variables, frames, latent)
    other = frames.copy()
    other[1:] *= -1
    np.testing.assert_allclose(apply(variables, other, latent)[0], out[0], atol=1e-6)


@pytest.mark.parametrize("name", ["paper's form", "stem", "bias"])
def test_prediction_depends_on_both_frames_and_on_the_latent(name):
    config = VARIANTS[name]
    frames, latent = inputs(config)
    variables, apply, _ = compiled(config)
    out = apply(variables, frames, latent)
    for channels in (slice(0, 3), slice(3, 6)):
        changed = frames.copy()
        changed[..., channels] *= -1
        assert (np.abs(apply(variables, changed, latent) - out) > 1e-4).any((1, 2, 3)).all()
    changed = apply(variables, frames, -latent)
    assert (np.abs(changed - out) > 1e-4).any((1, 2, 3)).all()


def test_a_frame_is_predicted_between_the_darkest_and_the_brightest():
    """However large the weights of the head are."""
    frames, latent = inputs(DEEP)
    variables, apply, _ = compiled(DEEP)
    params = dict(variables["params"])
    params["head_out"] = jax.tree.map(lambda x: 1000 * x, params["head_out"])
    out = apply({**variables, "params": params}, frames, latent)
    assert np.abs(out).max() == 0.5


def test_predicting_a_change_starts_as_a_copy_of_the_last_frame():
    """With the module's own start, of a form that has all the parts that start at zero."""
    config = dataclasses.replace(SMALL, predict="change", shift=1, stem=2)
    frames, latent = inputs(config)
    variables = driver.jit_once(UNet(config).init)(jax.random.key(0), frames, latent)
    out = jax.jit(UNet(config).apply)(variables, frames, latent)
    np.testing.assert_allclose(out, frames[..., 3:], atol=1e-6)
    zeros = {name for name, tree in variables["params"].items() if not any(x.any() for x in jax.tree.leaves(tree))}
    assert zeros == {"head_change", "scroll_out"}  # the rest is drawn


@pytest.mark.parametrize("name", ["change", "change, stem, bias", "shift"])
def test_an_output_of_zero_is_no_change(name):
    config = VARIANTS[name]
    frames, latent = inputs(config)
    variables, apply, train = compiled(config)
    np.testing.assert_allclose(apply(variables, frames, latent), frames[..., 3:], atol=1e-6)
    np.testing.assert_allclose(train(variables, frames, latent)[0], frames[..., 3:], atol=1e-6)


def test_a_change_is_added_to_the_last_frame():
    config = VARIANTS["change"]
    frames, latent = inputs(config)
    variables, apply, _ = compiled(config)
    params = dict(variables["params"])
    params["head_change"] = {**params["head_change"], "bias": jnp.array([0.1, 0.2, -0.3])}
    out = apply({**variables, "params": params}, frames, latent)
    np.testing.assert_allclose(out, frames[..., 3:] + np.float32([0.1, 0.2, -0.3]), atol=1e-6)


@pytest.mark.parametrize("config", [VARIANTS["stem"], VARIANTS["change, stem, bias"]], ids=["frame", "change"])
def test_images_of_another_size_are_padded_and_the_prediction_cut(config):
    frames, latent = inputs(config)
    variables, apply, _ = compiled(config)
    small = frames[:, 1:, 1:-1]  # 7 x 6
    # One row below; one column on each side.
    padded = np.pad(small, ((0, 0), (0, 1), (1, 1), (0, 0)), mode="edge")
    assert padded.shape == frames.shape
    out = apply(variables, small, latent)
    assert out.shape == (*small.shape[:3], 3)
    np.testing.assert_allclose(out, apply(variables, padded, latent)[:, :-1, 1:-1], atol=1e-6)


@pytest.mark.parametrize("shape", [(84, 84, 3), (96, 96, 3), (50, 37, 3), (128, 128, 3), (64, 64, 1)], ids=str)
@pytest.mark.parametrize("preset", ["cpu", "smoke"])
def test_every_size_of_image_has_a_forward_model(preset, shape):
    network = UNet(PRESETS[preset].dynamics.fdm, shape[-1])
    frames, latent = jnp.zeros((1, *shape[:2], 2 * shape[-1])), jnp.zeros((1, Z))
    out, _ = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), frames, latent))
    assert out.shape == (1, *shape) and out.dtype == jnp.float32


def test_the_bottleneck_sees_the_whole_last_level():
    network = UNet(DEEP)
    for (height, width), kernel in {(8, 8): (2, 2), (9, 8): (3, 2), (16, 4): (4, 1)}.items():
        frames, latent = jnp.zeros((1, height, width, 6)), jnp.zeros((1, Z))
        params = jax.eval_shape(network.init, jax.random.key(0), frames, latent)["params"]
        assert params["bottleneck"]["conv"]["kernel"].shape[:2] == kernel


def test_two_devices_compute_what_one_does_on_the_joined_batch():
    frames, latent = inputs(DEEP)
    variables, _, train = compiled(DEEP)
    out, updated = train(variables, frames, latent)

    def on_each(variables, frames, latent):
        module = UNet(DEEP, axis_name="devices")
        return module.apply(variables, frames, latent, train=True, mutable=["batch_stats"])

    halves = [x.reshape(2, 2, *x.shape[1:]) for x in (frames, latent)]
    parts, parts_updated = jax.pmap(on_each, axis_name="devices", in_axes=(None, 0, 0))(variables, *halves)
    np.testing.assert_allclose(parts.reshape(out.shape), out, atol=1e-5)
    for device in range(2):
        jax.tree.map(
            lambda a, b, device=device: np.testing.assert_allclose(a[device], b, rtol=1e-4, atol=1e-5),
            parts_updated["batch_stats"],
            updated["batch_stats"],
        )


# Scrolling


def test_a_shift_needs_a_change():
    with pytest.raises(ValueError, match='set predict="change" or shift=0'):
        UNetConfig(shift=1)


def test_scrolling_moves_the_last_frame():
    """Taps set by hand: rows come from one below, columns from two to the left, edges repeated."""
    config = VARIANTS["shift"]
    frames, latent = inputs(config)
    variables, apply, _ = compiled(config)
    params = dict(variables["params"])
    taps = np.zeros((2, 5), np.float32)
    taps[:, 2] = -1  # against the identity that is added
    taps[0, 3] = taps[1, 0] = 1
    params["scroll_out"] = {**params["scroll_out"], "bias": jnp.array(taps.ravel())}
    out = apply({**variables, "params": params}, frames, latent)
    last = frames[..., 3:]
    rows = last[:, [1, 2, 3, 3]]
    np.testing.assert_allclose(out, rows[:, :, [0, 0, 0, 1]], atol=1e-6)
