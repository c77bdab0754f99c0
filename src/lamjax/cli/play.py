"""``lamjax record``, ``expert``, ``eval`` and ``experts``: demonstrators, their trajectories and their returns."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from lamjax.checks import check_fields
from lamjax.cli.options import DATA, RUNS, Dtype, Settings, typed_command
from lamjax.config import PlayConfig, RecordConfig, RunConfig
from lamjax.presets import PRESETS
from lamjax.training.trackers import Service


@dataclasses.dataclass(frozen=True)
class Record:
    """Records a policy's trajectories into a store, which keeps actions and rewards apart from the frames.

    Attributes:
      env: the environment.
      policy: expert, planner, random, or a policy folder.
      out: the store's folder; by default data/<env>/<policy>-<frames>-s<seed>.
      seed: draws the levels and the actions.
      config: how much to record, and on which levels.
      runs: the folder that holds the run folders, with experts trained on this machine.
      data: the folder that holds recorded trajectories.
    """

    env: str = "coinrun"
    policy: str = "expert"
    out: Path | None = None
    seed: int = 0
    config: Annotated[RecordConfig, arg(name="")] = RecordConfig(frames=65_536)
    runs: Path = RUNS
    data: Path = DATA


@dataclasses.dataclass(frozen=True)
class Expert:
    """Trains a demonstrator with PPO, or resumes, and evaluates it.

    Attributes:
      env: the environment.
      preset: the preset whose network and PPO settings to use.
      name: the run folder's name; the policy "expert" is the one of this name.
      frames: environment frames; by default the preset's.
      start: where training starts instead of from scratch: expert (the shipped one), planner (a policy that is first
        cloned from the game's planner), or a policy folder.
      dtype: type of the activations, float32 or bfloat16; by default the preset's.
      runs: the folder that holds the run folders.
      track: also sends the metrics to a tracking service, wandb or trackio.
      config: the settings of the preset; only --expert.* matters here, and with --start planner also --record.* and
        --cloning.*.
    """

    env: str = "coinrun"
    preset: str = "cpu"
    name: str = "expert"
    frames: int | None = None
    start: str | None = None
    dtype: Dtype | None = None
    runs: Path = RUNS
    track: Service | None = None
    config: Settings = PRESETS["cpu"]


@dataclasses.dataclass(frozen=True)
class Eval:
    """Plays a policy for a fixed number of episodes in each environment and prints its return.

    Attributes:
      env: the environment.
      checkpoint: expert, planner, random, or a policy folder (runs/<env>/<name>/policies/...).
      episodes: how many to play, a multiple of --num-envs unless it is smaller.
      seed: draws the levels and the actions.
      greedy: takes the most likely action instead of sampling.
      json: prints JSON only.
      config: the environments to play.
      runs: the folder that holds the run folders, with experts trained on this machine.
    """

    env: str = "coinrun"
    checkpoint: str = "expert"
    episodes: int = 100
    seed: int = 0
    greedy: bool = False
    json: bool = False
    config: Annotated[PlayConfig, arg(name="")] = PlayConfig(num_envs=50)
    runs: Path = RUNS


@dataclasses.dataclass(frozen=True)
class Experts:
    """Lists the experts and planners that come with the package, with their returns.

    Attributes:
      measure: first plays the planners, and random play on the same levels, for this many episodes (a multiple of 64),
        and keeps the returns.
      env: measures only the planner of this game.
    """

    measure: int | None = None
    env: str | None = None


def record(args: Record) -> None:
    """`lamjax record`."""
    check_fields(args, seeds=("seed",))
    import jax

    from lamjax import pipeline
    from lamjax.pipeline import evaluation
    from lamjax.pipeline.checks import check_policy
    from lamjax.pipeline.record import record, recording_name

    config = args.config
    env = evaluation.make_env(args.env, config.num_envs, RunConfig(record=config))
    source = pipeline.find_source(args.env, args.policy, args.runs, env.action_space)
    check_policy(env, source)
    label = args.policy if source.kind != "checkpoint" else f"checkpoint-{source.digest}"
    path = args.out or args.data / args.env / recording_name(label, config, args.seed)
    record(path, args.env, source, config, jax.random.key(args.seed))
    print(path)


def expert(args: Expert) -> None:
    """`lamjax expert`."""
    check_fields(args, at_least_1=("frames",))
    from lamjax import envs, pipeline
    from lamjax.training.logging import say

    results = pipeline.train_expert(
        envs.check_name(args.env),
        args.config,
        preset=args.preset,
        name=args.name,
        frames=args.frames,
        start=args.start,
        runs=args.runs,
        track=args.track,
        command=typed_command(),
    )
    print(json.dumps({k: results[k] for k in ("return_mean", "return_stderr", "episodes", "normalised", "frames")}))
    say(f"policy: {results['policy']}")


def evaluate(args: Eval) -> None:
    """`lamjax eval`."""
    check_fields(args, at_least_1=("episodes",), seeds=("seed",))
    import jax

    from lamjax import pipeline
    from lamjax.pipeline import evaluation
    from lamjax.pipeline.checks import check_policy
    from lamjax.training.run_folder import finite

    config = RunConfig(record=RecordConfig(**dataclasses.asdict(args.config)))
    env = evaluation.make_env(args.env, args.config.num_envs, config)
    source = pipeline.find_source(args.env, args.checkpoint, args.runs, env.action_space)
    check_policy(env, source)
    returns, lengths = evaluation.play(
        args.env,
        config,
        args.checkpoint,
        source.policy,
        [source.params],
        jax.random.key(args.seed),
        episodes=args.episodes,
        num_envs=args.config.num_envs,
        greedy=[args.greedy],
    )
    results = evaluation.returns_summary(args.env, returns[0])
    if args.json:
        print(json.dumps(finite(results)))
        return
    normalised = "" if results["normalised"] is None else f", normalised {results['normalised']:.3f}"
    print(
        f"return {results['return_mean']:.2f} +- {results['return_stderr']:.2f} over {results['episodes']} episodes"
        f"{normalised}, mean length {lengths.mean():.0f}"
    )


def list_experts(args: Experts) -> None:
    """`lamjax experts`."""
    from lamjax import envs, planners
    from lamjax import experts as shipped

    check_fields(args, at_least_1=("measure",))
    if args.measure is not None:
        measure_planners(args.measure, [args.env] if args.env else list(planners.PLANS))

    def line(env: str, kind: str, info: dict[str, Any], effort: str) -> str:
        game = envs.PROCGEN_GAMES.get(env)
        paper = game.expert_return if game else float("nan")
        return (
            f"{env:12s} {kind} return {info['return_mean']:.2f} +- {info['return_stderr']:.2f} over {info['episodes']} "
            f"episodes, {effort} (the paper's expert: {paper:.2f})"
        )

    for env, info in shipped.available().items():
        print(line(env, "expert ", info, f"{info['frames']} frames"))
    for env, info in planners.returns().items():
        print(line(env, "planner", info, f"random play {info['random']['return_mean']:.2f}"))


def measure_planners(episodes: int, games: list[str]) -> None:
    """Plays the planners of games, and random play on the same levels, and writes their returns into the package."""
    import jax

    from lamjax import pipeline, planners, policies
    from lamjax.pipeline import evaluation

    def play(game: str, policy: Any) -> dict[str, Any]:
        returns, lengths = evaluation.play(
            game, RunConfig(), game, policy, [{}], jax.random.key(0), episodes=episodes, num_envs=64, greedy=[False]
        )
        return evaluation.returns_summary(game, returns[0]) | {"length_mean": float(lengths.mean())}

    table, space = planners.returns(), planners.Planner().space
    for game in games:
        planner = pipeline.find_source(game, "planner", RUNS, space).policy  # raises one sentence if there is none
        random = play(game, policies.UniformPolicy(space))
        table[game] = play(game, planner) | {"version": planners.VERSION, "random": random}
        planners.RETURNS.write_text(json.dumps(dict(sorted(table.items())), indent=2) + "\n")
