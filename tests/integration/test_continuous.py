"""A whole run where actions are numbers: gymnax's Pendulum, from a recording to the report."""

import importlib.util
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from lamjax import envs, pipeline, policies
from lamjax.cli import main
from lamjax.data import LabelledSubset, open_store
from lamjax.presets import VECTOR_PRESETS
from lamjax.spaces import Box

CHECK = Path(__file__).parents[2] / ".ci" / "check_summary.py"
TORQUE = Box((-2.0,), (2.0,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pendulum")
    argv = ["train", "--env", "pendulum", "--preset", "smoke", "--policy", "random", "--dynamics.action-weight", "0.1"]
    argv += ["--offline.methods", "policy", "bc", "idm", "relabel"]
    assert main([*argv, "--runs", str(root / "runs"), "--data", str(root / "data")]) == 0
    return root / "runs" / "pendulum" / "smoke-s0"


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_summary_is_complete(summary):
    spec = importlib.util.spec_from_file_location("check_summary", CHECK)
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    assert list(check.problems(summary)) == []
    stages = summary["stages"]
    read = {f"{kind}{probe}_r2" for kind in ("", "untrained_", "still_") for probe in ("probe", "linear_probe")}
    assert read | {"mean_r2", "code_r2", "code_r2_shuffled", "action_mse", "action_r2"} <= stages["dynamics"].keys()
    assert not any("accuracy" in key for key in stages["dynamics"])
    assert all(stages["dynamics"][key] <= 1 for key in read)
    assert {"curve", "bc_curve", "idm_curve", "relabel_curve"} <= stages["decode_offline"].keys()
    for stage in ("decode_online", "ppo_scratch"):
        assert stages[stage]["normalised"] == envs.normalised_return("pendulum", stages[stage]["return_mean"])
        assert all(-2000 < value < 0 for _, value in stages[stage]["curve"])


def test_the_recording_holds_torques(summary):
    store = open_store(summary["stages"]["record"]["store"])
    assert store.action_space == TORQUE
    torque = LabelledSubset(store, 500).actions
    assert torque.shape == (500, 1) and torque.dtype == np.float32
    # The random policy is uniform over the box.
    assert np.abs(torque).max() <= 2 and torque.std() == pytest.approx(4 / math.sqrt(12), rel=0.1)


def test_the_report_shows_them(folder):
    assert "of continuous actions" in (folder / "report.html").read_text()
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert {"probe.png", "latents_trained.png", "strips.png", "rollouts.png", "return_by_labels.png"} <= drawn


def test_its_policies_play(folder):
    obs, _ = envs.make("pendulum", 3).reset(jax.random.key(0))
    names = {path.name for path in (folder / "policies").iterdir()}
    assert names == {"decode_online", "ppo_scratch", "idm-64", "offline-16", "offline-64", "relabel-64"}
    for name in names:
        policy, params, _ = policies.load_policy(folder / "policies" / name)
        outputs = policy(params, obs)
        torque = TORQUE.clip(TORQUE.sample(jax.random.key(1), outputs))
        assert torque.shape == (3, 1) and np.isfinite(torque).all() and np.abs(torque).max() <= 2


def test_seeds_are_aggregated_by_what_they_have(folder, tmp_path):
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path / f"smoke-s{seed}")
        folders[-1].mkdir()
        (folders[-1] / "summary.json").write_text((folder / "summary.json").read_text())
    found = json.loads(pipeline.aggregate(folders).read_text())["stages"]
    assert found["dynamics"].keys() == {"fdm_ratio", "probe_r2"}
    assert found["decode_online"].keys() == {"return_mean", "normalised"}


def test_the_preset_is_that_of_vectors(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["dynamics"]["idm"] == json.loads(json.dumps({**vars(VECTOR_PRESETS["smoke"].dynamics.idm)}))
