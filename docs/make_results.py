"""Adds finished runs to the documentation: ``python docs/make_results.py runs/coinrun/cpu-s0 ...``.

Copies each run's summary to ``docs/results/``. Then it writes the tables of the README, ``docs/results.md`` and
``docs/performance.md`` from all summaries there and from the measurements in ``benchmarks/results/``, so that no number
in them is typed by hand. Without arguments it only writes the tables.
"""

import json
import re
import sys
from pathlib import Path

from lamjax.analysis.diagnosis import CONTINUOUS, DISCRETE, score_names

DOCS = Path(__file__).parent
README, RESULTS, PERFORMANCE = DOCS.parent / "README.md", DOCS / "results.md", DOCS / "performance.md"
SPEEDS = DOCS.parent / "benchmarks" / "results"
LABELS = 256  # at which the README compares offline decoding with behaviour cloning
PARTS = {
    "stage1": "stage 1",
    "stage2": "stage 2",
    "stage3": "stage 3",
    "ppo": "PPO from scratch",
    "ppo_cartpole": "PPO on CartPole",
    "ppo_breakout": "PPO on MinAtar Breakout",
    "loader": "drawing windows",
    "ring": "stage 1, out of a ring",
    "linear": "linear sweep",
    "import": "importing video of 640 x 480",
    "procgen": "Procgen alone",
    "callback": "calls of the host",
    "stage3_acting": "acting in stage 3",
    "stage3_update": "stage 3, whole updates",
    "ppo_acting": "acting in PPO from scratch",
    "ppo_update": "PPO from scratch, whole updates",
    "held_out": "held-out errors of stage 1",
}
PROBES = {
    DISCRETE.probe: "actions read from latents by a probe (aliases merged)",
    CONTINUOUS.probe: "actions read from latents by a probe (share of their variance)",
}


def take(run: Path) -> None:
    """Copies a run's summary, without the place where its recording lay."""
    summary = json.loads((run / "summary.json").read_text())
    (DOCS / "results").mkdir(exist_ok=True)
    path = DOCS / "results" / f"{summary['env'].replace('/', '-')}-{summary['preset']}.json"
    for stage in summary["stages"].values():
        stage.pop("store", None)
    path.write_text(json.dumps(summary, indent=1) + "\n")


def rows(summary: dict) -> list[tuple[str, str, str]]:
    """What is measured, the value, and its baselines."""
    stages, baselines = summary["stages"], summary["nulls"]
    dynamics, cloning = stages["dynamics"], stages["cloning"]
    offline, online, scratch = stages["decode_offline"], stages["decode_online"], stages["ppo_scratch"]
    names = score_names(dynamics)
    labels = ("untrained model", "o_t alone", names.constant.split("_")[0])
    beside = [f"{label} {dynamics[name]:.3f}" for label, name in zip(labels, names.baselines, strict=True)]
    lines = [
        ("forward model's held-out error, relative to copying", f"{dynamics['fdm_ratio']:.3f}", "1"),
        (PROBES[names.probe], f"{dynamics[names.probe]:.3f}", ", ".join(beside)),
        ("variance of the latents that the policy explains", f"{1 - cloning['ratio']:.3f}", "0"),
    ]
    cloned = {n: f"{mean:.2f} ± {stderr:.2f}" for n, mean, stderr in offline["bc_curve"]}
    for n, mean, stderr in offline["curve"]:
        beside = f"cloning them {cloned[n]}" if n in cloned else ""
        lines.append((f"return, decoded from {n} labels", f"{mean:.2f} ± {stderr:.2f}", beside))
    for n, mean, stderr in offline.get("relabel_curve", []):
        what = f"return, clone of the pseudo-labels that {n} labels give"
        beside = f"cloning all true actions {_return(offline['oracle'])}" if "oracle" in offline else ""
        lines.append((what, f"{mean:.2f} ± {stderr:.2f}", beside))
    frames = f"{online['frames']:,}"
    lines.append((f"return, decoded by PPO in {frames} frames", _return(online), f"from scratch {_return(scratch)}"))
    if pseudo := stages.get("decode_named"):
        frames = f"{pseudo['frames']:,}"
        what = f"return, pseudo-labels from random play cloned, then PPO, {frames} frames in all"
        before = f"before PPO {pseudo['start_return']:.2f}, " if "start_return" in pseudo else ""
        lines.append((what, _return(pseudo), f"{before}from scratch {_return(scratch)}"))
    lines += [
        (f"return of the {name.removesuffix('_return')} policy", f"{value['mean']:.2f} ± {value['stderr']:.2f}", "")
        for name, value in baselines.items()
    ]
    return lines


def _return(stage: dict) -> str:
    return f"{stage['return_mean']:.2f} ± {stage['return_stderr']:.2f}"


def _recorded(summary: dict) -> str:
    """Whom a run learned from."""
    source = summary["source"]
    who = {"expert": "the expert", "random": "a random policy"}.get(source["policy"], source["policy"])
    if source.get("frames"):
        who += f", trained before by {source['frames']:,} frames of PPO in {source['seconds'] / 60:.1f} minutes"
    return who


def _machine(device: dict) -> str:
    return f"{device['cpus']} CPU cores" if device["platform"] == "cpu" else device["kind"]


def table(summary: dict) -> str:
    """One run as Markdown."""
    env, _, options = summary["command"].removeprefix("lamjax train --env ").partition(" ")
    command = f"make train ENV={env}" + (f' ARGS="{options}"' if options else "")
    lines = [
        f"**`{command}`**, preset `{summary['preset']}`, {summary['total_seconds'] / 60:.0f} minutes on "
        f"{_machine(summary['device'])}, one seed; recorded: {_recorded(summary)}.",
        "",
        "| what | value | beside it |",
        "| --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows(summary)),
    ]
    failed = [
        f"{name} ({stage['verdict'].removeprefix('failed: ')})"
        for name, stage in summary["stages"].items()
        if not stage.get("ok", True)
    ]
    if failed:
        lines += ["", f"No better than its baseline: {'; '.join(failed)}."]
    return "\n".join(lines)


def _summaries() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((DOCS / "results").glob("*-*.json"))]


def section() -> str:
    """All committed runs, in order of their names."""
    return "\n\n".join(map(table, _summaries()))


def overview() -> str:
    """The returns of all committed runs as one Markdown table, a row each."""
    lines = [
        "| environment | random | demonstrator | "
        f"offline, {LABELS} labels | cloning those labels | "
        "online | pseudo-labels, then PPO | PPO, same frames | frames | minutes |",
        f"|{' --- |' * 10}",
    ]
    online = ("decode_online", "decode_named", "ppo_scratch")
    for summary in _summaries():
        stages, baselines = summary["stages"], summary["nulls"]
        curves = (stages["decode_offline"][name] for name in ("curve", "bc_curve"))
        offline, cloned = ({n: f"{mean:.2f} ± {stderr:.2f}" for n, mean, stderr in curve} for curve in curves)
        cells = [
            f"`{summary['env']}`",
            *(f"{baselines[f'{who}_return']['mean']:.2f}" for who in ("random", "expert")),
            offline.get(LABELS, ""),
            cloned.get(LABELS, ""),
            *(_return(stages[name]) if name in stages else "" for name in online),
            f"{stages['decode_online']['frames']:,}",
            f"{summary['total_seconds'] / 60:.0f} on {_machine(summary['device'])}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _part(row: dict) -> str:
    """What was measured; the type of the activations if it is not float32, and how many native batches take turns."""
    groups = row.get("details", {}).get("groups", 1)
    return (
        f"{PARTS[row['name']]}, `{row['size']}`"
        + (", bfloat16" if row.get("dtype") == "bfloat16" else "")
        + (f", {groups} native batches in turn" if groups > 1 else "")
    )


def _speed(row: dict) -> str:
    ratio, fraction, ms = row["ratio"], row["roofline_fraction"], row["step_ms"]
    cells = [
        _part(row),
        f"{row['batch']:,}",
        f"{row['rate']:,.0f} {row['unit']}" if row["rate"] >= 100 else f"{row['rate']:.1f} {row['unit']}",
        f"{ms['median']:,.1f} ({ms['p10']:,.1f} to {ms['p90']:,.1f})",
        f"{ratio:.2f}" if ratio else "",
        f"{fraction:.0%}" if fraction else "",
        f"{row['compile_s']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _tools(result: dict) -> str:
    names = (name for name in ("jax", "torch") if result["versions"].get(name))
    return ", ".join(f"{name} {result['versions'][name]}" for name in names)


def speed_table(result: dict) -> str:
    """The measurements of one device as Markdown."""
    device = result["device"]
    lines = [
        f"**{_machine(device)}** ({_tools(result)}; matrix products {device['matmul_gflops']['float32']:,.0f} GFLOP/s "
        f"in float32, copies {device['copy_gb_per_s']:,.0f} GB/s)",
        "",
        "| part, preset | batch | rate | ms a step (p10 to p90) | of PyTorch's rate | of the roofline | compile s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_speed(row) for row in result["rows"] if "error" not in row),  # the file says why a row failed
    ]
    return "\n".join(lines)


def _measurements() -> list[dict]:
    """The measurements that are committed, in order of their names."""
    paths = sorted(path for path in SPEEDS.glob("*.json") if path.stem != "latest")
    return [json.loads(path.read_text()) for path in paths]


def speeds() -> str:
    """All measurements, a table each."""
    return "\n\n".join(map(speed_table, _measurements()))


def rates() -> str:
    """The rates of all measurements as one Markdown table."""
    lines = ["| machine | part, preset | rate | of PyTorch's rate |", "| --- | --- | --- | --- |"]
    for result in _measurements():
        for row in result["rows"]:
            if "error" not in row:
                _, _, rate, _, ratio, *_ = _speed(row).strip("| ").split(" | ")
                lines.append(f"| {_machine(result['device'])} | {_part(row)} | {rate} | {ratio.strip()} |")
    return "\n".join(lines)


# The tables of each page, by the name in the marks around them.
TABLES = {
    README: {"overview": overview, "rates": rates},
    RESULTS: {"results": section},
    PERFORMANCE: {"speed": speeds},
}


def marks(name: str) -> tuple[str, str]:
    """What stands before and after a table."""
    return f"<!-- {name}: docs/make_results.py writes this -->", f"<!-- end of {name} -->"


def written(page: Path) -> str:
    """A page's text with its tables put between their marks."""
    text = page.read_text()
    for name, content in TABLES[page].items():
        before, after = map(re.escape, marks(name))
        text = re.sub(f"(?<={before}\n).*(?={after})", lambda _, content=content: f"{content()}\n", text, flags=re.S)
    return text


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        take(Path(argument))
    for page in TABLES:
        page.write_text(written(page))
