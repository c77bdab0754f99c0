"""Actions that are not always obeyed: where do latents stop carrying the action that was chosen?"""

import operator
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import Experiment, Row, curve, grid, style, table
from lamjax import envs, jitted, policies
from lamjax.analysis import probes
from lamjax.dynamics import DynamicsState
from lamjax.envs.wrappers import Disobedient
from lamjax.jitted import Trajectories

CLAIM = "Latents carry the action that was executed; of the one that was chosen only what that gives away."
EXPECTED = "the executed action stays readable throughout; the chosen one falls along the best guess from it."
GAME = "minatar/breakout"
CONFIG = stages.GRID.dynamics
STEPS = 1024
CHANCES = ("0", "0.3", "0.6", "0.9")
LEVELS = {"sticky": CHANCES, "random": CHANCES}
executed = operator.attrgetter("executed")  # one object: programs are compiled for it


def best_guess(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], classes: int) -> float:
    """Accuracy of the best guess of the chosen action that sees only (executed before, executed)."""
    counts = np.zeros((classes * classes, classes))
    np.add.at(counts, (train[0] @ [classes, 1], train[1]), 1)
    return float(np.mean(counts.argmax(1)[test[0] @ [classes, 1]] == test[1]))


def windows_and_actions(key: jax.Array, trajectories: Trajectories, count: int) -> tuple[np.ndarray, ...]:
    """Windows, the actions chosen at o_t ``[E]``, and the actions executed at o_{t-1} and o_t ``[E, 2]``."""
    windows, chosen, starts = stages.draw_windows(key, trajectories, count)
    executed_before = np.asarray(trajectories.extra).reshape(-1)
    return windows, chosen, executed_before[starts[:, None] + [1, 2]]


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    keys = stages.keys(seed)
    env = Disobedient(envs.make(GAME, stages.NUM_ENVS), **{variant: float(level)})
    uniform, a = policies.UniformPolicy(env.num_actions), env.num_actions
    train, held_out = jitted.split(stages.record(keys[0], env, uniform, {}, STEPS, executed))
    model, _ = stages.train_dynamics(keys[1], CONFIG, train)
    untrained = stages.untrained_dynamics(keys[1], CONFIG, train)
    results = stages.examine(keys[2], model, untrained, train, held_out, a)

    fit, fit_chosen, fit_pairs = windows_and_actions(keys[3], train, stages.PROBE_TRAIN)
    test, test_chosen, test_pairs = windows_and_actions(keys[4], held_out, stages.PROBE_TEST)

    def probe(model: DynamicsState) -> float:
        z = stages.infer(model, fit), stages.infer(model, test)
        return probes.accuracy(keys[5], z[0], fit_pairs[:, 1], z[1], test_pairs[:, 1], a)

    return {
        "chosen": results["probe"],
        "best_guess": best_guess((fit_pairs, fit_chosen), (test_pairs, test_chosen), a),
        "executed": probe(model),
        "untrained_executed": probe(untrained),
        "repeats": float(np.mean(test_pairs[:, 0] == test_pairs[:, 1])),
        **{key: results[key] for key in ("untrained_probe", "majority", "fdm_ratio")},
    }


def draw(rows: Sequence[Row]) -> Figure:
    fig, axes = common.panels(3)
    for ax, variant, title in zip(axes, LEVELS, ("Sticky actions", "Random actions"), strict=False):
        curve(ax, rows, variant, "executed", 0, "executed action")
        curve(ax, rows, variant, "untrained_executed", 0, "executed, untrained", dash="--")
        curve(ax, rows, variant, "repeats", 7, "executed, as before", dash=":")
        curve(ax, rows, variant, "chosen", 1, "chosen action")
        curve(ax, rows, variant, "best_guess", 1, "chosen, best guess", dash=":")
        style(ax, title, "probability", "probe's accuracy, held out")
        ax.set_ylim(0, 1.03)
    axes[1].legend(fontsize=7, frameon=False, loc="lower left")
    for colour, variant in enumerate(LEVELS):
        curve(axes[2], rows, variant, "fdm_ratio", colour + 2, variant)
    style(axes[2], "Forward model", "probability", "error / copying, held out")
    axes[2].legend(fontsize=7, frameon=False)
    axes[2].set_ylim(bottom=0)
    return fig


def sections(rows: Sequence[Row]) -> dict[str, str]:
    heads = ("what happens", "probability", "executed: probe", "untrained", "as before")
    heads += ("chosen: probe", "best guess", "error / copying")
    columns = {"executed": 3, "untrained_executed": 3, "repeats": 3, "chosen": 3, "best_guess": 3, "fdm_ratio": 3}
    return {"stochastic_dynamics": table(rows, heads, columns)}


EXPERIMENT = Experiment("stochastic_dynamics", CLAIM, EXPECTED, lambda: grid(LEVELS), measure, draw, sections)
