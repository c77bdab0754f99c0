"""Draws ``results/*.json`` as the paper does, ``figure.png`` and ``offline.png``, and the table of ``README.md``.

The first panel is the mean normalised return over all games, of methods that ran on all of them. The others are one
game each: the return of the training episodes against environment frames, smoothed over 2 % of them, mean and standard
error over seeds. Lines are the expert (dashed) and random play (dotted). Crosses are the paper's results, read off its
figures, beside runs with its settings.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments.common import filled, with_error
from lamjax import envs
from lamjax.analysis.drawing import BLUE, GREEN, MUTED, PURPLE, VERMILLION
from lamjax.statistics import mean_and_stderr

HERE = Path(__file__).parent
LABELS = {"lapo": "RL and decoder", "rl_only": "RL only", "no_vq": "RL only, no VQ", "ppo_scratch": "PPO from scratch"}
COLOURS = dict(zip(LABELS, (BLUE, GREEN, PURPLE, VERMILLION), strict=True))
PAGE = HERE / "README.md"
TIMED = {
    "dynamics": "stage 1",
    "cloning": "stage 2",
    "decode_offline": "offline",
    "decode_online": "online",
    "ppo_scratch": "PPO from scratch",
}
POINTS = 200
COMPARABLE = ("paper", "reference")  # presets


def paper() -> dict[str, dict[str, float]]:
    """The paper's returns by game: online after 4M frames by method, and offline from 8192 labels."""
    with (HERE / "paper.csv").open() as file:
        return {row.pop("game"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)}


def curves(result: dict[str, Any], method: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames ``[POINTS]`` and smoothed returns ``[seeds, POINTS]``."""
    frames = np.linspace(0, result["online"][method]["frames"], POINTS + 1)[1:]
    width = frames[-1] / 50
    rows = []
    for curve in result["online"][method]["curves"]:
        at, value = np.asarray(curve, float).T
        weight = np.exp(-0.5 * np.square((frames[:, None] - at[None]) / width))
        rows.append(weight @ value / weight.sum(1))
    return frames, np.stack(rows)


def draw(axes: Any, x: np.ndarray, rows: np.ndarray, method: str) -> None:
    """A mean with its standard error."""
    mean, error = np.transpose([mean_and_stderr(column) for column in rows.T])
    axes.plot(x, mean, color=COLOURS[method], label=LABELS[method], linewidth=1.5)
    if len(rows) > 1:
        axes.fill_between(x, mean - error, mean + error, color=COLOURS[method], alpha=0.2, linewidth=0)


def grid(count: int) -> tuple[Figure, list[Any]]:
    """A figure of `count` panels, four in a row."""
    rows, columns = -(-count // 4), min(count, 4)
    figure = Figure((3.1 * columns, 2.4 * rows), layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for panel in panels[count:]:
        panel.remove()
    return figure, panels[:count]


def frame(panel: Any, game: str, result: dict[str, Any]) -> None:
    """A panel's title, and the lines of the expert and of random play."""
    panel.set_title(f"{game} ({result['preset']})", fontsize=9)
    if result["expert"]["return_mean"] is not None:
        panel.axhline(result["expert"]["return_mean"], color=MUTED, linewidth=0.8, linestyle="--")
    panel.axhline(result["nulls"][0]["random_return"]["mean"], color=MUTED, linewidth=0.8, linestyle=":")


def online(results: dict[str, dict[str, Any]]) -> Figure:
    """The figure of online returns: the mean over games, then each game."""
    figure, panels = grid(len(results) + 1)
    reported = paper()
    for method in LABELS:
        means = []
        for panel, (game, result) in zip(panels[1:], results.items(), strict=True):
            if method in result["online"]:
                frames, rows = curves(result, method)
                draw(panel, frames, rows, method)
                means.append(envs.normalised_return(game, rows.mean(0)))
                if method in reported[game] and result["preset"] in COMPARABLE:
                    panel.plot(frames[-1], reported[game][method], "x", color=COLOURS[method])
        if len(means) == len(results):  # a mean over other games would not compare
            draw(panels[0], frames, np.stack(means), method)
    panels[0].set_title(f"mean of {len(results)} game(s), normalised", fontsize=9)
    panels[0].axhline(1, color=MUTED, linewidth=0.8, linestyle="--")
    methods = [method for method in LABELS if any(method in result["online"] for result in results.values())]
    handles = [Line2D([], [], color=COLOURS[method], label=LABELS[method]) for method in methods]
    panels[0].legend(handles=handles, fontsize=7, frameon=False)
    for panel, (game, result) in zip(panels[1:], results.items(), strict=True):
        frame(panel, game, result)
    for panel in panels:
        panel.tick_params(labelsize=7)
        panel.set_xlabel("environment frames", fontsize=7)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def offline(results: dict[str, dict[str, Any]]) -> Figure:
    """The figure of returns against labels: of the decoded latent policy, and of behaviour cloning from them."""
    figure, panels = grid(len(results))
    reported = paper()
    for panel, (game, result) in zip(panels, results.items(), strict=True):
        for name, colour, label in (("curve", BLUE, "decoded"), ("bc_curve", VERMILLION, "cloned labels")):
            values = np.asarray(result["offline"][name], float)[..., :2]  # [seeds, N, 2]
            labels, returns = values[0, :, 0], values[..., 1]
            mean, error = np.transpose([mean_and_stderr(column) for column in returns.T])
            panel.errorbar(
                labels, mean, error if len(returns) > 1 else None, fmt="o-", color=colour, label=label, markersize=3
            )
        panel.set_xscale("log")
        if result["preset"] in COMPARABLE:
            panel.plot(8192, reported[game]["offline"], "x", color=BLUE)
        frame(panel, game, result)
        panel.set_xlabel("labelled transitions", fontsize=7)
        panel.tick_params(labelsize=7)
    panels[0].legend(fontsize=7, frameon=False)
    return figure


def load() -> dict[str, dict[str, Any]]:
    """All results, by game."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))}


def row(game: str, result: dict[str, Any] | None, reported: dict[str, float]) -> list[str]:
    """A game's cells: measurements, with the paper's values in brackets."""

    def cell(method: str, measured: str) -> str:
        return f"{measured} ({reported[method]:.2f})".strip() if method in reported else measured

    if result is None:
        return [game, "", "", "", "", *(cell(method, "") for method in LABELS), cell("offline", ""), ""]
    online = {method: with_error(np.array(values["return"]["values"])) for method, values in result["online"].items()}
    last = np.asarray(result["offline"]["curve"], float)[:, -1]  # [seeds, (labels, mean, error)]
    minutes = [f"{result['seconds'][stage]['mean'] / 60:.1f}" for stage in TIMED]
    return [
        game,
        result["preset"],
        str(len(result["seeds"])),
        with_error(np.array([nulls["random_return"]["mean"] for nulls in result["nulls"]])),
        "" if result["expert"]["return_mean"] is None else f"{result['expert']['return_mean']:.2f}",
        *(cell(method, online.get(method, "")) for method in LABELS),
        cell("offline", f"{with_error(last[:, 1])} of {last[0, 0]:.0f}"),
        ", ".join(minutes),
    ]


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table of all games; a game without results has only the paper's values."""
    names = ("game", "preset", "seeds", "random", "expert", *LABELS.values(), "offline, of labels")
    head = [*names, f"minutes of {', '.join(TIMED.values())}"]
    rows = [head, ["---"] * len(head), *(row(game, results.get(game), reported) for game, reported in paper().items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def page_text(page: str, results: dict[str, dict[str, Any]]) -> str:
    """The page with its table."""
    return filled(page, table=table(results))


def main() -> None:
    """Draws both figures and writes the table."""
    results = load()
    if not results:
        raise SystemExit("There are no results yet: python experiments/procgen/run.py makes them.")
    online(results).savefig(HERE / "figure.png", dpi=150)
    offline(results).savefig(HERE / "offline.png", dpi=150)
    PAGE.write_text(page_text(PAGE.read_text(), results))
    print(f"{len(results)} game(s): {PAGE}, {HERE / 'figure.png'}, {HERE / 'offline.png'}")


if __name__ == "__main__":
    main()
