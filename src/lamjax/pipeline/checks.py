"""What a run needs of its environment, policy and trajectories, checked before hours have gone into other stages."""

import logging

import jax
import numpy as np

from lamjax import envs
from lamjax.config import RunConfig
from lamjax.data.format import SPLITS, split_of_level
from lamjax.data.reader import Store
from lamjax.data.record import CHUNK
from lamjax.decoding import offline
from lamjax.models.grid import GridConfig, GridFDMConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPFDMConfig
from lamjax.models.unet import UNetConfig
from lamjax.pipeline.sources import Source
from lamjax.training.logging import say
from lamjax.training.run_folder import RunError

# The rank of the observations that a network takes; an MLP takes all.
RANKS = {ImpalaConfig: 3, UNetConfig: 3, GridConfig: 3, GridFDMConfig: 3, MLPFDMConfig: 1}
FEW_LEVELS = 1000  # this many levels always fall into both splits; only fewer need a check


def check_config(env: envs.VectorEnv, config: RunConfig) -> None:
    """Checks that the networks fit the environment.

    Raises:
      RunError: if they do not; the message names the field.
    """
    shape = tuple(env.obs_shape)
    networks = {
        "dynamics.idm": config.dynamics.idm,
        "dynamics.fdm": config.dynamics.fdm,
        "cloning.trunk": config.cloning.trunk,
        "scratch.trunk": config.scratch.trunk,
    }
    for name, network in networks.items():
        if RANKS.get(type(network), len(shape)) != len(shape):
            raise RunError(
                f"{name} is a {type(network).__name__}, and {env.name} shows observations of shape {shape}: use the "
                "networks of the preset for this shape."
            )
    if config.dynamics.augment == "shift" and len(shape) != 3:
        raise RunError(f"Observations of shape {shape} cannot be shifted: set --dynamics.augment none.")
    if (side := config.dynamics.focus) and (len(shape) != 3 or side > min(shape[:2])):
        raise RunError(f"No {side} x {side} square fits into observations of shape {shape}: set --dynamics.focus 0.")


def check_recording(env: envs.VectorEnv, config: RunConfig) -> None:
    """Checks that what will be recorded can be enough for every stage.

    Raises:
      RunError: if it cannot; the message names the field.
    """
    record, dispatch = config.record, CHUNK * config.record.num_envs
    most = -(-record.frames // dispatch) * dispatch
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
    """Raises `RunError` unless the source's policy takes the environment's observations and gives its actions."""
    if source.policy is None or getattr(source.policy, "reads_state", False):
        return  # a planner is of one game, and reads its state instead of observations
    obs = jax.ShapeDtypeStruct((1, *env.obs_shape), env.obs_dtype)
    expected = (1, env.action_space.num_outputs)
    try:
        outputs = jax.eval_shape(source.policy, source.params, obs)
        problem = "" if outputs.shape == expected else f"it gives {outputs.shape[-1]} outputs, not {expected[-1]}"
    except Exception as error:  # whatever a network of another shape meets
        problem = str(error).partition("\n")[0]
    if problem:
        raise RunError(
            f"The policy {source.name} does not fit {env.name}, which shows {np.dtype(env.obs_dtype)} of shape "
            f"{tuple(env.obs_shape)} and takes {env.action_space} ({problem}): choose one of this environment."
        )


def check_store_of(env: envs.VectorEnv, store: Store) -> None:
    """Raises `RunError` unless the store's observations are like the environment's, in which policies are evaluated."""
    held, shown = (f"{np.dtype(each.obs_dtype)}{list(each.obs_shape)}" for each in (store, env))
    if held != shown:
        raise RunError(
            f"{store.path} holds observations {held}, and {env.name} shows {shown}: convert the store, or register an "
            "environment that shows the same."
        )


def check_store(store: Store, config: RunConfig) -> None:
    """Checks that trajectories are enough for every stage; says so if none of their episodes has ended.

    Raises:
      RunError: if they are not; the message says what is missing.
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
    if not offline.label_counts(config.offline, counts["train"]):
        raise RunError(f"The store has {counts['train']} labelled windows, fewer than any of --offline.labels.")
    if np.all(store.episodes.ending == "cut"):
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
