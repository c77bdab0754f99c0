"""The network that finds the agent: what it learns from frames alone, what it is kept as, and what stage 1 sees."""

import dataclasses

import jax
import numpy as np
import pytest

from lamjax import dynamics, pipeline
from lamjax.data import StoreWriter, open_store
from lamjax.models import locator as model
from lamjax.models.locator import LocatorConfig
from lamjax.pipeline import information, locator
from lamjax.preprocess import normalise_obs
from lamjax.presets import PRESETS
from lamjax.training import driver
from lamjax.training.run_folder import Run

SIDE, STEPS = 24, 40
SETTINGS = LocatorConfig(steps=150, channels=16, layers=2, frames=1200)
SMOKE = PRESETS["smoke"]
AROUND = dataclasses.replace(
    SMOKE.dynamics,
    focus=8,
    focus_at="agent",
    locator=SETTINGS,
    idm=dataclasses.replace(SMOKE.dynamics.idm, stem=1),
    fdm=dataclasses.replace(SMOKE.dynamics.fdm, stem=1),
)
STOP = lambda: None  # noqa: E731


def video(rng):
    """Frames ``[T, H, W, 3]`` and the agent's middles ``[T, 2]``.

    The agent is a blue square that moves at random, by at most two pixels a frame. Two red bars of random sizes move on
    steadily, and a spark of random colours appears each time at another place.
    """
    frames, places = np.zeros((STEPS, SIDE, SIDE, 3), np.uint8), np.zeros((STEPS, 2), int)
    place = rng.integers(3, SIDE - 3, 2)
    bars = [(rng.integers(0, SIDE, 2), rng.integers(-2, 3, 2), rng.integers(1, 5, 2)) for _ in range(2)]
    for t in range(STEPS):
        for start, speed, size in bars:
            y, x = (start + t * speed) % SIDE
            frames[t, y : y + size[0], x : x + size[1]] = (200, 40, 0)
        y, x = rng.integers(0, SIDE - 4, 2)
        if rng.random() < 0.6:
            frames[t, y : y + 4, x : x + 4] = rng.integers(0, 256, 3)
        place = np.clip(place + rng.integers(-2, 3, 2), 3, SIDE - 3)
        y, x = place
        frames[t, y - 2 : y + 2, x - 2 : x + 2] = (40, 80, 250)
        places[t] = place
    return frames, places


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "store"
    rng = np.random.default_rng(0)
    with StoreWriter(path, env="walk", obs_shape=(SIDE, SIDE, 3), obs_dtype="uint8", num_actions=2) as writer:
        for level in range(40):
            frames, _ = video(rng)
            writer.append_episode(frames, rng.integers(2, size=STEPS), np.zeros(STEPS), level, "terminated")
    return open_store(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("locators")


@pytest.fixture(scope="module")
def params(store, folder):
    return locator.agent_locator(AROUND, store, None, folder, STOP)


def test_it_finds_the_agent_of_an_unseen_video_more_often_than_motion_does(params):
    frames, places = video(np.random.default_rng(1))
    normalised = normalise_obs(frames)
    found = jax.jit(model.find, static_argnums=1)(params, SETTINGS, normalised)
    hits = (np.abs(np.asarray(found) - places) <= 2).all(1)
    windows = np.stack([normalised[t : t + 3] for t in range(STEPS - 2)])
    evidence = np.asarray(jax.jit(model.motion_evidence, static_argnums=(1, 2))(windows, SETTINGS, 4))
    cells = np.stack(np.unravel_index(evidence.reshape(len(evidence), -1).argmax(1), evidence.shape[1:]), 1)
    by_motion = (np.abs(2 * cells + 1 - places[1:-1]) <= 3).all(1)
    assert hits.mean() >= 0.9 > 0.6 > by_motion.mean()


def test_it_is_trained_once_for_all_runs_that_share_the_recording(params, store, folder, monkeypatch):
    (path,) = folder.glob("*.npz")
    calls = []
    monkeypatch.setattr(locator, "train_locator", lambda *args: calls.append(args) or params)
    again = locator.agent_locator(dataclasses.replace(AROUND, steps=7, decorrelation=1.0), store, None, folder, STOP)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert not calls
    for changed in ({"focus": 12}, {"clean": "median"}, {"locator": dataclasses.replace(SETTINGS, steps=151)}):
        locator.agent_locator(dataclasses.replace(AROUND, **changed), store, None, folder, STOP)
    assert len(calls) == 3 and len(list(folder.glob("*.npz"))) == 4
    path.write_bytes(path.read_bytes()[:100])
    jax.tree.map(np.testing.assert_array_equal, locator.agent_locator(AROUND, store, None, folder, STOP), params)
    assert len(calls) == 4  # the damaged file was written again


def test_it_learns_from_frames_as_stage_1_sees_them(store, monkeypatch):
    """Cleaned ones, one by one: inference cleans o_t in its window in the same way."""
    seen = []

    class Stopped(Exception):
        pass

    def compile_steps(*args):
        def advance(state, frames, *rest):
            seen.append(np.asarray(frames))
            raise Stopped

        return advance

    monkeypatch.setattr(driver, "compile_steps", compile_steps)
    windows = store.windows(store.starts("train")[:20])
    for how in ("none", "median"):
        with pytest.raises(Stopped):
            locator.train_locator(dataclasses.replace(AROUND, clean=how), store, None, STOP)
    for frames, how in zip(seen, ("none", "median"), strict=True):
        cleaned = dynamics.clean_frames(dataclasses.replace(AROUND, clean=how), windows)
        np.testing.assert_array_equal(frames[1:21], np.asarray(cleaned)[:, 1])
    assert (seen[0] != seen[1]).any()


@pytest.mark.parametrize("changes", [{"focus": 0}, {"focus_at": "change"}, {"focus_at": "unsteady"}], ids=str)
def test_other_squares_need_no_network(changes, store, tmp_path):
    assert locator.agent_locator(dataclasses.replace(AROUND, **changes), store, None, tmp_path, STOP) is None
    assert not list(tmp_path.iterdir())


def test_a_ceiling_belongs_to_the_network_that_found_the_agent(store, params, monkeypatch):
    """It is trained on the squares that the inverse model would see, once for each network."""
    seen = []

    class Trained(Exception):
        pass

    def train(settings, config, space, fit, stats, check_stop):
        seen.append(fit.windows)
        assert not config.focus
        raise Trained

    monkeypatch.setattr(information, "train_ceiling", train)
    other = jax.tree.map(lambda x: x + 1, params)
    analysis = dataclasses.replace(SMOKE.analysis, probe_train=64, probe_test=32)
    paths = []
    monkeypatch.setattr(
        information, "_digest", lambda tree, digest=information._digest: paths.append(digest(tree)) or paths[-1]
    )
    for network in (params, other, params):
        with pytest.raises(Trained):
            information.ceiling("walk", analysis, store, AROUND, STOP, network)
    assert paths[0] == paths[2] != paths[1]
    assert seen[0].shape == (64, 3, 8, 8, 3)
    assert ((seen[0] == np.array((40, 80, 250))).all(-1).sum((2, 3)) > 6).mean() > 0.8 > 0.5
    np.testing.assert_array_equal(seen[0], seen[2])


def test_stage_1_trains_on_squares_around_the_agent(store, folder, params, tmp_path, monkeypatch):
    """It takes the network from the recording's folder, keeps it, and trains everything else."""
    config = dataclasses.replace(
        SMOKE,
        dynamics=dataclasses.replace(AROUND, steps=2, batch_size=8),
        analysis=dataclasses.replace(SMOKE.analysis, probe_train=64, probe_test=32),
    )
    with Run(tmp_path / "run", "walk", config, {}) as run:
        untrained = pipeline.dynamics.init_dynamics(run, store)
        trained = pipeline.dynamics_stage(run, store)
        results = run.summary["stages"]["dynamics"]
    jax.tree.map(np.testing.assert_array_equal, untrained.locator, params)
    jax.tree.map(np.testing.assert_array_equal, trained.locator, params)
    assert np.isfinite(results["fdm_mse"])
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), untrained.params, trained.params)
    assert all(any(jax.tree.leaves(tree)) for tree in moved.values())
    (path,) = (tmp_path / "run" / "locators").glob("*.npz")
    path.unlink()
    with Run(tmp_path / "run", "walk", config, {}) as run, monkeypatch.context() as patch:
        patch.delattr(locator, "train_locator")  # a finished stage trains no second network
        finished = pipeline.dynamics_stage(run, store)
    jax.tree.map(np.testing.assert_array_equal, finished.locator, params)
    windows = store.windows(store.starts("test")[:16])
    squares = jax.jit(dynamics.idm_windows, static_argnums=0)(AROUND, windows, None, trained.locator)
    assert (np.asarray(squares) == np.array((40, 80, 250))).all(-1).sum((1, 2, 3)).min() >= 16
