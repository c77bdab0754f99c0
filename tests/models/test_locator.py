import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.models import locator
from lamjax.models.locator import LocatorConfig
from lamjax.training import driver
from lamjax.training.driver import jit_once
from lamjax.training.steps import locator_step

SMALL = LocatorConfig(channels=4, layers=1)
track = jax.jit(locator.track)


def init(config, shape):
    return jit_once(locator.init, static_argnums=(1, 2))(jax.random.key(0), config, shape)


def best_paths(evidence, is_first):
    """The tracks by trying every path."""
    frames, rows, columns = evidence.shape
    cells = list(itertools.product(range(rows), range(columns)))
    bounds = [*np.flatnonzero(is_first), frames]
    places = []
    for start, stop in itertools.pairwise(bounds):
        near = [
            path
            for path in itertools.product(cells, repeat=stop - start)
            if all(max(abs(a - c), abs(b - d)) <= 1 for (a, b), (c, d) in itertools.pairwise(path))
        ]
        places += max(near, key=lambda path: sum(evidence[start + t][cell] for t, cell in enumerate(path)))
    return np.array(places)


@pytest.mark.parametrize("seed", range(3))
def test_a_track_has_the_most_evidence_of_all_paths_without_jumps(seed):
    evidence = np.random.default_rng(seed).normal(size=(9, 4, 2)).astype(np.float32)
    is_first = np.isin(np.arange(9), (0, 4, 5))
    np.testing.assert_array_equal(track(evidence, is_first), best_paths(evidence, is_first))
    best_cells = np.stack(np.unravel_index(evidence.reshape(9, -1).argmax(1), (4, 2)), 1)
    assert (track(evidence, is_first) != best_cells).any()  # these would jump


def test_a_track_crosses_a_frame_without_evidence():
    """The evidence goes along the diagonal; in two frames there is none, and in one there is more elsewhere."""
    evidence = np.full((8, 8, 8), -5.0, np.float32)
    for t in range(8):
        evidence[t, t, t] = 0
    evidence[3:5] = 0
    evidence[6] = -5
    evidence[6, 0, 7] = 0
    np.testing.assert_array_equal(track(evidence, np.arange(8) == 0), np.arange(8)[:, None].repeat(2, 1))


def test_evidence_is_where_something_changes_its_pace():
    """Of two dots, one keeps moving by a pixel and one starts; the cells have sides of two pixels."""
    windows = np.zeros((1, 3, 16, 16, 1), np.float32)
    for t in range(3):
        windows[0, t, 3, 4 + t] = 1
    windows[0, :2, 12, 5], windows[0, 2, 12, 6] = 1, 1
    evidence = np.asarray(jax.jit(locator.motion_evidence, static_argnums=(1, 2))(windows, SMALL, 2))[0]
    assert evidence.shape == (8, 8)
    assert evidence.max() == pytest.approx(np.log(1.001), abs=1e-6)
    near = [(5, 2), (6, 2)]  # from a box of 2 x 2 pixels that begins here one sees the dot leave and arrive
    assert [(y, x) for y, x in np.argwhere(evidence > -0.1)] == near
    assert evidence[0].max() == pytest.approx(np.log(1e-3))


@pytest.mark.parametrize("shape", [(16, 16, 3), (15, 22, 3), (13, 9, 1)])
def test_a_place_is_counted_from_the_corner_of_the_frame(shape):
    """The network's last layer is set to prefer bright cells, so that the place is known."""
    params = jax.tree.map(jnp.zeros_like, init(SMALL, shape).params)
    first, second, last = (params[f"Conv_{i}"]["conv"] for i in range(3))
    first["kernel"] = first["kernel"].at[1, 1, :, 0].set(1.0)  # the sum of a cell
    for cell in range(4):  # in each block of 2 x 2 cells
        second["kernel"] = second["kernel"].at[1, 1, 2 * cell, cell].set(1.0)
        last["kernel"] = last["kernel"].at[1, 1, cell, cell].set(1.0)
    frames = np.zeros((2, *shape), np.float32)
    padding = [-size % 4 // 2 for size in shape[:2]]
    for frame, (row, column) in zip(frames, ((2, 3), (1, 1)), strict=True):
        frame[
            2 * row - padding[0] : 2 * row - padding[0] + 2, 2 * column - padding[1] : 2 * column - padding[1] + 2
        ] = 1
    places = jax.jit(locator.find, static_argnums=1)(params, SMALL, frames)
    middles = np.array([(5, 7), (3, 3)]) - padding
    np.testing.assert_array_equal(places, middles)
    evidence = jax.jit(locator.network_evidence, static_argnums=1)(params, SMALL, frames)
    motion = jax.jit(locator.motion_evidence, static_argnums=(1, 2))(np.stack([frames] * 3, 1), SMALL, 4)
    assert evidence.shape == motion.shape  # cells are the same for both


def test_devices_learn_what_one_device_learns_from_the_joined_batch():
    rng = np.random.default_rng(0)
    frames, places = rng.normal(size=(8, 16, 16, 3)).astype(np.float32), rng.integers(0, 8, (8, 2)).astype(np.int32)
    state = init(SMALL, (16, 16, 3))
    joined, metrics = jax.jit(locator.train_step)(state, frames, places)
    step = jax.pmap(lambda *batch: locator.train_step(state, *batch, axis_name="devices"), "devices")
    each, shared = step(frames.reshape(2, 4, 16, 16, 3), places.reshape(2, 4, 2))
    np.testing.assert_allclose(shared["loss"], np.repeat(metrics["loss"], 2), rtol=1e-5)
    for one, other in zip(jax.tree.leaves(each.params), jax.tree.leaves(joined.params), strict=True):
        np.testing.assert_allclose(one[0], other, atol=1e-4)
    assert int(joined.step) == 1


def test_fused_steps_with_packed_parameters_are_those_one_by_one(monkeypatch):
    """As an accelerator repeats them: parameters and moments end to end in one array, drawn from the same frames."""
    rng = np.random.default_rng(0)
    frames = jnp.asarray(rng.integers(0, 256, (20, 16, 16, 3), np.uint8))
    places, key = jnp.asarray(rng.integers(0, 8, (20, 2)), jnp.int32), jax.random.key(1)
    config = dataclasses.replace(SMALL, batch_size=4, learning_rate=1e-3)
    step = lambda state: locator_step(state, frames, places, key, None)  # noqa: E731
    single, state = jax.jit(step), init(config, (16, 16, 3))
    one_by_one = functools.reduce(lambda s, _: single(s)[0], range(3), state)
    monkeypatch.setattr(driver, "packs", lambda: True)
    fused, metrics = jax.jit(lambda state: driver.repeat(step, state, 3))(state)
    assert int(fused.step) == int(one_by_one.step) == 3 and np.isfinite(metrics["loss"])
    for ours, theirs in zip(jax.tree.leaves(fused.params), jax.tree.leaves(one_by_one.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_loss_is_the_cross_entropy_of_a_gaussian_around_the_place():
    state = init(SMALL, (16, 16, 3))
    state = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    frames, places = np.zeros((1, 16, 16, 3), np.float32), np.array([[3, 3]], np.int32)
    new, metrics = jax.jit(locator.train_step)(state, frames, places)
    assert metrics["loss"] == pytest.approx(np.log(64))  # a network that knows nothing
    bias = np.asarray(new.params["Conv_2"]["conv"]["bias"])
    assert np.abs(bias).max() <= SMALL.learning_rate * 1.001 and np.any(bias)


@pytest.mark.parametrize(
    "settings", [{"rounds": 0}, {"cell": 0}, {"learning_rate": 0.0}, {"layers": -1}, {"channels": 3}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"locator.{next(iter(settings)).replace('_', '.')}"):
        dataclasses.replace(SMALL, **settings)
