"""Runs made to fail in the three known ways, and what the report's diagnosis says of each."""

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

GAME = "minatar/breakout"
ONLINE_FRAMES = 131_072
_ONLINE = dataclasses.replace(
    stages.GRID.online, ppo=dataclasses.replace(stages.GRID.online.ppo, total_frames=ONLINE_FRAMES)
)
CONFIG = dataclasses.replace(
    stages.GRID,
    record=RecordConfig(frames=32_768),
    dynamics=dataclasses.replace(stages.GRID.dynamics, steps=800),
    online=_ONLINE,
    scratch=dataclasses.replace(
        stages.GRID.scratch, ppo=dataclasses.replace(stages.GRID.scratch.ppo, total_frames=ONLINE_FRAMES)
    ),
    analysis=AnalysisConfig(probe_train=4096, probe_test=1024, eval_every=800),
    eval_episodes=64,
)
NEVER = (("", ((0.0, 0.0), (1.0, 0.0))),)


def failing(level: str) -> RunConfig:
    """The settings of a run that should fail so; "healthy" is one that should not."""
    dynamics, online, record = CONFIG.dynamics, CONFIG.online, CONFIG.record
    if level == "rate of 1e-6":
        dynamics = dataclasses.replace(dynamics, learning_rate=1e-6)
    if level == "one code":
        quantizer = dataclasses.replace(dynamics.quantizer, enabled=True, codebooks=1, codes=1)
        dynamics = dataclasses.replace(dynamics, quantizer=quantizer)
    if level.startswith("noise"):
        record = dataclasses.replace(record, distractor="jitter", distractor_strength=float(level.split()[-1]))
    if level == "no fit, no rate":
        # LAPO's shares of the frames: with so few updates none of them falls into the time of the fits.
        ppo = dataclasses.replace(online.ppo, learning_rates=NEVER)
        online = dataclasses.replace(online, decoder=DecoderConfig(), ppo=ppo)
    return dataclasses.replace(CONFIG, dynamics=dynamics, online=online, record=record)


LEVELS = {
    "none": ("healthy",),
    "plateau": ("rate of 1e-6", "one code"),
    "structureless": ("noise 0.3",),
    "no start": ("no fit, no rate",),
}


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    config = dataclasses.replace(failing(level), seed=seed)
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
    found, online = summary["stages"]["dynamics"], summary["stages"]["decode_online"]
    said = {item["name"] for item in diagnosis.diagnose(summary)}
    first, last = diagnosis.course(online["curve"])
    random = summary["nulls"]["random_return"]["mean"]
    return {
        "fdm_ratio": found["fdm_ratio"],
        "swapped": found["fdm_swapped_mse"] / found["fdm_mse"],
        "probe": found["probe_accuracy"],
        "untrained_probe": found["untrained_probe_accuracy"],
        "still_probe": found["still_probe_accuracy"],
        "majority": found["majority_accuracy"],
        "perplexity": float(np.mean(found["codebook_perplexity"])),
        "distractor_r2": found.get("distractor_change_r2", math.nan),
        "cloning_ratio": summary["stages"]["cloning"]["ratio"],
        "first": first,
        "last": last,
        "return": online["return_mean"],
        "random_return": random,
        **{f"says_{name}": float(name in said) for name in diagnosis.NAMES},
    }


def _said(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The runs, and the share of the seeds of each in which each message was given."""
    runs = [(variant, level) for variant, levels in common.levels_of(rows).items() for level in levels]
    shares = [[common.values(rows, *run, f"says_{name}").mean() for name in names] for run in runs]
    return runs, np.array(shares)


def _names(rows: Sequence[Row]) -> list[str]:
    return [column.removeprefix("says_") for column in rows[0] if column.startswith("says_")]


def draw(rows: Sequence[Row]) -> Figure:
    names = _names(rows)
    runs, shares = _said(rows, names)
    names, shares = (
        [name for name, column in zip(names, shares.T, strict=True) if column.any()],
        shares[:, shares.any(0)],
    )
    fig = Figure(figsize=(8.6, 3.8), layout="constrained")
    ax = fig.add_subplot()
    ax.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for (y, x), share in np.ndenumerate(shares):
        ax.text(
            x, y, f"{share:.1f}", ha="center", va="center", fontsize=8, color="white" if share > 0.6 else COLOURS[6]
        )
    ax.set_xticks(range(len(names)), names, rotation=25, ha="right")
    ax.set_yticks(range(len(runs)), [level if variant == "none" else f"{variant}: {level}" for variant, level in runs])
    style(ax, "Share of the seeds in which a message of the diagnosis was given", "message", "run")
    ax.grid(False)
    return fig


def sections(rows: Sequence[Row]) -> dict[str, str]:
    heads = ("failure", "made by", "error / copying", "swapped / own", "probe", "untrained", "R² of noise")
    columns = {"fdm_ratio": 3, "swapped": 2, "probe": 3, "untrained_probe": 3, "distractor_r2": 2}
    first = common.table(rows, (*heads, "first returns", "last", "end"), columns | {"first": 2, "last": 2, "return": 2})
    names = _names(rows)
    runs, shares = _said(rows, names)
    lines = ["| made by | what the diagnosis says, and in how many seeds |", "|---|---|"]
    for (variant, level), row in zip(runs, shares, strict=True):
        count = len(common.values(rows, variant, level, "return"))
        said = [f"`{name}` {round(share * count)}" for name, share in zip(names, row, strict=True) if share]
        lines.append(f"| {level} | {', '.join(said) or 'nothing'} |")
    return {"failure_signatures": first + "\n\n" + "\n".join(lines)}


EXPERIMENT = Experiment(
    name="failure_signatures",
    claim="Each of the three known failures is named by the report's diagnosis, and a healthy run gets no message.",
    expected="every failure is named in every seed; a healthy run may hear that its demonstrator gives actions away.",
    cells=lambda: grid(LEVELS),
    measure=measure,
    draw=draw,
    sections=sections,
)
