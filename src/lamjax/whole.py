"""A whole run in one call, for the command line and for Python.

    from lamjax import whole
    folder = whole.train("minatar/breakout", preset="cpu")

An environment of one's own is passed as an object with gymnax's ``reset`` and six-value ``step``
(docs/custom_environment.md).
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax

from lamjax import budget, envs, experts, pipeline, rehearsal
from lamjax.config import RunConfig
from lamjax.pipeline import Source
from lamjax.presets import default_preset, presets_for
from lamjax.training import checkpoint
from lamjax.training.run_folder import Run, RunError, read_json, write_json

RUNS, DATA = Path("runs"), Path("data")


def named(env: Any) -> str:
    """The name of an environment, given by name, or as an object, which is registered under its own name."""
    return envs.check_name(env) if isinstance(env, str) else envs.register(env)


def preset_of(env: str, preset: str | None = None) -> tuple[str, RunConfig]:
    """The name and settings of a preset for an environment; None means the default on this machine.

    Raises:
      RunError: if there is no such preset for observations of this environment's shape.
    """
    shape = envs.obs_shape(env)
    presets = presets_for(shape, env)
    preset = preset or default_preset(presets)
    if preset not in presets:
        kind = "" if shape == envs.PROCGEN_SHAPE else f" for observations of shape {shape}"
        raise RunError(f"There is no preset called {preset!r}{kind}: choose one of {', '.join(presets)}.")
    return preset, presets[preset]


def train_expert(
    env: str,
    config: RunConfig,
    *,
    preset: str,
    name: str = "expert",
    frames: int | None = None,
    start: str | None = None,
    runs: Path = RUNS,
    command: str = "",
) -> dict[str, Any]:
    """Trains a demonstrator by PPO, as `config.expert` says, resumes, and evaluates it.

    Args:
      env: the environment's name.
      config: the settings.
      preset: what the run is said to be.
      name: of the run folder; the policy "expert" means the one called so.
      frames: environment frames instead of the settings'.
      start: "expert" (the shipped one) or a policy folder, whose weights training starts from.
      runs: where run folders lie.
      command: what the summary says was typed.

    Returns:
      The results of the stage, and ``policy``, its folder.
    """
    # A demonstrator sees the frames without a distractor when it is recorded, and so it learns from them.
    config = dataclasses.replace(config, record=dataclasses.replace(config.record, distractor="none"))
    if frames:
        ppo = dataclasses.replace(config.expert.ppo, total_frames=frames)
        config = dataclasses.replace(config, expert=dataclasses.replace(config.expert, ppo=ppo))
    header = pipeline.header(env, preset, name, command, config)
    first = None
    if start:
        folder = str(experts.folder(env)) if start == "expert" else start
        first = pipeline.find_source(env, folder, runs, envs.make(env, 1).action_space)
    with Run(runs / env / name, env, config, header, first and first.name) as run:
        pipeline.scratch_stage(run, "expert", config.expert, first)
        return run.summary["stages"]["expert"] | {"policy": str(run.folder / "policies" / "expert")}


def demonstrator(
    env: str,
    config: RunConfig,
    *,
    preset: str,
    policy: str | None = None,
    store: Path | None = None,
    expert_frames: int | None = None,
    runs: Path = RUNS,
    command: str = "",
) -> tuple[Source, str | None]:
    """Whom a run learns from, and what its report must say of it; trains an expert where one is asked for and missing.

    Raises:
      ValueError: if both a store and a policy are given, or there is no such policy or store.
    """
    # Also says at once whether Procgen is there, and whether the environment can be distracted.
    space = pipeline.make_env(env, 1, config).action_space
    if store and policy:
        raise ValueError("--store and --policy exclude each other: learn from trajectories, or record a policy.")
    if store:
        return pipeline.store_source(env, store, space), None
    banner = None
    if policy is None:
        policy = "expert"
        if not pipeline.has_expert(env, runs):
            if expert_frames or config.train_expert:
                train_expert(env, config, preset=preset, frames=expert_frames, runs=runs, command=command)
            else:
                policy = "random"
                banner = (
                    f"No expert is shipped for {env}: a random policy was recorded, so stages 2 and 3 imitate "
                    f"random play. Train an expert first with EXPERT_FRAMES=2000000 (--expert-frames 2000000)."
                )
                print(banner, file=sys.stderr)
    return pipeline.find_source(env, policy, runs, space), banner


def train(
    env: Any,
    *,
    preset: str | None = None,
    config: RunConfig | None = None,
    name: str | None = None,
    policy: str | None = None,
    store: Path | None = None,
    expert_frames: int | None = None,
    within: float | None = None,
    runs: Path = RUNS,
    data: Path = DATA,
    command: str = "",
) -> Path:
    """One whole run: demonstrations, three stages, their nulls, the report. Run again, it goes on where it stopped.

    Args:
      env: an environment's name, or a gymnax-compatible object.
      preset: by default the one for this machine and the environment's observations.
      config: settings instead of the preset's; its seed is the run's.
      name: of the run folder; by default ``<preset>-s<seed>``.
      policy: "expert", "random", or a policy folder; by default the expert if there is one or one is to be trained.
      store: trajectories to learn from instead.
      expert_frames: where there is no expert, trains one with so many frames first.
      within: seconds that the run may take: it measures this machine first, and makes the settings' steps, frames and
        evaluations fit (`lamjax.budget`). A run that is resumed keeps the settings that were found at its start.
      runs: where run folders lie.
      data: where recorded trajectories lie.
      command: what the summary says was typed.

    Returns:
      The run folder: ``summary.json`` and ``report.html`` are in it.
    """
    if store is None and jax.process_count() > 1:
        raise RunError("On several hosts give --store, trajectories that each of them can read: make them with record.")
    started = time.monotonic()
    env = named(env)
    preset, settings = preset_of(env, preset)
    config = config or settings
    if within is not None:
        _check_budget(env, config, policy, store, expert_frames, runs)
    source, banner = demonstrator(
        env,
        config,
        preset=preset,
        policy=policy,
        store=store,
        expert_frames=expert_frames,
        runs=runs,
        command=command,
    )
    name = name or f"{preset}-s{config.seed}"
    folder = runs / env / name
    fitted = {}
    if within is not None:
        config, fitted["within"] = _fit(folder, env, config, source, within, data)
    header = pipeline.header(env, preset, name, command, config) | {"banner": banner} | fitted
    with Run(folder, env, config, header, source.name) as run:
        pipeline.run_pipeline(run, source, data)
    if within is not None:
        took, allowed = (budget.format_duration(seconds) for seconds in (time.monotonic() - started, within))
        print(f"the run took {took} of {allowed}", file=sys.stderr)
    return folder


def _check_budget(
    env: str, config: RunConfig, policy: str | None, store: Path | None, expert_frames: int | None, runs: Path
) -> None:
    """Raises `RunError` where a run cannot end in a given time, before anything is recorded."""
    if jax.process_count() > 1:
        raise RunError("--within measures one machine: leave it out on several hosts, and set the steps instead.")
    trains = policy is None and store is None and (expert_frames or config.train_expert)
    if trains and not pipeline.has_expert(env, runs):
        raise RunError(
            f"There is no expert for {env} yet, and no part of --within goes into training one: make one first "
            f"(`lamjax expert --env {env}`), or give --policy random or --store."
        )


def _fit(
    folder: Path, env: str, config: RunConfig, source: Source, seconds: float, data: Path
) -> tuple[RunConfig, dict[str, Any]]:
    """The settings that fit into `seconds`, and what the summary says of that; kept in ``within.json`` from then on.

    Raises:
      RunError: if the run was started with another time or other settings (the field is named).
      BudgetError: if the run cannot be so short.
    """
    path = folder / "within.json"
    asked = {"within": seconds, **checkpoint.as_json(config)}
    if path.exists():
        kept = read_json(path)
        if field := checkpoint.differing_field(asked, kept["asked"]):
            raise RunError(
                f"{folder} was started with another configuration: {field}. "
                "Use the same settings, or choose another --name."
            )
        return checkpoint.from_json(RunConfig, kept["config"]), kept["summary"]
    if (folder / "config.json").exists():
        raise RunError(f"{folder} was started without --within: leave it out, or choose another --name.")
    print(f"measuring this machine, to end within {budget.format_duration(seconds)}", file=sys.stderr)
    rates = rehearsal.measure(env, config, source, seconds, data)
    config = budget.fit_budget(config, rates, seconds)
    predicted = budget.predict(config, rates)
    summary = {"seconds": seconds, "rates": dataclasses.asdict(rates), "predicted": predicted}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"asked": asked, "config": checkpoint.as_json(config), "summary": summary})
    print(
        f"measured in {budget.format_duration(rates.spent)}; the run is expected to end after "
        f"{budget.format_duration(sum(predicted.values()))}",
        file=sys.stderr,
    )
    return config, summary
