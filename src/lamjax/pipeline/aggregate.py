"""Aggregates runs of several seeds."""

import json
from pathlib import Path
from typing import Any

from lamjax.statistics import mean_and_stderr
from lamjax.training.run_folder import write_json

AVERAGED = {
    "dynamics": ("fdm_ratio", "probe_accuracy", "probe_accuracy_merged", "probe_r2"),
    "cloning": ("ratio",),
    "decode_online": ("return_mean", "normalised"),
    "decode_named": ("return_mean", "normalised"),
    "ppo_scratch": ("return_mean", "normalised"),
}


def aggregate(folders: list[Path]) -> Path:
    """Writes means and standard errors over runs of several seeds to ``<name>-aggregate.json``, next to the runs."""
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]

    def over_seeds(values: list[float]) -> dict[str, Any]:
        return dict(zip(("mean", "stderr"), mean_and_stderr(values), strict=True))

    def measured(stage: str, name: str) -> bool:
        return all(summary["stages"].get(stage, {}).get(name) is not None for summary in summaries)

    stages: dict[str, Any] = {
        stage: {
            name: over_seeds([summary["stages"][stage][name] for summary in summaries])
            for name in names
            if measured(stage, name)
        }
        for stage, names in AVERAGED.items()
    }
    for stage, name in (("decode_offline", "curve"), ("decode_actions", "idm_curve")):
        if measured(stage, name):
            curves = [{n: mean for n, mean, _ in s["stages"][stage][name]} for s in summaries]
            common = [n for n in curves[0] if all(n in curve for curve in curves)]
            stages[stage] = {name: [[n, *over_seeds([curve[n] for curve in curves]).values()] for n in common]}
    information = [summary["stages"].get("dynamics", {}).get("action_information") for summary in summaries]
    shares = {
        name: over_seeds([measures[name] for measures in information])
        for name in ("share", "untrained_share")
        if all(information)
    }
    path = folders[0].with_name(f"{folders[0].name.rpartition('-s')[0]}-aggregate.json")
    write_json(path, {"seeds": [s["seed"] for s in summaries], "stages": stages, "action_information": shares})
    return path
