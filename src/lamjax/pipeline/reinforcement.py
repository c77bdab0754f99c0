"""Stages that train with PPO: online decoding, its baseline from scratch, and experts."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import envs, parallel, policies, ppo
from lamjax.analysis import diagnosis
from lamjax.cloning import CloningState
from lamjax.config import ScratchConfig
from lamjax.decoding import online
from lamjax.dynamics import DynamicsState
from lamjax.pipeline.evaluation import evaluate_policy, make_env
from lamjax.pipeline.sources import Source
from lamjax.ppo import PPOConfig, PPOState
from lamjax.preprocess import with_stats, without_stats
from lamjax.training import driver
from lamjax.training.logging import read_metrics
from lamjax.training.run_folder import Run, RunError, Saver, train

LABELS = {
    "decode_online": "the policy decoded online",
    "decode_named": "the policy cloned from pseudo-labels, after PPO",
    "ppo_scratch": "PPO from scratch",
}


def ppo_share(config: PPOConfig, devices: Sequence[jax.Device], option: str) -> int:
    """Returns the number of environments on each device.

    Raises:
      ValueError: if the settings (`option` on the command line) cannot be divided among the devices.
    """
    each = parallel.share(config.num_envs, devices, f"{option}.num-envs")
    if each * config.num_steps % (config.num_minibatches * config.grad_chunks):
        raise ValueError(
            f"{option}: the {each} environments of a device, times num-steps ({config.num_steps}), do not divide into "
            f"num-minibatches * grad-chunks ({config.num_minibatches} * {config.grad_chunks}): lower one of these."
        )
    return each


def ppo_saver(run: Run, config: Any, env: envs.VectorEnv, get: Callable[[Any], PPOState], put: Callable) -> Saver:
    """Saves the native environments beside the state, because their handle means nothing in another process.

    A checkpoint joins the environments of all devices, so it does not depend on the number of devices. `env` is what a
    single device has. `get` returns PPO's state from a training state, and ``put(state, ppo_state)`` replaces it.
    """
    count = len(run.devices)

    def pack(state: Any) -> tuple[Any, dict[str, np.ndarray]]:
        inner = get(state)
        actors = parallel.collected(inner.actor, run.devices)
        host = envs.join_states([env.get_state(actor.env) for actor in actors])
        actors = jax.device_get([actor.replace(env=None) for actor in actors])
        # Joins the environments' entries. The reward scale's moments are equal on all devices, so the first one's will
        # do.
        actor = jax.tree.map(lambda *parts: np.concatenate(parts) if parts[0].ndim else parts[0], *actors)
        return put(state, inner.replace(actor=actor)), host

    def unpack(_: Any, tree: Any, host: dict[str, np.ndarray]) -> Any:
        inner = get(tree)
        actors = [
            jax.tree.map(lambda x, part=part: jnp.split(x, count)[part] if x.ndim else x, inner.actor).replace(
                env=env.set_state(saved)
            )
            for part, saved in enumerate(envs.split_state(host, count))
        ]
        shared = parallel.replicate(put(tree, inner.replace(actor=None)), run.devices)
        return put(shared, get(shared).replace(actor=parallel.deal(actors, run.devices)))

    return Saver(config, pack, unpack)


def online_stage(run: Run, model: DynamicsState, policy: CloningState) -> None:
    """Decodes the latent policy with PPO."""
    config, stage = run.config.online, "decode_online"
    if run.done(stage):
        return
    each = ppo_share(config.ppo, run.devices, "--online.ppo")
    with contextlib.closing(make_env(run.env, each, run.config)) as env:
        agent = online.make_agent(policy, config, env.action_space)
        learner = ppo.Driver(agent, env, run.devices)
        state = online.init(run.key("online"), config, policy, env, run.devices)
        models = parallel.replicate(model, run.devices)
        state, seconds = _train(
            run,
            stage,
            state,
            lambda state: online.update(state, models, learner),
            config.ppo,
            ppo_saver(run, config, env, lambda s: s.ppo, lambda s, inner: s.replace(ppo=inner)),
            f"decoder_{env.action_space.score_name}",
        )
    params = parallel.on_one({"params": state.ppo.params, "frozen": state.frozen}, run.devices)
    counts: dict[str, Any] = {}
    if config.decoder.enabled:
        counts["decoder_fits"] = sum(online.refits(config, number + 1) for number in range(config.ppo.num_updates))
    finish_ppo(run, stage, agent, params, config.ppo, seconds, **counts)


def scratch_stage(run: Run, stage: str, config: ScratchConfig, start: Source | None = None, before: int = 0) -> None:
    """Trains a policy with PPO only: the baseline of online decoding, an expert, or a clone.

    Training starts from the weights of `start`, if there is one. `before` is the number of environment frames that
    earlier stages used.

    Raises:
      RunError: if the weights of `start` belong to another network.
    """
    if run.done(stage):
        return
    option = {"expert": "--expert.ppo", "decode_named": "--named.ppo"}.get(stage, "--scratch.ppo")
    each = ppo_share(config.ppo, run.devices, option)
    with contextlib.closing(make_env(run.env, each, run.config)) as env:
        agent = config.agent(env.action_space)
        learner = ppo.Driver(agent, env, run.devices)
        key_params, key = jax.random.split(run.key(stage))
        origin: dict[str, Any] | None = None
        if start is None:
            params = driver.jit_once(agent.init, static_argnums=1)(key_params, env.obs_shape)
            stats = None
        else:
            if start.policy != dataclasses.replace(agent, dtype=jnp.float32):  # policy files hold no dtype
                raise RunError(
                    f"The policy to start from ({start.name}) is not an actor-critic with the trunk of --expert.trunk: "
                    "give these options the sizes in its policy.json."
                )
            params, stats = without_stats(start.params)
            origin = {"policy": start.name, **start.info}
            run.note("start", origin)
        state = ppo.init(key, config.ppo, params, env, run.devices)
        frozen = parallel.replicate(stats, run.devices)
        state, seconds = _train(
            run,
            stage,
            state,
            lambda state: learner.update(state, frozen),
            config.ppo,
            ppo_saver(run, config, env, lambda s: s, lambda s, inner: inner),
            "entropy",
        )
    params = with_stats(parallel.on_one(state.params, run.devices), stats)
    more = {"start_return": start.info["return_mean"]} if start and "return_mean" in start.info else {}
    finish_ppo(run, stage, agent, params, config.ppo, seconds, before, origin, **more)


def _train(
    run: Run, stage: str, state: Any, update: Callable, config: PPOConfig, saver: Saver, show: str
) -> tuple[Any, float]:
    """Runs all updates of a stage; rows of metrics and the progress line count environment frames."""
    return train(
        run,
        stage,
        state,
        lambda state, position, n: update(state),
        config.num_updates,
        saver=saver,
        unit=config.frames_per_update,
        unit_name="frame",
        show=("episode_return", show),
    )


def finish_ppo(
    run: Run,
    stage: str,
    network: Any,
    params: Any,
    config: PPOConfig,
    seconds: float,
    before: int = 0,
    start: dict[str, Any] | None = None,
    **more: float,
) -> None:
    """Evaluates the policy, saves it, and writes the stage's results.

    `seconds` is the time that the updates took. `before` is the number of environment frames that earlier stages used.
    `start` says which policy training started from. `more` are further results.
    """
    trained = config.num_updates * config.frames_per_update
    frames = before + trained
    returns = evaluate_policy(run, LABELS.get(stage, stage), network, params)
    info = {"env": run.env, "stage": stage, "frames": frames, "seconds": seconds, **returns}
    provenance = ("command", "git", "versions", "device", "seed")
    info |= {key: run.summary[key] for key in provenance if key in run.summary} | ({"start": start} if start else {})
    policies.save_policy(run.folder / "policies" / stage, network, params, info)
    results = {
        "frames": frames,
        "curve": _curve(run, stage, before),
        **returns,
        "seconds": seconds,
        "frames_per_s": trained / max(seconds, 1e-9),
        **more,
    }
    run.finish(stage, results | diagnosis.judge_online(stage, results, run.summary))


def _curve(run: Run, stage: str, before: int) -> list[list[float]]:
    """(frames, return) of the training episodes; the frames `before` this stage count, which rows of metrics omit."""
    rows = read_metrics(run.folder / "metrics.jsonl").get(stage, {})
    returns = {before + step: row.get("episode_return") for step, row in rows.items()}
    return [[frames, value] for frames, value in returns.items() if value is not None]
