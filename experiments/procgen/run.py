"""Runs LAPO on Procgen: an expert, a run and its ablations for each game, in resumable pieces of a few minutes.

    python experiments/procgen/run.py --games coinrun maze --budget-minutes 9

The command does the missing pieces in order until the budget is spent. Repeat it until it reports that nothing is left.
Each call writes a game's finished results to ``results/<game>.json``, which ``figure.py`` draws.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from lamjax import envs, experts, pipeline, planners, policies
from lamjax.config import RunConfig
from lamjax.pipeline.sources import has_expert
from lamjax.presets import PRESETS, presets_for
from lamjax.statistics import mean_and_stderr
from lamjax.training.provenance import describe_run
from lamjax.training.run_folder import InterruptedRunError, Run, RunError, read_json, write_json

HERE = Path(__file__).parent
# The paper's figure shows all games. On these, which come first, LAPO gains most or learns fastest.
ORDER = ("coinrun", "maze", "heist", "bigfish", "climber", "miner", "dodgeball", "jumper")
GAMES = (*ORDER, *(game for game in envs.PROCGEN_GAMES if game not in ORDER))
OBS_SHAPE = (64, 64, 3)


@dataclasses.dataclass(frozen=True)
class Args:
    """Runs LAPO and its ablations on Procgen games, a piece at a time.

    Attributes:
      games: the games to run, in this order.
      preset: the preset for networks and budgets: paper, reference, cpu or smoke.
      seeds: number of runs per game; their seeds are 0, 1, ...
      variants: ablations to run in addition to LAPO and PPO from scratch (see `VARIANTS`).
      budget_minutes: after this time the command saves everything and exits.
      expert_frames: number of environment frames to train an expert on; by default the preset's.
      expert_at_least: trains a new expert if the normalised return of the shipped one is lower; 0 accepts any.
      planners: True imitates a game's planner if there is one, so no expert is trained.
      only_latents: True stops each run after stage 1, which measures what latents hold of the action. It trains no
        experts: the demonstrator is the game's expert, or its planner, or random play.
      keep: True copies the experts and the first seed's policies, as float16, to their places in the repository.
      runs: the folder that holds the run folders.
      data: the folder that holds trajectories.
      results: the folder for the results of each game.
    """

    games: tuple[str, ...] = GAMES
    preset: str = "paper"
    seeds: int = 3
    variants: tuple[str, ...] = ("rl_only", "no_vq")
    budget_minutes: float = 9.0
    expert_frames: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    expert_at_least: float = 0.9
    planners: bool = False
    only_latents: bool = False
    keep: bool = False
    runs: Path = Path("runs")
    data: Path = Path("data")
    results: Path = HERE / "results"


def without_decoder(config: RunConfig) -> RunConfig:
    """The paper's "RL only": no supervised decoder."""
    decoder = dataclasses.replace(config.online.decoder, enabled=False)
    return dataclasses.replace(config, online=dataclasses.replace(config.online, decoder=decoder))


def without_quantizer(config: RunConfig) -> RunConfig:
    """The paper's "RL only, no VQ": continuous latents, and no supervised decoder."""
    quantizer = dataclasses.replace(config.dynamics.quantizer, enabled=False)
    return without_decoder(
        dataclasses.replace(config, dynamics=dataclasses.replace(config.dynamics, quantizer=quantizer))
    )


# The stages of LAPO's own run whose returns the figure shows.
METHODS = {"lapo": "decode_online", "pseudo_labels": "decode_named", "ppo_scratch": "ppo_scratch"}

# The changed settings, and whether the variant shares stages 1 and 2 with LAPO's own run.
VARIANTS: dict[str, tuple[Callable[[RunConfig], RunConfig], bool]] = {
    "rl_only": (without_decoder, True),
    "no_vq": (without_quantizer, False),
}


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of work.

    Attributes:
      name: for progress messages.
      done: whether its result exists already.
      do: does the work; saves everything and raises `InterruptedRunError` when the time is up.
    """

    name: str
    done: Callable[[], bool]
    do: Callable[[], Any]


def summary(folder: Path) -> dict[str, Any]:
    """The summary of a run folder, empty before it is written."""
    path = folder / "summary.json"
    return read_json(path) if path.exists() else {}


def ended(folder: Path, stage: str) -> bool:
    """Whether a stage of a run has finished."""
    return stage in summary(folder).get("stages", {})


def pieces(args: Args, game: str) -> Iterator[Piece]:
    """The pieces of a game, in order."""
    config = presets_for(OBS_SHAPE, game)[args.preset]
    wants_planner = args.planners or (args.only_latents and not has_expert(game, args.runs))
    if wants_planner and game in planners.PLANS:
        demonstrator = "planner"
    elif args.only_latents and not has_expert(game, args.runs):
        demonstrator = "random"
    else:
        demonstrator = "expert"
    if args.expert_frames:
        ppo = dataclasses.replace(config.expert.ppo, total_frames=args.expert_frames)
        config = dataclasses.replace(config, expert=dataclasses.replace(config.expert, ppo=ppo))
    command = f"python experiments/procgen/run.py --games {game} --preset {args.preset}"
    own = pipeline.expert_folder(args.runs, game)
    shipped = experts.available().get(game, {})

    def have_demonstrator() -> bool:
        good = demonstrator == "planner" or (shipped and shipped["normalised"] >= args.expert_at_least)
        return bool(good) or ended(own, "expert")

    def open_run(name: str, config: RunConfig, source: str) -> Run:
        header = describe_run(game, args.preset, name, command, config.seed)
        return Run(args.runs / game / name, game, config, header, source)

    def train_expert() -> None:
        pipeline.train_expert(game, config, preset=args.preset, runs=args.runs, command=command)

    def source() -> pipeline.Source:
        return pipeline.find_source(game, demonstrator, args.runs, envs.make(game, 1).num_actions)

    def lapo(seed: int) -> None:
        expert = source()
        with open_run(f"{args.preset}-s{seed}", dataclasses.replace(config, seed=seed), expert.name) as run:
            pipeline.run_stages(run, expert, args.data, in_sequence=True)  # for the minutes of each stage

    def variant(name: str, seed: int) -> None:
        change, shares = VARIANTS[name]
        expert, seeded = source(), dataclasses.replace(config, seed=seed)
        with open_run(f"{args.preset}-{name}-s{seed}", change(seeded), expert.name) as run:
            store = pipeline.record_stage(run, expert, args.data)
            own = open_run(f"{args.preset}-s{seed}", seeded, expert.name) if shares else contextlib.nullcontext(run)
            with own as trained:
                model = pipeline.dynamics_stage(trained, store, data=args.data)
                policy = pipeline.cloning_stage(trained, store, model)
            pipeline.online_stage(run, model, policy)

    def latents(seed: int) -> None:
        demonstrations = source()
        seeded = dataclasses.replace(config, seed=seed)
        with open_run(f"{args.preset}-s{seed}", seeded, demonstrations.name) as run:
            run.summary["source"] = {"policy": demonstrations.kind, **demonstrations.info}
            store = pipeline.record_stage(run, demonstrations, args.data)
            pipeline.dynamics_stage(run, store, data=args.data)

    if args.only_latents:
        for seed in range(args.seeds):
            folder = args.runs / game / f"{args.preset}-s{seed}"
            done = functools.partial(ended, folder, "dynamics")
            yield Piece(f"stage 1, seed {seed}", done, functools.partial(latents, seed))
        return
    yield Piece("expert", have_demonstrator, train_expert)
    for seed in range(args.seeds):
        folder = args.runs / game / f"{args.preset}-s{seed}"
        yield Piece(
            f"LAPO, seed {seed}",
            lambda folder=folder: ended(folder, "decode_online") and (folder / "report.html").exists(),
            functools.partial(lapo, seed),
        )
        for name in args.variants:
            yield Piece(
                f"{name}, seed {seed}",
                lambda name=name, seed=seed: ended(args.runs / game / f"{args.preset}-{name}-s{seed}", "decode_online"),
                functools.partial(variant, name, seed),
            )


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Mean, standard error (None for one seed) and the values themselves."""
    mean, error = mean_and_stderr(values)
    return {"mean": mean, "stderr": error if len(values) > 1 else None, "values": values}


def collect(args: Args, game: str) -> dict[str, Any] | None:
    """The measurements of a game; None before stage 1 of its first run has finished.

    Returns and times are those of the runs that have finished, and what latents hold that of all runs.
    """
    own = {seed: summary(args.runs / game / f"{args.preset}-s{seed}") for seed in range(args.seeds)}
    runs = {seed: results for seed, results in own.items() if "dynamics" in results.get("stages", {})}
    if not runs:
        return None
    first = next(iter(runs.values()))
    finished = [results for results in runs.values() if "decode_online" in results["stages"]]
    stages: dict[str, list[dict[str, Any]]] = {}  # a run may have left some of them out
    for results in finished:
        for stage, values in results["stages"].items():
            stages.setdefault(stage, []).append(values)
    online = {name: stages[stage] for name, stage in METHODS.items() if stage in stages}
    seconds = {stage: [values["seconds"] for values in results] for stage, results in stages.items()}
    for name in args.variants:
        folders = [args.runs / game / f"{args.preset}-{name}-s{seed}" for seed in runs]
        decoded = [summary(folder)["stages"]["decode_online"] for folder in folders if ended(folder, "decode_online")]
        if decoded:
            online[name] = decoded
            seconds[f"{name} decode_online"] = [stage["seconds"] for stage in decoded]
    expert = {key: first["source"].get(key) for key in ("policy", "return_mean", "return_stderr", "episodes", "frames")}
    metrics = ("fdm_mse", "fdm_ratio", "probe_accuracy_merged", "untrained_probe_accuracy_merged")
    metrics += (
        "action_information",
        "still_probe_accuracy_merged",
        "majority_accuracy_merged",
        "codebook_perplexity",
        "dead_codes",
    )
    return {
        "game": game,
        "preset": args.preset,
        "seeds": list(runs),
        "device": first["device"],
        "versions": first["versions"],
        "git": first["git"],
        "date": datetime.date.today().isoformat(),
        "expert": expert,
        "nulls": [r["nulls"] for r in finished],
        "dynamics": [{k: r["stages"]["dynamics"].get(k) for k in metrics} for r in runs.values()],
        "offline": {
            name: [offline[name] for offline in stages["decode_offline"]]
            for name in stages.get("decode_offline", [{}])[0]
            if name.endswith("curve")
        },
        "online": {
            name: {
                "return": over_seeds([stage["return_mean"] for stage in decoded]),
                "normalised": over_seeds([envs.normalised_return(game, stage["return_mean"]) for stage in decoded]),
                "frames": decoded[0]["frames"],
                "curves": [stage["curve"] for stage in decoded],
            }
            for name, decoded in online.items()
        },
        "seconds": {stage: over_seeds(values) for stage, values in seconds.items()},
    }


def keep_policies(args: Args, game: str) -> None:
    """Copies a trained expert and policies of the first seed, as float16, to their places in the repository.

    The policies are the one that PPO trained from pseudo-labels, or, without it, those decoded from the most labels and
    online.
    """
    own = pipeline.expert_folder(args.runs, game) / "policies" / "expert"
    copies = [(own, experts.folder(game))] if own.exists() else []
    trained = args.runs / game / f"{args.preset}-s0" / "policies"
    offline = sorted(trained.glob("offline-*"), key=lambda path: int(path.name.partition("-")[2]))
    named = trained / "decode_named"
    kept = [named] if named.exists() else [*offline[-1:], trained / "decode_online"]
    copies += [(path, HERE / "policies" / game / path.name) for path in kept]
    for source, target in copies:
        if (source / "policy.json").exists():
            policy, params, info = policies.load_policy(source)
            policies.save_policy(target, policy, params, info, np.float16)


def main() -> int:
    """Does pieces until the budget is spent; returns 0 if nothing is left, 75 if the command must be repeated."""
    args = tyro.cli(Args, prog="python experiments/procgen/run.py")
    unknown = [name for name in (*args.games, *args.variants) if name not in (*GAMES, *VARIANTS)]
    if unknown or args.preset not in PRESETS:
        raise RunError(f"unknown: {', '.join(unknown) or args.preset}; games {GAMES}, presets {tuple(PRESETS)}.")
    deadline = time.monotonic() + 60 * args.budget_minutes
    # On SIGTERM a stage saves its state and ends at its next step.
    alarm = threading.Timer(60 * args.budget_minutes, os.kill, (os.getpid(), signal.SIGTERM))
    alarm.daemon = True
    left: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: None)  # between pieces the loop checks the deadline
    alarm.start()
    for game in args.games:
        for piece in pieces(args, game):
            if piece.done():
                continue
            if left or time.monotonic() > deadline:
                left.append(f"{game}: {piece.name}")
                continue
            print(f"== {game}: {piece.name}", file=sys.stderr)
            try:
                piece.do()
            except InterruptedRunError:
                left.append(f"{game}: {piece.name} (started)")
        results = collect(args, game)
        if results:
            args.results.mkdir(parents=True, exist_ok=True)
            write_json(args.results / f"{game}.json", results)
        if args.keep:
            keep_policies(args, game)
    alarm.cancel()
    print(json.dumps({"left": left}, indent=2))
    return 75 if left else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        print(f"lamjax: {error}", file=sys.stderr)
        sys.exit(2)
