"""Checks the summary.json of finished runs: every stage is there, with its keys, and every number is finite."""

import json
import math
import sys
from pathlib import Path

TOP = {"env", "preset", "seed", "git", "versions", "device", "stages", "nulls", "diagnosis", "total_seconds"}
STAGES = {
    "dynamics": {
        "steps",
        "windows_per_s",
        "seconds",
        "fdm_mse",
        "copy_last_mse",
        "codebook_perplexity",
        "dead_codes",
    },
    "cloning": set(),
    "decode_offline": {"curve", "episodes", "normalised"},
    "decode_online": {"frames", "curve", "return_mean"},
    "ppo_scratch": set(),
}
PROBES = (  # of discrete actions, or of continuous ones
    {"probe_accuracy", "probe_accuracy_merged", "majority_accuracy"},
    {"probe_r2", "untrained_probe_r2", "mean_r2"},
)
POINT = {"decode_offline": 3, "decode_online": 2}  # numbers in a point of the stage's curve


def non_finite(value, path="summary"):
    """Yields the path of every number that is NaN or infinite."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from non_finite(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from non_finite(inner, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path


def problems(summary):
    """Yields one line for everything that is wrong with a summary."""
    yield from (f"{key} is missing" for key in sorted(TOP - summary.keys()))
    stages = summary.get("stages", {})
    for stage, keys in STAGES.items():
        if not stages.get(stage):
            yield f"stages.{stage} is missing or empty"
            continue
        yield from (f"stages.{stage}.{key} is missing" for key in sorted(keys - stages[stage].keys()))
        curve = stages[stage].get("curve", [])
        if stage in POINT and (not curve or any(len(point) != POINT[stage] for point in curve)):
            yield f"stages.{stage}.curve is empty or has points that are not {POINT[stage]} numbers"
    if not any(keys <= stages.get("dynamics", {}).keys() for keys in PROBES):
        yield f"stages.dynamics has none of {' or '.join(map(str, map(sorted, PROBES)))}"
    yield from (f"{path} is not finite" for path in non_finite(summary))


def main(paths):
    """Returns the exit code: 0 if every summary is complete, 1 if one is not, 2 if none was named."""
    count = 0
    for path in paths:
        for problem in problems(json.loads(Path(path).read_text())):
            print(f"{path}: {problem}", file=sys.stderr)
            count += 1
    if not paths:
        print("usage: check_summary.py SUMMARY_JSON ...", file=sys.stderr)
        return 2
    if not count:
        print(f"complete and finite: {', '.join(paths)}")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
