"""Runs that fail in the three known ways, and the messages that the report's diagnosis gives for each."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import COLOURS, Experiment, Row, grid, style
from lamjax import envs, pipeline
from lamjax.analysis import diagnosis
from lamjax.config import AnalysisConfig, RecordConfig, RunConfig
from lamjax.decoding.online import DecoderConfig
from lamjax.training.provenance import describe_run
from lamjax.training.run_folder import Run

CLAIM = "Each of the three known failures is named by the report's diagnosis, and a healthy run gets no message."
EXPECTED = "every failure is named in every seed; a healthy run may hear that its demonstrator gives actions away."
GAME = "minatar/breakout"
ONLINE_FRAMES = 131_072
CONFIG = dataclasses.replace(
    stages.GRID,
    record=RecordConfig(frames=32_768),
    dynamics=dataclasses.replace(stages.GRID.dynamics, steps=800),
    online=stages.with_ppo(stages.GRID.online, total_frames=ONLINE_FRAMES),
    scratch=stages.with_ppo(stages.GRID.scratch, total_frames=ONLINE_FRAMES),
    analysis=AnalysisConfig(probe_train=4096, probe_test=1024, eval_every=800),
    eval_episodes=64,
)
NEVER = (("", ((0.0, 0.0), (1.0, 0.0))),)


def run_config(level: str) -> RunConfig:
    """The settings of a run with one of the failures; "healthy" has none."""
    dynamics, online, record = CONFIG.dynamics, CONFIG.online, CONFIG.record
    if level == "rate of 1e-6":
        dynamics = dataclasses.replace(dynamics, learning_rate=1e-6)
    if level == "one code":
        quantizer = dataclasses.replace(dynamics.quantizer, enabled=True, codebooks=1, codes=1)
        dynamics = dataclasses.replace(dynamics, quantizer=quantizer)
    if level.startswith("noise"):
        record = dataclasses.replace(record, distractor="jitter", distractor_strength=float(level.split()[-1]))
    if level == "no fit, no rate":
        # LAPO's decoder is fitted in a small share of the frames, in which so short a run makes no update.
        online = dataclasses.replace(stages.with_ppo(online, learning_rates=NEVER), decoder=DecoderConfig())
    return dataclasses.replace(CONFIG, dynamics=dynamics, online=online, record=record)


LEVELS = {
    "none": ("healthy",),
    "plateau": ("rate of 1e-6", "one code"),
    "structureless": ("noise 0.3",),
    "no start": ("no fit, no rate",),
}


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    config = dataclasses.replace(run_config(level), seed=seed)
    stages.expert(GAME, seed)
    source = pipeline.find_source(GAME, str(stages.expert_folder(GAME, seed)), common.WORK, 3)
    folder = common.WORK / "failures" / f"{level.replace(' ', '-').replace(',', '')}-s{seed}"
    header = describe_run(GAME, "experiment", folder.name, "", seed)
    with Run(folder, GAME, config, header, source.name) as run:
        store = pipeline.record_stage(run, source, common.WORK / "data")
        model = pipeline.dynamics_stage(run, store)
        policy = pipeline.cloning_stage(run, store, model)
        pipeline.baselines_stage(run, source, envs.make(GAME, 1).num_actions)
        pipeline.online_stage(run, model, policy)
        summary = run.summary
    dynamics, online = summary["stages"]["dynamics"], summary["stages"]["decode_online"]
    messages = {item["name"] for item in diagnosis.diagnose(summary)}
    first, last = diagnosis.course(online["curve"])
    random = summary["nulls"]["random_return"]["mean"]
    return {
        "fdm_ratio": dynamics["fdm_ratio"],
        "swapped": dynamics["fdm_swapped_mse"] / dynamics["fdm_mse"],
        "probe": dynamics["probe_accuracy"],
        "untrained_probe": dynamics["untrained_probe_accuracy"],
        "still_probe": dynamics["still_probe_accuracy"],
        "majority": dynamics["majority_accuracy"],
        "perplexity": float(np.mean(dynamics["codebook_perplexity"])),
        "distractor_r2": dynamics.get("distractor_change_r2", math.nan),
        "cloning_ratio": summary["stages"]["cloning"]["ratio"],
        "first": first,
        "last": last,
        "return": online["return_mean"],
        "random_return": random,
        **{f"says_{name}": float(name in messages) for name in diagnosis.NAMES},
    }


def message_shares(rows: Sequence[Row]) -> tuple[list[str], list[tuple[str, str]], np.ndarray]:
    """The messages M, the runs R as (variant, level), and the share of seeds ``[R, M]`` that get each message."""
    names = [column.removeprefix("says_") for column in rows[0] if column.startswith("says_")]
    runs = [(variant, level) for variant, levels in common.levels_of(rows).items() for level in levels]
    shares = [[common.values(rows, *run, f"says_{name}").mean() for name in names] for run in runs]
    return names, runs, np.array(shares)


def draw(rows: Sequence[Row]) -> Figure:
    names, runs, shares = message_shares(rows)
    occurs = shares.any(0)
    names, shares = list(np.array(names)[occurs]), shares[:, occurs]
    fig = Figure(figsize=(8.6, 3.8), layout="constrained")
    ax = fig.add_subplot()
    ax.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (y, x), share in np.ndenumerate(shares):
        colour = "white" if share > 0.6 else COLOURS[6]
        ax.text(x, y, f"{share:.1f}", ha="center", va="center", fontsize=8, color=colour)
    ax.set_xticks(range(len(names)), names, rotation=25, ha="right")
    ax.set_yticks(range(len(runs)), [level if variant == "none" else f"{variant}: {level}" for variant, level in runs])
    style(ax, "Share of the seeds in which a message of the diagnosis was given", "message", "run")
    ax.grid(False)
    return fig


def sections(rows: Sequence[Row]) -> dict[str, str]:
    heads = ("failure", "made by", "error / copying", "swapped / own", "probe", "untrained", "R² of noise")
    columns = {"fdm_ratio": 3, "swapped": 2, "probe": 3, "untrained_probe": 3, "distractor_r2": 2}
    first = common.table(rows, (*heads, "first returns", "last", "end"), columns | {"first": 2, "last": 2, "return": 2})
    names, runs, shares = message_shares(rows)
    lines = ["| made by | what the diagnosis says, and in how many seeds |", "|---|---|"]
    for (variant, level), row in zip(runs, shares, strict=True):
        count = len(common.values(rows, variant, level, "return"))
        messages = [f"`{name}` {round(share * count)}" for name, share in zip(names, row, strict=True) if share]
        lines.append(f"| {level} | {', '.join(messages) or 'nothing'} |")
    return {"failure_signatures": first + "\n\n" + "\n".join(lines)}


EXPERIMENT = Experiment("failure_signatures", CLAIM, EXPECTED, lambda: grid(LEVELS), measure, draw, sections)
