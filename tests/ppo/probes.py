"""Environments of rising difficulty, each of which fails for one reason, in gymnax's form.

Every one is solved by a value function, a policy, or both, that can be written down. They are tables, and the tables
travel in the environment's state: one compiled update serves them all.
"""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

STEPS = 3  # the longest episode
SIGNS = (-1, 1)


@struct.dataclass
class Tables:
    """What is seen ``[STEPS + 1, 2, 3]`` and paid ``[STEPS, 2, 2]`` by time, sign and action.

    An episode lasts `length` steps; `cut` bool ``[2]`` says for each sign whether that end is a truncation.
    """

    obs: Any
    reward: Any
    length: Any
    cut: Any


@dataclasses.dataclass(frozen=True)
class Probe:
    """A probe as functions of the time in the episode, its random sign and the action."""

    obs: Callable = lambda time, sign: (1, 0, 0)
    reward: Callable = lambda time, sign, action: 1
    length: int = 1
    cut: tuple[bool, bool] = (False, False)

    @property
    def tables(self) -> Tables:
        obs = [[self.obs(time, sign) for sign in SIGNS] for time in range(STEPS + 1)]
        reward = [[[self.reward(time, sign, a) for a in range(2)] for sign in SIGNS] for time in range(STEPS)]
        return Tables(
            np.array(obs, np.float32), np.array(reward, np.float32), np.int32(self.length), np.array(self.cut)
        )


CONSTANT = Probe()
SEEN = Probe(obs=lambda time, sign: (sign, 0, 0), reward=lambda time, sign, action: sign)
DELAYED = Probe(obs=lambda time, sign: (time, 0, 0), reward=lambda time, sign, action: time, length=2)
ACTION_PAYS = Probe(reward=lambda time, sign, action: 2 * action - 1)
ACTION_MUST_MATCH = Probe(
    obs=lambda time, sign: (sign, 0, 0), reward=lambda time, sign, action: sign * (2 * action - 1)
)
# A clock of three hands, which pays 1 a step and ends, or is cut, after a turn.
CLOCK = Probe(obs=lambda time, sign: np.eye(3)[time % 3], length=3)
CUT_CLOCK = dataclasses.replace(CLOCK, cut=(True, True))
# Nothing to learn, but every number tells when, where and why it was paid; half of the episodes are cut.
TELLTALE = Probe(
    obs=lambda time, sign: (time, sign, 1),
    reward=lambda time, sign, action: sign * (time + 1) + 10 * action,
    length=3,
    cut=(True, False),
)


class ProbeEnv:
    """The environment of a probe: its parameters are the tables, its state ``(tables, time, index of the sign)``."""

    name = "probe"
    default_params = CONSTANT.tables

    def observation_space(self, params):
        return SimpleNamespace(shape=(3,))

    def action_space(self, params):
        return SimpleNamespace(n=2)

    def reset(self, key, params):
        sign = jax.random.randint(key, (), 0, 2)
        return jnp.asarray(params.obs)[0, sign], (params, jnp.zeros((), jnp.int32), sign)

    def step(self, key, state, action, params):
        tables, time, sign = state
        reward, final = tables.reward[time, sign, action], tables.obs[time + 1, sign]
        done, cut = time + 1 >= tables.length, tables.cut[sign]
        first, begun = self.reset(key, tables)
        state = jax.tree.map(lambda new, old: jnp.where(done, new, old), begun, (tables, time + 1, sign))
        return jnp.where(done, first, final), state, reward, done & ~cut, done & cut, {"final_observation": final}
