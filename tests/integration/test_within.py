"""A run that is given a time: measured, cut, finished, and nothing compiled twice."""

import json

from lamjax import parallel, pipeline, whole
from lamjax.config import VECTOR_PRESETS
from lamjax.decoding import online
from lamjax.ppo.driver import programs as ppo_programs

SMOKE = VECTOR_PRESETS["smoke"]


def test_what_measuring_compiled_the_run_uses(tmp_path, monkeypatch):
    programs = {
        "stage 1": pipeline.over(pipeline._dynamics_steps, parallel.devices(), (None, 0, None, 0, None)),
        "stage 2": pipeline.over(pipeline._cloning_steps, parallel.devices(), (None, 0, None, None, None)),
        "acting": ppo_programs(parallel.devices()).collect,
        "learning": ppo_programs(parallel.devices()).improve,
        "decoder": online.fit_decoder,
    }
    compiled = []
    run_pipeline = pipeline.run_pipeline

    def sizes():
        return {name: program._cache_size() for name, program in programs.items()}

    def counted(*args):
        compiled.append(sizes())
        return run_pipeline(*args)

    monkeypatch.setattr(pipeline, "run_pipeline", counted)
    # Long enough for the slowest machine, and the rates are of no account: the preset's lengths are the upper bound.
    folder = whole.train(
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
