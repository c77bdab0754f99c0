"""Environments whose episodes are known in advance: gymnax-style ones, and one of two groups."""

import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from lamjax.spaces import Box


@struct.dataclass
class CounterState:
    """Steps taken in the episode, its length, and how many episodes went before."""

    time: jax.Array
    length: jax.Array
    episode: jax.Array


@struct.dataclass
class CounterParams:
    """An episode of the k-th kind lasts `lengths[k]` steps; the kinds follow each other in turn."""

    lengths: jax.Array
    truncates: jax.Array


class Counter:
    """Pays 1 for action 0, 10 for action 1; episode lengths cycle through a list, which starts anywhere.

    The observation is ``[time, length, episode]``; `truncates` says how episodes of each kind end.
    """

    name = "counter"

    def __init__(self, lengths, truncates=None):
        truncates = [False] * len(lengths) if truncates is None else truncates
        self.default_params = CounterParams(jnp.array(lengths, jnp.int32), jnp.array(truncates))

    def observation_space(self, params):
        return SimpleNamespace(shape=(3,))

    def action_space(self, params):
        return SimpleNamespace(n=2)

    def begin(self, episode, params):
        """The first state of an episode."""
        return CounterState(jnp.zeros((), jnp.int32), params.lengths[episode % len(params.lengths)], episode)

    def _observe(self, state):
        return jnp.stack([state.time, state.length, state.episode]).astype(jnp.float32)

    def reset(self, key, params):
        state = self.begin(jax.random.randint(key, (), 0, len(params.lengths)), params)
        return self._observe(state), state

    def step(self, key, state, action, params):
        after = state.replace(time=state.time + 1)
        done = after.time >= state.length
        truncates = params.truncates[state.episode % len(params.lengths)]
        first = self.begin(state.episode + 1, params)
        following = jax.tree.map(lambda new, old: jnp.where(done, new, old), first, after)
        reward = jnp.where(action == 1, 10, 1)
        info = {"final_observation": self._observe(after), "other": jnp.zeros((5,))}
        return self._observe(following), following, reward, done & ~truncates, done & truncates, info


class Painter(Counter):
    """`Counter` with uint8 frames ``[16, 16, 3]``: plain ground whose grey says how far the episode is."""

    name = "painter"

    def observation_space(self, params):
        return SimpleNamespace(shape=(16, 16, 3))

    def _observe(self, state):
        grey = 40 + 10 * state.time + state.episode
        return jnp.broadcast_to(grey.astype(jnp.uint8), (16, 16, 3))


class Aim(Counter):
    """Shows a point ``x`` in ``[-1, 1]^2`` that moves by a tenth of the action ``[2]`` and pays for acting like `aim`.

    Episodes last `lengths` steps; actions lie in ``[-2, 2] x [0, 1]``, and others make the reward NaN.
    """

    name = "aim"
    low, high = (-2.0, 0.0), (2.0, 1.0)

    def observation_space(self, params):
        return SimpleNamespace(shape=(2,))

    def action_space(self, params):
        return SimpleNamespace(shape=(2,), low=jnp.array(self.low), high=jnp.array(self.high))

    @staticmethod
    def aim(point):
        """The action that pays best at points ``[..., 2]``."""
        return jnp.array([1.0, 0.25]) * point + jnp.array([0.0, 0.5])

    def reset(self, key, params):
        _, state = super().reset(key, params)
        point = jax.random.uniform(key, (2,), minval=-1.0)
        return point, (state, point)

    def step(self, key, state, action, params):
        count, point = state
        _, count, _, terminated, truncated, _ = super().step(key, count, 0, params)
        low, high = jnp.array(self.low), jnp.array(self.high)
        reward = -jnp.sum(jnp.square((action - self.aim(point)) / (high - low)))
        reward = jnp.where(jnp.all((action >= low) & (action <= high)), reward, jnp.nan)
        moved = jnp.clip(point + action / 10, -1, 1)
        begun = jax.random.uniform(key, (2,), minval=-1.0)
        after = jnp.where(terminated | truncated, begun, moved)
        return after, (count, after), reward, terminated, truncated, {"final_observation": moved}


@dataclasses.dataclass(frozen=True)
class Halves:
    """A point ``[2]`` that actions push; past 1 its episode ends, cut short where it is low. Nothing is random.

    With two groups it answers as real Procgen does: `exchange` hands over what the other group was sent before.
    """

    num_envs: int
    groups: int = 1

    action_space: ClassVar[Box] = Box((-2.0, 0.0), (2.0, 1.0))

    def begin(self):
        """N points, all different, and their answers to nothing."""
        n = self.num_envs
        obs = jnp.stack([jnp.linspace(0, 0.5, n), jnp.linspace(0.3, 0, n)], axis=1)
        return obs, (obs, obs, jnp.zeros(n), jnp.zeros(n, bool))

    def step(self, key, state, action):
        moved = state[0] + action / 4
        done = moved[:, 0] > 1
        obs = jnp.where(done[:, None], moved * 0.1, moved)
        state = obs, moved, action.sum(-1), done
        return self._answer(state, slice(None))

    def _answer(self, state, rows):
        obs, moved, reward, done = (x[rows] for x in state)
        low = moved[:, 1] < 1
        return obs, state, reward, done & ~low, done & low, {"final_observation": moved}

    def _rows(self, group):
        return group * (self.num_envs // 2) + jnp.arange(self.num_envs // 2)

    def exchange(self, state, action, group):
        rows = self._rows(group)
        _, after, *_ = self.step(None, tuple(x[rows] for x in state), action)
        state = tuple(x.at[rows].set(new) for x, new in zip(state, after, strict=True))
        return self._answer(state, self._rows(1 - group))

    def receive(self, state, group):
        return self._answer(state, self._rows(group))
