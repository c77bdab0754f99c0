"""``lamjax train``."""

import dataclasses
from pathlib import Path

from lamjax.checks import SEEDS, check_fields
from lamjax.cli.options import DATA, RUNS, Dtype, Settings, typed_command
from lamjax.presets import PRESETS
from lamjax.training.trackers import Service


@dataclasses.dataclass(frozen=True)
class Train:
    """Records or finds trajectories, trains the three stages, and writes a run folder with a report.

    Attributes:
      env: a Procgen game (coinrun ... starpilot), minatar/breakout ..., cartpole or pendulum; by default the store's,
        and without a store coinrun.
      preset: paper, reference, cpu or smoke; by default cpu on a CPU and paper elsewhere. MinAtar, cartpole
        and pendulum have cpu and smoke; your own videos also have cpu-agent.
      name: the run folder's name; by default <preset>-s<seed>.
      seeds: trains this many seeds, one run folder each, and writes an aggregate.
      policy: the policy to record: expert, planner, random, or a policy folder; by default the expert if there is one,
        otherwise the planner if there is one, otherwise random.
      store: trajectories to learn from, recorded or imported before, instead of recording a policy. Without a
        simulator, as for videos, they suffice for stages 1 and 2, and for stage 3 if they have actions.
      expert_frames: if there is no expert, first trains one with this many frames.
      dtype: type of the activations in every stage, float32 or bfloat16; by default the preset's (paper: bfloat16 on
        an accelerator).
      within: how long the run may take, such as 10m, 600s or 1h30m; it measures this machine first and sets steps,
        frames and evaluations.
      runs: the folder that holds the run folders.
      data: the folder that holds recorded trajectories.
      track: also sends the metrics to a tracking service, wandb or trackio.
      in_sequence: trains one stage after another. By default a CPU with two cores or more trains two stages at a time
        where it can, which takes less time and gives the same results; with --within it never does.
      distributed: trains stages 1 and 2 together with the same command on other hosts; this is also on if the
        environment has JAX_COORDINATOR_ADDRESS.
      config: the settings of the preset.
    """

    env: str = "coinrun"
    preset: str = "cpu"
    name: str | None = None
    seeds: int = 1
    policy: str | None = None
    store: Path | None = None
    expert_frames: int | None = None
    dtype: Dtype | None = None
    within: str | None = None
    runs: Path = RUNS
    data: Path = DATA
    track: Service | None = None
    in_sequence: bool = False
    distributed: bool = False
    config: Settings = PRESETS["cpu"]


def train(args: Train) -> None:
    """`lamjax train`."""
    check_fields(args, at_least_1=("seeds", "expert_frames"))
    if args.config.seed + args.seeds > SEEDS:
        raise ValueError(f"seed + seeds must be at most {SEEDS}, not {args.config.seed + args.seeds}.")
    import jax

    from lamjax import budget, pipeline
    from lamjax.training.run_folder import read_json

    within = None if args.within is None else budget.parse_duration(args.within) / args.seeds
    folders = []
    for seed in range(args.config.seed, args.config.seed + args.seeds):
        folder = pipeline.train(
            args.env,
            preset=args.preset,
            config=dataclasses.replace(args.config, seed=seed),
            name=f"{args.name}-s{seed}" if args.name and args.seeds > 1 else args.name,
            policy=args.policy,
            store=args.store,
            expert_frames=args.expert_frames,
            within=within,
            runs=args.runs,
            data=args.data,
            track=args.track,
            in_sequence=args.in_sequence or None,
            command=typed_command(),
        )
        if jax.process_count() > 1:
            continue  # there is no report yet
        folders.append(folder)
        for stage, results in read_json(folder / "summary.json")["stages"].items():
            print(f"{stage:15s} {results.get('verdict', 'done')}")
        print(f"report: {folder / 'report.html'}")
    if len(folders) > 1:
        print(f"aggregate: {pipeline.aggregate(folders)}")
