"""Probes by exact least squares, the three regimes, and information."""

import numpy as np
import pytest

from lamjax.linear import (
    Moments,
    WorldConfig,
    information_objective,
    latent_map,
    make_world,
    mutual_information,
    optimum,
    probe_errors,
    score,
    shifted,
)
from lamjax.linear.world import VARIABLES


def small(**settings):
    return make_world(WorldConfig(d_o=12, d_a=3, d_b=2, **settings), 2)


def best(world, d_z=3):
    return optimum(world.moments(), d_z, ties="ignore").lam


def test_a_latent_that_is_the_action_knows_it_and_nothing_else():
    m = small(s_exo=0.5, s_iid=0.1).moments()
    errors = probe_errors(m.select(a=1.0), m)
    assert errors == pytest.approx({"o": 1, "q": 0, "eps": 1, "a": 0}, abs=1e-12)
    errors = probe_errors(m.select(o=1.0), m)
    assert errors == pytest.approx({"o": 0, "q": 1, "eps": 1, "a": 1}, abs=1e-12)


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_probes_are_least_squares_with_bias(noise):
    """On the moments of a sample, against numpy's solver on that sample."""
    world = small(s_exo=0.5, s_iid=0.6, chi=0.3, noise=noise)
    samples = world.sample(400, np.random.default_rng(0))
    m, lam = Moments.of_samples(samples), best(world)
    z = latent_map(lam, m)
    values = np.concatenate(samples, 1) @ z.T
    inputs = np.concatenate([values, np.ones((400, 1))], 1)
    errors = probe_errors(z, m)
    for name, y in zip(VARIABLES, samples, strict=True):
        residual = y - inputs @ np.linalg.lstsq(inputs, y, rcond=None)[0]
        assert errors[name] == pytest.approx(np.sum(residual**2) / np.sum((y - y.mean(0)) ** 2), rel=1e-9)


@pytest.mark.parametrize("probe", ["noisy", "noisy-clean", "clean"])
def test_regimes_against_samples(probe):
    world = small(s_exo=0.4, s_iid=0.8, noise="uniform")
    lam, n, rng = best(world), 200_000, np.random.default_rng(0)
    fit, held = (world.variant(noise=noisy).sample(n, rng) for noisy in (probe != "clean", probe == "noisy"))

    def latents(t):
        z = t.o @ lam.C.T + (t.o + t.q + t.eps) @ lam.D.T
        return np.concatenate([z, np.ones((n, 1))], 1)

    W = np.linalg.lstsq(latents(fit), fit.q, rcond=None)[0]
    nmse = np.mean(np.sum((held.q - latents(held) @ W) ** 2, 1)) / np.trace(np.cov(held.q.T))
    assert score(lam, world, probe=probe).nmse_q == pytest.approx(nmse, abs=0.01)


def test_without_noise_nmse_eps_is_one():
    world = small()
    assert score(best(world), world).nmse_eps == 1
    noisy = small(s_iid=0.5)
    assert score(best(noisy), noisy).nmse_eps < 1
    assert score(best(noisy), noisy, probe="clean").nmse_eps == 1


def test_llo_adds_up():
    world = small(s_exo=0.7, s_iid=0.3, chi=0.4)
    s = score(best(world), world)
    assert s.llo == -s.nmse_q + s.nmse_eps + s.nmse_o


def test_q_and_a_differ_if_the_actions_effects_do():
    world = make_world(WorldConfig(d_o=12, d_a=3, d_b=0, action_scales=(1.0, 0.5, 0.1)))
    s = score(best(world, 1), world)
    assert s.nmse_a == pytest.approx(2 / 3)
    assert s.nmse_q == pytest.approx(0.26 / 1.26)


def test_scales_of_q():
    """Facts, section 1: at s_iid = .5, 1, 1.5."""
    for q_norm, expected in (("direction", (0.2, 0.5, 0.692)), ("coordinate", (0.0154, 0.0588, 0.1233))):
        for s_iid, nmse in zip((0.5, 1, 1.5), expected, strict=True):
            world = make_world(WorldConfig(s_iid=s_iid, q_norm=q_norm))
            lam = optimum(world.moments(), 8, ties="ignore").lam
            assert score(lam, world).nmse_q == pytest.approx(nmse, abs=5e-4)


def test_information_of_isotropic_dimensions():
    """6.438 nats for 8 dimensions of NMSE 0.2, each 0.805 (facts, section 3)."""
    world = make_world(WorldConfig(s_iid=0.5))
    z = latent_map(optimum(world.moments(), 8, ties="ignore").lam, world.moments())
    assert mutual_information(z, world.moments(), "a") == pytest.approx(8 * -0.5 * np.log(0.2), rel=1e-9)
    assert mutual_information(z, world.moments(), "a") == pytest.approx(6.438, abs=5e-4)
    assert mutual_information(z, world.moments(), "o") == pytest.approx(0, abs=1e-9)


def test_information_is_infinite_of_what_is_determined_and_zero_of_what_is_not_there():
    world = make_world(WorldConfig(d_o=12, d_a=3))
    m = world.moments()
    assert mutual_information(m.select(a=1.0), m, "a") == float("inf")
    assert mutual_information(m.select(a=1.0), m, "eps") == 0


def test_the_objective_falls_when_the_latent_tells_of_o():
    world = make_world(WorldConfig(d_o=12, d_a=3, d_b=2, s_exo=0.5, s_iid=0.3), 1)
    m, lam = world.moments(), best(world)
    clean, full = (latent_map(x, m) for x in (lam, shifted(lam, np.eye(3, 12))))
    parts = [mutual_information(clean, m, v) for v in ("a", "eps", "o")]
    assert information_objective(clean, m) == pytest.approx(parts[0] - parts[1] - parts[2])
    assert information_objective(clean, m) > information_objective(full, m) + 1


def test_wrong_words_are_refused():
    world = small(s_iid=0.1)
    lam = best(world)
    with pytest.raises(ValueError, match=r"^latent must be one of true, surrogate, change"):
        score(lam, world, latent="false")
    with pytest.raises(ValueError, match=r"^probe must be noisy"):
        score(lam, world, probe="dirty")
    with pytest.raises(ValueError, match=r"^variable must be one of o, q"):
        mutual_information(latent_map(lam, world.moments()), world.moments(), "z")
