"""Decoded actions of held-out windows, of continuous actions and with untrained models."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lamjax import data
from lamjax.data.stream import EvaluationWindows
from lamjax.pipeline.actions import STAGE, action_stage
from lamjax.pipeline.decoders import constant_action
from lamjax.policies import load_policy
from lamjax.presets import VECTOR_PRESETS
from lamjax.spaces import Box, Discrete
from lamjax.training.run_folder import Run
from tests.small_runs import VECTOR, clip, init_cloning, stage_1

SPACE = Box((-1.0, -2.0), (1.0, 2.0))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Noise with actions at random, so that nothing tells them."""
    path, rng = tmp_path_factory.mktemp("stores") / "store", np.random.default_rng(0)
    form = {"obs_shape": VECTOR, "obs_dtype": "float32", "action_dim": 2, "action_bounds": (SPACE.low, SPACE.high)}
    with data.StoreWriter(path, env="robot", **form) as writer:
        for level in range(20):
            actions = rng.uniform(SPACE.low, SPACE.high, (30, 2))
            writer.append_episode(clip(VECTOR, 30, level), actions, np.zeros(30), level, "cut")
    return data.open_store(path)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """The folder of a run that decoded actions twice over, and its results."""
    model = stage_1(VECTOR)
    preset = VECTOR_PRESETS["smoke"]
    offline = dataclasses.replace(preset.offline, labels=(16, 64), seeds=2, steps=20)
    config = dataclasses.replace(preset, dynamics=model.config, offline=offline)
    args = (config.cloning.program, VECTOR, model.config.latent_dim, model.obs_stats)
    policy = init_cloning(jax.random.key(2), *args)
    with Run(tmp_path_factory.mktemp("runs") / "run", "robot", config, {}) as opened:
        action_stage(opened, store, model, policy)
        first = dict(opened.summary["stages"][STAGE])
        action_stage(opened, store, model, policy)  # does nothing
        assert opened.summary["stages"][STAGE] == first
    return opened.folder, json.loads((opened.folder / "summary.json").read_text())["stages"][STAGE], config


def test_every_way_is_measured_at_every_number_of_labels(run, store):
    _, results, config = run
    assert results["score"] == "mse" and results["seeds"] == 2
    for name in ("idm_curve", "policy_curve", "bc_curve"):
        assert [n for n, *_ in results[name]] == [16, 64]
        assert np.isfinite(results[name]).all()
    windows = EvaluationWindows(store, num_windows=config.analysis.probe_test, batch_size=64)
    assert results["windows"] == len(windows.starts)


def test_what_nothing_tells_is_no_result(run, store):
    _, results, config = run
    windows = EvaluationWindows(store, num_windows=config.analysis.probe_test, batch_size=64)
    actions = data.evaluation_actions(store, windows.starts)
    # A constant guess has at least the variance of the actions as its error: a third of a half-range, squared.
    assert results["constant"] == pytest.approx(float(np.mean(np.asarray(SPACE.score(actions * 0, actions)))), abs=0.05)
    assert not results["ok"] and results["verdict"].startswith("failed: no better than the baselines: mse ")


def test_decoders_are_kept_as_policies_with_their_scores(run):
    folder = run[0]
    assert {path.name for path in (folder / "policies").iterdir()} == {"idm-16", "idm-64", "offline-16", "offline-64"}
    network, _, info = load_policy(folder / "policies" / "idm-64")
    assert network.space == SPACE and info.keys() == {"mse", "stderr"}


def test_the_guess_that_looks_at_nothing():
    assert constant_action(Discrete(4), np.array([2, 0, 2, 1])) == 2
    np.testing.assert_array_equal(constant_action(SPACE, np.array([[0, 1], [1, 2]], np.float32)), [0.5, 1.5])
