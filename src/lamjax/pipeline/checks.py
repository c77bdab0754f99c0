"""Checks a run's environment, policy and trajectories before hours have gone into its stages."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lamjax import envs, parallel
from lamjax.config import RunConfig, ScratchConfig
from lamjax.data.format import SPLITS, split_of_level
from lamjax.data.reader import Store
from lamjax.data.record import CHUNK
from lamjax.decoding import offline, online
from lamjax.decoding.hybrid import HybridAgent
from lamjax.models.grid import GridConfig, GridFDMConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPFDMConfig
from lamjax.models.unet import UNetConfig
from lamjax.pipeline.reinforcement import ppo_share
from lamjax.pipeline.sources import Source
from lamjax.ppo import check_groups
from lamjax.training.logging import say
from lamjax.training.run_folder import RunError

# The rank of the observations that a network accepts; an MLP accepts all.
RANKS = {ImpalaConfig: 3, UNetConfig: 3, GridConfig: 3, GridFDMConfig: 3, MLPFDMConfig: 1}
FEW_LEVELS = 1000  # this many levels always fall into both splits; only fewer need a check


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What is known of an environment that nobody can play: its name, and the shape of an observation."""

    name: str
    obs_shape: tuple[int, ...]


def check_config(env: envs.VectorEnv | Recorded, config: RunConfig) -> None:
    """Checks that the networks fit the environment and, if the environment can be played, PPO's settings.

    Raises:
      ValueError: if they do not; the message names the field, and for learning rates the parameter groups.
    """
    shape = tuple(env.obs_shape)
    check_network(env, "dynamics.idm", config.dynamics.idm)
    check_network(env, "dynamics.fdm", config.dynamics.fdm)
    check_network(env, "cloning.trunk", config.cloning.trunk)
    if not isinstance(env, Recorded):
        check_scratch(env, "scratch", config.scratch)
        if config.named.frames:
            check_scratch(env, "named", ScratchConfig(config.cloning.trunk, config.named.after))
        check_online(env, config)
    if config.dynamics.augment == "shift" and len(shape) != 3:
        raise RunError(f"Observations of shape {shape} cannot be shifted: set --dynamics.augment none.")
    if (side := config.dynamics.focus) and (len(shape) != 3 or side > min(shape[:2])):
        raise RunError(f"No {side} x {side} square fits into observations of shape {shape}: set --dynamics.focus 0.")


def check_network(env: envs.VectorEnv | Recorded, name: str, network: Any) -> None:
    """Raises `RunError` unless a network accepts the environment's observations; the message calls it `name`."""
    shape = tuple(env.obs_shape)
    if RANKS.get(type(network), len(shape)) != len(shape):
        raise RunError(
            f"{name} is a {type(network).__name__}, and {env.name} shows observations of shape {shape}: use the "
            "networks of the preset for this shape."
        )


def check_scratch(env: envs.VectorEnv, name: str, config: ScratchConfig) -> None:
    """Checks the settings of an actor-critic that PPO trains; `name` is their name. Raises as `check_config`."""
    check_network(env, f"{name}.trunk", config.trunk)
    agent = config.agent(env.action_space)
    groups = jax.eval_shape(lambda key: agent.init(key, tuple(env.obs_shape)), jax.random.key(0))
    check_groups(config.ppo, groups, f"{name}.ppo.learning_rates")


def check_online(env: envs.VectorEnv, config: RunConfig) -> None:
    """Checks the settings of online decoding; raises as `check_config`."""
    settings, ppo, window = config.online, config.online.ppo, config.dynamics.window
    agent = HybridAgent(config.cloning.trunk, config.dynamics.latent_dim, env.action_space, (), train=settings.train)
    check_groups(online.effective_ppo(settings), agent.groups, "online.ppo.learning_rates")
    if not settings.decoder.enabled:
        return
    if ppo.num_steps < window:
        raise RunError(
            f"--online.ppo.num-steps ({ppo.num_steps}) is less than a window of stage 1 ({window} frames), so that the "
            "decoder would see no transition: play more steps in an update."
        )
    if settings.decoder.capacity < (transitions := online.pairs_per_update(ppo, window)):
        raise RunError(
            f"--online.decoder.capacity ({settings.decoder.capacity}) is smaller than the {transitions} transitions of "
            "an update: enlarge it."
        )


def check_shares(config: RunConfig, devices: Sequence[jax.Device], *, played: bool = True) -> None:
    """Raises `ValueError` if a setting cannot be divided among the devices; the message names the option.

    `played` is False for a run without a simulator, which PPO does not train.
    """
    sizes = {"--dynamics.batch-size": config.dynamics.batch_size, "--cloning.batch-size": config.cloning.batch_size}
    if config.dynamics.action_weight:
        sizes["--dynamics.labelled-batch"] = config.dynamics.labelled_batch
    for option, size in sizes.items():
        parallel.share(size, devices, option)
    if played and jax.process_count() == 1:
        settings = {"--online.ppo": config.online.ppo, "--scratch.ppo": config.scratch.ppo}
        if config.named.frames:
            settings["--named.ppo"] = config.named.ppo
        for option, ppo in settings.items():
            ppo_share(ppo, devices, option)


def check_recording(env: envs.VectorEnv, config: RunConfig) -> None:
    """Checks that the recording can be long enough for every stage.

    Raises:
      RunError: if it cannot be; the message names the field.
    """
    record, dispatch = config.record, CHUNK * config.record.num_envs
    most = -(-record.frames // dispatch) * dispatch
    batch = max(config.dynamics.batch_size, config.cloning.batch_size)
    if batch > most:
        raise RunError(
            f"--record.frames gives {most} frames, too few for a batch of {batch}: record more, or lower the batch "
            "sizes."
        )
    if not config.offline.label_shares and min(config.offline.labels) > most:
        raise RunError(
            f"--offline.labels asks for {min(config.offline.labels)} labels at least, and --record.frames gives {most} "
            "frames: ask for fewer, or record more."
        )
    if env.name in envs.PROCGEN_GAMES and 0 < record.num_levels < FEW_LEVELS:
        levels = range(record.start_level, record.start_level + record.num_levels)
        if missing := set(SPLITS) - set(map(split_of_level, levels)):
            raise RunError(
                f"None of the {len(levels)} levels from {record.start_level} on is in the {min(missing)} split: play "
                "more of them (--record.num-levels), or others (--record.start-level)."
            )


def check_policy(env: envs.VectorEnv, source: Source) -> None:
    """Raises `RunError` unless the source's policy accepts the environment's observations and gives its actions."""
    if source.policy is None or getattr(source.policy, "reads_state", False):
        return  # a planner is made for one game, and reads its state instead of observations
    obs = jax.ShapeDtypeStruct((1, *env.obs_shape), env.obs_dtype)
    expected = (1, env.action_space.num_outputs)
    try:
        outputs = jax.eval_shape(source.policy, source.params, obs)
        problem = "" if outputs.shape == expected else f"it gives {outputs.shape[-1]} outputs, not {expected[-1]}"
    except Exception as error:  # a network of another shape raises errors of all kinds
        problem = str(error).partition("\n")[0]
    if problem:
        raise RunError(
            f"The policy {source.name} does not fit {env.name}, which shows {np.dtype(env.obs_dtype)} of shape "
            f"{tuple(env.obs_shape)} and takes {env.action_space} ({problem}): choose one of this environment."
        )


def check_store_of(env: envs.VectorEnv, store: Store) -> None:
    """Raises `RunError` unless the store's observations are like the environment's, in which policies are evaluated."""
    in_store, in_env = (f"{np.dtype(each.obs_dtype)}{list(each.obs_shape)}" for each in (store, env))
    if in_store != in_env:
        raise RunError(
            f"{store.path} holds observations {in_store}, and {env.name} shows {in_env}: convert the store, or "
            "register an environment that shows the same."
        )


def check_store(store: Store, config: RunConfig, *, played: bool = True) -> None:
    """Checks that trajectories suffice for every stage; warns if none of their episodes has ended.

    `played` is False for a run without a simulator: there episodes need not end, and actions may be missing.

    Raises:
      RunError: if they do not; the message says what is missing.
    """
    counts = {split: len(store.starts(split, config.dynamics.window)) for split in SPLITS}
    batch = max(config.dynamics.batch_size, config.cloning.batch_size)
    if counts["train"] < batch:
        raise RunError(
            f"{store.path} has {counts['train']} windows in its train split, too few for a batch of {batch}: record "
            "more."
        )
    if not counts["test"]:
        raise RunError(f"{store.path} has no windows in its test split: record more episodes, or more levels.")
    has_actions = played or store.has_actions
    if not has_actions and config.dynamics.action_weight:
        raise RunError(f"{store.path} has no actions for stage 1 to learn: set --dynamics.action-weight 0.")
    if has_actions and not offline.label_counts(config.offline, counts["train"]):
        raise RunError(f"The store has {counts['train']} labelled windows, fewer than any of --offline.labels.")
    if played and np.all(store.episodes.ending == "cut"):
        say(
            f"none of the {len(store.episodes.ending)} recorded episodes has ended: evaluations play until episodes "
            "end, and for ever if the environment has no time limit",
            logging.WARNING,
        )
    labels = config.dynamics.num_labelled(counts["train"])
    if labels > counts["train"]:
        raise RunError(
            f"--dynamics.labelled asks for {labels} windows, and the store has {counts['train']}: ask for fewer."
        )
