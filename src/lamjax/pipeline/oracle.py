"""The oracle: behaviour cloning on all true actions of the recording, for as long as stage 2 takes.

It has the trunk, steps, batch size and schedule of stage 2, and labels without error. If a decoded policy's return is
lower than the oracle's, the latents or the lack of labels cost the difference. If the oracle's is lower than the
demonstrator's, cloning itself costs it.
"""

import dataclasses
from typing import Any

import jax

from lamjax.data.labels import oracle_actions
from lamjax.data.reader import Store
from lamjax.decoding.behaviour_cloning import ActionState
from lamjax.models.trunk import TrunkConfig
from lamjax.pipeline.evaluation import evaluate_policies
from lamjax.pipeline.pseudo_labels import init_clone
from lamjax.pipeline.windows import TrainingFrames, train_on_windows, training_stats
from lamjax.preprocess import ObsStats
from lamjax.spaces import ActionSpace
from lamjax.training import driver
from lamjax.training.run_folder import Run
from lamjax.training.steps import action_step


def train_oracle(
    run: Run,
    store: Store,
    stats: ObsStats,
    space: ActionSpace,
    frames: TrainingFrames,
    trunk: TrunkConfig | None = None,
) -> ActionState:
    """Clones the actions of all training windows.

    `stats` standardise observations as stage 2 does; the policy has stage 2's trunk unless another one is given.
    """
    config = run.config.cloning
    if trunk:
        config = dataclasses.replace(config, trunk=trunk)
    fuse = driver.steps_per_dispatch(config.trunk)
    state = init_clone(run.key("oracle"), config, space, store.obs_shape, True, stats)
    state, _ = train_on_windows(
        run,
        "oracle",
        action_step,
        state,
        frames.stream(config.batch_size, run.config.seed + 1, fuse),  # stage 2's windows, in its order
        (jax.device_put(oracle_actions(store)),),
        config=config,
        fuse=fuse,
        static=(run.config.dynamics.window,),
        show=("loss", state.agent.space.score_name),
    )
    return state


def oracle_stage(run: Run, store: Store, space: ActionSpace, frames: TrainingFrames) -> None:
    """Trains the oracle, and evaluates it in the same way as the decoded policies of the first draw of labels.

    It adds ``return_mean``, ``return_stderr`` and ``episodes`` to what the summary keeps for offline decoding.
    """
    config = run.config.offline
    if not config.oracle or run.done("decode_offline") or "oracle" in partial_results(run):
        return
    state = train_oracle(run, store, training_stats(store), space, frames)
    label, params = "the oracle, cloned from all true actions", [state.policy_params]
    episodes = {"episodes": config.episodes, "num_envs": config.num_envs, "greedy": [False]}
    (results,) = evaluate_policies(run, label, state.agent, params, **episodes)
    with run.changing():
        partial_results(run)["oracle"] = {name: results[name] for name in ("return_mean", "return_stderr", "episodes")}


def partial_results(run: Run) -> dict[str, Any]:
    """What the summary keeps for offline decoding until the stage has finished; it may be changed."""
    with run.changing() as summary:
        return summary.setdefault("partial", {}).setdefault("decode_offline", {"by_seed": {}})
