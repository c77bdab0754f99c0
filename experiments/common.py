"""The parts that experiments share: cells that are computed once, means and errors over seeds, figures, and the page.

A cell is a variant at a level under a seed. `run` measures the cells that the CSV file lacks, one at a time, and writes
the file after each, so an interrupted experiment resumes where it stopped.
"""

import dataclasses
import importlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.page import COLOURS, filled, load, store
from experiments.page import style as style  # for the experiments
from lamjax.statistics import mean_and_stderr

ROOT = Path(__file__).resolve().parents[1]
# A run writes its cells to WORK and resumes from there; RESULTS holds the last run's cells, for tables and readers.
WORK, RESULTS = ROOT / "runs" / "experiments", ROOT / "experiments"
FIGURES, PAGE = ROOT / "docs" / "experiments", ROOT / "docs" / "experiments.md"
NAMES = (
    *("vq_ablation", "noise", "stochastic_dynamics", "cartpole_latents", "data_scaling"),
    *("failure_signatures", "transfer", "decoding"),
)
SEEDS = range(5)

Cell = tuple[str, str, int]  # variant, level, seed
Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes:
      name: the name of its folder.
      claim: the claim, in one line.
      expected: the result that was expected before it ran, in one line.
      cells: its cells, in the order of their computation.
      measure: returns the measurements of a cell, by column; variants may have different columns.
      draw: draws the figure of all rows.
      sections: returns the tables of all rows, by their names on the page.
    """

    name: str
    claim: str
    expected: str
    cells: Callable[[], list[Cell]]
    measure: Callable[[str, str, int], dict[str, float]]
    draw: Callable[[Sequence[Row]], Figure]
    sections: Callable[[Sequence[Row]], dict[str, str]]


def load_experiment(name: str) -> Experiment:
    """The experiment in a folder."""
    return importlib.import_module(f"experiments.{name}.run").EXPERIMENT


def grid(levels: dict[str, Iterable[str]]) -> list[Cell]:
    """All cells of the variants' levels, whole seeds first."""
    return [(variant, level, seed) for seed in SEEDS for variant in levels for level in levels[variant]]


def cell_of(row: Row) -> Cell:
    return row["variant"], row["level"], int(row["seed"])


def compute(experiment: Experiment) -> list[Row]:
    """Measures the cells that the CSV file lacks; returns the rows of all cells, in their order."""
    path, cells = WORK / f"{experiment.name}.csv", experiment.cells()
    rows = {cell_of(row): row for row in load(path)}
    for number, cell in enumerate(cells, start=1):
        if cell in rows:
            continue
        start = time.process_time()
        results = {key: f"{value:.5g}" for key, value in experiment.measure(*cell).items()}
        row = dict(zip(("variant", "level", "seed"), map(str, cell), strict=True)) | results
        rows[cell] = row | {"cpu_seconds": f"{time.process_time() - start:.1f}"}
        columns = dict.fromkeys(column for each in cells for column in rows.get(each, {}))
        store(path, [{column: rows[each].get(column, "nan") for column in columns} for each in cells if each in rows])
        text = ", ".join(f"{key} {value}" for key, value in list(results.items())[:5])
        print(f"  {number}/{len(cells)} {' '.join(map(str, cell))}: {text}", flush=True)
    (RESULTS / experiment.name).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, RESULTS / experiment.name / "results.csv")
    return load(path)


def run(experiment: Experiment) -> None:
    """Computes missing cells, draws the figure, and fills in the page's tables."""
    # Compiled programs are cached, so a second or a resumed run does not compile again.
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
    print(f"{experiment.name}: {experiment.claim}\n  expected: {experiment.expected}", flush=True)
    rows = compute(experiment)
    seconds = sum(float(row["cpu_seconds"]) for row in rows)
    FIGURES.mkdir(parents=True, exist_ok=True)
    path = FIGURES / f"{experiment.name}.png"
    experiment.draw(rows).savefig(path, dpi=110)
    write_page(experiment)
    print(f"  {len(rows)} cells, {seconds:.0f} CPU seconds; {path}, {PAGE}", flush=True)


def page_text(text: str, experiment: Experiment) -> str:
    """The page with the tables of the experiment's committed rows, and their cost."""
    rows = load(RESULTS / experiment.name / "results.csv")
    if not rows:
        return text
    seconds = sum(float(row["cpu_seconds"]) for row in rows)
    cost = f"{len(rows)} cells, {len({row['seed'] for row in rows})} seeds, {seconds / 60:.1f} CPU minutes."
    return filled(text, **experiment.sections(rows), **{f"{experiment.name}_cost": cost})


def write_page(experiment: Experiment) -> None:
    PAGE.write_text(page_text(PAGE.read_text(), experiment))


# Means over seeds


def values(rows: Sequence[Row], variant: str, level: str, column: str) -> np.ndarray:
    """A column over the seeds of a variant and level, without those that do not measure it."""
    column_values = [float(row[column]) for row in rows if (row["variant"], row["level"]) == (variant, level)]
    return np.array([x for x in column_values if not np.isnan(x)])


def overall(rows: Sequence[Row], column: str) -> float:
    """A column's mean over all rows that measure it."""
    return float(np.nanmean([float(row[column]) for row in rows]))


def mean_text(rows: Sequence[Row], variant: str, level: str, column: str, digits: int = 2) -> str:
    """A column's mean ± standard error (see `with_error`)."""
    return with_error(values(rows, variant, level, column), digits)


def with_error(numbers: np.ndarray, digits: int = 2) -> str:
    """Mean ± standard error, for a table; "-" for no numbers."""
    mean, error = mean_and_stderr(numbers)
    if np.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if np.isnan(error) else f" ± {error:.{digits}f}")


def levels_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The variants and the levels of each, in their order."""
    levels: dict[str, dict[str, None]] = {}
    for row in rows:
        levels.setdefault(row["variant"], {})[row["level"]] = None
    return {variant: list(names) for variant, names in levels.items()}


def table(rows: Sequence[Row], heads: Sequence[str], columns: dict[str, int], of: dict[str, str] | None = None) -> str:
    """A table with a line for each variant and level.

    Args:
      rows: the results.
      heads: the headings of all columns, those of variant and level first.
      columns: the columns to show, with their numbers of digits.
      of: the variants to show, with their names in the table; by default all, under their own names.
    """
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for variant, levels in levels_of(rows).items():
        if of is not None and variant not in of:
            continue
        for level in levels:
            cells = [mean_text(rows, variant, level, column, digits) for column, digits in columns.items()]
            lines.append(f"| {' | '.join([of[variant] if of else variant, level, *cells])} |")
    return "\n".join(lines)


# Figures


def panels(count: int, width: float = 3.4) -> tuple[Figure, list[Axes]]:
    fig = Figure(figsize=(width * count + 0.4, 3.3), layout="constrained")
    return fig, list(np.atleast_1d(fig.subplots(1, count)))


def curve(ax: Axes, rows: Sequence[Row], variant: str, column: str, colour: int, label: str, dash: str = "-") -> None:
    """Mean over seeds against the level, with bars of one standard error; nothing if the variant has no rows."""
    levels = levels_of(rows).get(variant)
    if not levels:
        return
    means, errors = zip(*[mean_and_stderr(values(rows, variant, level, column)) for level in levels], strict=True)
    ax.errorbar(
        *([float(level) for level in levels], means, np.nan_to_num(errors)),
        fmt=dash + "o",
        color=COLOURS[colour],
        label=label,
        capsize=3,
        linewidth=1.4,
        markersize=4,
    )


def level_line(ax: Axes, height: float, label: str) -> None:
    """A dotted line across, with its label at the right end."""
    ax.axhline(height, color="#333333", linewidth=0.9, linestyle=":")
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5}
    where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    ax.annotate(label, (1.0, height), fontsize=7, bbox=box, **where)


def bars(
    ax: Axes,
    rows: Sequence[Row],
    cells: Sequence[tuple[str, str, str]],
    column: str,
    colour: int,
    *,
    first: float = 0,
    width: float = 0.7,
    label: str | None = None,
) -> None:
    """Bars of (variant, level, name): the mean over seeds, one standard error, and a dot for each seed."""
    for place, (variant, level, _) in enumerate(cells):
        seeds = values(rows, variant, level, column)
        mean, error = mean_and_stderr(seeds)
        where, look = first + place, {"color": COLOURS[colour], "alpha": 0.75, "label": None if place else label}
        ax.bar(where, mean, width, yerr=np.nan_to_num(error), capsize=3, **look)
        ax.plot(where + width * np.linspace(-0.3, 0.3, len(seeds)), seeds, ".", color="#333333", markersize=3)
    ax.set_xticks(range(len(cells)), [name for *_, name in cells], rotation=35, ha="right")
