"""``lamjax linear optimum`` and ``lamjax linear train``: one linear latent action model, in closed form or by SGD."""

import dataclasses
import json
import logging
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from lamjax.cli.options import columns, summary_of
from lamjax.linear.metrics import score
from lamjax.linear.optimum import LAM, Optimum, angle, optimum
from lamjax.linear.train import PAPER, RECOMMENDED, Point, train
from lamjax.linear.world import WorldConfig, check, make_world
from lamjax.training.logging import say

PROTOCOLS = {"recommended": RECOMMENDED, "paper": PAPER}


@dataclasses.dataclass(frozen=True)
class Linear:
    """Solves a linear latent action model in closed form, or trains one (optimum, train)."""


@dataclasses.dataclass(frozen=True)
class OptimumArgs:
    """The closed-form optimum of a linear latent action model, and what its latent holds.

    The latent is in the gauge C = -D, probes see the uncleaned world on-policy, and moments are exact.

    Attributes:
      world: the settings of the world to train on.
      d_z: size of the latent.
      kappa: standard deviation of the augmentation.
      action_weight: weight of the action loss, in sums over coordinates.
      bias: the forward model has a bias.
      latent: true (z), surrogate (B^+ (o^ - o)) or change (o^ - o).
      probe: noisy, noisy-clean (fitted with, evaluated without noise) or clean.
      random_policy: evaluates the probe under random actions.
      seed: draws the world.
      seeds: averages over this many worlds.
      json: prints JSON only.
    """

    world: Annotated[WorldConfig, tyro.conf.arg(name="")] = WorldConfig(d_o=32, d_a=4, d_b=4)
    d_z: int = 4
    kappa: float = 0.0
    action_weight: float = 0.0
    bias: bool = False
    latent: Literal["true", "surrogate", "change"] = "true"
    probe: Literal["noisy", "noisy-clean", "clean"] = "noisy"
    random_policy: bool = False
    seed: int = 0
    seeds: int = 1
    json: bool = False


@dataclasses.dataclass(frozen=True)
class TrainArgs(OptimumArgs):
    """Trains a linear latent action model by SGD and compares it with the closed form.

    Attributes:
      protocol: recommended (Adam, 1e-2, cosine to 0, rounds until it has converged) or paper (1e-3, 4000 steps).
      steps: steps of the first round; by default the protocol's.
      max_rounds: the most rounds, each twice as long as the last; by default the protocol's.
      label_fraction: probability that a transition has its action.
      units: the units of the action weight: sum (over coordinates) or code (the authors' means).
    """

    protocol: Literal["recommended", "paper"] = "recommended"
    steps: int | None = None
    max_rounds: int | None = None
    label_fraction: float = 1.0
    units: Literal["sum", "code"] = "sum"


def _row(args: OptimumArgs, lam: LAM, best: Optimum, seed: int) -> dict[str, Any]:
    """The printed results of one world."""
    world = make_world(dataclasses.replace(args.world, clean=0.0), seed)
    scores = score(lam, world, latent=args.latent, probe=args.probe, on_policy=not args.random_policy)
    return {
        "loss": best.loss,
        **dataclasses.asdict(scores),
        "gap": best.gap,
        "attained": best.attained,
        "eigenvalues": best.eigenvalues.tolist(),
    }


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over worlds, for numbers and lists; a fact holds if it holds for all."""

    def mean(values: list[Any]) -> Any:
        return all(values) if isinstance(values[0], bool) else np.mean(values, axis=0).tolist()

    return {key: mean([row[key] for row in rows]) for key in rows[0]}


def _print(results: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(results))
        return
    for key, value in results.items():
        text = " ".join(f"{x:.4g}" for x in value[:16]) if isinstance(value, list) else f"{value:.6g}"
        print(f"{key:12s} {text}")


def _seeds(args: OptimumArgs) -> range:
    check(args.seeds >= 1, f"seeds must be at least 1, not {args.seeds}.")
    check(args.seed >= 0, f"seed must be at least 0, not {args.seed}.")
    return range(args.seed, args.seed + args.seeds)


def run_optimum(args: OptimumArgs) -> None:
    """`lamjax linear optimum`."""
    rows, tie = [], False
    for seed in _seeds(args):
        best = optimum(
            make_world(args.world, seed).moments(),
            args.d_z,
            kappa=args.kappa,
            action_weight=args.action_weight,
            bias=args.bias,
            ties="ignore",
        )
        tie |= best.gap < 1e-9 and best.loss > 0
        rows.append(_row(args, best.lam, best, seed))
    if tie:
        say("lamjax: eigenvalues tie at the cut: another latent of equal loss may hold other things.", logging.WARNING)
    _print(_mean(rows), args.json)


def run_train(args: TrainArgs) -> None:
    """`lamjax linear train`."""
    config = PROTOCOLS[args.protocol]
    changes = {k: getattr(args, k) for k in ("steps", "max_rounds") if getattr(args, k) is not None}
    config = dataclasses.replace(config, units=args.units, bias=args.bias, **changes)
    points = [
        Point(args.world, args.d_z, args.kappa, args.action_weight, args.label_fraction, seed=seed)
        for seed in _seeds(args)
    ]
    rows = []
    for t in train(points, config, progress=say):
        row = _row(args, t.lam, t.best, t.point.seed)
        rows.append(
            row
            | {
                "optimal_loss": t.best.loss,
                "loss": t.loss,
                "excess": t.excess,
                "angle": angle(t.lam, t.best, args.d_z),
                "converged": t.converged,
                "steps": t.steps,
            }
        )
    _print(_mean(rows), args.json)


COMMANDS = {"optimum": (OptimumArgs, run_optimum), "train": (TrainArgs, run_train)}


def parse(argv: list[str]) -> OptimumArgs | TrainArgs:
    """The options of ``lamjax linear <command> ...``.

    Raises:
      ValueError: if there is no such command.
      SystemExit: after showing help.
    """
    if argv[:1] in (["-h"], ["--help"]):
        lines = columns({name: summary_of(cls) for name, (cls, _) in COMMANDS.items()})
        print(f"usage: lamjax linear <command> [options]; lamjax linear <command> --help lists the options\n\n{lines}")
        raise SystemExit(0)
    known = ", ".join(COMMANDS)
    check(bool(argv), f"linear needs a command: choose one of {known}.")
    check(argv[0] in COMMANDS, f"linear has no command {argv[0]!r}: choose one of {known}.")
    return tyro.cli(COMMANDS[argv[0]][0], args=argv[1:], prog=f"lamjax linear {argv[0]}")


def run(args: OptimumArgs | TrainArgs) -> None:
    """Runs what `parse` returned."""
    try:
        run_train(args) if isinstance(args, TrainArgs) else run_optimum(args)
    except FloatingPointError as error:
        raise ValueError(str(error)) from error
