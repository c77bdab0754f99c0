"""Exogenous noise on MinAtar's channels: its effect on latents, three remedies, and the linear theory beside them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import Experiment, Row, curve, grid, style, table
from lamjax import acting, envs, jitted, policies
from lamjax.analysis import probes
from lamjax.jitted import Trajectories
from lamjax.linear import Moments, optimum
from lamjax.linear.world import Transition
from lamjax.preprocess import clean
from lamjax.statistics import mean_and_stderr

CLAIM = "Noise that is larger than the action's change takes the latent; cleaning and labels bring the action back."
EXPECTED = "without help the action is lost near 0.1; augmentation changes nothing; the others save it."
GAME = "minatar/breakout"
STEPS, LABELS = 1024, 256
# Four codes: three actions fit, or a little of the noise, but not both. In the linear theory four codes span three
# dimensions.
CODES = 4
_PRESET = stages.GRID.dynamics
CONFIG = dataclasses.replace(
    _PRESET, quantizer=dataclasses.replace(_PRESET.quantizer, enabled=True, codebooks=1, codes=CODES, revive=1.0)
)
REMEDIES = {
    "none": {},
    "shift": {"augment": "shift", "augment_pixels": 2},
    "level": {"clean": "level"},
    "labels": {"action_weight": 1.0},
}
STRENGTHS = ("0.01", "0.03", "0.1")
LEVELS = {"none": ("0", *STRENGTHS), "shift": STRENGTHS, "level": STRENGTHS, "labels": STRENGTHS}
KAPPA = 0.1  # of the linear theory's augmentation


@functools.cache
def environment(strength: str) -> envs.VectorEnv:
    """Breakout with noise of a strength."""
    options = {} if float(strength) == 0 else {"distractor": "jitter", "distractor_strength": float(strength)}
    return envs.make(GAME, stages.NUM_ENVS, **options)


@functools.lru_cache(maxsize=len(STRENGTHS) + 1)  # the strengths of a seed
def recordings(strength: str, seed: int) -> tuple[Trajectories, Trajectories]:
    """Training and held-out recordings of uniform actions, with the shift of the channels."""
    env = environment(strength)
    uniform = policies.UniformPolicy(env.num_actions)
    read = env.distractor_state if acting.distractor_dim(env) else None
    return jitted.split(stages.record(stages.keys(seed)[0], env, uniform, {}, STEPS, read))


def noise_change(trajectories: Trajectories, starts: np.ndarray) -> np.ndarray | None:
    """The change in brightness of empty cells from o_t to o_{t+1}, float32 ``[E, C]``: what shows of the shift."""
    if trajectories.extra is None:
        return None
    brightness = np.maximum(np.asarray(trajectories.extra), 0).reshape(-1, trajectories.extra.shape[-1])
    return brightness[starts + 2] - brightness[starts + 1]


def linear_latents(remedy: str, fit: np.ndarray, actions: np.ndarray, test: np.ndarray) -> list[np.ndarray]:
    """Latents of the linear closed form with the same remedy, ``[E, CODES - 1]`` for each set of windows."""
    if remedy == "level":
        fit, test = (np.asarray(clean(windows, "level")) for windows in (fit, test))
    flat = lambda frames: frames.reshape(len(frames), -1) / 255.0  # noqa: E731
    o, delta = flat(fit[:, 1]), flat(fit[:, 2]) - flat(fit[:, 1])
    moments = Moments.of_samples(Transition(o, delta, np.zeros_like(o), np.eye(actions.max() + 1)[actions]))
    # Stage 1's loss is relative to the copy-last baseline's; the theory's is a sum.
    settings = {"labels": {"action_weight": float(np.square(delta).sum(1).mean())}, "shift": {"kappa": KAPPA}}
    lam = optimum(moments, CODES - 1, bias=True, ties="ignore", **settings.get(remedy, {})).lam
    return [flat(windows[:, 1]) @ lam.C.T + flat(windows[:, 2]) @ lam.D.T for windows in (fit, test)]


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    config, keys = dataclasses.replace(CONFIG, **REMEDIES[variant]), stages.keys(seed)
    train, held_out = recordings(level, seed)
    a = environment(level).num_actions
    labels = stages.windows(keys[6], train, LABELS) if variant == "labels" else None
    model, _ = stages.train_dynamics(keys[1], config, train, labels, a if labels else None)
    untrained = stages.untrained_dynamics(keys[1], config, train, a)
    results = stages.examine(keys[2], model, untrained, train, held_out, a)

    fit, fit_actions, fit_starts = stages.draw_windows(keys[3], train, stages.PROBE_TRAIN)
    test, test_actions, test_starts = stages.draw_windows(keys[4], held_out, stages.PROBE_TEST)
    changes = noise_change(train, fit_starts), noise_change(held_out, test_starts)

    def noise_r2(fit_z: np.ndarray, test_z: np.ndarray) -> float:
        return probes.r_squared(keys[5], fit_z, changes[0], test_z, changes[1]) if level != "0" else float("nan")

    linear = [z.astype(np.float32) for z in linear_latents(variant, fit, fit_actions, test)]
    return {
        "probe": results["probe"],
        "noise_r2": noise_r2(stages.infer(model, fit), stages.infer(model, test)),
        "linear_theory_probe": probes.accuracy(keys[5], linear[0], fit_actions, linear[1], test_actions, a),
        "linear_theory_noise_r2": noise_r2(*linear),
        "untrained_noise_r2": noise_r2(stages.infer(untrained, fit), stages.infer(untrained, test)),
        **{name: results[name] for name in ("untrained_probe", "majority", "fdm_ratio")},
        **{name: results[name] for name in ("perplexity", "nmi", "nmi_shuffled")},
    }


REMEDY_NAMES = {"none": "nothing", "shift": "augmentation", "level": "cleaning", "labels": f"{LABELS} labels"}


def draw(rows: Sequence[Row]) -> Figure:
    fig, axes = common.panels(4)
    columns = (
        ("probe", "Stage 1: action", "probe's accuracy, held out"),
        ("linear_theory_probe", "Linear theory: action", "probe's accuracy, held out"),
        ("noise_r2", "Stage 1: noise", "R² of its change, held out"),
        ("linear_theory_noise_r2", "Linear theory: noise", "R² of its change, held out"),
    )
    for ax, (column, title, unit) in zip(axes, columns, strict=True):
        noisy = [row for row in rows if row["level"] != "0"]
        for colour, (variant, name) in enumerate(REMEDY_NAMES.items()):
            curve(ax, noisy, variant, column, colour, name)
        if column.endswith("probe"):
            common.level_line(ax, mean_and_stderr(common.values(rows, "none", "0", column))[0], "no noise")
            common.level_line(ax, common.overall(rows, "majority"), "majority")
            ax.set_ylim(0.25, 1.05)
        else:
            ax.set_ylim(-0.1, 1.05)
        ax.set_xscale("log")
        ax.set_xticks([float(s) for s in STRENGTHS], STRENGTHS)
        ax.minorticks_off()
        style(ax, title, "strength of the noise (share of the range)", unit)
    axes[3].legend(fontsize=7, frameon=False, loc="upper left")
    return fig


def sections(rows: Sequence[Row]) -> dict[str, str]:
    heads = ("remedy", "strength", "action: probe", "linear theory", "noise: R²", "linear theory")
    heads += ("error / copying", "codes: NMI")
    columns = {"probe": 3, "linear_theory_probe": 3, "noise_r2": 2, "linear_theory_noise_r2": 2, "fdm_ratio": 3}
    columns |= {"nmi": 2}
    untrained = "; ".join(
        f"at {strength} action {common.mean_text(rows, 'none', strength, 'untrained_probe')} and noise "
        f"{common.mean_text(rows, 'none', strength, 'untrained_noise_r2')}"
        for strength in STRENGTHS
    )
    majority = common.overall(rows, "majority")
    baselines = f"Baselines: majority {majority:.3f}; an untrained model without remedy, {untrained}."
    return {"noise": f"{table(rows, heads, columns, REMEDY_NAMES)}\n\n{baselines}"}


EXPERIMENT = Experiment("noise", CLAIM, EXPECTED, lambda: grid(LEVELS), measure, draw, sections)
