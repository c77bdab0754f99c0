"""Latents that hold the action beat their baselines, and noise does not."""

import jax
import numpy as np
import pytest

from lamjax.analysis.action_probes import ContinuousActions, DiscreteActions
from lamjax.analysis.judge import Examples, judge, pooled
from lamjax.spaces import Box

SPACE = Box((-1.0,), (1.0,))


def examples(kind, seed, count=512, holds=True):
    """Latents that are the action and noise, or noise alone, of 16 episodes."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, 4, count) if kind == "discrete" else rng.uniform(-1, 1, (count, 1)).astype(np.float32)
    z = rng.normal(size=(count, 6)).astype(np.float32)
    if holds:
        z[:, 0] = 3 * actions.reshape(-1)
    frames = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return Examples(z, actions, np.arange(count) * 16 // count, actions.reshape(-1, 1).astype(int), frames)


@pytest.fixture(scope="module", params=["discrete", "continuous"])
def results(request):
    """Results of latents that hold the action, and of noise."""
    probe = DiscreteActions("", 4, (0, 0, 1, 2)) if request.param == "discrete" else ContinuousActions(SPACE)
    key = jax.random.key(0)
    pairs = [[examples(request.param, seed, holds=holds) for seed in (0, 1)] for holds in (True, False)]
    return [judge(key, probe, fit, test, labels=(16, 256, 1024)) for fit, test in pairs]


def test_latents_that_hold_the_action_beat_every_baseline(results):
    good, _ = results
    for baseline in ("constant_score", "shuffled_score", "still_score"):
        assert good["score"] > good[baseline] + 2 * good["stderr"]
    assert [n for n, *_ in good["curve"]] == [16, 256]
    assert good["curve"][-1][1] > 0.9 and good["fit"] == good["windows"] == 512
    name = "probe_accuracy_merged" if "probe_accuracy" in good else "probe_r2"
    assert good["score"] == pytest.approx(good[name], abs=1e-6)
    assert good["linear_score"] == pytest.approx(good[f"linear_{name}"], abs=1e-6)


def test_noise_beats_none(results):
    _, noise = results
    for baseline in ("constant", "shuffled", "still"):
        error = np.hypot(noise["stderr"], noise[f"{baseline}_stderr"])
        assert noise["score"] <= noise[f"{baseline}_score"] + 2 * error


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_random_latents_never_beat_a_baseline_by_two_standard_errors(kind):
    probe = DiscreteActions("", 4, (0, 0, 1, 2)) if kind == "discrete" else ContinuousActions(SPACE)
    for seed in range(20):
        fit, test = (examples(kind, 100 + 2 * seed + part, holds=False) for part in (0, 1))
        results = judge(jax.random.key(seed), probe, fit, test, seed, labels=())
        for baseline in ("constant", "shuffled", "still"):
            error = np.hypot(results["stderr"], results[f"{baseline}_stderr"])
            assert results["score"] <= results[f"{baseline}_score"] + 2 * error, (seed, baseline)


def test_blocks_are_averaged():
    frames = np.zeros((2, 32, 20, 1), np.uint8)
    frames[0, :2, :2] = 255
    vectors = pooled(frames)
    assert vectors.shape == (2, 16 * 10) and vectors[0, 0] == 1 and vectors.sum() == 1
    np.testing.assert_array_equal(pooled(np.ones((3, 5))), np.ones((3, 5), np.float32))
