"""The closed form against printed values, hand-computed cases, and a minimiser that knows nothing of eigenvectors."""

import functools
import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamjax.linear import (
    LAM,
    Moments,
    TieWarning,
    WorldConfig,
    angle,
    excess,
    make_world,
    optimum,
    population_loss,
    score,
    shifted,
)

solve = functools.partial(optimum, ties="ignore")


def exact(**config):
    """The seed-free worlds of the acceptance checks: X perpendicular to Y, S_o = I."""
    return make_world(WorldConfig(d_o=32, d_a=4, d_b=4, orthogonal=True, **config))


def minimise(m, d_z, *, kappa=0.0, action_weight=0.0, seed=0, tolerance=1e-13, sweeps=20_000):
    """The smallest loss by alternating least squares from a random start: [A B] and E, then [C D], each exact.

    Works on the moments of (o, o', a, k1, k2), so augmentation is sampled noise here and no penalty.
    """
    d_o, d_a = m.d_o, m.d_a
    maps = np.concatenate([m.select(o=1.0), m.select(o=1.0, delta=1.0), m.select(a=1.0)])
    size = len(maps) + 2 * d_o
    S = np.zeros((size, size))
    S[: len(maps), : len(maps)] = maps @ m.second @ maps.T
    S[len(maps) :, len(maps) :] = kappa**2 * np.eye(2 * d_o)
    o, o1, a, k1, k2 = np.split(np.eye(size), np.cumsum([d_o, d_o, d_a, d_o]))
    inputs, shifted_o, target = np.concatenate([o + k1, o1 + k1]), o + k2, o1 + k2
    regress = lambda y, x: np.linalg.lstsq((x @ S @ x.T), x @ S @ y.T, rcond=1e-13)[0].T  # noqa: E731
    encoder = np.random.default_rng(seed).standard_normal((d_z, 2 * d_o))
    inverse_inputs = np.linalg.pinv(inputs @ S @ inputs.T, rcond=1e-13, hermitian=True)
    root = np.sqrt(action_weight)
    before = np.inf
    for _ in range(sweeps):
        encoder = np.linalg.qr(encoder.T)[0].T  # other coordinates of the same latent
        z = encoder @ inputs
        AB = regress(target, np.concatenate([shifted_o, z]))
        A, B = AB[:, :d_o], AB[:, d_o:]
        E = regress(a, z)
        residuals = [target - A @ shifted_o - B @ z, root * (a - E @ z)]
        loss = sum(np.sum((r @ S) * r) for r in residuals)
        if before - loss < tolerance * loss:
            break
        before = loss
        decoder = np.concatenate([B, root * E])
        left = np.concatenate([target - A @ shifted_o, root * a])
        encoder = np.linalg.pinv(decoder) @ left @ S @ inputs.T @ inverse_inputs
    return loss, LAM(A, B, encoder[:, :d_o], encoder[:, d_o:], E, np.zeros(d_o), np.zeros(d_a))


# Printed values (facts, section 8, A)


def test_a1_loss():
    m = exact(s_exo=0.5, s_iid=0.1).moments()
    np.testing.assert_allclose([solve(m, k).loss for k in (2, 4, 6, 8)], [3.30, 1.28, 0.76, 0.24], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("s_exo", "llo"), [(0.5, [1.25, 1.5, 2, 1.5, 1]), (2, [0.75, 0.5, 0, 0.5, 1])])
def test_a2_llo_is_a_tent_for_weak_noise_and_a_v_for_strong(s_exo, llo):
    world = exact(s_exo=s_exo)
    scores = [score(solve(world.moments(), k, kappa=0.1).lam, world).llo for k in (1, 2, 4, 6, 8)]
    np.testing.assert_allclose(scores, llo, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("s_iid", "noisy", "clean", "eps"),
    [(0.5, 0.2, 0.04, 0.975), (1, 0.5, 0.25, 0.9375), (1.5, 0.692308, 0.479290, 0.913462)],
)
def test_a3_iid_noise_in_each_regime(s_iid, noisy, clean, eps):
    world = exact(s_iid=s_iid)
    lam = solve(world.moments(), 4).lam
    assert score(lam, world).nmse_q == pytest.approx(noisy, abs=1e-6)
    assert score(lam, world).nmse_eps == pytest.approx(eps, abs=1e-6)
    assert score(lam, world, probe="noisy-clean").nmse_q == pytest.approx(clean, abs=1e-6)
    assert score(lam, world, probe="clean").nmse_q == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("chi", "kappa", "nmse_q"),
    [(0.4, 1e-4, 0), (0.6, 1e-4, 1), (0.6, 0.5, 1), (0.6, 0.7, 0), (0.9, 0.5, 1), (0.9, 0.7, 0)],
)
def test_a4_augmentation_undoes_the_policy(chi, kappa, nmse_q):
    world = exact(s_exo=0.5, chi=chi)
    scores = score(solve(world.moments(), 4, kappa=kappa).lam, world)
    assert scores.nmse_q == pytest.approx(nmse_q, abs=1e-6)
    if (chi, kappa) == (0.6, 0.7):
        assert scores.nmse_o == pytest.approx(0.913462, abs=1e-6)


@pytest.mark.parametrize(("weight", "nmse_q"), [(2.95, 1), (3.05, 0)])
def test_a5_the_action_loss_wins_above_its_critical_weight(weight, nmse_q):
    world = exact(s_exo=2.0)
    lam = solve(world.moments(), 4, action_weight=weight).lam
    assert score(lam, world).nmse_q == pytest.approx(nmse_q, abs=1e-6)


@pytest.mark.parametrize(("clean", "nmse_q"), [(0.49, 1), (0.51, 0)])
def test_a6_cleaning_wins_above_its_threshold(clean, nmse_q):
    lam = solve(exact(s_exo=2.0, clean=clean).moments(), 4).lam
    assert score(lam, exact(s_exo=2.0)).nmse_q == pytest.approx(nmse_q, abs=1e-6)


def test_a7_noise_that_goes_with_the_actions():
    world = exact(s_exo=0.5, rho=0.5)
    scores = score(solve(world.moments(), 4).lam, world)
    assert scores.nmse_q == pytest.approx(0.0146373, abs=1e-6)
    assert scores.nmse_eps == pytest.approx(0.638675, abs=1e-6)


@pytest.mark.parametrize(("chi", "d_z", "nmse_a"), [(0, 2, 0.5), (0.5, 2, 0.625), (0.9, 2, 0.905), (0.5, 4, 0)])
def test_a8_a_probe_fitted_on_policy_under_random_actions(chi, d_z, nmse_a):
    world = exact(chi=chi)
    scores = score(solve(world.moments(), d_z).lam, world, latent="change", on_policy=False)
    assert scores.nmse_a == pytest.approx(nmse_a, abs=2e-6)


# Against a generic minimiser (B)


def test_b1_shifting_the_latent_along_the_observation_costs_nothing():
    rng = np.random.default_rng(0)
    world = make_world(WorldConfig(d_o=32, d_a=4, d_b=4, s_exo=0.5, s_iid=0.1))
    m = world.moments()
    best = solve(m, 4)
    moved = shifted(best.lam, rng.standard_normal((4, 32)))
    assert population_loss(moved, m) == pytest.approx(best.loss, rel=1e-12)
    assert score(moved, world).llo < score(best.lam, world).llo - 0.5
    assert score(moved, world, latent="surrogate").llo == pytest.approx(score(best.lam, world).llo, abs=1e-9)
    # With augmentation it does.
    assert population_loss(moved, m, kappa=0.1) > population_loss(best.lam, m, kappa=0.1) + 1e-3


@pytest.mark.parametrize(
    ("seed", "s_exo", "chi", "d_z", "kappa"),
    list(itertools.product((0, 1), (0.5, 2.0), (0.0, 0.6), (2, 4, 6), (0.0, 0.3))),
)
def test_b2_no_start_does_better(seed, s_exo, chi, d_z, kappa):
    world = make_world(WorldConfig(d_o=32, d_a=4, d_b=4, s_exo=s_exo, s_iid=0.1, chi=chi), seed)
    m = world.moments()
    best = solve(m, d_z, kappa=kappa)
    assert population_loss(best.lam, m, kappa=kappa) == pytest.approx(best.loss, rel=1e-12)
    loss, lam = minimise(m, d_z, kappa=kappa, seed=seed)
    assert loss == pytest.approx(best.loss, rel=1e-8)
    assert population_loss(lam, m, kappa=kappa) == pytest.approx(loss, rel=1e-10)
    if best.gap > 0.05:
        np.testing.assert_allclose(lam.B @ lam.D, best.lam.B @ best.lam.D, atol=1e-4)
        assert angle(lam, best, d_z) < 0.01


@pytest.mark.parametrize(("d_z", "kappa", "weight"), list(itertools.product((3, 5), (0.0, 0.2), (0.5, 8.0))))
def test_no_start_does_better_with_an_action_loss(d_z, kappa, weight):
    world = make_world(WorldConfig(d_o=16, d_a=3, d_b=4, s_exo=2.0, s_iid=0.2), 1)
    m = world.moments()
    best = solve(m, d_z, kappa=kappa, action_weight=weight)
    assert population_loss(best.lam, m, kappa=kappa, action_weight=weight) == pytest.approx(best.loss, rel=1e-12)
    loss, _ = minimise(m, d_z, kappa=kappa, action_weight=weight, seed=3)
    assert loss == pytest.approx(best.loss, rel=1e-8)


def test_action_loss_under_a_policy():
    """kappa = 0 and d_z >= d_a: the head reads from the latent what o tells of the action."""
    world = make_world(WorldConfig(d_o=16, d_a=3, d_b=4, s_exo=0.5, s_iid=0.2, chi=0.5), 1)
    m = world.moments()
    best = solve(m, 4, action_weight=2.0)
    assert best.attained
    assert population_loss(best.lam, m, action_weight=2.0) == pytest.approx(best.loss, rel=1e-10)
    loss, _ = minimise(m, 4, action_weight=2.0, seed=3, tolerance=1e-12)
    assert best.loss * (1 - 1e-9) <= loss <= best.loss * (1 + 1e-3)


def test_an_infimum_is_said_to_be_one():
    """A weak action loss leaves the latent to the noise, so no finite C brings what o tells of the action."""
    world = exact(s_exo=2.0, chi=0.5)
    best = solve(world.moments(), 4, action_weight=0.1)
    assert not best.attained
    assert population_loss(best.lam, world.moments(), action_weight=0.1) > best.loss * (1 + 1e-3)


def test_general_covariances_and_leaking_noise():
    rng = np.random.default_rng(4)
    root, leak = rng.standard_normal((2, 10, 10)) / 3
    config = WorldConfig(d_o=10, d_a=3, d_b=2, s_exo=0.7, s_iid=0.2, chi=0.3)
    m = make_world(config, 4, obs_cov=root @ root.T + 0.1 * np.eye(10), noise_from_obs=leak).moments()
    for kappa in (0.0, 0.4):
        best = solve(m, 3, kappa=kappa)
        assert population_loss(best.lam, m, kappa=kappa) == pytest.approx(best.loss, rel=1e-11)
        assert minimise(m, 3, kappa=kappa)[0] == pytest.approx(best.loss, rel=1e-8)


def test_d5_the_action_loss_alone_cleans_the_supervised_directions():
    world = make_world(WorldConfig(d_o=24, d_a=3, d_b=4, s_exo=0.5, s_iid=0.3), 0)
    _, lam = minimise(world.moments(), 4, action_weight=5.0, seed=0)
    through = lam.C + lam.D
    assert np.linalg.norm(lam.E @ through) <= 1e-4 * np.linalg.norm(lam.E @ lam.D)
    assert np.linalg.norm(through) > 0.05 * np.linalg.norm(lam.D)


# Cases by hand


def test_without_policy_a_is_the_identity_and_c_is_minus_d():
    """Propositions 4.1 and 4.2."""
    m = make_world(WorldConfig(d_o=20, d_a=4, d_b=3, s_exo=0.5, s_iid=0.1)).moments()
    for kappa in (0.0, 0.5):
        best = solve(m, 4, kappa=kappa)
        np.testing.assert_allclose(best.lam.A, np.eye(20), atol=1e-12)
        np.testing.assert_array_equal(best.lam.C, -best.lam.D)
        assert best.loss == pytest.approx(solve(m, 4).loss)  # augmentation costs nothing


def test_a_under_a_policy():
    """A = I - B (C + D) - (B D - I) X chi Pi (facts, 4.4; the printed formula has a slipped transpose)."""
    world = make_world(WorldConfig(d_o=20, d_a=4, d_b=3, s_exo=0.5, s_iid=0.1, chi=0.4))
    best, f = solve(world.moments(), 4), world.factors
    lam = best.lam
    expected = np.eye(20) - lam.B @ (lam.C + lam.D) - (lam.B @ lam.D - np.eye(20)) @ f.X @ (0.4 * f.Pi)
    np.testing.assert_allclose(lam.A, expected, atol=1e-12)


@pytest.mark.parametrize(("s", "nmse"), [(0.5, (0.0503, 0.0204)), (1.0, (0.1424, 0.0769))])
def test_a_mean_takes_a_latent_of_its_own_without_biases(s, nmse):
    """Facts, 4.10; the printed values hold for random X at d_o = 128."""
    world = make_world(WorldConfig(s_iid=s, noise="uniform"))
    for bias, expected in zip((False, True), nmse, strict=True):
        best = solve(world.moments(), 8, bias=bias)
        assert score(best.lam, world).nmse_q == pytest.approx(expected, abs=0.012 if not bias else 1e-4)
        assert population_loss(best.lam, world.moments()) == pytest.approx(best.loss, rel=1e-11)


def test_biases_with_an_action_loss():
    world = make_world(WorldConfig(d_o=16, d_a=3, s_iid=1.0, noise="uniform"))
    best = solve(world.moments(), 4, bias=True, action_weight=2.0, kappa=0.1)
    assert population_loss(best.lam, world.moments(), action_weight=2.0, kappa=0.1) == pytest.approx(best.loss)
    assert np.abs(best.lam.bias_a).max() > 1e-3


def test_fixing_a_is_pca_of_the_whole_change():
    world = make_world(WorldConfig(d_o=20, d_a=4, d_b=3, s_exo=0.5, s_iid=0.1, chi=0.6))
    m = world.moments()
    delta = m.select(delta=1.0)
    values = np.linalg.eigvalsh(m.product(delta, delta))
    fixed = solve(m, 4, fix_a=True)
    assert fixed.loss == pytest.approx(values[:-4].sum())
    assert population_loss(fixed.lam, m) == pytest.approx(fixed.loss)
    np.testing.assert_array_equal(fixed.lam.A, np.eye(20))
    assert fixed.loss > solve(m, 4).loss
    assert solve(m, 4, kappa=1e4).loss == pytest.approx(fixed.loss, rel=1e-6)


def test_more_latents_than_directions():
    """No NaN, and unused latents are zero."""
    world = exact()
    for kappa in (0.0, 0.1):
        best = solve(world.moments(), 7, kappa=kappa)
        assert best.loss == pytest.approx(0, abs=1e-12)
        assert np.isfinite(np.concatenate([x.ravel() for x in best.lam])).all()
        assert np.count_nonzero(np.abs(best.lam.D).sum(1) > 1e-9) == 4
        assert score(best.lam, world).llo == pytest.approx(2)


def test_excess_is_relative_to_the_variance_of_the_change():
    world = exact(s_exo=0.5)
    m = world.moments()
    best = solve(m, 4)
    nothing = LAM(np.eye(32), *(0 * x for x in best.lam[1:]))
    assert excess(best.lam, best, m) == pytest.approx(0, abs=1e-14)
    assert excess(nothing, best, m) == pytest.approx((5 - 1) / 5)


def test_the_plug_in_excess_shrinks_with_the_data():
    """Facts, 4.11: .316, .042 and .010 at 256, 1024 and 4096 transitions."""
    world = make_world(WorldConfig(s_exo=0.5, s_iid=0.1))
    m, rng = world.moments(), np.random.default_rng(0)
    best = solve(m, 8)
    over = [excess(solve(Moments.of_samples(world.sample(n, rng)), 8).lam, best, m) for n in (256, 1024, 4096)]
    np.testing.assert_allclose(over, [0.316, 0.042, 0.010], rtol=0.3)


# Properties


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.floats(0, 1),
    st.floats(0, 3),
    st.floats(0.01, 1),
    st.floats(0, 0.95),
    st.floats(-1, 1),
)
def test_the_closed_form_has_its_loss_and_nothing_nearby_is_better(seed, d_z, kappa, s_exo, s_iid, chi, rho):
    config = WorldConfig(d_o=8, d_a=3, d_b=2, s_exo=s_exo, s_iid=s_iid, chi=chi, rho=rho)
    m, rng = make_world(config, seed).moments(), np.random.default_rng(seed)
    best = solve(m, d_z, kappa=kappa)
    assert population_loss(best.lam, m, kappa=kappa) == pytest.approx(best.loss, rel=1e-8, abs=1e-11)
    assert np.all(np.diff(best.eigenvalues) <= 1e-12)
    for size in (1e-3, 0.1, 1.0):
        near = LAM(*(x + size * rng.standard_normal(x.shape) for x in best.lam[:4]), *best.lam[4:])
        assert population_loss(near, m, kappa=kappa) >= best.loss * (1 - 1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 2))
def test_changing_coordinates_of_the_latent_changes_nothing(seed, s_exo):
    rng = np.random.default_rng(seed)
    world = make_world(WorldConfig(d_o=8, d_a=3, d_b=2, s_exo=s_exo, s_iid=0.1), seed)
    lam, R = solve(world.moments(), 3).lam, rng.standard_normal((3, 3)) + 3 * np.eye(3)
    back = np.linalg.inv(R)
    other = lam._replace(B=lam.B @ R, C=back @ lam.C, D=back @ lam.D)
    for latent in ("true", "surrogate", "change"):
        one, two = (score(x, world, latent=latent) for x in (lam, other))
        np.testing.assert_allclose(list(vars(one).values()), list(vars(two).values()), atol=1e-7)


# Errors and warnings


@pytest.mark.parametrize("s_exo", [1.0])
def test_a_tie_is_told(s_exo):
    m = exact(s_exo=s_exo).moments()
    with pytest.warns(TieWarning, match="Eigenvalues 4 and 5 are equal"):
        optimum(m, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert optimum(m, 4, ties="ignore").gap == pytest.approx(0, abs=1e-9)
        assert optimum(exact(s_exo=0.9).moments(), 4).gap == pytest.approx(1 - 0.81)


def test_an_action_that_o_determines_is_undefined():
    m = exact(chi=1.0).moments()
    with pytest.raises(ValueError, match=r"^moments: the innovation is empty.*chi = 1"):
        optimum(m, 4)
    assert solve(m, 4, kappa=0.1).loss == pytest.approx(0, abs=1e-12)  # augmentation brings it back


@pytest.mark.parametrize(
    ("d_z", "settings", "name"),
    [
        (0, {}, "d_z"),
        (33, {}, "d_z"),
        (4, {"kappa": -0.1}, "kappa"),
        (4, {"kappa": float("nan")}, "kappa"),
        (4, {"action_weight": -1}, "action_weight"),
        (4, {"action_weight": float("inf")}, "action_weight"),
        (4, {"ties": "break"}, "ties"),
    ],
)
def test_bad_arguments_are_named(d_z, settings, name):
    with pytest.raises(ValueError, match=f"^{name} "):
        optimum(exact(s_exo=0.5).moments(), d_z, **settings)


@pytest.mark.parametrize(("d_z", "settings"), [(4, {"kappa": 0.1}), (4, {"fix_a": True}), (3, {})])
def test_where_there_is_no_closed_form_it_says_so(d_z, settings):
    with pytest.raises(ValueError, match=r"^action_weight: no closed form"):
        optimum(exact(s_exo=0.5, chi=0.5).moments(), d_z, action_weight=1.0, **settings)
