"""Probes find what is planted in latents, and nothing where nothing is."""

import jax
import numpy as np
import pytest

from lamjax import envs
from lamjax.analysis import probes

ACTIONS, LATENT, TRAIN, TEST = 5, 16, 8192, 1024
KEY = jax.random.key(0)


def split(x):
    return x[:TRAIN], x[TRAIN:]


@pytest.fixture(scope="module")
def actions():
    """A third of all actions are action 3; the others are as frequent as each other."""
    rng = np.random.default_rng(0)
    share = np.array([1, 1, 1, 2, 1]) / 6
    return rng.choice(ACTIONS, TRAIN + TEST, p=share).astype(np.int32)


def noise(scale=1.0, seed=1):
    return scale * np.random.default_rng(seed).normal(size=(TRAIN + TEST, LATENT)).astype(np.float32)


def planted(classes, seed=2):
    """Latents that are a linear function of the class, with a little noise."""
    directions = np.random.default_rng(seed).normal(size=(classes.max() + 1, LATENT)).astype(np.float32)
    return directions[classes] + noise(0.05)


def accuracies(latents, actions, merged=None, **kwargs):
    (train_z, test_z), (train_a, test_a) = split(latents), split(actions)
    return probes.accuracies(KEY, train_z, train_a, test_z, test_a, merged or range(ACTIONS), **kwargs)


@pytest.mark.parametrize("hidden", [probes.HIDDEN, ()])
def test_planted_latents_tell_the_action(actions, hidden):
    raw, joined = accuracies(planted(actions), actions, hidden=hidden)
    assert min(raw, joined) > 0.97


def test_random_latents_tell_no_more_than_the_majority(actions):
    raw, joined = accuracies(noise(), actions)
    majority = probes.majority_accuracy(*split(actions))
    assert majority == pytest.approx(1 / 3, abs=0.05)
    assert majority - 0.1 < raw < majority + 0.05
    assert raw == joined  # nothing is merged: one probe, twice


def test_scale_and_offset_of_latents_do_not_matter(actions):
    latents = planted(actions)
    for changed in (1e-4 * latents, 1e4 * latents - 3e4):
        assert accuracies(changed, actions)[0] > 0.97


def test_a_linear_probe_is_linear():
    """Four quadrants, two classes: an XOR, which only a hidden layer can tell."""
    rng = np.random.default_rng(0)
    latents = rng.uniform(-1, 1, (TRAIN + TEST, 2)).astype(np.float32)
    classes = (latents.prod(1) > 0).astype(np.int32)
    (train_z, test_z), (train_a, test_a) = split(latents), split(classes)
    found = {
        hidden: np.mean(probes.fit_probe(KEY, train_z, train_a, test_z, 2, hidden) == test_a)
        for hidden in (probes.HIDDEN, ())
    }
    assert found[()] < 0.6 < 0.9 < found[probes.HIDDEN]


def test_aliased_actions_are_told_only_when_merged(actions):
    """Latents know the effect; actions 0 and 1, and 2 and 3, have the same one."""
    merged = (0, 0, 1, 1, 2)
    raw, joined = accuracies(planted(np.asarray(merged)[actions]), actions, merged)
    assert joined > 0.97
    # At best the more frequent of each pair is named: 1/2 of 0 and 1, 2/3 of 2 and 3, all of 4.
    assert raw == pytest.approx((1 / 6 + 2 / 6 + 1 / 6), abs=0.06)
    assert joined >= raw


def test_merged_classes_of_a_game_fit_the_probe():
    merged = envs.merged_actions("coinrun", 15)
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 15, TRAIN + TEST).astype(np.int32)
    raw, joined = accuracies(planted(np.asarray(merged)[actions]), actions, merged)
    assert joined > 0.95 > raw


def test_predictions_are_classes(actions):
    (train_z, test_z), (train_a, _) = split(planted(actions)), split(actions)
    predicted = probes.fit_probe(KEY, train_z, train_a, test_z, ACTIONS)
    assert predicted.shape == (TEST,) and predicted.dtype == np.int32
    assert set(np.asarray(predicted).tolist()) == set(range(ACTIONS))
    np.testing.assert_array_equal(predicted, probes.fit_probe(KEY, train_z, train_a, test_z, ACTIONS))


def test_fewer_windows_than_a_batch(actions):
    latents = planted(actions)
    predicted = probes.fit_probe(KEY, latents[:40], actions[:40], latents[40:60], ACTIONS)
    assert predicted.shape == (20,)


def test_majority_accuracy_by_hand():
    train = np.array([2, 2, 1, 0, 2, 1])
    assert probes.majority_accuracy(train, np.array([2, 1, 2, 2])) == 0.75
    assert probes.majority_accuracy(train, np.array([0, 1])) == 0.0
    # The majority is the training set's: the test set is not looked at.
    assert probes.majority_accuracy(np.array([1, 1, 0]), np.array([0, 0, 0, 1])) == 0.25
