"""Training by SGD: the acceptance runs against the closed form, and the program's own properties."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.linear import (
    LAM,
    Point,
    TrainConfig,
    WorldConfig,
    effective_action_weight,
    make_world,
    optimum,
    population_loss,
    score,
    train,
)
from lamjax.linear.train import Draw, SweepShape, Task, blocks_of_points, draw, init, sampled_loss
from lamjax.linear.world import Sources

EXACT = WorldConfig(d_o=32, d_a=4, d_b=4, orthogonal=True)
TINY = WorldConfig(d_o=6, d_a=2, d_b=2, s_exo=0.5)
SEEDS = range(5)
# The recipe of the acceptance checks: 4000 steps.
CHECKED = TrainConfig(max_rounds=1, units="code")


def world(**settings):
    return dataclasses.replace(EXACT, **settings)


@functools.cache
def acceptance():
    """Every run of the checks C1 to C9, as one sweep; seeds of the world s, of SGD 1000 + s."""
    ten = {"action_weight": 1.0, "label_fraction": 0.1}
    # In the units of the code, what is 0.1 in sum units.
    printed = ten | {"action_weight": 0.1 * 4 / 32}
    strong, policy = world(s_exo=2.0, s_iid=0.05), world(s_exo=0.5, s_iid=0.05, chi=0.8)
    weak = world(s_exo=0.5, s_iid=0.05)
    runs = {
        "C1": (weak, 4, 0.0, {}),
        "C2": (weak, 4, 0.1, {}),
        "C3": (strong, 4, 0.1, {}),
        "C4": (strong, 4, 0.1, ten),
        "C5": (strong, 4, 0.1, printed),
        "C6": (policy, 4, 0.1, {}),
        "C7": (policy, 4, 2.0, {}),
        "C8": (world(s_iid=1.0), 4, 0.1, {}),
        "C9a": (weak, 2, 0.1, {}),
        "C9b": (weak, 6, 0.1, {}),
    }
    points = [
        Point(w, d_z, kappa, **labels, seed=1000 + s, world_seed=s)
        for w, d_z, kappa, labels in runs.values()
        for s in SEEDS
    ]
    results = train(points, CHECKED)
    return {name: results[5 * i : 5 * i + 5] for i, name in enumerate(runs)}


def scores(name, latent="true"):
    return [score(t.lam, t.point.make_world(), latent=latent) for t in acceptance()[name]]


def of(name, key, latent="true"):
    return np.array([getattr(s, key) for s in scores(name, latent)])


def most_excess(name):
    return max(t.excess for t in acceptance()[name])


def test_c1_without_augmentation_the_surrogate_is_right_and_the_true_latent_is_full_of_o():
    assert most_excess("C1") <= 2e-3
    np.testing.assert_allclose(of("C1", "llo", "surrogate"), 1.9975, atol=0.01)
    assert of("C1", "llo").max() <= 1.15


def test_c2_augmentation_cleans_the_true_latent():
    assert most_excess("C2") <= 2e-3
    np.testing.assert_allclose(of("C2", "llo"), 1.9975, atol=0.01)
    for lam in (t.lam for t in acceptance()["C2"]):
        assert np.linalg.norm(lam.C + lam.D) <= 0.05 * np.linalg.norm(lam.D)
        assert np.linalg.norm(lam.A - np.eye(32)) / np.sqrt(32) <= 0.03


def test_c3_strong_noise_is_learned_instead_of_actions():
    assert of("C3", "nmse_q").min() >= 0.97
    assert of("C3", "nmse_eps").max() <= 0.03


def test_c4_labels_with_the_authors_weighting():
    assert most_excess("C4") <= 4e-3
    assert of("C4", "nmse_q").max() <= 0.03
    assert of("C4", "llo").min() >= 1.95


def test_c5_labels_with_the_printed_weight_do_not_help():
    assert of("C5", "nmse_q").min() >= 0.95


def test_c6_c7_only_strong_augmentation_undoes_the_policy():
    assert of("C6", "nmse_q").min() >= 0.95
    assert of("C7", "nmse_q").max() <= 0.03


def test_c8_iid_noise():
    np.testing.assert_allclose(of("C8", "nmse_q"), 0.5, atol=0.01)


@pytest.mark.parametrize(("name", "llo"), [("C9a", 1.4987), ("C9b", 1.5299)])
def test_c9_too_few_and_too_many_latents(name, llo):
    np.testing.assert_allclose(of(name, "llo"), llo, atol=0.01)


# The loss


def tiny_batch(n, seed=0, **needs):
    shape = SweepShape(6, 2, 2, uniform=False, iid=True, augmented=True, labelled=True)
    return draw(jax.random.key(seed), n, dataclasses.replace(shape, **needs))


def tiny_task(kappa=0.3, weight=1.5, fraction=0.5, **settings):
    config = dataclasses.replace(TINY, d_o=6, s_iid=0.2, **settings)
    w = make_world(config)
    factors = jax.tree.map(jnp.float32, w.factors)
    return w, Task(factors, jnp.float32(kappa), jnp.float32(weight), jnp.float32(fraction), jnp.ones(2))


def test_d3_the_sampled_loss_is_the_population_loss():
    """d_o = 16, 4e5 samples."""
    config = WorldConfig(d_o=16, d_a=4, d_b=4, s_exo=0.5, s_iid=0.3, chi=0.4)
    point = Point(config, 5, kappa=0.5, seed=7)
    w, lam = make_world(config, 7), init(point)
    task = Task(jax.tree.map(jnp.float32, w.factors), 0.5, 2.0, 1.0, jnp.ones(4))
    shape = SweepShape(16, 4, 4, uniform=False, iid=True, augmented=True, labelled=True)
    model = jax.tree.map(jnp.float32, lam)
    sampled = jax.jit(lambda key: sampled_loss(model, task, draw(key, 400_000, shape), TrainConfig(bias=True)))(
        jax.random.key(7)
    )
    expected = population_loss(lam, w.moments(), kappa=0.5, action_weight=2.0)
    assert float(sampled) / expected == pytest.approx(1, abs=0.005)


def test_d4_a_shared_shift_leaves_the_latent():
    """C = -D: z(o + k, o' + k) = z(o, o')."""
    lam = optimum(make_world(EXACT).moments(), 4).lam
    o, o1, k = np.random.default_rng(0).standard_normal((3, 100, 32))
    z = lambda o, o1: o @ lam.C.T + o1 @ lam.D.T  # noqa: E731
    np.testing.assert_allclose(z(o + k, o1 + k), z(o, o1), rtol=0, atol=1e-12)


def test_the_loss_of_one_transition_by_hand():
    one = {"one": 1.0, "o": 2.0, "pi": 3.0, "b": 1.0, "iid": 4.0}
    batch = Draw(Sources(**{k: jnp.full((1, 1), v) for k, v in one.items()}), *(jnp.full((1, 1), v) for v in (1, 2, 0)))
    factors = make_world(WorldConfig(d_o=1, d_a=1, d_b=1)).factors
    unit = factors._replace(X=np.ones((1, 1)), Y=0.5 * np.ones((1, 1)), iid=0.25)
    task = Task(jax.tree.map(jnp.float32, unit), jnp.float32(0.5), 3.0, 1.0, jnp.ones(1))
    lam = LAM(*(jnp.full((1, 1), v) for v in (0.5, 2.0, -1.0, 3.0, 1.0)), jnp.zeros(1), jnp.zeros(1))
    # o = 2, a = q = 3, eps = 0.5 + 1, o' = 6.5. z = -(2 + 0.5) + 3 (6.5 + 0.5) = 18.5.
    # o^ = 0.5 (2 + 1) + 2 * 18.5 = 38.5 against 6.5 + 1; a^ = 18.5 against 3.
    loss = sampled_loss(lam, task, batch, TrainConfig())
    assert float(loss) == pytest.approx((38.5 - 7.5) ** 2 + 3 * 15.5**2)


def test_only_labelled_transitions_count_and_none_is_no_loss():
    w, task = tiny_task(fraction=0.25)
    lam = jax.tree.map(jnp.float32, init(Point(w.config, 3)))
    batch, config = tiny_batch(16), TrainConfig()
    part = float(sampled_loss(lam, task, batch, config) - sampled_loss(lam, task, batch, config, labelled=False))
    chosen = np.flatnonzero(np.asarray(batch.label)[:, 0] < 0.25)
    assert 0 < len(chosen) < 16
    only = jax.tree.map(lambda x: x[chosen], batch)
    every = task._replace(label_fraction=jnp.float32(1))
    alone = float(sampled_loss(lam, every, only, config) - sampled_loss(lam, every, only, config, labelled=False))
    assert part == pytest.approx(alone, rel=1e-4)
    none = task._replace(label_fraction=jnp.float32(0))
    assert float(sampled_loss(lam, none, batch, config)) == float(
        sampled_loss(lam, none, batch, config, labelled=False)
    )


def test_units_of_the_action_weight():
    """The authors' code at p = 1% and 128 transitions: 11.58 in sum units (facts, section 2)."""
    assert effective_action_weight(1, "code", 0.01, 128, 128, 8) == pytest.approx(11.58, abs=0.005)
    assert effective_action_weight(1, "code", 0.05, 128, 128, 8) == pytest.approx(15.98, abs=0.005)
    assert effective_action_weight(0.01, "sum", 1.0, 128, 128, 8) == 0.01
    point = Point(WorldConfig(), 8, action_weight=1.0, label_fraction=0.01)
    assert point.lam(TrainConfig(units="code")) == pytest.approx(11.58, abs=0.005)


# The program


def test_a_point_is_the_same_alone_and_padded_in_a_sweep():
    config = TrainConfig(steps=30, max_rounds=1, units="code")
    other = WorldConfig(d_o=6, d_a=1, d_b=0)
    points = [
        Point(TINY, 3, kappa=0.2),
        Point(other, 1, action_weight=1.0),
        Point(dataclasses.replace(TINY, s_iid=0.4, chi=0.5, rho=0.5), 2, seed=1),
        Point(TINY, 5, kappa=1.0, action_weight=0.5, label_fraction=0.5),
    ]
    together = train(points, config)
    same_draws = WorldConfig(d_o=6, d_a=2, d_b=2, s_iid=1e-9)  # asks for all the draws that the sweep asks for
    for point, in_sweep in zip(points, together, strict=True):
        filler = Point(same_draws, 5, kappa=0.2, action_weight=1.0, seed=point.seed)
        alone, _ = train([point, filler], config)
        for a, b in zip(alone.lam, in_sweep.lam, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert [t.lam.B.shape for t in together] == [(6, 3), (6, 1), (6, 2), (6, 5)]


def test_a_sweep_is_one_program(monkeypatch):
    """Twelve points and 32 steps trace the step once; a second round of another length once more."""
    calls = []

    def counted(*args):
        calls.append(args)
        return step(*args)

    module = sys.modules["lamjax.linear.train"]
    step = module.train_step
    monkeypatch.setattr(module, "train_step", counted)
    points = [Point(TINY, z, kappa=k, seed=s) for z in (1, 2, 3) for k in (0.0, 0.35) for s in (0, 1)]
    results = train(points, TrainConfig(steps=32, max_rounds=2, tolerance=1e-12))
    assert len(results) == 12 and all(t.steps == 32 + 64 for t in results)
    assert len(calls) == 2
    module.run_round.clear_cache()  # it holds the counting step


def test_the_grid_holds_every_pending_point_once_or_more():
    points = [Point(WorldConfig(), 2, seed=s) for s in [0] * 7 + [1] * 5]
    for pending in (range(12), [0, 1, 8], [11]):
        grid = np.asarray(blocks_of_points(points, pending))
        assert set(grid.ravel()) == set(pending)
        seeds = np.vectorize(lambda i: points[i].seed)(grid)
        assert (seeds == seeds[:1, :, :1]).all()
    assert np.asarray(blocks_of_points(points, range(12))).shape == (4, 2, 2)  # blocks of four points


def test_converged_points_stop_and_the_others_go_on():
    easy = Point(WorldConfig(d_o=6, d_a=2, d_b=2), 2)
    hard = Point(dataclasses.replace(TINY, s_iid=1.0), 1)
    lines = []
    config = TrainConfig(learning_rate=0.03, steps=800, max_rounds=2, tolerance=1e-3)
    one, two = train([easy, hard], config, progress=lines.append)
    assert one.converged and one.steps == 800
    assert two.steps == 2400
    assert lines[0].startswith("800 steps, 1/2 converged")


def test_the_start_is_uniform_by_fan_in_and_the_same_in_any_sweep():
    lam = init(Point(WorldConfig(), 8))
    for x, fan_in in ((lam.A, 128), (lam.B, 8), (lam.C, 128), (lam.D, 128), (lam.E, 8)):
        assert 0.95 < np.abs(x).max() * np.sqrt(fan_in) <= 1
        assert abs(x.mean()) < 4 / np.sqrt(3 * fan_in * x.size)


def test_options_of_the_model():
    config = TrainConfig(steps=40, max_rounds=1, fix_a=True)
    noisy = dataclasses.replace(TINY, s_iid=1.0, noise="uniform")
    (fixed,) = train([Point(TINY, 2)], config)
    np.testing.assert_array_equal(fixed.lam.A, np.eye(6))
    (tied,) = train([Point(TINY, 2)], dataclasses.replace(config, fix_a=False, tie_c=True))
    np.testing.assert_array_equal(tied.lam.C, -tied.lam.D)
    plain, biased = (
        train([Point(noisy, 2)], dataclasses.replace(config, steps=1500, fix_a=False, bias=b))[0] for b in (False, True)
    )
    assert not plain.lam.bias_o.any()
    np.testing.assert_allclose(biased.lam.bias_o - 0.5 + biased.lam.B @ (biased.lam.D @ np.full(6, 0.5)), 0, atol=0.1)
    assert biased.best.loss < plain.best.loss
    assert biased.excess < 0.02


def test_uniform_draws_are_uniform_with_unit_variance():
    batch = tiny_batch(20_000, uniform=True)
    iid = np.asarray(batch.sources.iid)
    assert np.abs(iid).max() <= 3**0.5 + 1e-6
    assert iid.std() == pytest.approx(1, abs=0.01)
    assert tiny_batch(4, iid=False, augmented=False, labelled=False).kappa1.shape == (4, 1)


# Errors


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"max_rounds": 0}, "max_rounds"),
        ({"batch": 0}, "batch"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"schedule": "linear"}, "schedule"),
        ({"units": "mean"}, "units"),
    ],
)
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=f"^{name} "):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "name"), [({"d_z": 7}, "d_z"), ({"kappa": -1.0}, "kappa"), ({"label_fraction": 2.0}, "label_fraction")]
)
def test_bad_points_are_named(settings, name):
    with pytest.raises(ValueError, match=f"^{name} "):
        Point(**({"world": TINY, "d_z": 2} | settings))


def test_sweeps_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"^points must not be empty"):
        train([])
    with pytest.raises(ValueError, match="same d_o"):
        train([Point(TINY, 2), Point(EXACT, 2)])
    with pytest.raises(ValueError, match="same kind of noise"):
        train([Point(TINY, 2), Point(dataclasses.replace(TINY, noise="uniform"), 2)])
    with pytest.raises(ValueError, match="innovation is empty"):
        train([Point(dataclasses.replace(TINY, s_exo=0.0, chi=1.0), 2)])


def test_divergence_is_told():
    with pytest.raises(FloatingPointError, match=r"diverged within 20 steps.*learning_rate"):
        train([Point(TINY, 2)], TrainConfig(steps=20, learning_rate=1e30, schedule="constant", max_rounds=1))
