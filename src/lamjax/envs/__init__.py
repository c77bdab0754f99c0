"""Environments behind one batched, jittable interface: real Procgen and gymnax."""

from lamjax.envs.api import VectorEnv, join_states, split_state
from lamjax.envs.gymnax import Gymnax
from lamjax.envs.procgen import Procgen, ProcgenNotInstalledError
from lamjax.envs.registry import (
    ACTION_NAMES,
    PROCGEN_GAMES,
    PROCGEN_SHAPE,
    UnknownEnvError,
    check_name,
    env_names,
    is_known,
    make,
    merged_action_names,
    merged_actions,
    normalised_return,
    obs_shape,
    register,
    representatives,
)
from lamjax.envs.wrappers import Disobedient, Distracted

__all__ = [
    "ACTION_NAMES",
    "PROCGEN_GAMES",
    "PROCGEN_SHAPE",
    "Disobedient",
    "Distracted",
    "Gymnax",
    "Procgen",
    "ProcgenNotInstalledError",
    "UnknownEnvError",
    "VectorEnv",
    "check_name",
    "env_names",
    "is_known",
    "join_states",
    "make",
    "merged_action_names",
    "merged_actions",
    "normalised_return",
    "obs_shape",
    "register",
    "representatives",
    "split_state",
]
