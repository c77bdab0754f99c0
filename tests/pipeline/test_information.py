"""The action information and the oracle as stages make them: on planted trajectories, stopped, and on two devices."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from lamjax import pipeline
from lamjax.config import InformationConfig
from lamjax.data import StoreWriter, evaluation_actions, open_store
from lamjax.decoding import behaviour_cloning
from lamjax.pipeline import information, oracle, pseudo_labels, windows
from lamjax.presets import VECTOR_PRESETS
from lamjax.training.run_folder import InterruptedRunError, Run, stage_key
from tests.trees import close

SMOKE = VECTOR_PRESETS["smoke"]
PLAY = InformationConfig(frames=1024, num_envs=8, steps=60, batch_size=32, learning_rate=1e-2)
CONFIG = dataclasses.replace(
    SMOKE,
    dynamics=dataclasses.replace(SMOKE.dynamics, idm_input="changes"),
    cloning=dataclasses.replace(SMOKE.cloning, steps=10, batch_size=4),
    analysis=dataclasses.replace(SMOKE.analysis, probe_train=512, probe_test=128, information=PLAY),
    checkpoint_every=1000.0,
)
STOP = lambda: None  # noqa: E731


def write_play(path):
    """40 episodes of 32 steps: the next observation shows which of two actions was taken."""
    rng, shown = np.random.default_rng(0), np.array([(3, 0, 0, 0), (0, -3, 0, 0)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with StoreWriter(path, env="cartpole", obs_shape=(4,), obs_dtype="float32", num_actions=2) as writer:
        for level in range(40):
            actions = rng.integers(2, size=32)
            obs = np.roll(shown[actions], 1, axis=0) + rng.normal(size=(32, 4))
            writer.append_episode(obs.astype(np.float32), actions, np.zeros(32), level, "terminated")
    return open_store(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder in which random play lies, planted."""
    folder = tmp_path_factory.mktemp("data")
    write_play(folder / "cartpole" / f"play-{PLAY.frames}-s0")
    return folder


@pytest.fixture(scope="module")
def store(data):
    return information.random_play("cartpole", CONFIG, data, STOP)


@pytest.fixture(scope="module")
def model(store):
    stats = windows.training_stats(store)
    return pipeline.dynamics.init_model(jax.random.key(1), CONFIG.dynamics.program, (4,), stats, store.action_space)


@pytest.fixture(scope="module")
def measured(data, store, model):
    return information.measure("cartpole", CONFIG.analysis, store, model, model)


def ceilings(data):
    return sorted((data / "cartpole" / f"play-{PLAY.frames}-s0.ceilings").glob("*.json"))


def test_a_model_beside_what_frames_reveal(measured, store):
    test = store.starts("test")
    assert measured["windows"] == min(CONFIG.analysis.probe_test, len(test))
    assert measured["supervised"] > 0.9 > 0.6 > measured["majority"]
    assert measured["trained"] == measured["untrained"] and measured["share"] == measured["untrained_share"]
    knowable = measured["supervised"] - measured["majority"]
    assert measured["share"] == pytest.approx((measured["trained"] - measured["majority"]) / knowable)
    assert 0 < measured["share_stderr"] < 0.5


def test_the_ceiling_is_paid_for_once(data, store, model, measured, monkeypatch):
    """It depends on random play and on the inverse model; what else changes in stage 1 trains it no second time."""
    (path,) = ceilings(data)

    def forbidden(*args, **kwargs):
        raise AssertionError("the ceiling was trained again")

    monkeypatch.setattr(information, "train_ceiling", forbidden)
    assert information.measure("cartpole", CONFIG.analysis, store, model, model) == measured
    other = dataclasses.replace(
        model.config,
        steps=7,
        learning_rate=1.0,
        loss_scale="none",
        fdm=dataclasses.replace(model.config.fdm, hidden=(3,)),
    )
    scores = information.ceiling("cartpole", CONFIG.analysis, store, other, STOP)
    assert np.mean(scores) == measured["supervised"] == json.loads(path.read_text())["score"]
    for changed in (
        dataclasses.replace(model.config, idm_input="frames"),
        dataclasses.replace(model.config, idm=dataclasses.replace(model.config.idm, hidden=(8,))),
    ):
        with pytest.raises(AssertionError, match="trained again"):
            information.ceiling("cartpole", CONFIG.analysis, store, changed, STOP)
    longer = dataclasses.replace(CONFIG.analysis, information=dataclasses.replace(PLAY, steps=61))
    with pytest.raises(AssertionError, match="trained again"):
        information.ceiling("cartpole", longer, store, model.config, STOP)


def test_a_ceiling_that_was_stopped_or_damaged_is_made_again(data, store, model, measured):
    (path,) = ceilings(data)
    before = path.read_text()
    path.write_text("{")

    def stop():
        raise InterruptedRunError(signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        information.measure("cartpole", CONFIG.analysis, store, model, model, stop)
    assert path.read_text() == "{"
    assert information.measure("cartpole", CONFIG.analysis, store, model, model) == measured
    assert json.loads(path.read_text())["scores"] == json.loads(before)["scores"]


def test_random_play_is_recorded_once_on_the_runs_levels(tmp_path, monkeypatch):
    levels = {"distribution_mode": "hard", "num_levels": 5, "start_level": 7}
    config = dataclasses.replace(CONFIG, record=dataclasses.replace(CONFIG.record, frames=64, num_envs=2, **levels))
    calls = []

    def record(path, env, source, settings, key, check_stop):
        calls.append((env, source.kind, settings, jax.random.key_data(key).tolist()))
        write_play(path)

    monkeypatch.setattr(information, "record", record)
    for kind, seed in (("play", 0), ("fresh", 3), ("play", 0)):
        play = information.random_play("cartpole", config, tmp_path, STOP, kind, seed)
        assert play.path == tmp_path / "cartpole" / f"{kind}-1024-s{seed}-hard5from7"
    (env, kind, settings, first), (_, _, _, second) = calls  # the third one was there
    assert (env, kind) == ("cartpole", "random") and first != second
    assert settings == dataclasses.replace(config.record, frames=1024, num_envs=8)


def examined(folder, config, store, model, data):
    with Run(folder, "cartpole", config, {}) as run:
        held_out = windows.held_out_windows(run, store)
        return pipeline.dynamics.examine_dynamics(run, store, model, model, held_out, data)


def test_the_verdict_is_that_of_random_play_where_there_is_any(tmp_path, store, model, measured, data, monkeypatch):
    on_recording = {"fdm_mse": 0.1, "copy_last_mse": 1.0, "fdm_ratio": 0.1}
    names = ("probe", "untrained_probe", "still_probe", "majority")
    on_recording |= {f"{name}_accuracy_merged": score for name, score in zip(names, (0.9, 0.4, 0.4, 0.4), strict=True)}
    monkeypatch.setattr(pipeline.dynamics, "examine_on_recording", lambda *args: dict(on_recording))
    results = examined(tmp_path / "with", CONFIG, store, model, data)
    assert results["action_information"] == measured and results["information_seconds"] > 0
    assert not results["ok"]  # an untrained model is no better than itself
    without = examined(tmp_path / "without", CONFIG, store, model, None)
    assert without["ok"] and "action_information" not in without
    off = dataclasses.replace(CONFIG.analysis, information=dataclasses.replace(PLAY, frames=0))
    assert examined(tmp_path / "off", dataclasses.replace(CONFIG, analysis=off), store, model, data) == without


# The oracle


def train_oracle(folder, config, store, count):
    with Run(folder, "cartpole", config, {}) as run:
        run.devices = tuple(jax.local_devices()[:count])
        frames = windows.TrainingFrames(run, store)
        state = oracle.train_oracle(run, store, None, store.action_space, frames)
        return state, frames.stream(4, config.seed + 1, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_the_oracle_clones_the_actions_of_stage_2s_windows(count, store, tmp_path):
    state, stream = train_oracle(tmp_path, CONFIG, store, count)
    actions = evaluation_actions(store, np.arange(store.num_frames - 2))
    middle = store.observations(1, store.num_frames - 1)
    expected = pseudo_labels.init_clone(stage_key(CONFIG.seed, "oracle"), CONFIG.cloning, 2, (4,), True, None)
    step = jax.jit(behaviour_cloning.train_step)
    for number in range(CONFIG.cloning.steps):
        batch = np.asarray(stream.windows(number)).reshape(-1, 3, 4)[:, 1]
        places = [int(np.flatnonzero((middle == obs).all(1))[0]) for obs in batch]
        expected, _ = step(expected, batch, actions[places])
    close(state.policy_params, expected.policy_params, rtol=1e-4, atol=1e-5)


def test_a_ring_says_which_frames_of_the_store_it_holds(store, tmp_path):
    config = dataclasses.replace(CONFIG, ring_frames=320, log_every=5)
    with Run(tmp_path, "cartpole", config, {}) as run:
        stream = windows.training_stream(run, store, 4, 0, 1)
        assert stream.steps_per_phase
        for number in (0, stream.steps_per_phase):
            buffer = stream.buffer(number)
            starts = np.asarray(buffer.starts)[: int(buffer.num_starts)]
            places = np.asarray(buffer.places)[starts]
            np.testing.assert_array_equal(np.asarray(buffer.frames)[starts], store.observations_at(places))


def test_the_oracle_resumes_exactly(store, tmp_path, monkeypatch):
    whole, _ = train_oracle(tmp_path / "whole", CONFIG, store, 1)
    fused = dataclasses.replace(CONFIG, log_every=2)
    train = windows.train

    def stopped(run, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return train(run, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(windows, "train", stopped)
        train_oracle(tmp_path / "stopped", fused, store, 1)
    state, _ = train_oracle(tmp_path / "stopped", fused, store, 1)
    close(state.params, whole.params, rtol=1e-6)
