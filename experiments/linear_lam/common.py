"""What the panels share: trains missing points, keeps them in a CSV file, and draws SGD points over the closed form."""

import argparse
import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.page import COLOURS, load, store, style
from lamjax.linear import Point, TrainConfig, score, train

HERE = Path(__file__).resolve().parent
# A run keeps its points in WORK and resumes from there; RESULTS holds the last run's, for the tables and for reading.
WORK = HERE.parents[1] / "runs" / "linear_lam"
RESULTS, FIGURES = HERE / "results", HERE.parents[1] / "docs" / "linear_lam"
SWEEP = 48  # points trained between two writes


@dataclasses.dataclass(frozen=True)
class Trial:
    """A point of a panel: which curve, which x, what to train."""

    curve: str
    x: float
    point: Point


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel: `trials(full)` lists its points; the rest says how they are probed and drawn."""

    name: str
    title: str
    xlabel: str
    trials: Callable[[bool], list[Trial]]
    expected: str
    dense: Callable[[], list[Trial]] | None = None  # what the curves are drawn through; by default every point, seed 0
    latent: str = "surrogate"
    probe: str = "noisy"
    on_policy: bool = True
    metric: str = "llo"
    config: TrainConfig = TrainConfig(units="code")
    bounds: Callable[[Trial], dict[str, float] | None] = lambda _: None  # instead of the closed form, where C is free
    xscale: str = "linear"
    palette: int = 8  # colours before they start anew, with another dash and mark
    no_noise_term: bool = False  # NMSE_eps counts as 1, as in the authors' plot


def metrics(panel: Panel, trial: Trial, lam) -> dict[str, float]:
    """The probe errors of a model in the trial's uncleaned world."""
    point = dataclasses.replace(trial.point, world=dataclasses.replace(trial.point.world, clean=0.0))
    scores = dataclasses.asdict(
        score(lam, point.make_world(), latent=panel.latent, probe=panel.probe, on_policy=panel.on_policy)
    )
    if panel.no_noise_term:
        scores |= {"nmse_eps": 1.0, "llo": scores["llo"] - scores["nmse_eps"] + 1.0}
    return scores


def closed_form(panel: Panel, trial: Trial) -> dict[str, float]:
    """The same of the closed form."""
    return panel.bounds(trial) or metrics(panel, trial, trial.point.optimum(panel.config).lam)


def key(curve: str, x: float, seed: int) -> tuple[str, str, str]:
    return curve, f"{x:g}", str(seed)


def compute(panel: Panel, full: bool) -> list[dict[str, str]]:
    """Trains the points that the CSV file does not hold yet; returns all rows."""
    path = WORK / f"{panel.name}.csv"
    rows = load(path)
    done = {(row["curve"], row["x"], row["seed"]) for row in rows}
    missing = [trial for trial in panel.trials(full) if key(trial.curve, trial.x, trial.point.seed) not in done]
    for first in range(0, len(missing), SWEEP):
        part = missing[first : first + SWEEP]
        start = time.perf_counter()
        trained = train(
            [trial.point for trial in part], panel.config, progress=lambda line: print(f"  {line}", flush=True)
        )
        seconds = time.perf_counter() - start
        for trial, t in zip(part, trained, strict=True):
            curve, x, seed = key(trial.curve, trial.x, trial.point.seed)
            row = {"curve": curve, "x": x, "seed": seed, "d_z": str(trial.point.d_z)}
            row |= {k: f"{v:.6g}" for k, v in metrics(panel, trial, t.lam).items()}
            row |= {f"closed_{k}": f"{v:.6g}" for k, v in closed_form(panel, trial).items()}
            row |= {"excess": f"{t.excess:.3g}", "steps": str(t.steps), "converged": str(t.converged)}
            rows.append(row | {"seconds": f"{seconds / len(part):.3f}"})
        store(path, rows)
    RESULTS.mkdir(exist_ok=True)
    shutil.copyfile(path, RESULTS / path.name)
    return rows


def save(fig: Figure, name: str) -> Path:
    path = FIGURES / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)
    return path


LABELS = {"llo": "LLO", "nmse_q": "NMSE of the controllable change", "nmse_a": "NMSE of the action"}


def draw(panel: Panel, rows: Sequence[dict[str, str]]) -> Path:
    """Lines: closed form (seed 0). Points: SGD, mean over seeds; a bar from the least to the greatest."""
    fig = Figure(figsize=(6.2, 3.6), layout="constrained")
    ax = fig.add_subplot()
    style(ax, panel.title, panel.xlabel, LABELS[panel.metric])
    curves: dict[str, list[Trial]] = {}
    trained = {row["curve"] for row in rows}
    for trial in panel.dense() if panel.dense else [trial for trial in panel.trials(True) if trial.point.seed == 0]:
        if trial.curve in trained:
            curves.setdefault(trial.curve, []).append(trial)
    for index, (curve, trials) in enumerate(curves.items()):
        colour = COLOURS[index % panel.palette]
        dash, mark = (("-", "o"), ("--", "s"), (":", "D"))[index // panel.palette]
        points = [closed_form(panel, trial)[panel.metric] for trial in trials]
        ax.plot([trial.x for trial in trials], points, dash, color=colour, linewidth=1.4)
        ax.plot([], [], dash + mark, color=colour, linewidth=1.4, markersize=5, label=curve)
        mine = [row for row in rows if row["curve"] == curve]
        for x in sorted({float(row["x"]) for row in mine}):
            points = [float(row[panel.metric]) for row in mine if float(row["x"]) == x]
            ax.plot([x, x], [min(points), max(points)], color=colour, linewidth=1)
            ax.plot(
                x, np.mean(points), mark, color=colour, markersize=5.5, markeredgecolor="white", markeredgewidth=0.8
            )
    ax.set_xscale(panel.xscale)
    fig.legend(loc="outside right center", fontsize=8, frameon=False)
    return save(fig, panel.name)


def agreement(panel: Panel, rows: Sequence[dict[str, str]]) -> tuple[np.ndarray, int]:
    """How far each point is from the closed form in the panel's metric, and how many points converged."""
    gaps = np.array([abs(float(row[panel.metric]) - float(row[f"closed_{panel.metric}"])) for row in rows])
    return gaps, sum(row["converged"] == "True" for row in rows)


def summary(panel: Panel, rows: Sequence[dict[str, str]]) -> str:
    gaps, converged = agreement(panel, rows)
    return (
        f"{panel.name}: {len(rows)} points, {converged} converged, |SGD - closed form| of {panel.metric} "
        f"median {np.median(gaps):.4f}, worst {gaps.max():.4f}"
    )


def produce(panel: Panel, full: bool) -> None:
    print(f"{panel.name}: {panel.title}\n  expected: {panel.expected}", flush=True)
    rows = compute(panel, full)
    print(f"  {summary(panel, rows)}\n  {draw(panel, rows).relative_to(HERE.parents[1])}", flush=True)


def options(panels: Sequence[str] = ()) -> argparse.Namespace:
    """The command line; `panels` are the names of which one may be chosen."""
    parser = argparse.ArgumentParser()
    if panels:
        parser.add_argument("--only", choices=panels, help="one panel instead of all")
    parser.add_argument("--full", action="store_true", help="all points and three seeds; of grid.py all updates")
    args = parser.parse_args()
    # Compiled programs are kept: a second run, or a resumed one, does not compile again.
    jax.config.update("jax_compilation_cache_dir", str(HERE.parents[1] / ".jax_cache"))
    return args
