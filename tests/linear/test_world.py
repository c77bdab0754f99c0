"""The linear world: exact moments against hand-computed values and against samples."""

import dataclasses

import numpy as np
import pytest

from lamjax.linear import Moments, WorldConfig, make_world

SMALL = WorldConfig(d_o=12, d_a=3, d_b=2)


def covariance(moments, u, v):
    return moments.product(moments.select(**{u: 1.0}), moments.select(**{v: 1.0}), centred=True)


def test_x_and_pi_have_orthonormal_rows_or_columns_and_are_not_mutually_orthogonal_unless_asked():
    for orthogonal in (False, True):
        f = make_world(dataclasses.replace(SMALL, s_exo=2.0, orthogonal=orthogonal), 3).factors
        np.testing.assert_allclose(f.X.T @ f.X, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(f.Y.T @ f.Y, 4 * np.eye(2), atol=1e-12)
        np.testing.assert_allclose(f.Pi @ f.Pi.T, np.eye(3), atol=1e-12)
        assert (np.abs(f.X.T @ f.Y).max() < 1e-12) == orthogonal


def test_x_and_y_overlap_as_random_subspaces_do():
    """E|X^T Y|^2 = d_a d_b / d_o, the facts' 0.5 at the paper's sizes."""
    overlaps = []
    for seed in range(40):
        f = make_world(WorldConfig(s_exo=1.0), seed).factors
        overlaps.append(np.sum((f.X.T @ f.Y) ** 2))
    assert np.mean(overlaps) == pytest.approx(0.5, abs=0.05)


def test_moments_by_hand_without_policy():
    world = make_world(dataclasses.replace(SMALL, s_exo=0.5, s_iid=0.3))
    m, f = world.moments(), world.factors
    np.testing.assert_allclose(covariance(m, "o", "o"), np.eye(12), atol=1e-12)
    np.testing.assert_allclose(covariance(m, "a", "a"), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(covariance(m, "q", "q"), f.X @ f.X.T, atol=1e-12)
    np.testing.assert_allclose(covariance(m, "eps", "eps"), f.Y @ f.Y.T + 0.09 * np.eye(12), atol=1e-12)
    np.testing.assert_allclose(covariance(m, "q", "a"), f.X, atol=1e-12)
    for u, v in (("o", "q"), ("o", "eps"), ("q", "eps")):
        np.testing.assert_array_equal(covariance(m, u, v), 0)


def test_policy_moments_by_hand():
    """Var(a_j) = chi^2 + (1 - chi)^2 and E[a o^T] = chi Pi (facts, section 1)."""
    world = make_world(dataclasses.replace(SMALL, chi=0.3))
    m = world.moments()
    np.testing.assert_allclose(covariance(m, "a", "a"), (0.09 + 0.49) * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(covariance(m, "a", "o"), 0.3 * world.factors.Pi, atol=1e-12)
    free = world.variant(on_policy=False).moments()
    np.testing.assert_allclose(covariance(free, "a", "a"), np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(covariance(free, "a", "o"), 0)


def test_rho_correlates_pairs_and_keeps_variances():
    world = make_world(dataclasses.replace(SMALL, s_exo=0.5, rho=0.6))
    m, f = world.moments(), world.factors
    np.testing.assert_allclose(covariance(m, "eps", "eps"), f.Y @ f.Y.T, atol=1e-12)
    # b_1 and b_2 go with a_1 and a_2; a_3 has no partner.
    np.testing.assert_allclose(covariance(m, "eps", "a"), 0.6 * f.Y @ np.eye(2, 3), atol=1e-12)


def test_cleaning_scales_all_noise():
    full, half = (make_world(dataclasses.replace(SMALL, s_exo=1.0, s_iid=0.4, clean=c)).moments() for c in (0, 0.5))
    np.testing.assert_allclose(covariance(half, "eps", "eps"), covariance(full, "eps", "eps") / 4, atol=1e-12)
    assert not dataclasses.replace(SMALL, s_exo=1.0, clean=1.0).noisy


def test_scale_conventions():
    """The variance of q sums to d_a, or is 1 a coordinate: d_o in all."""
    for q_norm, total in (("direction", 3), ("coordinate", 12)):
        config = dataclasses.replace(SMALL, q_norm=q_norm, s_exo=0.5)
        m = make_world(config).moments()
        assert np.trace(covariance(m, "q", "q")) == pytest.approx(total)
        assert np.trace(covariance(m, "eps", "eps")) == pytest.approx(total / 3 * 2 / 4)


def test_uniform_noise_has_mean_and_variance_of_the_uniform_distribution():
    m = make_world(dataclasses.replace(SMALL, s_iid=0.6, noise="uniform")).moments()
    np.testing.assert_allclose(m.select(eps=1.0) @ m.mean, 0.3)
    np.testing.assert_allclose(covariance(m, "eps", "eps"), 0.03 * np.eye(12), atol=1e-12)


def test_action_scales_scale_the_effect_and_not_the_action():
    m = make_world(dataclasses.replace(SMALL, action_scales=(1.0, 0.5, 0.25))).moments()
    np.testing.assert_allclose(covariance(m, "a", "a"), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance(m, "q", "q"))[-3:], [1 / 16, 1 / 4, 1])


def test_worlds_that_differ_in_scales_share_their_matrices():
    one, other = (make_world(dataclasses.replace(SMALL, s_exo=s, s_iid=s, chi=s / 9), 5).factors for s in (1.0, 3.0))
    np.testing.assert_array_equal(one.X, other.X)
    np.testing.assert_allclose(3 * one.Y, other.Y)
    np.testing.assert_array_equal(one.Pi, other.Pi)
    assert (make_world(SMALL, 6).factors.X != one.X).all()


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_samples_have_the_exact_moments(noise):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((12, 12)) / 4
    config = dataclasses.replace(SMALL, s_exo=0.7, s_iid=0.5, chi=0.4, rho=0.5, clean=0.2, noise=noise)
    world = make_world(config, 1, obs_cov=root @ root.T + np.eye(12), noise_from_obs=root)
    n = 200_000
    exact, sampled = world.moments(), Moments.of_samples(world.sample(n, rng))
    scale = np.sqrt(np.outer(np.diag(exact.second), np.diag(exact.second)))
    # A product of two unit Gaussians has a standard deviation of at most sqrt(2); 5 of them over 1500 entries.
    np.testing.assert_array_less(np.abs(sampled.second - exact.second) / scale, 5 * np.sqrt(2 / n))
    np.testing.assert_array_less(np.abs(sampled.mean - exact.mean), 5 * np.sqrt(np.diag(exact.second) / n) + 1e-15)


def test_select_adds_delta_to_both_parts():
    m = make_world(dataclasses.replace(SMALL, s_exo=0.5)).moments()
    assert m.select(delta=1.0).shape == (12, 39)
    np.testing.assert_array_equal(m.select(delta=2.0), m.select(q=2.0) + m.select(eps=2.0))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"d_o": 0}, "d_o"),
        ({"d_a": 13}, "d_a"),
        ({"d_b": -1}, "d_b"),
        ({"d_a": 7, "d_b": 6, "orthogonal": True}, "orthogonal"),
        ({"s_iid": -0.1}, "s_iid"),
        ({"s_exo": float("nan")}, "s_exo"),
        ({"s_exo": float("inf")}, "s_exo"),
        ({"chi": 1.1}, "chi"),
        ({"chi": float("nan")}, "chi"),
        ({"rho": -1.1}, "rho"),
        ({"clean": -0.1}, "clean"),
        ({"noise": "pink"}, "noise"),
        ({"q_norm": "unit"}, "q_norm"),
        ({"action_scales": (1.0,)}, "action_scales"),
        ({"action_scales": (1.0, -1.0, 1.0)}, "action_scales"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, name):
    with pytest.raises(ValueError, match=f"^{name} "):
        dataclasses.replace(SMALL, **settings)


@pytest.mark.parametrize(
    ("matrix", "why"),
    [(np.eye(12)[:, :11], "12 x 12"), (-np.eye(12), "negative variance"), (np.eye(12) * np.nan, "NaN")],
)
def test_bad_covariances_are_refused(matrix, why):
    with pytest.raises(ValueError, match=f"^obs_cov .*{why}"):
        make_world(SMALL, obs_cov=matrix)


def test_an_asymmetric_covariance_is_refused():
    with pytest.raises(ValueError, match=r"^obs_cov must be symmetric"):
        make_world(SMALL, obs_cov=np.eye(12) + np.eye(12, k=1))


@pytest.mark.parametrize("change", ["nan", "shape", "negative", "asymmetric", "mean"])
def test_bad_moments_are_refused(change):
    second, mean = np.eye(7), np.zeros(7)
    if change == "nan":
        second[0, 0] = np.nan
    elif change == "shape":
        second = second[:6]
    elif change == "negative":
        second[2, 2] = -1
    elif change == "asymmetric":
        second[0, 1] = 1
    else:
        mean = np.zeros(6)
    with pytest.raises(ValueError, match="^mean" if change == "mean" else "^second"):
        Moments(second, mean, 2, 1)
