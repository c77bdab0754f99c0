"""Latents of many windows, the codes that are used most, and imagined rollouts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import dynamics
from lamjax.analysis import latents
from lamjax.dynamics import DynamicsConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig, MLPFDMConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.unet import UNetConfig
from lamjax.preprocess import normalise_obs, obs_stats
from lamjax.training.driver import jit_once

CONFIG = DynamicsConfig(
    steps=10,
    idm=ImpalaConfig(channels=(4,), strides=(2,), blocks=0, features=16, stem=4, pool=False),
    fdm=UNetConfig(channels=(4, 6), bottleneck=8, stem=2, latent_input="bias", predict="change"),
    quantizer=QuantizerConfig(codes=8),
)
SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def state():
    """A model whose latents and predictions are far from trivial: every weight is moved."""
    state = dynamics.init(jax.random.key(0), CONFIG, SHAPE)
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), state.params)
    return state.replace(params=moved)


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, 256, (30, 3, *SHAPE), np.uint8)


@pytest.mark.parametrize(("batch", "count"), [(8, 30), (8, 24), (8, 8), (8, 5), (30, 30), (29, 30)])
def test_batches_give_what_one_call_gives(state, windows, monkeypatch, batch, count):
    monkeypatch.setattr(latents, "BATCH", batch)
    z, codes = latents.latents_of(state, windows[:count])
    want = dynamics.infer_latents(state, windows[:count])
    assert (z.shape, z.dtype) == ((count, CONFIG.latent_dim), np.float32)
    assert (codes.shape, codes.dtype) == (want.codes.shape, np.int32)
    np.testing.assert_allclose(z, want.continuous, atol=1e-6)
    np.testing.assert_array_equal(codes, want.codes)
    assert np.ptp(z, axis=0).max() > 1e-3  # windows differ, so a shift would be seen


def test_batches_have_one_shape(state, windows, monkeypatch):
    """One program is traced for all batches, the last one included."""
    traces, infer = [], dynamics.infer_latents
    monkeypatch.setattr(latents, "BATCH", 7)
    monkeypatch.setattr(dynamics, "infer_latents", lambda s, w: traces.append(w.shape[0]) or infer(s, w))
    latents.latents_of(state, windows[:19])
    assert traces == [7]


def test_most_used_by_hand():
    # Joint codes of 2 codebooks with 1 head: b occurs 3 times, a and c twice, d once.
    a, b, c, d = [[1], [2]], [[0], [5]], [[1], [0]], [[7], [7]]
    codes = np.array([d, a, b, c, b, a, c, b])
    joint, first = latents.most_used(codes, 3)
    assert joint.shape == (3, 2, 1)
    assert joint[0].tolist() == b and first[0] == 2
    # Ties in lexicographic order: (1, 0) before (1, 2).
    assert joint[1:].tolist() == [c, a] and first[1:].tolist() == [3, 1]
    np.testing.assert_array_equal(codes[first], joint)
    joint, first = latents.most_used(codes, 10)
    assert len(joint) == len(first) == 4 and first[3] == 0


def test_to_uint8():
    frames = jnp.array([-0.5, -0.7, 0.5, 0.9, 0.0, 10 / 255 - 0.5, 10.4 / 255 - 0.5, 10.6 / 255 - 0.5])
    assert latents.to_uint8(frames).tolist() == [0, 0, 255, 255, 128, 10, 10, 11]
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(latents.to_uint8(jnp.asarray(every) / 255 - 0.5), every)


def test_imagined_rollouts_start_from_the_true_frame(state, windows):
    quantized = np.asarray(dynamics.infer_latents(state, windows[:4]).quantized)
    frames = latents.imagined_rollouts(state, windows[0, :2], quantized, steps=5)
    assert (frames.shape, frames.dtype) == ((4, 6, *SHAPE), np.uint8)
    for action in range(4):
        np.testing.assert_array_equal(frames[action, 0], windows[0, 1])


def test_imagined_rollouts_feed_predictions_back(state, windows):
    quantized = np.asarray(dynamics.infer_latents(state, windows[:2]).quantized)
    frames = latents.imagined_rollouts(state, windows[0, :2], quantized, steps=3)
    for action in range(2):
        tm1, t = (jnp.asarray(frame, jnp.float32)[None] / 255 - 0.5 for frame in windows[0, :2])
        for step in range(1, 4):
            latent = jnp.asarray(quantized[action : action + 1])
            following = jnp.clip(dynamics.predict_next(state, jnp.stack([tm1, t], 1), latent), -0.5, 0.5)
            want = latents.to_uint8(following)[0].astype(int)
            assert np.abs(frames[action, step].astype(int) - want).max() <= 1
            tm1, t = t, following
    assert (frames[0, 1:] != frames[1, 1:]).any()  # the latent action matters


def test_strips_show_context_truth_and_prediction(state, windows):
    strips = latents.strips(state, windows[:3])
    np.testing.assert_array_equal(strips["strip_context"], windows[:3, :2])
    np.testing.assert_array_equal(strips["strip_truth"], windows[:3, 2])
    inferred = dynamics.infer_latents(state, windows[:3])
    want = latents.to_uint8(dynamics.predict_next(state, windows[:3, :2], inferred.quantized)).astype(int)
    assert np.abs(strips["strip_prediction"].astype(int) - want).max() <= 1


def test_strips_say_which_square_the_inverse_model_saw(state, windows):
    assert "strip_squares" not in latents.strips(state, windows[:3])
    config = dataclasses.replace(CONFIG, focus=8, fdm=dataclasses.replace(CONFIG.fdm, stem=1))
    focused = jit_once(dynamics.init, static_argnums=(1, 2))(jax.random.key(0), config, SHAPE)
    squares = latents.strips(focused, windows[:3])["strip_squares"]
    corners = dynamics.focus_corners(config, normalise_obs(windows[:3]))
    np.testing.assert_array_equal(squares, [(y, x, 8) for y, x in np.asarray(corners)])


def test_vectors_are_shown_standardised():
    config = DynamicsConfig(
        steps=10, idm=MLPConfig((8,), 8), fdm=MLPFDMConfig((8,)), quantizer=QuantizerConfig(codes=8, dim=2)
    )
    windows = np.random.default_rng(0).normal([5, -100, 0.1], [1, 10, 0.01], (20, 3, 3)).astype(np.float32)
    state = dynamics.init(jax.random.key(0), config, (3,), obs_stats(windows.reshape(-1, 3)))
    rng = np.random.default_rng(1)
    state = state.replace(params=jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f"), state.params))
    strips = latents.strips(state, windows)
    frames = np.concatenate([strips["strip_context"], strips["strip_truth"][:, None]], axis=1)
    np.testing.assert_allclose(frames, normalise_obs(windows, state.obs_stats), atol=1e-5)
    z = dynamics.infer_latents(state, windows).quantized
    np.testing.assert_allclose(strips["strip_prediction"], dynamics.predict_next(state, windows[:, :2], z), atol=1e-5)

    imagined = latents.imagined_rollouts(state, windows[0, :2], np.asarray(z[:2]), steps=3)
    assert imagined.shape == (2, 4, 3) and imagined.dtype == np.float32
    np.testing.assert_allclose(imagined[:, 0], frames[[0, 0], 1], atol=1e-5)  # the last true one
    np.testing.assert_allclose(imagined[0, 1], strips["strip_prediction"][0], atol=1e-4)
    # The step after is predicted from the one imagined, which is standardised already.
    context = np.stack([frames[0, 1], imagined[0, 1]])[None]
    plain = state.replace(obs_stats=None)
    np.testing.assert_allclose(imagined[0, 2], dynamics.predict_next(plain, context, z[:1])[0], atol=1e-4)
