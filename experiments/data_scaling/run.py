"""Data scaling: probe accuracy and the decoded return against numbers of frames and of labels."""

import functools
from collections.abc import Sequence

import jax
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import COLOURS, Experiment, Row, curve, grid, style, table
from lamjax import envs
from lamjax.cloning import CloningState
from lamjax.dynamics import DynamicsState
from lamjax.jitted import Trajectories

CLAIM = "More frames make better latents and policies; a few hundred labels are enough to decode them."
EXPECTED = "the probe is done at 10,000 frames, the policy at 100,000; the return stops growing at 256 labels."
GAME = "minatar/breakout"
CONFIG = stages.GRID
FRAMES = ("1000", "10000", "100000", "1000000")
LABELS = ("16", "64", "256", "1024", "8192")
MOST = 64 * 16_384  # frames, which are recorded once for all cells
LEVELS = {"frames": FRAMES, "labels of 10000": LABELS[:4], "labels of 1000000": LABELS}


@functools.lru_cache(maxsize=1)
def recordings(seed: int) -> tuple[Trajectories, Trajectories]:
    """Like `stages.recordings`, for one seed at a time: each has a million frames."""
    return stages.recordings.__wrapped__(GAME, "expert", MOST // stages.NUM_ENVS, seed)


@functools.lru_cache(maxsize=len(FRAMES))
def models(frames: int, seed: int) -> tuple[Trajectories, Trajectories, DynamicsState, CloningState]:
    """The first frames of each environment of the recording, all held-out frames, and stages 1 and 2 on the former."""
    train, held_out = recordings(seed)
    steps = -(-frames // train.action.shape[0])
    train = jax.tree.map(lambda x: x[:, :steps], train)
    return train, held_out, *stages.train_models(seed, CONFIG, train)


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    keys = stages.keys(seed)
    labelled = variant != "frames"
    train, held_out, model, policy = models(int(variant.split()[-1] if labelled else level), seed)
    env = envs.make(GAME, stages.NUM_ENVS)
    labels = int(level) if labelled else 256
    available = int(stages.available(train))
    key = jax.random.fold_in(keys[5], labels)
    results = {"return": stages.decoded_return(key, CONFIG, policy, train, min(labels, available), env)}
    if not labelled:
        untrained = stages.untrained_dynamics(keys[1], CONFIG.dynamics, train)
        # Probes are fitted on held-out frames as well, because 1000 training frames have too few windows.
        half = held_out.action.shape[1] // 2
        fit, test = (jax.tree.map(lambda x, s=s: x[:, s], held_out) for s in (slice(half), slice(half, None)))
        results |= stages.examine(keys[3], model, untrained, fit, test, env.num_actions)
        results["cloning_ratio"] = stages.cloning_ratio(keys[4], policy, model, test)
    return results | {"expert_return": stages.expert_return(GAME, seed)}


def draw(rows: Sequence[Row]) -> Figure:
    fig, axes = common.panels(4)
    curve(axes[0], rows, "frames", "probe", 0, "latents")
    curve(axes[0], rows, "frames", "untrained_probe", 7, "untrained", dash=":")
    style(axes[0], "Probe on latents", "frames", "accuracy, held out")
    axes[0].legend(fontsize=7, frameon=False)
    curve(axes[1], rows, "frames", "fdm_ratio", 1, "forward model: error / copying")
    curve(axes[1], rows, "frames", "cloning_ratio", 2, "cloning: error / variance")
    style(axes[1], "Held-out errors", "frames", "relative error")
    axes[1].set_ylim(bottom=0)
    axes[1].legend(fontsize=7, frameon=False)
    curve(axes[2], rows, "frames", "return", 3, "256 labels")
    style(axes[2], "Decoded from 256 labels", "frames", "return")
    for colour, variant in enumerate(("labels of 10000", "labels of 1000000")):
        curve(axes[3], rows, variant, "return", colour + 4, f"{int(variant.split()[-1]):,} frames")
    style(axes[3], "Decoded", "labels", "return")
    expert = common.overall(rows, "expert_return")
    for ax in axes[2:]:
        ax.axhline(expert, color=COLOURS[6], linewidth=0.9, linestyle=":", label="expert")
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=7, frameon=False, loc="lower right")
    for ax in axes:
        ax.set_xscale("log")
    return fig


def sections(rows: Sequence[Row]) -> dict[str, str]:
    heads = ("", "frames", "probe", "untrained", "error / copying", "cloning: error / variance", "return, 256 labels")
    columns = {"probe": 3, "untrained_probe": 3, "fdm_ratio": 3, "cloning_ratio": 2, "return": 2}
    first = table(rows, heads, columns, {"frames": "all"})
    of = {"labels of 10000": "10,000 frames", "labels of 1000000": "1,000,000 frames"}
    second = table(rows, ("trained on", "labels", "return"), {"return": 2}, of)
    expert = common.overall(rows, "expert_return")
    return {"data_scaling": f"{first}\n\n{second}\n\nThe expert's return is {expert:.2f}."}


EXPERIMENT = Experiment("data_scaling", CLAIM, EXPECTED, lambda: grid(LEVELS), measure, draw, sections)
