"""The panels of Figures 3 and 4 of arXiv 2506.15691, and three that go beyond the paper."""

import dataclasses
from collections.abc import Callable, Iterable

from experiments.linear_lam.common import Panel, Trial
from lamjax.linear import Point, TrainConfig, WorldConfig

SMALL = WorldConfig(d_o=32, d_a=4, d_b=4)  # d_o = 32, 4 actions, 4 other agents: beyond the paper


def sweep(full: bool, curves: dict[str, Callable[[float], Point]], xs: Iterable[float]) -> list[Trial]:
    """A panel's points: each seed, each curve, each x."""
    return [
        Trial(curve, x, dataclasses.replace(point(x), seed=seed))
        for seed in range(3 if full else 1)
        for curve, point in curves.items()
        for x in xs
    ]


def fig3_left(full: bool) -> list[Trial]:
    """Without noise, actions are learned as far as the latent has room."""
    actions = range(2, 17, 2) if full else (2, 4, 8, 16)
    curves = {f"{d_a} actions": lambda d_z, d_a=d_a: Point(WorldConfig(d_a=d_a), d_z) for d_a in actions}
    return sweep(full, curves, range(1, 17) if full else (1, 2, 4, 8, 12, 16))


def fig3_middle(full: bool) -> list[Trial]:
    """iid noise lowers everything a little and reverses nothing."""
    levels = [0.1 * i for i in range(16)]
    latents = range(2, 17, 2) if full else (2, 4, 8, 16)
    curves = {f"latent size {d_z}": lambda s, d_z=d_z: Point(WorldConfig(s_iid=s), d_z) for d_z in latents}
    return sweep(full, curves, levels if full else levels[::3])


def fig3_right(full: bool) -> list[Trial]:
    """Other agents that move more than the actions do take the latent first."""
    curves = {f"others' scale {s:g}": lambda d_z, s=s: Point(WorldConfig(s_exo=s), d_z) for s in (0.5, 2.0)}
    return sweep(full, curves, range(2, 17) if full else (2, 4, 6, 8, 12, 16))


def fig4_left(full: bool) -> list[Trial]:
    """A policy that follows the observation hides the actions from too small a latent.

    Probed as by the authors: on the predicted change o^ - o, fitted on-policy, evaluated under random actions. A fully
    deterministic policy (chi = 1) has no innovation, hence no optimum: the axis ends before it.
    """
    latents = range(2, 17, 2) if full else (2, 4, 6, 8, 16)
    curves = {f"latent size {d_z}": lambda chi, d_z=d_z: Point(WorldConfig(chi=chi), d_z) for d_z in latents}
    return sweep(full, curves, [0.1 * i for i in range(10)] if full else (0.0, 0.2, 0.4, 0.6, 0.8, 0.9))


def fig4_middle(full: bool) -> list[Trial]:
    """Without augmentation the true latent is full of the observation; with it, it is clean.

    The noise is uniform on [0, s), as the authors programmed it: its mean takes a latent, hence the knee at 9 latents.
    The noise is left out of LLO, as in their plot. Without augmentation C is free, and training leaves it where it
    started: the latent tells of the observation only, so LLO = 1 - d_z / d_o.
    """
    curves = {
        f"s = {s:g}, kappa = {kappa:g}": lambda d_z, s=s, kappa=kappa: Point(
            WorldConfig(s_iid=s, noise="uniform"), d_z, kappa=kappa
        )
        for kappa in (0.1, 0.01, 0.0)
        for s in (0.0, 0.1, 0.5, 1.0)
    }
    return sweep(full, curves, range(2, 17) if full else (2, 4, 6, 8, 9, 16))


def without_augmentation(trial: Trial) -> dict[str, float] | None:
    """`fig4_middle`'s values where C is free."""
    if trial.point.kappa > 0:
        return None
    nmse_o = 1 - trial.point.d_z / trial.point.world.d_o
    return {"nmse_q": 1.0, "nmse_a": 1.0, "nmse_eps": 1.0, "nmse_o": nmse_o, "llo": nmse_o}


def fig4_right(full: bool) -> list[Trial]:
    """A few labels turn the latent to the actions, with the weight that the authors' code gives them."""
    curves = {
        f"others' scale {s:g}, {labels:g}% labels": lambda d_z, s=s, labels=labels: Point(
            WorldConfig(s_exo=s), d_z, kappa=0.1, action_weight=float(labels > 0), label_fraction=labels / 100
        )
        for labels in ((0, 1, 5, 10) if full else (0, 1))
        for s in (0.5, 1.0, 2.0)
    }
    return sweep(full, curves, range(2, 17) if full else (2, 4, 6, 8, 12, 16))


def action_weight(full: bool, dense: bool = False) -> list[Trial]:
    """The action loss works from lam* = s_exo^2 - 1 on, and not below. Others are orthogonal."""
    curves = {
        f"others' scale {s:g}": lambda weight, s=s: Point(
            dataclasses.replace(SMALL, s_exo=s, s_iid=0.05, orthogonal=True), 4, kappa=0.1, action_weight=weight
        )
        for s in (1.5, 2.0, 3.0)
    }
    few = (0.5, 1.0, 2.0, 2.75, 3.5, 4.5, 6.5, 7.5, 9.0, 12.0)
    return sweep(full, curves, [0.125 * i for i in range(1, 97)] if dense else few)


def cleaning(full: bool, dense: bool = False) -> list[Trial]:
    """Removing the fraction c* = 1 - 1 / s_exo of the noise is enough, if others are orthogonal.

    Not all of it: where training never sees noise, SGD leaves D as it started, and the noise is in the latent then.
    """
    curves = {
        f"scale {s:g}, {'orthogonal' if orthogonal else 'random'}": lambda clean, s=s, orthogonal=orthogonal: Point(
            dataclasses.replace(SMALL, s_exo=s, clean=clean, orthogonal=orthogonal), 4
        )
        for s in (2.0, 4.0)
        for orthogonal in (True, False)
    }
    return sweep(full, curves, [0.01 * i for i in range(96)] if dense else (0.0, 0.2, 0.4, 0.6, 0.8, 0.95))


def anisotropic(full: bool, dense: bool = False) -> list[Trial]:
    """Actions of unequal effect, 2 down to 0.18. Each competes for itself: those below the noise are lost."""
    scales = tuple(2.0 ** (1 - 0.5 * i) for i in range(8))
    curves = {
        f"others' scale {s:g}": lambda d_z, s=s: Point(WorldConfig(s_exo=s, s_iid=0.05, action_scales=scales), d_z)
        for s in (0.1, 0.5, 1.2)
    }
    return sweep(full, curves, range(1, 17) if dense or full else (2, 4, 6, 8, 12, 16))


PANELS = (
    Panel(
        name="fig3_left",
        title="Figure 3 left: no noise",
        xlabel="latent size",
        trials=fig3_left,
        expected="LLO = 1 + min(1, d_z / d_a), with a knee at d_z = d_a.",
    ),
    Panel(
        name="fig3_middle",
        title="Figure 3 middle: iid noise (probe fitted with noise, evaluated without)",
        xlabel="standard deviation of the iid noise",
        trials=fig3_middle,
        probe="noisy-clean",
        expected="LLO falls smoothly; from 8 latents on 1.96 at 0.5, 1.75 at 1, 1.52 at 1.5.",
    ),
    Panel(
        name="fig3_right",
        title="Figure 3 right: other agents",
        xlabel="latent size",
        trials=fig3_right,
        expected="scale 0.5: a tent, 1.95 at 8 latents, 1 at 16; scale 2: a V, 0.05 at 8 and 1 at 16.",
    ),
    Panel(
        name="fig4_left",
        title="Figure 4 left: policy (probe fitted on-policy, evaluated under random actions)",
        xlabel="deterministic part of the policy, chi",
        trials=fig4_left,
        latent="change",
        on_policy=False,
        metric="nmse_a",
        expected="NMSE of the action = (1 - d_z / 8) (1 + chi^2) below 8 latents, 0 from 8 on.",
    ),
    Panel(
        name="fig4_middle",
        title="Figure 4 middle: augmentation, true latent",
        xlabel="latent size",
        trials=fig4_middle,
        latent="true",
        palette=4,
        bounds=without_augmentation,
        no_noise_term=True,
        expected=(
            "kappa 0.1: as Figure 3, 2 to 1.92 from 9 latents on; kappa 0: about 0.95 throughout; 0.01: in between."
        ),
    ),
    Panel(
        name="fig4_right",
        title="Figure 4 right: action labels (augmentation 0.1, true latent)",
        xlabel="latent size",
        trials=fig4_right,
        latent="true",
        palette=3,
        # 1% of labels is one transition a batch: a smaller rate lets its noise average out.
        config=TrainConfig(learning_rate=3e-3, steps=8000, max_rounds=2, units="code"),
        expected="no labels: a tent, about 1, and a V; 1% labels: three tents that reach 2 at 8 latents.",
    ),
    Panel(
        name="action_weight",
        title="Critical action weight (d_o = 32, 4 latents)",
        xlabel="weight of the action loss, in sums over coordinates",
        trials=action_weight,
        dense=lambda: action_weight(False, dense=True),
        latent="true",
        metric="nmse_q",
        xscale="log",
        config=TrainConfig(units="sum"),
        expected="steps from 1 to 0 at 1.25, 3 and 8.",
    ),
    Panel(
        name="cleaning",
        title="Data cleaning (d_o = 32, 4 latents)",
        xlabel="fraction of the noise that is removed before training",
        trials=cleaning,
        dense=lambda: cleaning(False, dense=True),
        metric="nmse_q",
        expected=(
            "orthogonal: a step at 0.5 and 0.75; random directions overlap, so the step is a slope that ends above 0."
        ),
    ),
    Panel(
        name="anisotropic",
        title="Actions of unequal effect (2 to 0.18)",
        xlabel="latent size",
        trials=anisotropic,
        dense=lambda: anisotropic(False, dense=True),
        metric="nmse_a",
        expected="a plateau of 8 latents, at the number of actions whose effect is below the others' scale.",
    ),
)
