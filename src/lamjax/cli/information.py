"""``lamjax information``: measures how much of the action information in the frames a model's latents hold."""

import dataclasses
import json
from pathlib import Path

import tyro
from tyro.conf import Positional

from lamjax.cli.options import DATA


@dataclasses.dataclass(frozen=True)
class Information:
    """Measures how much of the action a model's latents hold, on random play of levels that its run did not record.

    Attributes:
      source: a run folder, any folder with checkpoints/dynamics in it, a shared model, or the name of a model that
        comes with lamjax.
      env: the environment; by default the run's.
      seed: seed of the levels and actions of random play.
      keep: also writes the results to the run's summary, so that `lamjax export` puts them into the model card.
      json: prints only JSON.
      data: the folder that holds trajectories; random play is recorded once for all models.
    """

    source: Positional[Path] = tyro.MISSING
    env: str | None = None
    seed: int = 0
    keep: bool = False
    json: bool = False
    data: Path = DATA


def information(args: Information) -> None:
    """`lamjax information`."""
    from lamjax import envs
    from lamjax.analysis.diagnosis import judge_information
    from lamjax.analysis.report_text import information_table
    from lamjax.pipeline.fresh_levels import keep_results, measure_on_fresh_levels
    from lamjax.spaces import Discrete
    from lamjax.training.run_folder import finite

    env, results = measure_on_fresh_levels(args.source, args.env, args.data, args.seed)
    if args.keep:
        keep_results(args.source, results)
    if args.json:
        print(json.dumps(finite(results)))
        return
    print(f"{args.source} on fresh levels of {env}, {results['windows']:,} held-out windows of random play:\n")
    discrete = isinstance(envs.make(env, 1).action_space, Discrete)
    for reader, score, share in information_table(results, discrete):
        print(f"{reader:50s}{score:>26s}{share:>32s}")
    print(f"\n{judge_information(results)['verdict']}")
