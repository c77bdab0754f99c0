"""Thresholds: by hand, and where the closed form flips."""

import math

import numpy as np
import pytest

from lamjax.linear import (
    Moments,
    WorldConfig,
    action_eigenvalue,
    critical_action_weight,
    critical_cleaning,
    critical_kappa,
    effective_action_weight,
    make_world,
    optimum,
    sample_overlap,
    score,
)


def learns_actions(kappa=0.0, action_weight=0.0, clean=0.0, **world):
    config = {"d_o": 24, "d_a": 3, "d_b": 3, "orthogonal": True} | world
    moments = make_world(WorldConfig(clean=clean, **config)).moments()
    lam = optimum(moments, 3, kappa=kappa, action_weight=action_weight).lam
    return score(lam, make_world(WorldConfig(**config))).nmse_q < 0.5


def test_critical_kappa_by_hand():
    assert critical_kappa(0.5, 0.6) == pytest.approx(1 / math.sqrt(3))
    assert critical_kappa(0.5, 0.4) == 0
    assert critical_kappa(2.0, 0.5) == math.inf
    assert critical_kappa(2.0, 0.0) == math.inf


@pytest.mark.parametrize(("s_exo", "chi"), [(0.5, 0.6), (0.3, 0.9), (0.6, 0.8)])
def test_actions_are_learned_above_the_critical_kappa(s_exo, chi):
    kappa = critical_kappa(s_exo, chi)
    assert action_eigenvalue(chi, kappa) == pytest.approx(s_exo**2)
    assert not learns_actions(kappa=0.98 * kappa, s_exo=s_exo, chi=chi)
    assert learns_actions(kappa=1.02 * kappa, s_exo=s_exo, chi=chi)


@pytest.mark.parametrize("s_exo", [1.5, 3.0])
def test_actions_are_learned_above_the_critical_weight_and_cleaning(s_exo):
    weight, clean = critical_action_weight(s_exo), critical_cleaning(s_exo)
    assert weight == pytest.approx(s_exo**2 - 1) and clean == pytest.approx(1 - 1 / s_exo)
    assert not learns_actions(action_weight=0.98 * weight, s_exo=s_exo)
    assert learns_actions(action_weight=1.02 * weight, s_exo=s_exo)
    assert not learns_actions(clean=clean - 0.01, s_exo=s_exo)
    assert learns_actions(clean=clean + 0.01, s_exo=s_exo)


def test_weak_noise_needs_nothing():
    assert critical_action_weight(0.5) == critical_cleaning(0.5) == 0


@pytest.mark.parametrize(("n", "overlap"), [(256, 0.861), (1024, 0.962), (4096, 0.990)])
@pytest.mark.parametrize("fix_a", [True, False])
def test_overlap_of_a_finite_data_set(n, overlap, fix_a):
    """The facts' printed values for A = I, and the closed form on samples for both."""
    expected = sample_overlap(n, 128, 0.5, fix_a=fix_a)
    if fix_a:
        assert expected == pytest.approx(overlap, abs=6e-4)
    rng, measured = np.random.default_rng(0), []
    for seed in range(3):
        world = make_world(WorldConfig(s_iid=0.5), seed)
        D = optimum(Moments.of_samples(world.sample(n, rng)), 8, fix_a=fix_a).lam.D
        measured.append(np.sum((D @ world.factors.X) ** 2) / 8)
    assert np.mean(measured) == pytest.approx(expected, abs=0.02)


def test_too_little_data_show_nothing():
    assert sample_overlap(512, 128, 2.0, fix_a=True) == 0
    assert sample_overlap(128, 128, 0.1) == 0


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: critical_kappa(0.5, 2.0), "chi"),
        (lambda: action_eigenvalue(-1.0, 0.0), "chi"),
        (lambda: critical_cleaning(0.0), "s_exo"),
        (lambda: sample_overlap(0, 8, 1.0), "n"),
        (lambda: sample_overlap(8, 8, 0.0), "s_iid"),
        (lambda: effective_action_weight(1, "mean", 1, 1, 8, 2), "units"),
        (lambda: effective_action_weight(1, "sum", 2, 1, 8, 2), "label_fraction"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=f"^{name} "):
        call()
