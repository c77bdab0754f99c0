"""Table 1's grid world by hand, its theory, what stage 1 learns in it; and the page says what the results say."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.linear_lam import common, grid, tables
from experiments.linear_lam.panels import PANELS
from experiments.page import filled
from lamjax.linear import Point, WorldConfig

SHORT = dataclasses.replace(grid.CONFIG, steps=300)


# The world


def test_a_frame_by_hand():
    noise = jnp.array([[True, False, False, True]])
    [frame] = np.asarray(grid.frames(jnp.array([[1, 3]]), noise, jnp.float32(2)))
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame[..., 0], [[0, 0, 0, 0], [0, 0, 0, 100], [0, 0, 0, 0], [200, 0, 0, 200]])


@pytest.mark.parametrize(
    ("position", "reached"),
    [((1, 1), [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]), ((0, 3), [(0, 3), (2, 3), (1, 3), (0, 2), (0, 0)])],
)
def test_stay_up_down_left_right(position, reached):
    moved = grid.move(jnp.array([position] * 5), jnp.arange(5))
    np.testing.assert_array_equal(moved, reached)


def test_transitions_show_the_action_and_fresh_noise():
    windows, truth = jax.device_get(grid.sample(jax.random.key(0), 4096, jnp.float32(1)))
    assert windows.shape == (4096, 3, 4, 4, 1) and windows.dtype == np.uint8
    np.testing.assert_array_equal(windows[:, 0], windows[:, 1])  # the context adds nothing
    np.testing.assert_array_equal((windows[:, :, :3] == 100).sum((2, 3, 4)), 1)
    np.testing.assert_array_equal(windows[:, 2, 3, :, 0], 100 * truth["noise"])
    after = np.argwhere(windows[:, 2, :3, :, 0])[:, 1:]
    np.testing.assert_array_equal(after, grid.move(truth["position"], truth["action"]))
    assert set(truth["action"]) == set(range(5))
    # Noise is on half of the time, and that of o tells nothing of that of o'.
    before, now = windows[:, 1, 3, :, 0] / 100, windows[:, 2, 3, :, 0] / 100
    np.testing.assert_allclose([before.mean(0), now.mean(0)], 0.5, atol=0.04)
    np.testing.assert_allclose(np.mean((before - 0.5) * (now - 0.5), 0), 0, atol=0.02)
    # What o does not predict: 0.8 of the square, 1 of the noise.
    place = truth["position"] @ [4, 1]
    innovation = windows[:, 2].reshape(4096, 16) / 100.0
    for where in range(12):
        innovation[place == where] -= innovation[place == where].mean(0)
    np.testing.assert_allclose(grid.relative(innovation, 1.0), 1, atol=0.03)


def test_data_follow_from_key_and_step():
    """A resumed run draws what an uninterrupted one would have drawn; other steps draw something else."""
    draw = jax.jit(lambda step: grid.sample(jax.random.fold_in(jax.random.key(3), step), 8, jnp.float32(1))[0])
    np.testing.assert_array_equal(draw(5), draw(5))
    assert (np.asarray(draw(5)) != np.asarray(draw(6))).any()


# Theory


def test_the_best_five_codes():
    """No k-means of the 80 equally likely next frames beats the formula, and some reach it."""
    bits = (np.arange(16)[:, None] >> np.arange(4)) % 2
    rng = np.random.default_rng(0)
    for intensity in (0.5, 1.0, 1.15, 1.25, 2.0):
        square, noise = grid.best_codes(intensity)
        points = np.concatenate([np.repeat(np.eye(5), 16, 0), intensity * np.tile(bits, (5, 1))], axis=1)
        starts = points[np.stack([rng.choice(80, 5, replace=False) for _ in range(60)])]
        starts[0] = points.reshape(5, 16, -1).mean(1)  # the actions
        losses = []
        for centres in starts:
            for _ in range(20):
                nearest = ((points[:, None] - centres) ** 2).sum(-1).argmin(1)
                centres = np.stack(
                    [points[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(5)]
                )
            losses.append(((points[:, None] - centres) ** 2).sum(-1).min(1).mean())
        assert min(losses) == pytest.approx(0.8 * square + intensity**2 * noise, abs=1e-9)


def test_the_linear_theory_turns_at_the_largest_eigenvalue_of_the_square():
    """1 / 12 in each of four directions against intensity^2 / 4 in each of the noise's four."""
    assert grid.linear_codes(0.57) == pytest.approx((1 - 4 / 12 / 0.8, 1), abs=1e-6)
    assert grid.linear_codes(0.59) == pytest.approx((1, 0), abs=1e-6)
    assert grid.linear_codes(0.0)[0] == pytest.approx(1 - 4 / 12 / 0.8, abs=1e-6)


# Learning


@pytest.mark.parametrize(("intensity", "learned"), [(0.0, "square"), (2.0, "noise")])
def test_stage_1_learns_action_or_noise(intensity, learned):
    results = grid.examine(grid.train(SHORT, intensity, seed=0), intensity, seed=0)
    if learned == "square":
        assert results["square_error"] < 0.6
        assert results["action_placed_purity"] > results["action_placed_purity_shuffled"] + 0.2
        assert results["probe"] > results["majority"] + 0.05
        assert results["noise_nmi"] < 2 * results["noise_nmi_shuffled"] < 0.1
    else:
        assert results["noise_error"] < 0.6 and results["square_error"] > 0.9
        assert results["action_placed_purity"] < results["action_placed_purity_shuffled"] + 0.05
        assert results["noise_nmi"] > 0.4 > 0.1 > results["noise_nmi_shuffled"]
    assert results["probe_shuffled"] < 0.3


def test_noise_that_is_faded_in_is_absent_at_first():
    share = np.array([0, 0.25, 0.5, 0.625, 0.75, 1])
    np.testing.assert_allclose(grid.faded(2.0, share), [0, 0, 0, 1, 2, 2])


def test_a_run_that_is_started_again_trains_what_is_missing(monkeypatch, tmp_path):
    trained = []
    monkeypatch.setattr(grid, "WORK", tmp_path / "work")
    monkeypatch.setattr(grid, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(grid, "SEEDS", range(1))
    monkeypatch.setattr(grid, "train", lambda config, *where, fade: trained.append((config.steps, *where, fade)))
    monkeypatch.setattr(grid, "examine", lambda *_: {"square_error": 0.5, "noise_error": 0.25})
    every = grid.compute(full=False)
    steps = grid.CONFIG.steps
    assert trained == [(steps, x, 0, False) for x in grid.INTENSITIES] + [(steps, 1.0, 0, True)]
    grid.store(tmp_path / "work" / "grid.csv", every[:3] + every[4:])
    trained.clear()
    assert len(grid.compute(full=False)) == len(every)
    assert trained == [(steps, grid.INTENSITIES[3], 0, False)]
    trained.clear()
    grid.compute(full=True)
    assert [point[0] for point in trained] == [16_000] * len(every)
    assert (tmp_path / "results" / "grid.csv").read_text() == (tmp_path / "work" / "grid_full.csv").read_text()


# The panels


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.name)
def test_a_full_panel_holds_the_points_of_a_quick_one(panel):
    quick, full = (
        [common.key(each.curve, each.x, each.point.seed) for each in panel.trials(full)] for full in (False, True)
    )
    assert set(quick) < set(full)
    assert len(set(full)) == len(full)


def test_a_full_run_trains_what_a_quick_one_has_left(monkeypatch, tmp_path):
    trained = []

    def train(points, config, progress):
        trained.extend(points)
        return [SimpleNamespace(lam=point.optimum(config).lam, excess=0.0, steps=1, converged=True) for point in points]

    def runs(full: bool) -> list[common.Trial]:
        sizes = (1, 2, 3, 4) if full else (1, 3)
        return [common.Trial("a", d_z, Point(WorldConfig(d_o=8, d_a=2, s_iid=0.5), d_z)) for d_z in sizes]

    panel = common.Panel("small", "title", "x", runs, expected="")
    monkeypatch.setattr(common, "WORK", tmp_path / "work")
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(common, "train", train)
    for full, sizes in ((False, [1, 3]), (False, []), (True, [2, 4]), (True, [])):
        trained.clear()
        rows = common.compute(panel, full)
        assert [point.d_z for point in trained] == sizes
    assert [row["x"] for row in rows] == ["1", "3", "2", "4"]
    assert all(float(row["nmse_q"]) == float(row["closed_nmse_q"]) for row in rows)
    assert (tmp_path / "results" / "small.csv").read_text() == (tmp_path / "work" / "small.csv").read_text()


# The page


def test_the_page_says_what_the_committed_results_say():
    text = tables.DOCS.read_text()
    sections = tables.of_panels(PANELS) | {"grid": tables.grid()}
    assert filled(text, **sections) == text


def test_a_page_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="one pair of marks <!-- grid -->"):
        filled("no marks", grid="a table")
