"""CartPole: the structure of its latents, and policies cloned from latents, pseudo-labels and a few true actions."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import COLOURS, Experiment, Row, bars, curve, grid, style, table
from lamjax import envs, jitted, policies
from lamjax.cloning import CloningState
from lamjax.dynamics import DynamicsState
from lamjax.jitted import Trajectories
from lamjax.ppo import ActorCriticAgent

CLAIM = "Latents of CartPole fall apart by action, and a few labels make a policy of them."
EXPECTED = "a linear probe reads the push; 16 labels on latents do what 256 on observations do."
GAME, A = "cartpole", 2
CONFIG = stages.VECTOR
STEPS = 512
LABELS = ("4", "16", "64", "256")
METHODS = {
    "latents": "latents cloned, then decoded (LAPO)",
    "named": "all actions named, then cloned (LAPO+)",
    "actions": "actions cloned",
}
LEVELS = {"structure": ("random", "expert"), **dict.fromkeys(METHODS, LABELS)}


@functools.lru_cache(maxsize=2)
def models(source: str, seed: int) -> tuple[Trajectories, Trajectories, DynamicsState, CloningState]:
    """Training and held-out recordings of the source's play, and stages 1 and 2 on the first."""
    train, held_out = stages.recordings(GAME, source, STEPS, seed)
    return train, held_out, *stages.train_models(seed, CONFIG, train)


def structure(source: str, seed: int) -> dict[str, float]:
    """Probes of latents on the source's play, and the distance between latents of different actions."""
    train, held_out, model, policy = models(source, seed)
    keys = stages.keys(seed)
    untrained = stages.untrained_dynamics(keys[1], CONFIG.dynamics, train)
    results = stages.examine(keys[3], model, untrained, train, held_out, A)
    windows, actions, _ = stages.draw_windows(keys[4], held_out, stages.PROBE_TEST)
    z = stages.infer(model, windows)
    # The distance between the two actions' means, in units of the spread within each.
    means = np.stack([z[actions == action].mean(0) for action in range(A)])
    within = np.sqrt(np.mean([z[actions == action].var(0).sum() for action in range(A)]))
    ratio = stages.cloning_ratio(keys[5], policy, model, held_out)
    return results | {"separation": float(np.linalg.norm(means[0] - means[1]) / within), "cloning_ratio": ratio}


def policy_from(method: str, labels: int, seed: int) -> tuple[policies.Network, dict]:
    """A policy from `labels` labels by one of the methods, and its parameters."""
    train, _, model, policy = models("expert", seed)
    key_labels, key_fit, key_clone, *_ = stages.keys(1000 + seed, 5)
    windows, actions = labelled = stages.windows(key_labels, train, labels)
    if method == "latents":
        return jitted.decode_offline(key_fit, CONFIG.offline, policy, windows[:, 1], actions, A)
    if method == "named":
        keys = key_fit, key_labels, key_clone
        params = stages.clone_pseudo_labels(keys, CONFIG, model, train, stages.PROBE_TRAIN, labelled, A)
    else:
        stats = jitted.stats(train)
        params = stages.clone_actions(key_clone, CONFIG.cloning, windows[:, 1], actions, A, stats, decays=False)
    return ActorCriticAgent(CONFIG.cloning.trunk, A), params


def imitate(method: str, labels: int, seed: int) -> dict[str, float]:
    """The return of a policy from `labels` labels, and how often its likeliest action is the demonstrator's."""
    network, params = policy_from(method, labels, seed)
    *_, key_play, key_test = stages.keys(1000 + seed, 5)
    env, (_, held_out, *_) = envs.make(GAME, stages.NUM_ENVS), models("expert", seed)
    test, actions, _ = stages.draw_windows(key_test, held_out, stages.PROBE_TEST)
    agrees = np.argmax(np.asarray(network(params, jnp.asarray(test[:, 1]))), -1) == actions
    returns = stages.evaluate(key_play, env, network, params, 2)
    return {
        "return": float(returns.mean()),
        "agrees": float(agrees.mean()),
        "expert_return": stages.expert_return(GAME, seed),
    }


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    return structure(level, seed) if variant == "structure" else imitate(variant, int(level), seed)


def draw(rows: Sequence[Row]) -> Figure:
    fig, axes = common.panels(3)
    cells = [("structure", policy, policy) for policy in LEVELS["structure"]]
    for place, (column, name) in enumerate((("probe", "latents"), ("untrained_probe", "untrained"))):
        bars(axes[0], rows, cells, column, place, first=0.4 * place - 0.2, width=0.36, label=name)
    axes[0].legend(fontsize=7, loc="lower center")
    axes[0].set_ylim(0.4, 1.02)
    style(axes[0], "Probe: which way was pushed", "recorded policy", "accuracy, held out")
    for ax, column, title, unit in (
        (axes[1], "return", "Return", "return"),
        (axes[2], "agrees", "Imitation", "share of the expert's actions"),
    ):
        for colour, (method, name) in enumerate(METHODS.items()):
            curve(ax, rows, method, column, colour, name)
        ax.set_xscale("log", base=2)
        ax.set_xticks([float(n) for n in LABELS], LABELS)
        style(ax, title, "labels", unit)
    expert = common.overall(rows, "expert_return")
    axes[1].axhline(expert, color=COLOURS[6], linewidth=0.9, linestyle=":", label="expert")
    axes[1].set_ylim(bottom=0)
    axes[2].legend(fontsize=7, frameon=False, loc="lower right")
    return fig


def sections(rows: Sequence[Row]) -> dict[str, str]:
    heads = ("", "recorded", "error / copying", "probe", "linear probe", "untrained", "o_t alone", "NMI", "separation")
    columns = {"fdm_ratio": 5, "probe": 3, "linear_probe": 3, "untrained_probe": 3, "still_probe": 3, "nmi": 2}
    first = table(rows, heads, columns | {"separation": 1}, {"structure": "latents"})
    second = table(rows, ("policy", "labels", "return", "agrees with the expert"), {"return": 0, "agrees": 3}, METHODS)
    expert = common.overall(rows, "expert_return")
    return {"cartpole_latents": f"{first}\n\n{second}\n\nThe expert's return is {expert:.0f}."}


EXPERIMENT = Experiment("cartpole_latents", CLAIM, EXPECTED, lambda: grid(LEVELS), measure, draw, sections)
