"""What the quantiser does: none, LAPO's start, the corrected one, and the size of the codebooks."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import Experiment, Row, bars, grid, style, table
from lamjax import envs, jitted, policies

GAME = "minatar/breakout"
CONFIG = stages.GRID
STEPS, LABELS = 512, 256
SIZES = ("4", "16", "64")
LEVELS = {"continuous": ("-",), "reference": SIZES, "corrected": SIZES}
EARLY = slice(100, 200)  # updates
CLONING_EDGES = (0.01, 0.05, 0.1)


def configured(variant: str, level: str) -> jitted.DynamicsConfig:
    quantizer = CONFIG.dynamics.quantizer
    if variant == "continuous":
        return dataclasses.replace(CONFIG.dynamics, quantizer=dataclasses.replace(quantizer, enabled=False))
    quantizer = dataclasses.replace(quantizer, enabled=True, start=variant, codes=int(level))
    return dataclasses.replace(CONFIG.dynamics, quantizer=quantizer)


@functools.cache
def random_return(seed: int) -> float:
    env = envs.make(GAME, stages.NUM_ENVS)
    uniform = policies.UniformPolicy(env.num_actions)
    return float(stages.evaluate(stages.keys(seed)[6], env, uniform, {}, 2).mean())


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    config, keys = configured(variant, level), stages.keys(seed)
    train, held_out = stages.recorded(GAME, "expert", STEPS, seed)
    env = envs.make(GAME, stages.NUM_ENVS)
    model, metrics = stages.train_dynamics(keys[1], config, train)
    untrained = stages.untrained_dynamics(keys[1], config, train)
    found = stages.examine(keys[2], model, untrained, train, held_out, env.num_actions)
    if variant == "continuous":  # its codebook follows the latents and does nothing
        found |= dict.fromkeys(("perplexity", "used_codes", "nmi", "nmi_shuffled"), float("nan"))
        early = float("nan")
    else:
        early = float(np.mean([metrics[f"perplexity_{n}"][EARLY].mean() for n in range(config.quantizer.codebooks)]))
    policy, _ = stages.train_cloning(keys[3], CONFIG.cloning, train, model)
    return found | {
        "early_perplexity": early,
        "cloning_ratio": stages.cloning_ratio(keys[4], policy, model, held_out),
        "return": stages.decoded_return(keys[5], CONFIG, policy, train, LABELS, env),
        "expert_return": stages.expert_return(GAME, seed),
        "random_return": random_return(seed),
    }


def draw(rows: Sequence[Row]) -> Figure:
    fig, axes = common.panels(4)
    cells = [(v, n, v if v == "continuous" else f"{v} {n}") for v, levels in LEVELS.items() for n in levels]
    for place, (column, title, unit) in enumerate(
        (
            ("probe", "Probe on latents", "accuracy, held out"),
            ("fdm_ratio", "Forward model", "error / copying, held out"),
            ("perplexity", "Codebooks", "perplexity, held out"),
            ("return", f"Decoded from {LABELS} labels", "return"),
        )
    ):
        shown = [cell for cell in cells if (column, cell[0]) != ("perplexity", "continuous")]
        bars(axes[place], rows, shown, column, place)
        style(axes[place], title, "", unit)
    for column, label in (("untrained_probe", "untrained"), ("still_probe", "o_t alone"), ("majority", "majority")):
        common.level_line(axes[0], np.mean([float(row[column]) for row in rows]), label)
    axes[0].set_ylim(0.3, 1.02)
    for column, label in (("expert_return", "expert"), ("random_return", "random")):
        common.level_line(axes[3], np.mean([float(row[column]) for row in rows]), label)
    return fig


def given_by_state(rows: Sequence[Row]) -> str:
    """How the return goes with what stage 2 leaves unexplained of the latents."""
    lines = [
        "| stage 2: error / variance | cells | linear probe | return / expert's | least | most |",
        "|" + "---|" * 6,
    ]
    edges = (0, *CLONING_EDGES, np.inf)
    for low, high in itertools.pairwise(edges):
        some = [row for row in rows if low <= float(row["cloning_ratio"]) < high]
        if some:
            share = [float(row["return"]) / float(row["expert_return"]) for row in some]
            probe = np.mean([float(row["linear_probe"]) for row in some])
            name = f"from {low:g}" if high == np.inf else f"{low:g} to {high:g}"
            values = " | ".join(f"{value:.2f}" for value in (probe, np.mean(share), min(share), max(share)))
            lines.append(f"| {name} | {len(some)} | {values} |")
    return "\n".join(lines)


def sections(rows: Sequence[Row]) -> dict[str, str]:
    heads = (
        "quantiser",
        "codes",
        "error / copying",
        "probe",
        "linear probe",
        "NMI",
        "perplexity",
        "early",
        "cloning",
        "return",
    )
    columns = {"fdm_ratio": 3, "probe": 3, "linear_probe": 3, "nmi": 2, "perplexity": 1, "early_perplexity": 1}
    columns |= {"cloning_ratio": 2, "return": 2}
    nulls = {"untrained_probe": "untrained", "still_probe": "untrained, o_t alone", "majority": "majority"}
    nulls |= {"expert_return": "the expert's return", "random_return": "the random policy's"}
    over_seeds = [row for row in rows if (row["variant"], row["level"]) == ("corrected", "16")]
    told = ", ".join(f"{name} {common.shown(over_seeds, 'corrected', '16', key)}" for key, name in nulls.items())
    text = f"{table(rows, heads, columns)}\n\nNulls of the probe and returns: {told}.\n\n{given_by_state(rows)}"
    return {"vq_ablation": text}


EXPERIMENT = Experiment(
    name="vq_ablation",
    claim="LAPO's quantiser as it starts, corrected, and none at all: what latents know and what policies get.",
    expected="the reference start collapses and stays behind; 4 codes suffice for 3 actions; returns hardly differ.",
    cells=lambda: grid(LEVELS),
    measure=measure,
    draw=draw,
    sections=sections,
)

if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(common.ROOT / ".jax_cache"))
    common.run(EXPERIMENT)
