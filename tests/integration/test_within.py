"""A run that is given a time: measured, cut, finished, and nothing compiled twice."""

import importlib
import json

from lamjax import parallel, pipeline, ppo
from lamjax.decoding import online
from lamjax.presets import VECTOR_PRESETS
from lamjax.training import driver
from lamjax.training.steps import cloning_step, dynamics_step

SMOKE = VECTOR_PRESETS["smoke"]


def test_what_measuring_compiled_the_run_uses(tmp_path, monkeypatch):
    programs = {
        "stage 1": driver.compile_steps(dynamics_step, parallel.devices(), (None, 0, 0, None, None), 0),
        "stage 2": driver.compile_steps(cloning_step, parallel.devices(), (None, 0, None, None, None), 0),
        "acting": ppo.programs(parallel.devices()).collect,
        "learning": ppo.programs(parallel.devices()).improve,
        "decoder": online.fit_decoder,
    }
    compiled = []
    module = importlib.import_module("lamjax.pipeline.train")  # the package exports a function of this name
    run_stages = module.run_stages

    def sizes():
        return {name: program._cache_size() for name, program in programs.items()}

    def counted(*args):
        compiled.append(sizes())
        return run_stages(*args)

    monkeypatch.setattr(module, "run_stages", counted)
    # Long enough for the slowest machine, and the rates are of no account: the preset's lengths are the upper bound.
    folder = pipeline.train(
        "cartpole", preset="smoke", policy="random", within=3600.0, runs=tmp_path / "runs", data=tmp_path / "data"
    )
    assert all(size > 0 for size in compiled[0].values())
    assert sizes() == compiled[0]
    summary = json.loads((folder / "summary.json").read_text())
    assert {"dynamics", "cloning", "decode_offline", "decode_online", "ppo_scratch"} <= summary["stages"].keys()
    assert summary["within"]["predicted"].keys() >= {"spent", "dynamics", "cloning", "ppo_scratch", "decode_online"}
    assert all(seconds >= 0 for seconds in summary["within"]["predicted"].values())
    assert summary["stages"]["dynamics"]["steps"] <= SMOKE.dynamics.steps
    assert (folder / "report.html").exists()
