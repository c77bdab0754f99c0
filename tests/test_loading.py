"""What is loaded computes what the pure stages compute; what is no run is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import dynamics
from lamjax.decoding import offline
from lamjax.policies import PolicyError
from lamjax.sharing import ModelError
from lamjax.spaces import Discrete
from lamjax.training.run_folder import RunError
from tests.small_runs import ACTIONS, DECODER, VECTOR, clip, decoder, windows_of, write_run

infer, predict_next = jax.jit(dynamics.infer_latents), jax.jit(dynamics.predict_next)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on images and its stage 1."""
    folder = tmp_path_factory.mktemp("images") / "run"
    state = write_run(folder)
    return lamjax.load(folder), state


def equal(ours, theirs):
    for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("content", "error"),
    [("[]", PolicyError), ("{}", PolicyError), ('{"env": 5}', PolicyError), ("{", RunError), ("[" * 100_000, RunError)],
)
def test_settings_that_are_none(tmp_path, content, error):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(error, match=r"config\.json"):
        lamjax.load(tmp_path)


def test_windows_and_clips_give_the_latents_of_stage_1(run):
    lam, state = run
    frames = clip(frames=270)  # more windows than a batch
    windows = windows_of(frames)
    latents = infer(state, windows)
    equal(lam.infer(windows), latents)
    equal(lam.infer(frames), latents)
    equal(lam.infer(frames[:9]), infer(state, windows[:7]))
    assert latents.continuous.shape == (268, 6) and lam.window == 3


def test_windows_and_clips_give_the_predictions_of_stage_1(run):
    lam, state = run
    frames = clip(frames=12)
    windows = windows_of(frames)
    latents = lam.infer(windows)
    predicted = predict_next(state, windows[:, :-1], latents.quantized)
    equal(lam.predict(windows, latents), predicted)
    equal(lam.predict(windows[:, :-1], latents.quantized), predicted)
    equal(lam.predict(frames, latents), predicted)
    # The frame to predict has no part in its prediction.
    changed = windows.copy()
    changed[:, -1] = 0
    equal(lam.predict(changed, latents), predicted)


def test_both_compose_with_jit_and_vmap(run):
    lam, _ = run
    clips = jnp.stack([clip(frames=8, seed=seed) for seed in range(2)])
    together = jax.jit(jax.vmap(lambda frames: lam.predict(frames, lam.infer(frames))))(clips)
    for frames, predicted in zip(clips, together, strict=True):
        np.testing.assert_allclose(lam.predict(frames, lam.infer(frames)), predicted, atol=1e-5)


def test_vectors_are_standardised_as_in_training(tmp_path):
    state = write_run(tmp_path / "run", VECTOR)
    lam, frames = lamjax.load(tmp_path / "run"), clip(VECTOR)
    equal(lam.infer(frames), infer(state, windows_of(frames)))
    assert lam.obs_shape == VECTOR


@pytest.mark.parametrize(
    "shape", [(16, 12, 3), (2, 16, 12, 3), (5, 4, 16, 12, 3), (5, 2, 16, 12, 3), (9, 12, 16, 3), (5, 3, 16, 12, 1)]
)
def test_frames_that_do_not_fit_are_refused(run, shape):
    with pytest.raises(ModelError, match=r"^Frames must be windows \[B, 3, 16, 12, 3\], or a clip of at least as many"):
        run[0].infer(np.zeros(shape, np.uint8))


def test_latents_that_do_not_fit_the_frames_are_refused(run):
    with pytest.raises(ModelError, match=r"^The latents of 7 windows must have the shape \(7, 6\), not \(6, 6\)\.$"):
        run[0].predict(clip(frames=9), np.zeros((6, 6), np.float32))


def test_the_decoder_of_most_labels_decodes(run):
    lam, state = run
    latents = lam.infer(clip())
    outputs = offline.decode(decoder(state, 64), latents.continuous, DECODER, ACTIONS)
    assert lam.decoder == "offline-64"
    equal(lam.decode(latents), jnp.argmax(outputs, -1))
    lam.policies["idm-16"] = lam.policies["offline-16"]  # it was fitted on the latents themselves
    assert lam.decoder == "idm-16"
    del lam.policies["idm-16"]


def test_an_action_head_decodes_before_any_policy(tmp_path):
    state = write_run(tmp_path / "run", VECTOR, action_weight=1.0)
    lam = lamjax.load(tmp_path / "run")
    assert (lam.decoder, lam.dynamics.space) == ("action_head", Discrete(ACTIONS))
    latents = lam.infer(clip(VECTOR))
    equal(lam.decode(latents), jnp.argmax(dynamics.predict_actions(state, latents.continuous), -1))


def test_without_a_decoder_there_are_no_actions(tmp_path):
    write_run(tmp_path / "run", VECTOR, labels=())
    lam = lamjax.load(tmp_path / "run")
    assert lam.decoder is None
    with pytest.raises(ModelError, match="has no decoder of latents: train its stage 3, or give stage 1 action labels"):
        lam.decode(lam.infer(clip(VECTOR)))


def test_a_run_that_has_not_begun_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"env": "coinrun"}')
    lam = lamjax.load(tmp_path)
    assert lam.obs_shape == (64, 64, 3)
    with pytest.raises(ModelError, match=r"^There is no stage 1 in .* yet: train it first\.$"):
        lam.infer(np.zeros((3, 64, 64, 3), np.uint8))
