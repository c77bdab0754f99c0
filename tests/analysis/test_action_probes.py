"""Scores of planted latents, for discrete and for continuous actions, beside those of shuffled ones."""

import jax
import numpy as np
import pytest

from lamjax.analysis import diagnosis, probes
from lamjax.analysis.action_probes import ContinuousActions, DiscreteActions, action_probe
from lamjax.spaces import Box, Discrete

BOX = Box((-2.0, 0.0), (2.0, 1.0))
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def actions() -> np.ndarray:
    return np.random.default_rng(0).uniform(BOX.low, BOX.high, (3000, 2)).astype(np.float32)


def test_each_kind_of_space_has_its_probe():
    assert action_probe("cartpole", Discrete(2)) == DiscreteActions("cartpole", 2)
    assert action_probe("pendulum", BOX) == ContinuousActions(BOX)


def test_planted_values_are_read_and_shuffled_ones_are_not(actions):
    latents = np.concatenate([np.square(actions), actions * [1, 10]], 1).astype(np.float32)
    train, test = slice(2000), slice(2000, None)
    probe = ContinuousActions(BOX)
    scores = probe.probe(KEY, latents[train], actions[train], latents[test], actions[test])
    assert scores.keys() == {"probe_r2", "linear_probe_r2"} and min(scores.values()) > 0.97
    shuffled = np.random.default_rng(1).permutation(latents)
    baseline = probe.probe(KEY, shuffled[train], actions[train], latents[test], actions[test])
    assert max(baseline.values()) < 0.02
    curved = probe.probe(KEY, latents[train, :2], actions[train], latents[test, :2], actions[test])
    # The first number's sign is lost; the second one is positive.
    assert curved["probe_r2"] == pytest.approx(0.5, abs=0.05) and curved["linear_probe_r2"] < curved["probe_r2"]


def test_the_constant_guess_explains_nothing(actions):
    probe = ContinuousActions(BOX)
    assert probe.constant(actions, actions) == {"mean_r2": pytest.approx(0, abs=1e-6)}
    shifted = actions[:1000] + np.array([0.2, 0.0])  # other levels: the mean of the training set is not theirs
    expected = -np.square(0.2 / actions[:, 0].std()) / 2
    assert probe.constant(actions, shifted)["mean_r2"] == pytest.approx(expected, abs=0.02)


def test_codes_explain_what_lies_between_them(actions):
    quarter = np.floor((actions[:, 0] + 2).clip(0, 3.999)).astype(int)
    scores = ContinuousActions(BOX).codes(quarter[:, None, None], actions, 0)
    # Of a uniform number four bins leave a sixteenth of its variance; of the other one they tell nothing.
    assert scores["code_r2"] == pytest.approx((1 - 1 / 16) / 2, abs=0.01)
    assert 0 <= scores["code_r2_shuffled"] < 0.01
    unique = ContinuousActions(BOX).codes(np.arange(len(actions))[:, None, None], actions, 0)
    assert unique["code_r2"] == unique["code_r2_shuffled"] == 1  # the baseline says what that is worth


def test_the_head_is_scored_in_half_ranges(actions):
    exact = (actions - [0, 0.5]) / [2, 0.5]
    assert ContinuousActions(BOX).head(exact, actions) == {
        "action_mse": pytest.approx(0, abs=1e-10),
        "action_r2": pytest.approx(1),
    }
    scores = ContinuousActions(BOX).head(np.zeros_like(exact), actions)
    assert scores["action_mse"] == pytest.approx(1 / 3, abs=0.01) and scores["action_r2"] == pytest.approx(0, abs=0.01)


def test_names_of_results_are_those_that_are_judged(actions):
    continuous, discrete = ContinuousActions(BOX), DiscreteActions("maze", 15)
    moves = np.random.default_rng(0).integers(15, size=500).astype(np.int32)
    z = np.random.default_rng(1).normal(size=(500, 3)).astype(np.float32)
    cases = ((continuous, actions[:500], diagnosis.CONTINUOUS), (discrete, moves, diagnosis.DISCRETE))
    for probe, y, names in cases:
        scores = probe.probe(KEY, z, y, z, y) | probe.constant(y, y) | probe.codes(np.zeros((500, 1, 1), int), y, 0)
        expected = {names.probe, f"linear_{names.probe}", names.constant, names.codes, f"{names.codes}_shuffled"}
        assert expected <= scores.keys()
        assert diagnosis.score_names(scores) is names
    assert discrete.arrays(moves).keys() == {"actions", "merged", "action_names", "merged_names"}
    assert continuous.arrays(actions).keys() == {"action_values"}
    assert probes.explained(actions, actions, actions.std(0)) == 1
