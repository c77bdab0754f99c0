"""A gymnax-style environment whose episodes are known in advance."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
from flax import struct


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

    The observation is ``[time, length, episode]``; what ends an episode is said for each kind.
    """

    name = "counter"

    def __init__(self, lengths, truncates=None):
        truncates = [False] * len(lengths) if truncates is None else truncates
        self.default_params = CounterParams(jnp.array(lengths, jnp.int32), jnp.array(truncates))

    def observation_space(self, params):
        return SimpleNamespace(shape=(3,))

    def action_space(self, params):
        return SimpleNamespace(n=2)

    def _begin(self, episode, params):
        return CounterState(jnp.zeros((), jnp.int32), params.lengths[episode % len(params.lengths)], episode)

    def _observe(self, state):
        return jnp.stack([state.time, state.length, state.episode]).astype(jnp.float32)

    def reset(self, key, params):
        state = self._begin(jax.random.randint(key, (), 0, len(params.lengths)), params)
        return self._observe(state), state

    def step(self, key, state, action, params):
        after = state.replace(time=state.time + 1)
        done = after.time >= state.length
        truncates = params.truncates[state.episode % len(params.lengths)]
        begun = self._begin(state.episode + 1, params)
        following = jax.tree.map(lambda new, old: jnp.where(done, new, old), begun, after)
        reward = jnp.where(action == 1, 10, 1)
        info = {"final_observation": self._observe(after), "other": jnp.zeros((5,))}
        return self._observe(following), following, reward, done & ~truncates, done & truncates, info


class Painter(Counter):
    """`Counter` seen as uint8 frames ``[16, 16, 3]``: plain ground whose grey says how far the episode is."""

    name = "painter"

    def observation_space(self, params):
        return SimpleNamespace(shape=(16, 16, 3))

    def _observe(self, state):
        grey = 40 + 10 * state.time + state.episode
        return jnp.broadcast_to(grey.astype(jnp.uint8), (16, 16, 3))
