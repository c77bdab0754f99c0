"""The quantiser: without one, with LAPO's start, with the corrected start, and with codebooks of several sizes."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import Experiment, Row, bars, grid, style, table
from lamjax import envs, policies
from lamjax.dynamics import DynamicsConfig

CLAIM = "LAPO's quantiser as it starts, corrected, and none at all: what latents know and what policies get."
EXPECTED = "the reference start collapses and stays behind; 4 codes suffice for 3 actions; returns hardly differ."
GAME = "minatar/breakout"
CONFIG = stages.GRID
STEPS, LABELS = 512, 256
SIZES = ("4", "16", "64")
LEVELS = {"continuous": ("-",), "reference": SIZES, "corrected": SIZES}
EARLY = slice(100, 200)  # updates
CLONING_EDGES = (0.01, 0.05, 0.1)


def dynamics_config(variant: str, level: str) -> DynamicsConfig:
    """Stage 1's settings with the quantiser of a cell."""
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
    config, keys = dynamics_config(variant, level), stages.keys(seed)
    train, held_out = stages.recordings(GAME, "expert", STEPS, seed)
    env = envs.make(GAME, stages.NUM_ENVS)
    model, metrics = stages.train_dynamics(keys[1], config, train)
    untrained = stages.untrained_dynamics(keys[1], config, train)
    results = stages.examine(keys[2], model, untrained, train, held_out, env.num_actions)
    if variant == "continuous":  # its codebook follows the latents and does nothing
        results |= dict.fromkeys(("perplexity", "used_codes", "nmi", "nmi_shuffled"), float("nan"))
        early = float("nan")
    else:
        early = float(np.mean([metrics[f"perplexity_{n}"][EARLY].mean() for n in range(config.quantizer.codebooks)]))
    policy, _ = stages.train_cloning(keys[3], CONFIG.cloning, train, model)
    return results | {
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
        measured = [cell for cell in cells if (column, cell[0]) != ("perplexity", "continuous")]
        bars(axes[place], rows, measured, column, place)
        style(axes[place], title, "", unit)
    for column, label in (("untrained_probe", "untrained"), ("still_probe", "o_t alone"), ("majority", "majority")):
        common.level_line(axes[0], common.overall(rows, column), label)
    axes[0].set_ylim(0.3, 1.02)
    for column, label in (("expert_return", "expert"), ("random_return", "random")):
        common.level_line(axes[3], common.overall(rows, column), label)
    return fig


def return_by_cloning_ratio(rows: Sequence[Row]) -> str:
    """A table of the return against the share of the latents' variance that stage 2 leaves unexplained."""
    lines = [
        "| stage 2: error / variance | cells | linear probe | return / expert's | least | most |",
        "|" + "---|" * 6,
    ]
    edges = (0, *CLONING_EDGES, np.inf)
    for low, high in itertools.pairwise(edges):
        between = [row for row in rows if low <= float(row["cloning_ratio"]) < high]
        if between:
            share = [float(row["return"]) / float(row["expert_return"]) for row in between]
            probe = common.overall(between, "linear_probe")
            name = f"from {low:g}" if high == np.inf else f"{low:g} to {high:g}"
            values = " | ".join(f"{value:.2f}" for value in (probe, np.mean(share), min(share), max(share)))
            lines.append(f"| {name} | {len(between)} | {values} |")
    return "\n".join(lines)


def sections(rows: Sequence[Row]) -> dict[str, str]:
    heads = ("quantiser", "codes", "error / copying", "probe", "linear probe", "NMI", "perplexity", "early")
    heads += ("cloning", "return")
    columns = {"fdm_ratio": 3, "probe": 3, "linear_probe": 3, "nmi": 2, "perplexity": 1, "early_perplexity": 1}
    columns |= {"cloning_ratio": 2, "return": 2}
    baselines = {"untrained_probe": "untrained", "still_probe": "untrained, o_t alone", "majority": "majority"}
    baselines |= {"expert_return": "the expert's return", "random_return": "the random policy's"}
    text = ", ".join(f"{name} {common.mean_text(rows, 'corrected', '16', key)}" for key, name in baselines.items())
    parts = table(rows, heads, columns), f"Baselines of the probe and returns: {text}.", return_by_cloning_ratio(rows)
    return {"vq_ablation": "\n\n".join(parts)}


EXPERIMENT = Experiment("vq_ablation", CLAIM, EXPECTED, lambda: grid(LEVELS), measure, draw, sections)
