"""Probes find what is planted in latents, and nothing where nothing is."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

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
    scores = {
        hidden: np.mean(probes.fit_probe(KEY, train_z, train_a, test_z, 2, hidden) == test_a)
        for hidden in (probes.HIDDEN, ())
    }
    assert scores[()] < 0.6 < 0.9 < scores[probes.HIDDEN]


def test_aliased_actions_are_told_only_when_merged(actions):
    """Latents know the effect; actions 0 and 1, and 2 and 3, have the same one."""
    merged = (0, 0, 1, 1, 2)
    raw, joined = accuracies(planted(np.asarray(merged)[actions]), actions, merged)
    assert joined > 0.97
    # At best the more frequent of each pair is predicted: 1/2 of 0 and 1, 2/3 of 2 and 3, all of 4.
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


# Agreement of codes and actions


def test_codes_that_are_the_actions_under_other_names_agree_perfectly(actions):
    renamed = np.array([3, 0, 4, 1, 2])[actions]
    assert probes.normalised_mutual_information(renamed, actions) == pytest.approx(1.0)
    assert probes.purity(renamed, actions) == 1.0


def test_independent_codes_agree_not_at_all():
    """Every code meets every class equally often."""
    codes, classes = np.repeat(np.arange(3), 4), np.tile(np.arange(4), 3)
    assert probes.normalised_mutual_information(codes, classes) == pytest.approx(0.0, abs=1e-12)
    assert probes.purity(codes, classes) == 0.25


def test_agreement_of_two_codes_and_two_classes_by_hand():
    """Counts [[3, 1], [1, 3]]: both marginals are even, so I = ln 2 - H(1/4)."""
    codes = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    classes = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    uncertain = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert probes.normalised_mutual_information(codes, classes) == pytest.approx(1 - uncertain / np.log(2))
    assert probes.purity(codes, classes) == 6 / 8


def test_finer_codes_are_pure_but_tell_too_much():
    """Four codes of two classes: the classes follow from the codes, half of what the codes say is something else."""
    codes, classes = np.arange(4), np.array([0, 0, 1, 1])
    assert probes.purity(codes, classes) == 1.0
    assert probes.normalised_mutual_information(codes, classes) == pytest.approx(2 * np.log(2) / np.log(8))


def test_constants_tell_nothing():
    zeros, mixed = np.zeros(6, int), np.array([0, 1, 2, 0, 1, 2])
    for codes, classes in ((zeros, mixed), (mixed, zeros), (zeros, zeros)):
        assert probes.normalised_mutual_information(codes, classes) == 0.0
    assert probes.purity(zeros, mixed) == pytest.approx(1 / 3)


labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40).map(np.array)


@hypothesis.given(pairs=labels, seed=st.integers(0, 10**6))
@hypothesis.settings(deadline=None)
def test_agreement_does_not_depend_on_names_or_order(pairs, seed):
    codes, classes = pairs.T
    rng = np.random.default_rng(seed)
    order, names, class_names = rng.permutation(len(codes)), rng.permutation(5), rng.permutation(4)
    nmi, purity = probes.normalised_mutual_information(codes, classes), probes.purity(codes, classes)
    other = names[codes[order]], class_names[classes[order]]
    assert probes.normalised_mutual_information(*other) == pytest.approx(nmi, abs=1e-9)
    assert probes.purity(*other) == purity
    assert probes.normalised_mutual_information(classes, codes) == pytest.approx(nmi, abs=1e-9)
    assert 0 <= nmi <= 1
    assert np.bincount(classes).max() / len(classes) <= purity <= 1


@hypothesis.given(pairs=labels)
@hypothesis.settings(deadline=None)
def test_merging_codes_never_makes_them_purer(pairs):
    codes, classes = pairs.T
    assert probes.purity(codes // 2, classes) <= probes.purity(codes, classes)


def test_joint_codes_tell_windows_apart_by_all_codebooks_and_latents():
    codes = np.array([[[0, 1], [2, 3]], [[0, 1], [2, 4]], [[5, 1], [2, 3]], [[0, 1], [2, 3]]])
    np.testing.assert_array_equal(probes.joint_codes(codes), [0, 1, 2, 0])


def test_many_random_codes_look_pure_and_so_does_their_baseline(actions):
    """A code of their own for most windows: purity alone would pass them off as learned."""
    merged = (0, 0, 1, 1, 2)
    test_actions = actions[:TEST]
    random = np.random.default_rng(3).integers(0, 64, (TEST, 2, 2))
    scores = probes.agreement(random, test_actions, merged, seed=0)
    assert scores["code_purity"] > 0.95 and scores["code_nmi"] > 0.3
    for name in ("code_nmi", "code_purity", "code_nmi_merged", "code_purity_merged"):
        assert scores[name] == pytest.approx(scores[f"{name}_shuffled"], abs=0.02)
    # Codes that are the action stand far above theirs.
    planted = np.stack([test_actions, np.zeros_like(test_actions)], -1)[:, None]
    scores = probes.agreement(planted, test_actions, merged, seed=0)
    assert scores["code_nmi"] == pytest.approx(1.0) and scores["code_purity"] == 1.0
    assert scores["code_purity_merged"] == 1.0 and scores["code_nmi_merged"] < 1
    assert scores["code_nmi_shuffled"] < 0.02 and scores["code_purity_shuffled"] < 0.45


def test_shuffles_follow_the_seed(actions):
    codes = np.random.default_rng(3).integers(0, 8, (200, 1, 2))
    first, again, other = (probes.agreement(codes, actions[:200], range(ACTIONS), seed) for seed in (0, 0, 1))
    assert first == again
    assert first["code_nmi"] == other["code_nmi"] and first["code_nmi_shuffled"] != other["code_nmi_shuffled"]


def test_the_action_heads_scores_by_hand():
    """Two aliases (1 and 2) that share most of the probability win together where neither wins alone."""
    share = np.array([[0.4, 0.3, 0.3], [0.8, 0.1, 0.1]])
    scores = probes.head_scores(np.log(share) + 7.0, np.array([2, 0]), (0, 1, 1))
    assert scores["action_loss"] == pytest.approx(-np.log([0.3, 0.8]).mean())
    assert (scores["action_accuracy"], scores["action_accuracy_merged"]) == (0.5, 1.0)


# Distractors


def distractor_sample(n, seed):
    """Latents of which two numbers tell the change linearly, one the state through its square, the rest nothing."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 8)).astype(np.float32)
    change, state = z[:, :2] * [3.0, 0.1], np.square(z[:, 2:3]) @ [[5.0, -1.0]]
    return z, np.stack([state, state + change], axis=1).astype(np.float32)


def test_probes_read_what_latents_tell_of_a_distractor():
    scores = probes.distractor_scores(KEY, *distractor_sample(TRAIN, 0), *distractor_sample(TEST, 1))
    assert scores["linear_distractor_change_r2"] > 0.999 and scores["distractor_change_r2"] > 0.95
    assert scores["distractor_state_r2"] > 0.9 and abs(scores["linear_distractor_state_r2"]) < 0.05
    (z, states), (test_z, test_states) = distractor_sample(TRAIN, 2), distractor_sample(TEST, 3)
    baseline = probes.distractor_scores(KEY, z[:, 3:], states, test_z[:, 3:], test_states)
    assert max(baseline.values()) < 0.05


def test_r_squared_by_hand():
    """The line through the training points misses one test point by 2, of a variance of 11; a constant is left out."""
    x, ones = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32), np.ones((4, 1), np.float32)
    y = np.array([0.0, 2.0, 4.0, 4.0], np.float32)[:, None]
    score = probes.r_squared(KEY, x, np.concatenate([2 * x, ones], 1), x, np.concatenate([y, 5 * ones], 1), ())
    assert score == pytest.approx(1 - 4 / 11)
    assert probes.r_squared(KEY, x, ones, x, ones, ()) == 0
