"""Trains experts with PPO, and chooses the demonstrator that a run learns from."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from lamjax import experts, planners, policies
from lamjax.config import CLONED_RATES, RunConfig
from lamjax.data.reader import open_store
from lamjax.envs.api import VectorEnv
from lamjax.pipeline.checks import check_policy, check_scratch, check_store_of
from lamjax.pipeline.evaluation import evaluate_policy, make_env
from lamjax.pipeline.oracle import train_oracle
from lamjax.pipeline.record import record
from lamjax.pipeline.reinforcement import scratch_stage
from lamjax.pipeline.sources import Source, find_source, has_expert, store_source
from lamjax.pipeline.windows import TrainingFrames
from lamjax.training.logging import say
from lamjax.training.provenance import describe_run
from lamjax.training.run_folder import Run, run_path
from lamjax.training.trackers import Service


def train_expert(
    env: str,
    config: RunConfig,
    *,
    preset: str,
    name: str = "expert",
    frames: int | None = None,
    start: str | None = None,
    runs: Path,
    track: Service | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Trains an expert with PPO and the settings `config.expert`, and evaluates it; called again, it resumes.

    Args:
      env: the environment's name.
      config: the settings, which the summary calls `preset`.
      preset: the name of the settings.
      name: the run folder's name; the policy called "expert" is the one in the folder "expert".
      frames: how many environment frames to train on, instead of the settings' number.
      start: what training starts from: the weights of "expert" (the shipped one) or of a policy folder, or with
        "planner" a student of the game's planner, a policy of this network that first clones the planner's actions.
        Then the learning rates are those for a cloned policy (`CLONED_RATES`), not those of `config`.
      runs: the folder that holds the run folders.
      track: a tracking service that also gets the metrics.
      command: the command line, for the summary.

    Returns:
      The results of the stage, and ``policy``, the policy's folder.
    """
    # A recorded demonstrator sees frames without a distractor, so it learns from such frames too.
    config = dataclasses.replace(config, record=dataclasses.replace(config.record, distractor="none"))
    if frames:
        ppo = dataclasses.replace(config.expert.ppo, total_frames=frames)
        config = dataclasses.replace(config, expert=dataclasses.replace(config.expert, ppo=ppo))
    one_env, first = make_env(env, 1, config), None
    check_scratch(one_env, "expert", config.expert)
    if start:
        folder = str(experts.folder(env)) if start == "expert" else start
        first = find_source(env, folder, runs, one_env.action_space)
    if start == "planner":
        ppo = dataclasses.replace(config.expert.ppo, learning_rates=CLONED_RATES)
        config = dataclasses.replace(config, expert=dataclasses.replace(config.expert, ppo=ppo))
    header = describe_run(env, preset, name, command, config.seed)
    with Run(run_path(runs, env, name), env, config, header, first.name if first else None, track) as run:
        if start == "planner" and not run.done("expert"):
            assert first is not None
            first = _student(run, first, one_env)
        scratch_stage(run, "expert", config.expert, first)
        return run.summary["stages"]["expert"] | {"policy": str(run.folder / "policies" / "expert")}


def _student(run: Run, planner: Source, env: VectorEnv) -> Source:
    """Records a planner and clones its actions with stage 2's settings; resumes."""
    folder, path = run.folder / "policies" / "student", run.folder / "planner"
    if not (folder / "policy.json").exists():
        if not path.exists():
            record(path, run.env, planner, run.config.record, run.key("record"), run.check_stop)
        store = open_store(path)
        state = train_oracle(run, store, None, env.action_space, TrainingFrames(run, store), run.config.expert.trunk)
        params = state.policy_params
        returns = evaluate_policy(run, "the planner's student", state.agent, params)
        info = {"env": run.env, "stage": "student", **planner.info, "frames": store.num_frames}
        policies.save_policy(folder, state.agent, params, info | returns)
    return find_source(run.env, str(folder), run.folder, env.action_space)


def choose_source(
    env: str,
    config: RunConfig,
    *,
    preset: str,
    policy: str | None = None,
    store: Path | None = None,
    expert_frames: int | None = None,
    runs: Path,
    command: str = "",
) -> tuple[Source, str | None]:
    """Returns the source of a run's trajectories, and the notice that its report prints about it.

    Trains an expert if the arguments ask for one and there is none.

    Raises:
      ValueError: if both a store and a policy are given, if the policy or the store does not exist, or if it does not
        fit the environment.
    """
    # This fails at once if Procgen is not installed or the environment cannot have a distractor.
    one_env = make_env(env, 1, config)
    space = one_env.action_space
    if store and policy:
        raise ValueError("--store and --policy exclude each other: learn from trajectories, or record a policy.")
    if store:
        source = store_source(env, store, space)
        check_store_of(one_env, open_store(store))
        return source, None
    notice = None
    if policy is None:
        policy = "expert"
        if not has_expert(env, runs):
            if expert_frames or config.train_expert:
                train_expert(env, config, preset=preset, frames=expert_frames, runs=runs, command=command)
            elif env in planners.PLANS:
                policy = "planner"
            else:
                policy = "random"
                notice = (
                    f"No expert is shipped for {env}: a random policy was recorded, so stages 2 and 3 imitate "
                    f"random play. Train an expert first with EXPERT_FRAMES=2000000 (--expert-frames 2000000)."
                )
                say(notice, logging.WARNING)
    source = find_source(env, policy, runs, space)
    check_policy(one_env, source)
    return source, notice
