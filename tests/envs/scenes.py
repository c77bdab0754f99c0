"""Scenes of real games, for tests of what reads them."""

import jax
import numpy as np

from lamjax.envs import native_state


def saved_states(env, state):
    """The saved state of each environment, N times bytes."""
    saved = env.get_state(state)
    ends = np.cumsum(saved["native_lengths"])
    native = saved["native"].tobytes()
    return [native[end - length : end] for end, length in zip(ends, saved["native_lengths"], strict=True)]


def scenes(env, state):
    """What each environment shows."""
    return [native_state.read(blob) for blob in saved_states(env, state)]


def random_steps(env, steps, seed=0):
    """The environments' state after so many uniform actions."""
    state = env.reset(jax.random.key(seed))[1]
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        state = env.step(jax.random.key(0), state, rng.integers(0, 15, env.num_envs).astype(np.int32))[1]
    return state
