"""Stage 3 of a run with pseudo-labels: clones them (see `lamjax.decoding.behaviour_cloning`), then trains with PPO."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from lamjax import envs, policies
from lamjax.analysis import latents
from lamjax.cloning import CloningState
from lamjax.config import ScratchConfig
from lamjax.data.labels import LabelledSubset
from lamjax.data.reader import Store, open_store
from lamjax.decoding import behaviour_cloning, offline
from lamjax.decoding.behaviour_cloning import ActionState
from lamjax.decoding.offline import OfflineConfig
from lamjax.dynamics import DynamicsState
from lamjax.pipeline.evaluation import evaluate_policy
from lamjax.pipeline.record import record
from lamjax.pipeline.reinforcement import scratch_stage
from lamjax.pipeline.sources import find_source
from lamjax.pipeline.windows import TrainingFrames, train_on_windows
from lamjax.spaces import ActionSpace, Discrete
from lamjax.training import driver
from lamjax.training.run_folder import Run, timed
from lamjax.training.steps import action_step

init_clone = driver.jit_once(behaviour_cloning.init, static_argnums=(1, 2, 3, 4))


def clone_pseudo_labels(
    run: Run,
    name: str,
    key: jax.Array,
    model: DynamicsState,
    decoder: Any,
    frames: TrainingFrames,
    obs_shape: tuple[int, ...],
    space: ActionSpace,
    *,
    policy: CloningState | None = None,
    steps: int = 0,
) -> ActionState:
    """Clones the pseudo-labels that the decoded inverse model gives all training windows.

    Args:
      run: the open run.
      name: the stage's name in metrics and checkpoints.
      key: a typed PRNG key.
      model: stage 1.
      decoder: what `offline.fit` fitted on the latents of `model`, with the settings `offline.pseudo_labels`.
      frames: the training frames.
      obs_shape: shape of one observation.
      space: the action space.
      policy: stage 2; if `steps` are given, the clone begins with its trunk.
      steps: optimizer steps; 0 begins from scratch, and takes as many steps as stage 2.
    """
    config = run.config.cloning
    if steps:
        config = dataclasses.replace(config, steps=steps, warmup_steps=min(config.warmup_steps, steps // 10))
    fuse = driver.steps_per_dispatch(config.trunk)
    labels = functools.partial(_pseudo_labels, decoder, run.config.offline.pseudo_labels, space)
    state = init_clone(key, config, space, obs_shape, True, model.obs_stats)
    if policy and steps:
        state = state.replace(params=with_trunk_of(state.params, policy.params))
    state, _ = train_on_windows(
        run,
        name,
        action_step,
        state,
        frames.stream(config.batch_size, run.config.seed + 2, fuse),
        (jax.device_put(latents.in_batches(labels, frames.latents(model))),),
        config=config,
        fuse=fuse,
        static=(model.config.window,),
        show=("loss", state.agent.space.score_name),
    )
    return state


@functools.partial(jax.jit, static_argnums=(1, 2))
def _pseudo_labels(decoder: Any, config: OfflineConfig, space: ActionSpace, inferred: jax.Array) -> jax.Array:
    return behaviour_cloning.pseudo_labels(decoder, inferred, config, space)


def same_effect(env: str, actions: np.ndarray, space: ActionSpace) -> np.ndarray:
    """Replaces each action of ``[L, *space.shape]`` by one that stands for all actions with the same effect.

    No decoder can tell such actions apart. Fitted on them as they are, it splits the probability of an effect among its
    actions, and another action may seem likelier than any of these.
    """
    return np.asarray(envs.representatives(env, space.n))[actions] if isinstance(space, Discrete) else actions


def with_trunk_of(params: dict[str, Any], latent_policy: dict[str, Any]) -> dict[str, Any]:
    """An actor-critic's parameters with the trunk of a `LatentPolicy`'s; its heads stay as they are."""
    (trunk,) = params.keys() - {"policy_head", "value_head"}
    return params | {trunk: latent_policy["trunk_net"]}


def pseudo_label_stage(
    run: Run, store: Store, model: DynamicsState, space: ActionSpace, frames: TrainingFrames | None = None
) -> None:
    """Decodes the inverse model with labels of random play, clones its pseudo-labels, and trains the clone with PPO.

    Without `frames`, it uploads the training frames itself. It frees them before PPO, which needs the memory.
    """
    config, stage = run.config.named, "decode_named"
    if not config.frames or run.done(stage):
        return
    folder = run.folder / "policies" / "named"
    if not (folder / "policy.json").exists():
        with timed() as seconds:
            frames = frames or TrainingFrames(run, store)
            clone = _clone(run, store, model, space, frames)
            frames.free()
            label = "the policy cloned from pseudo-labels"
            returns = evaluate_policy(run, label, clone.agent, clone.policy_params)
        num_frames = open_store(run.folder / "play").num_frames  # the config's, rounded up to whole dispatches
        info = {"env": run.env, "stage": "named", "frames": num_frames, "seconds": seconds()}
        policies.save_policy(folder, clone.agent, clone.policy_params, info | returns)
    start = find_source(run.env, str(folder), run.folder, space)
    settings = ScratchConfig(run.config.cloning.trunk, config.after, run.config.cloning.dtype)
    scratch_stage(run, stage, settings, start, start.info["frames"])


def _clone(run: Run, store: Store, model: DynamicsState, space: ActionSpace, frames: TrainingFrames) -> ActionState:
    """Trains the clone that `pseudo_label_stage` starts from."""
    config, key, length = run.config, run.key("named"), model.config.window
    path = run.folder / "play"
    if not path.exists():
        uniform = find_source(run.env, "random", run.folder, space)
        settings = dataclasses.replace(config.record, frames=config.named.frames, num_envs=config.named.ppo.num_envs)
        record(path, run.env, uniform, settings, key, run.check_stop)
    play = open_store(path)
    labelled = LabelledSubset(play, len(play.starts("all", length)), split="all", length=length)
    inputs = latents.latents_of(model, labelled.windows())[0]
    actions = same_effect(run.env, labelled.actions, space)
    decoder, _ = offline.fit(key, inputs, actions, config.offline.pseudo_labels, space)
    return clone_pseudo_labels(run, "named", key, model, decoder, frames, store.obs_shape, space)
