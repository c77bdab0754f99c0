"""A run that is given a time: measured, cut, finished, and nothing compiled twice. And what README does with a run."""

import dataclasses
import importlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import lamjax
from lamjax import parallel
from lamjax.config import RunConfig
from lamjax.decoding import online
from lamjax.ppo.driver import programs as ppo_programs
from lamjax.presets import VECTOR_PRESETS
from lamjax.training import checkpoint, driver
from lamjax.training.logging import read_metrics
from lamjax.training.steps import cloning_step, dynamics_step

SMOKE = VECTOR_PRESETS["smoke"]
README = Path(__file__).parents[2] / "README.md"


def cached_programs():
    """How many programs are compiled for each step of a run."""
    devices = parallel.devices()
    programs = {
        "stage 1": driver.compile_steps(dynamics_step, devices, (None, 0, 0, None, None), 0),
        "stage 2": driver.compile_steps(cloning_step, devices, (None, 0, None, None, None), 1),
        "acting": ppo_programs(devices).collect,
        "learning": ppo_programs(devices).improve,
        "decoder": online.fit_decoder,
    }
    return {name: program._cache_size() for name, program in programs.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and the programs that were compiled before it and after it."""
    module = importlib.import_module("lamjax.pipeline.train")  # the package exports a function of this name
    root, run_stages, compiled = tmp_path_factory.mktemp("within"), module.run_stages, []

    def counted(*args):
        compiled.append(cached_programs())
        return run_stages(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_stages", counted)
        # Long enough for the slowest machine, and the rates do not matter: the preset's lengths are the upper bound.
        folder = lamjax.train(
            "cartpole", preset="smoke", policy="random", within=3600.0, runs=root / "runs", data=root / "data"
        )
    return folder, compiled[0], cached_programs()


def test_what_measuring_compiled_the_run_uses(run):
    folder, before, after = run
    assert all(size > 0 for size in before.values())
    assert after == before
    summary = json.loads((folder / "summary.json").read_text())
    assert {"dynamics", "cloning", "decode_offline", "decode_online", "ppo_scratch"} <= summary["stages"].keys()
    assert summary["within"]["predicted"].keys() >= {"spent", "dynamics", "cloning", "ppo_scratch", "decode_online"}
    assert all(seconds >= 0 for seconds in summary["within"]["predicted"].values())
    assert 0 < summary["within"]["rates"]["latent"] < 1
    assert summary["stages"]["dynamics"]["steps"] <= SMOKE.dynamics.steps
    assert (folder / "report.html").exists()


TIMES = ("seconds", "information_seconds", "windows_per_s", "frames_per_s")


def test_two_lanes_give_the_results_of_one(run):
    """A run with a time has one stage after another; here the same settings again, with baselines beside the stages."""
    sequence = run[0]
    written = json.loads((sequence / "config.json").read_text())
    config = checkpoint.from_json(RunConfig, {k: v for k, v in written.items() if k not in ("env", "source")})
    assert_same_results(trained(run, "lanes", config, in_sequence=False), sequence)


def test_pseudo_labels_beside_other_stages_are_those_of_a_sequence(run):
    config = dataclasses.replace(SMOKE, named=dataclasses.replace(SMOKE.named, frames=1024))
    lanes, sequence = (trained(run, f"named-{flag}", config, in_sequence=flag) for flag in (False, True))
    assert_same_results(lanes, sequence)
    assert "decode_named" in json.loads((lanes / "summary.json").read_text())["stages"]


def trained(run, name, config, in_sequence):
    """Another run of cartpole beside the module's."""
    runs = run[0].parents[1]
    options = {"policy": "random", "runs": runs, "data": runs.with_name("data"), "in_sequence": in_sequence}
    return lamjax.train("cartpole", preset="smoke", config=config, name=name, **options)


def assert_same_results(lanes, sequence):
    """Whether two run folders hold the same results, metrics and checkpoints; only the first had two lanes."""
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (lanes, sequence))
    assert ours["beside"] == ["oracle", "ppo_scratch", "decode_named", "decode_online"] and "beside" not in theirs
    for summary in (ours, theirs):
        for results in summary["stages"].values():
            for name in TIMES:
                results.pop(name, None)
    for entry in ("stages", "nulls", "decoder", "diagnosis"):
        assert ours[entry] == theirs[entry]

    rows, others = (read_metrics(folder / "metrics.jsonl") for folder in (lanes, sequence))
    for steps in (*rows.values(), *others.values()):
        for row in steps.values():
            row.pop("time")
    assert rows == others
    for stage in rows:
        saved, other = (checkpoint.restore_arrays(folder / "checkpoints" / stage) for folder in (lanes, sequence))
        assert saved[2]["digests"] == other[2]["digests"]


def snippet(heading):
    """The first Python block of README below a heading."""
    return re.search(rf"## {heading}\n.*?```python\n(.*?)```", README.read_text(), re.S).group(1)


def test_readme_loads_a_run(run):
    code = snippet("From Python")
    assert 'lamjax.train("coinrun")' in code and 'lamjax.make("coinrun", num_envs=64)' in code
    code = code.replace('lamjax.train("coinrun")', "folder").replace('make("coinrun"', 'make("cartpole"')
    names = {"folder": run[0]}
    exec(code, names)
    assert names["run"].config.dynamics.quantizer == SMOKE.dynamics.quantizer
    assert int(names["run"].dynamics.step) == names["run"].summary["stages"]["dynamics"]["steps"]
    assert names["outputs"].shape == (64, 2) and np.isfinite(names["outputs"]).all()
    policy = lamjax.load(run[0] / "policies" / "decode_online")
    np.testing.assert_array_equal(policy(names["obs"]), names["outputs"])
    # What was loaded is what was trained: stage 2 decodes to the same as the policy that was saved of it.
    name = next(name for name in names["run"].policies if name.startswith("offline"))
    loaded, cloning = names["run"].policies[name], names["run"].cloning
    for ours, theirs in zip(*map(jax.tree.leaves, (cloning.params, loaded.params["policy"])), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(lamjax.cloning.predict_latents(cloning, names["obs"]).shape, (64, 4))


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is neither a run nor a policy at"):
        lamjax.load(tmp_path)
