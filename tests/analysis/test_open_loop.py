"""Predictions frame after frame are those of the forward model, and latents that decide nothing control nothing."""

import jax
import numpy as np
import pytest

from lamjax import dynamics
from lamjax.analysis.open_loop import decibels, gain, open_loop, squared_errors
from lamjax.preprocess import cut_squares, moving_squares, normalise_obs
from tests.small_runs import VECTOR, clip, stage_1

CLIPS, HORIZONS = 4, 3


@pytest.fixture(scope="module")
def state():
    """Stage 1 on vectors."""
    return stage_1(VECTOR)


@pytest.fixture(scope="module")
def clips():
    return np.stack([clip(VECTOR, HORIZONS + 2, seed) for seed in range(CLIPS)])


def test_errors_are_those_of_one_step_after_another(state, clips):
    found = jax.jit(squared_errors)(state, clips)
    truth = np.asarray(normalise_obs(clips, state.obs_stats))
    standardised = state.replace(obs_stats=None)
    latents = [dynamics.infer_latents(state, clips[:, t : t + 3]).quantized for t in range(HORIZONS)]
    for name, shift in (("own", 0), ("other", CLIPS // 2)):
        frames = truth[:, :2]
        for t in range(HORIZONS):
            predicted = dynamics.predict_next(standardised, frames, np.roll(latents[t], shift, 0))
            errors = np.square(predicted - truth[:, t + 2]).mean(-1)
            np.testing.assert_allclose(found[name][:, t], errors, rtol=1e-4)
            frames = np.stack([frames[:, 1], predicted], 1)
    np.testing.assert_allclose(found["copy_last"], np.square(truth[:, 1:2] - truth[:, 2:]).mean(-1), rtol=1e-5)


def test_latents_that_the_forward_model_does_not_see_control_nothing(state, clips):
    deaf = jax.tree.map(lambda x: x * 0, state.params["fdm"])
    results = open_loop(state.replace(params={**state.params, "fdm": deaf}), clips[None], np.arange(CLIPS))
    assert [row[0] for row in results["psnr"]] == [row[0] for row in results["controllability"]] == [1, 2, 3]
    assert all(row[1:] == [0, 0] for row in results["controllability"]) and results["clips"] == CLIPS


def test_a_focused_model_is_measured_on_its_square():
    state = stage_1(focus=8)
    clips = np.stack([clip(frames=HORIZONS + 2, seed=seed) for seed in range(CLIPS)])

    @jax.jit
    def both(state, clips):
        frames = normalise_obs(clips)
        squares = cut_squares(frames, moving_squares(frames[:, :3], 8), 8)
        latent = dynamics.infer_latents(state, clips[:, :3]).quantized
        return squared_errors(state, clips), squares, dynamics.predict_seen(state, squares[:, :2], latent)

    found, squares, predicted = jax.tree.map(np.asarray, both(state, clips))
    assert squares.shape == (CLIPS, HORIZONS + 2, 8, 8, 3)
    errors = np.square(squares[:, 1:2] - squares[:, 2:]).mean((2, 3, 4))
    np.testing.assert_allclose(found["copy_last"], errors, rtol=1e-5)
    errors = np.square(np.clip(predicted, -0.5, 0.5) - squares[:, 2]).mean((1, 2, 3))
    np.testing.assert_allclose(found["own"][:, 0], errors, rtol=1e-4)


def test_the_square_is_the_one_that_the_models_settings_choose():
    """One thing moves at the top and a larger one at the bottom; only the change in the upper rows counts."""
    state = stage_1(focus=8, focus_rows=(0.0, 0.5))
    side = clip().shape[1]
    clips = np.zeros((CLIPS, HORIZONS + 2, side, side, 3), np.uint8)
    for t in range(HORIZONS + 2):
        clips[:, t, 1, t] = 100
        clips[:, t, side - 2 :, t : t + 2] = 250
    found = jax.jit(squared_errors)(state, clips)
    # A pixel appears and the one that was there disappears: two of 64 differ by 100 / 255.
    np.testing.assert_allclose(found["copy_last"], 2 / 64 * (100 / 255) ** 2, rtol=1e-4)


def test_decibels_by_hand():
    episodes = np.arange(2)
    # A mean of 0.01 is 20 dB. Each error is half the mean off it, so the mean's relative error is a half.
    value, error = decibels(np.array([0.005, 0.015]), episodes)
    assert value == pytest.approx(20) and error == pytest.approx(10 / np.log(10) * 0.5)
    errors = np.array([0.01, 0.03])
    assert gain(errors, 10 * errors, episodes) == (pytest.approx(10), pytest.approx(0, abs=1e-12))
    assert gain(errors, errors, episodes) == (0, 0)
