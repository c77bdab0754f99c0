"""CartPole: what the latents look like, and policies cloned from latents against policies cloned from actions."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import COLOURS, Experiment, Row, bars, curve, grid, style, table
from lamjax import envs, jitted
from lamjax.analysis.latents import latents_of
from lamjax.decoding import behaviour_cloning, offline
from lamjax.ppo import ActorCriticAgent

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
def learned(recorded: str, seed: int):
    """Recordings of a seed, and stages 1 and 2 on them."""
    keys = stages.keys(seed)
    train, held_out = stages.recorded(GAME, recorded, STEPS, seed)
    model, _ = stages.train_dynamics(keys[1], CONFIG.dynamics, train)
    policy, _ = stages.train_cloning(keys[2], CONFIG.cloning, train, model)
    return train, held_out, model, policy


def structure(recorded: str, seed: int) -> dict[str, float]:
    train, held_out, model, policy = learned(recorded, seed)
    keys = stages.keys(seed)
    untrained = stages.untrained_dynamics(keys[1], CONFIG.dynamics, train)
    found = stages.examine(keys[3], model, untrained, train, held_out, A)
    windows, taken, _ = stages.drawn(keys[4], held_out, stages.PROBE_TEST)
    z = latents_of(model, windows)[0]
    # How far apart the two actions lie, in units of the spread within each.
    means = np.stack([z[taken == action].mean(0) for action in range(A)])
    within = np.sqrt(np.mean([z[taken == action].var(0).sum() for action in range(A)]))
    ratio = stages.cloning_ratio(keys[5], policy, model, held_out)
    return found | {"separation": float(np.linalg.norm(means[0] - means[1]) / within), "cloning_ratio": ratio}


def played(method: str, labels: int, seed: int) -> dict[str, float]:
    """The return of a policy from so many labels, and how often its likeliest action is the demonstrator's."""
    train, held_out, model, policy = learned("expert", seed)
    key_labels, key_fit, key_clone, key_play, key_test = stages.keys(1000 + seed, 5)
    env = envs.make(GAME, stages.NUM_ENVS)
    windows, taken = stages.windows(key_labels, train, labels)
    if method == "latents":
        network, params = jitted.decode_offline(key_fit, CONFIG.offline, policy, windows[:, 1], taken, A)
    else:
        obs, named = windows[:, 1], taken
        if method == "named":
            z = jnp.asarray(stages.infer(model, np.asarray(windows)))
            decoder, _ = offline.fit(key_fit, z, taken, CONFIG.offline, A)
            seen, _, _ = stages.drawn(key_labels, train, stages.PROBE_TRAIN)
            obs, named = (
                seen[:, 1],
                behaviour_cloning.pseudo_labels(model, decoder, jnp.asarray(seen), CONFIG.offline, A),
            )
        network = ActorCriticAgent(CONFIG.cloning.trunk, A)
        params = stages.clone_actions(
            key_clone, CONFIG.cloning, jnp.asarray(obs), named, A, jitted.stats(train), decays=method == "named"
        )
    test, chosen, _ = stages.drawn(key_test, held_out, stages.PROBE_TEST)
    agrees = np.argmax(np.asarray(network(params, jnp.asarray(test[:, 1]))), -1) == chosen
    returns = stages.evaluate(key_play, env, network, params, 2)
    return {
        "return": float(returns.mean()),
        "agrees": float(agrees.mean()),
        "expert_return": stages.expert_return(GAME, seed),
    }


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    return structure(level, seed) if variant == "structure" else played(variant, int(level), seed)


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
    expert = np.nanmean([float(row["expert_return"]) for row in rows])
    axes[1].axhline(expert, color=COLOURS[6], linewidth=0.9, linestyle=":", label="expert")
    axes[1].set_ylim(bottom=0)
    axes[2].legend(fontsize=7, frameon=False, loc="lower right")
    return fig


def sections(rows: Sequence[Row]) -> dict[str, str]:
    heads = ("", "recorded", "error / copying", "probe", "linear probe", "untrained", "o_t alone", "NMI", "separation")
    columns = {"fdm_ratio": 5, "probe": 3, "linear_probe": 3, "untrained_probe": 3, "still_probe": 3, "nmi": 2}
    first = table(rows, heads, columns | {"separation": 1}, {"structure": "latents"})
    second = table(rows, ("policy", "labels", "return", "agrees with the expert"), {"return": 0, "agrees": 3}, METHODS)
    expert = np.nanmean([float(row["expert_return"]) for row in rows])
    return {"cartpole_latents": f"{first}\n\n{second}\n\nThe expert's return is {expert:.0f}."}


EXPERIMENT = Experiment(
    name="cartpole_latents",
    claim="Latents of CartPole fall apart by action, and a few labels make a policy of them.",
    expected="a linear probe reads the push; 16 labels on latents do what 256 on observations do.",
    cells=lambda: grid(LEVELS),
    measure=measure,
    draw=draw,
    sections=sections,
)
