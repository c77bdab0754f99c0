"""Runs that end in a given time: finds the settings that fit, and keeps them in the run folder."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from lamjax import budget, envs
from lamjax.config import RunConfig
from lamjax.pipeline import rehearsal
from lamjax.pipeline.sources import Source, has_expert
from lamjax.training import checkpoint
from lamjax.training.logging import say
from lamjax.training.run_folder import RunError, another_configuration, read_json, write_json


def check_within(
    env: str, config: RunConfig, policy: str | None, store: Path | None, expert_frames: int | None, runs: Path
) -> None:
    """Raises `RunError` if a run cannot have a time limit, before anything is recorded."""
    if not envs.is_known(env):
        raise RunError(f"--within measures how {env} is played, and nobody can: leave it out, and set the steps.")
    if jax.process_count() > 1:
        raise RunError("--within measures one machine: leave it out on several hosts, and set the steps instead.")
    trains = policy is None and store is None and (expert_frames or config.train_expert)
    if trains and not has_expert(env, runs):
        raise RunError(
            f"There is no expert for {env} yet, and no part of --within goes into training one: make one first "
            f"(`lamjax expert --env {env}`), or give --policy random or --store."
        )


def fit_within(
    folder: Path, env: str, config: RunConfig, source: Source, seconds: float, data: Path
) -> tuple[RunConfig, dict[str, Any]]:
    """Returns the settings that fit into `seconds`, and an entry for the summary; ``within.json`` keeps both.

    Raises:
      RunError: if the run was started with another time or other settings; the message names the field.
      BudgetError: if the run cannot be that short.
    """
    path = folder / "within.json"
    settings = {"within": seconds, **checkpoint.as_json(config)}
    if path.exists():
        saved = read_json(path)
        if field := checkpoint.differing_field(settings, saved["asked"]):
            raise another_configuration(folder, field)
        return checkpoint.from_json(RunConfig, saved["config"]), saved["summary"]
    if (folder / "config.json").exists():
        raise RunError(f"{folder} was started without --within: leave it out, or choose another --name.")
    say(f"measuring this machine, to end within {budget.format_duration(seconds)}")
    rates = rehearsal.measure(env, config, source, seconds, data)
    config = budget.fit_budget(config, rates, seconds)
    predicted = budget.predict(config, rates)
    summary = {"seconds": seconds, "rates": dataclasses.asdict(rates), "predicted": predicted}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"asked": settings, "config": checkpoint.as_json(config), "summary": summary})
    say(
        f"measured in {budget.format_duration(rates.spent)}; the run is expected to end after "
        f"{budget.format_duration(sum(predicted.values()))}"
    )
    return config, summary
