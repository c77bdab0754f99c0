"""A whole run in one call, for the command line and for Python.

    import lamjax
    folder = lamjax.train("minatar/breakout", preset="cpu")

Your own environment is an object with gymnax's ``reset`` and six-value ``step`` (docs/custom_environment.md).
"""

import time
from pathlib import Path
from typing import Any

import jax

from lamjax import budget, envs, parallel
from lamjax.analysis import diagnosis, report
from lamjax.config import RunConfig
from lamjax.data.reader import open_store
from lamjax.pipeline import actions
from lamjax.pipeline.baselines import baselines_stage
from lamjax.pipeline.checks import Recorded, check_config, check_recording, check_shares, check_store
from lamjax.pipeline.cloning import cloning_stage
from lamjax.pipeline.dynamics import dynamics_stage
from lamjax.pipeline.evaluation import make_env
from lamjax.pipeline.expert import choose_source
from lamjax.pipeline.lanes import gains_by_lanes, side_lane
from lamjax.pipeline.offline import offline_stage
from lamjax.pipeline.oracle import oracle_stage
from lamjax.pipeline.pseudo_labels import pseudo_label_stage
from lamjax.pipeline.record import record_stage
from lamjax.pipeline.reinforcement import online_stage, scratch_stage
from lamjax.pipeline.sources import Source, env_of, store_source
from lamjax.pipeline.windows import TrainingFrames
from lamjax.pipeline.within import check_within, fit_within
from lamjax.presets import default_preset, presets_for
from lamjax.training.logging import say
from lamjax.training.provenance import describe_run
from lamjax.training.run_folder import Run, RunError, run_path
from lamjax.training.trackers import Service, service_module

RUNS, DATA = Path("runs"), Path("data")
# What may train beside the other stages if the run has two lanes.
BESIDE = ("oracle", "ppo_scratch", "decode_named", "decode_online")


def train(
    env: Any = None,
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
    track: Service | None = None,
    in_sequence: bool | None = None,
    command: str = "",
) -> Path:
    """Runs demonstrations, all three stages, their baselines, and the report. Called again, it resumes.

    For data without a simulator, such as videos, a store is enough for stages 1 and 2. If it has actions, stage 3
    decodes them and is judged by its error on held-out episodes instead of a return.

    Args:
      env: an environment's name, or a gymnax-compatible object; by default the store's.
      preset: by default the one for this machine and the environment's observations.
      config: settings instead of the preset's, with the run's seed.
      name: the run folder's name; by default ``<preset>-s<seed>``.
      policy: "expert", "planner", "random", or a policy folder; by default the expert if there is one or the run trains
        one, otherwise the planner if there is one, otherwise the random policy.
      store: trajectories to learn from instead.
      expert_frames: if there is no expert, first train one with this many frames.
      within: seconds that the run may take. It measures this machine first, and fits the settings' steps, frames and
        evaluations to the time (`lamjax.budget`). A run that resumes keeps the settings that it started with.
      runs: the folder that holds the run folders.
      data: the folder that holds recorded trajectories.
      track: a tracking service that also gets the metrics: "wandb" or "trackio".
      in_sequence: whether to run one stage after another, as `within` does. By default, a CPU with two cores or more
        trains two stages at a time, with the same results (see `lamjax.pipeline.lanes`).
      command: the command line, for the summary.

    Returns:
      The run folder: ``summary.json`` and ``report.html`` are in it.

    Raises:
      RunError: a mistake in the arguments, in one sentence.
      ImportError: if the tracking service is not installed.
    """
    if track:
        service_module(track)  # before hours have gone into recording
    if store is None and jax.process_count() > 1:
        raise RunError("On several hosts give --store, trajectories that each of them can read: make them with record.")
    started = time.monotonic()
    env = env_of(env, store) if env is None or isinstance(env, str) else envs.register(env)
    preset, settings = choose_preset(env, preset, store)
    config = config or settings
    if within is not None:
        check_within(env, config, policy, store, expert_frames, runs)
    name = name or f"{preset}-s{config.seed}"
    folder = run_path(runs, env, name)
    if not parallel.from_first((folder / "report.html").exists):  # a finished run does nothing, whatever the devices
        check_shares(config, parallel.devices(), played=envs.is_known(env))
    options = {"preset": preset, "policy": policy, "store": store, "expert_frames": expert_frames}
    source, notes = prepare(env, config, options, runs, command)
    if within is not None:
        config, notes["within"] = fit_within(folder, env, config, source, within, data)
    header = describe_run(env, preset, name, command, config.seed) | notes
    with Run(folder, env, config, header, source.name, track) as run:
        run_stages(run, source, data, in_sequence if within is None else True)
    if within is not None:
        took, allowed = (budget.format_duration(seconds) for seconds in (time.monotonic() - started, within))
        say(f"the run took {took} of {allowed}")
    return folder


def prepare(
    env: str, config: RunConfig, options: dict[str, Any], runs: Path, command: str
) -> tuple[Source, dict[str, Any]]:
    """Checks the settings; returns the source of the trajectories, and what the summary says about it.

    `options` and the rest are arguments of `choose_source`.
    """
    store = options["store"]
    if not envs.is_known(env):
        if options["policy"]:
            raise RunError(f"Nobody can play {env}, so there is no policy to record: leave out --policy.")
        check_config(Recorded(env, open_store(store).obs_shape), config)
        return store_source(env, store), {"banner": None, "simulator": False}
    one_env = make_env(env, 1, config)
    check_config(one_env, config)
    if store is None:
        check_recording(one_env, config)
    source, notice = choose_source(env, config, **options, runs=runs, command=command)
    return source, {"banner": notice}


def run_stages(run: Run, source: Source, data: Path, in_sequence: bool | None = None) -> Path:
    """Runs every stage that has not finished yet, then writes the report, and returns its path.

    If the run has already finished, the function does nothing. `source` is the source of its trajectories, and `data`
    the folder of recordings. For `in_sequence` see `train`.
    """
    page = run.folder / "report.html"
    played = envs.is_known(run.env)
    last = "decode_named" if run.config.named.frames else "decode_online"
    if not played:
        assert source.store is not None  # there is nothing else to learn from
        last = actions.STAGE if open_store(source.store).has_actions else "cloning"
    if run.done(last) and parallel.from_first(page.exists):
        return page
    started, before = time.monotonic(), run.summary.get("total_seconds") or 0.0

    def checkpoint() -> None:
        with run.changing() as summary:
            summary["diagnosis"] = diagnosis.diagnose(summary)
            summary["total_seconds"] = before + time.monotonic() - started
        run.check_stop()

    check_shares(run.config, run.devices, played=played)
    run.summary["source"] = {"policy": source.kind, **source.info}
    store = record_stage(run, source, data)
    check_store(store, run.config, played=played)
    space, frames = store.action_space, TrainingFrames(run, store)
    checkpoint()
    beside = played and not (in_sequence if in_sequence is not None else not gains_by_lanes(run))
    if beside:
        run.note("beside", list(BESIDE))
    with side_lane(run, beside) as begin:
        baselines = begin(baselines_stage, run, source, space)
        oracle = begin(oracle_stage, run, store, space, frames)
        scratch = begin(scratch_stage, run, "ppo_scratch", run.config.scratch)
        model = dynamics_stage(run, store, frames, data if played else None)
        checkpoint()
        named = begin(pseudo_label_stage, run, store, model, space, frames)
        policy = cloning_stage(run, store, model, frames)
        checkpoint()
        online = begin(online_stage, run, model, policy)
        if not played or (not run.config.offline.oracle and "relabel" not in run.config.offline.methods):
            frames.free()
        if jax.process_count() > 1:
            say("stages 1 and 2 have ended; the others run on one host: start the same command there")
            return page
        if not played:
            if store.has_actions:
                actions.action_stage(run, store, model, policy, frames)
                checkpoint()
            return report.write(run.folder)
        assert space is not None  # an environment's actions have bounds
        baselines()
        checkpoint()
        oracle()
        offline_stage(run, store, model, policy, space, frames)
        frames.free()  # PPO needs the memory
        checkpoint()
        scratch()
        checkpoint()
        online()
        checkpoint()
        named()
        checkpoint()
    return report.write(run.folder)


def choose_preset(env: str, preset: str | None = None, store: Path | None = None) -> tuple[str, RunConfig]:
    """The name and settings of a preset for an environment; None means the default on this machine.

    For an environment that nobody can play, `store` has the shape of an observation.

    Raises:
      RunError: if there is no such preset for observations of this environment's shape.
    """
    recorded = open_store(store) if store is not None and not envs.is_known(env) else None
    shape = recorded.obs_shape if recorded else envs.obs_shape(env)
    presets = presets_for(shape, env, video=recorded is not None)
    preset = preset or default_preset(presets)
    if preset not in presets:
        kind = "" if shape == envs.PROCGEN_SHAPE else f" for observations of shape {shape}"
        raise RunError(f"There is no preset called {preset!r}{kind}: choose one of {', '.join(presets)}.")
    return preset, presets[preset]
