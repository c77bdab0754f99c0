"""Draws ``results/*.json``, and writes their tables, here and into the project's README and ``docs/latents.md``.

``figure.png`` and ``offline.png`` are as in the paper; ``docs/latents.png`` shows what latents hold of the action. The
first panel of ``figure.png`` is the mean normalised return over all games, of methods that ran on all of them. The
others are one game each: the return of the training episodes against environment frames, smoothed over 2 % of them,
mean and standard error over seeds. Lines are the expert (dashed) and random play (dotted). Crosses are the paper's
results, read off its figures, beside runs with its settings.
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
from lamjax.analysis.action_information import MIN_KNOWABLE
from lamjax.analysis.drawing import BLUE, GREEN, INK, MUTED, PURPLE, VERMILLION
from lamjax.statistics import mean_and_stderr

HERE = Path(__file__).parent
LABELS = {
    "lapo": "RL and decoder",
    "pseudo_labels": "pseudo-labels, then PPO",
    "rl_only": "RL only",
    "no_vq": "RL only, no VQ",
    "ppo_scratch": "PPO from scratch",
}
COLOURS = dict(zip(LABELS, (BLUE, INK, GREEN, PURPLE, VERMILLION), strict=True))
PAGE = HERE / "README.md"
ROOT = HERE.parents[1]
LATENTS_PAGE = ROOT / "docs" / "latents.md"
FRONT_PAGE = ROOT / "README.md"
TIMED = {
    "dynamics": "stage 1",
    "cloning": "stage 2",
    "decode_offline": "offline",
    "decode_online": "online",
    "decode_named": "pseudo-labels",
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
    results = {game: result for game, result in results.items() if result["online"]}
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
    results = {game: result for game, result in results.items() if result["offline"]}
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


def information(result: dict[str, Any], name: str) -> np.ndarray:
    """An entry of the action information, over seeds; empty for results that did not measure it."""
    measured = (dynamics.get("action_information") for dynamics in result["dynamics"])
    return np.array([values[name] for values in measured if values])


def share(result: dict[str, Any]) -> tuple[float, float, float] | None:
    """The share of the action in a game's latents, its standard error, and an untrained model's share.

    The error is over seeds if there are several, otherwise over test windows. None where even the network trained on
    the actions leads the majority by less than `MIN_KNOWABLE`.
    """
    if (information(result, "supervised") - information(result, "majority")).mean() < MIN_KNOWABLE:
        return None
    seeds = information(result, "share")
    error = mean_and_stderr(seeds)[1] if len(seeds) > 1 else information(result, "share_stderr")[0]
    return seeds.mean(), error, information(result, "untrained_share").mean()


def latents(results: dict[str, dict[str, Any]]) -> Figure:
    """The figure of what latents hold of the action in each game, beside an untrained model's."""
    measured = {game: share(result) or (0, 0, 0) for game, result in results.items() if measures_latents(result)}
    order = sorted(measured, key=lambda game: -measured[game][0])
    means, errors, untrained = np.transpose([measured[game] for game in order])
    figure = Figure((7.6, 3.2), layout="constrained")
    axes, places = figure.subplots(), np.arange(len(order))
    axes.bar(places - 0.2, means, 0.38, yerr=errors, color=BLUE, label="latents", capsize=2)
    axes.bar(places + 0.2, untrained, 0.38, color=MUTED, label="of an untrained model")
    axes.set_xticks(places, order, rotation=35, ha="right", fontsize=8)
    axes.set_ylabel("share of the action that frames tell", fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.axhline(1, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_ylim(0, 1.15)
    axes.legend(fontsize=8, frameon=False, loc="upper right", ncols=2)
    return figure


def measures_latents(result: dict[str, Any]) -> bool:
    """Whether a game's runs measured the action information."""
    return len(information(result, "share")) > 0


def latents_table(results: dict[str, dict[str, Any]]) -> str:
    """What latents hold of the action: accuracies on random play of held-out levels, and the share."""
    rows, shares = [], []
    for game, result in results.items():
        if measures_latents(result):
            accuracies = [f"{information(result, name).mean():.3f}" for name in ("majority", "supervised", "trained")]
            seeds = str(len(information(result, "share")))
            mean, error, untrained = share(result) or (0, 0, 0)
            shares.append(mean)
            # Never "-0.00".
            cells = [f"{mean:.2f} ± {error:.2f}", f"{round(untrained, 2) + 0.0:.2f}"] if mean else ["", ""]
            rows.append([game, result["expert"]["policy"], seeds, *accuracies, *cells])
    rows.append([f"mean of {len(rows)}", *[""] * 5, f"{np.mean(shares):.2f}", ""])
    heads = ["game", "demonstrations", "seeds", "majority", "network trained on the actions", "latents"]
    return _markdown([*heads, "share", "untrained"], rows)


def load() -> dict[str, dict[str, Any]]:
    """All results, by game."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))}


def row(game: str, result: dict[str, Any] | None, reported: dict[str, float]) -> list[str]:
    """A game's cells: measurements, with the paper's values in brackets."""

    def cell(method: str, measured: str) -> str:
        return f"{measured} ({reported[method]:.2f})".strip() if method in reported else measured

    if result is None or not result["online"]:
        return [game, "", "", "", "", *(cell(method, "") for method in LABELS), cell("offline", ""), ""]
    online = {method: with_error(np.array(values["return"]["values"])) for method, values in result["online"].items()}
    curves = np.asarray(result["offline"].get("curve", np.empty((0, 1, 3))), float)
    last = curves[:, -1]  # [seeds, (labels, mean, error)]
    seconds = {stage: result["seconds"].get(stage) for stage in TIMED}
    return [
        game,
        result["preset"],
        str(len(result["online"]["lapo"]["return"]["values"])),
        with_error(random_play(result)),
        "" if result["expert"]["return_mean"] is None else f"{result['expert']['return_mean']:.2f}",
        *(cell(method, online.get(method, "")) for method in LABELS),
        cell("offline", f"{with_error(last[:, 1])} of {last[0, 0]:.0f}" if len(last) else ""),
        ", ".join(f"{taken['mean'] / 60:.1f}" if taken else "-" for taken in seconds.values()),
    ]


def random_play(result: dict[str, Any]) -> np.ndarray:
    """The return of random play ``[seeds]``."""
    return np.array([nulls["random_return"]["mean"] for nulls in result["nulls"]])


def table(results: dict[str, dict[str, Any]]) -> str:
    """The table of all games; a game without results has only the paper's values."""
    names = ("game", "preset", "seeds", "random", "expert", *LABELS.values(), "offline, of labels")
    head = [*names, f"minutes of {', '.join(TIMED.values())}"]
    return _markdown(head, [row(game, results.get(game), reported) for game, reported in paper().items()])


def way(results: dict[str, dict[str, Any]]) -> str:
    """How far each method gets from random play, 0, to the expert, 1: the mean and standard error over seeds."""
    methods = {"lapo": "LAPO online", "pseudo_labels": "pseudo-labels, then PPO", "ppo_scratch": "PPO from scratch"}
    rows = []
    for game, result in results.items():
        if not result["online"]:
            continue
        low, high = random_play(result).mean(), result["expert"]["return_mean"]
        online = {method: np.array(values["return"]["values"]) for method, values in result["online"].items()}
        cells = [with_error((online[method] - low) / (high - low)) if method in online else "" for method in methods]
        rows.append([f"`{game}`", str(len(online["lapo"])), *cells])
    return _markdown(["game", "seeds", *methods.values()], rows)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def page_text(page: str, results: dict[str, dict[str, Any]]) -> str:
    """The page with its table."""
    return filled(page, table=table(results))


def latents_page_text(page: str, results: dict[str, dict[str, Any]]) -> str:
    """The page about latents with its tables."""
    return filled(page, latents=latents_table(results), way=way(results))


def front_page_text(page: str, results: dict[str, dict[str, Any]]) -> str:
    """The project's README with its table over seeds."""
    return filled(page, way=way(results))


PAGES = {PAGE: page_text, LATENTS_PAGE: latents_page_text, FRONT_PAGE: front_page_text}


def main() -> None:
    """Draws the figures and writes the tables."""
    results = load()
    if not results:
        raise SystemExit("There are no results yet: python experiments/procgen/run.py makes them.")
    online(results).savefig(HERE / "figure.png", dpi=150)
    offline(results).savefig(HERE / "offline.png", dpi=150)
    latents(results).savefig(LATENTS_PAGE.with_suffix(".png"), dpi=150)
    for page, text in PAGES.items():
        page.write_text(text(page.read_text(), results))
    print(f"{len(results)} game(s): {', '.join(map(str, PAGES))}, and the figures beside them")


if __name__ == "__main__":
    main()
