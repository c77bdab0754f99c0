"""Returns of a policy over a fixed number of episodes in each environment.

Stopping at the first E episodes to finish would favour short ones. Here every environment plays the same number, and
each counts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax.envs.api import VectorEnv, stepper

CHUNK = 32  # steps a dispatch: rarely more than a chunk is played after the last episode has ended


@functools.partial(jax.jit, static_argnames=("logits_fn", "env", "per_env", "greedy"))
def _play(logits_fn, policy, env, per_env, greedy, carry, key):
    def step(carry, step_key):
        obs, env_state, running, finished, total, lengths, length = carry
        key_action, key_env = jax.random.split(step_key)
        outputs, space = logits_fn(policy, obs), env.action_space
        action = space.mode(outputs) if greedy else space.sample(key_action, outputs)
        obs, env_state, reward, terminated, truncated, _ = env.step(key_env, env_state, space.clip(action))
        running, length = running + reward, length + 1
        counts = (terminated | truncated) & (finished < per_env)
        slot = jnp.minimum(finished, per_env - 1)
        rows = jnp.arange(env.num_envs)
        total = total.at[rows, slot].set(jnp.where(counts, running, total[rows, slot]))
        lengths = lengths.at[rows, slot].set(jnp.where(counts, length, lengths[rows, slot]))
        done = terminated | truncated
        running, length = jnp.where(done, 0.0, running), jnp.where(done, 0, length)
        return (obs, env_state, running, finished + counts, total, lengths, length), None

    carry, _ = jax.lax.scan(step, carry, jax.random.split(key, CHUNK))
    return carry


def _start(env: VectorEnv, per_env: int, key: jax.Array):
    """N environments before their first step, and the key of the steps."""
    key_reset, key = jax.random.split(key)
    n = env.num_envs
    zeros, counts = jnp.zeros(n), jnp.zeros(n, jnp.int32)
    table = jnp.zeros((n, per_env))
    return (*env.reset(key_reset), zeros, counts, table, table.astype(jnp.int32), counts), key


def play_all(
    logits_fn: Callable[[Any, jax.Array], jax.Array],
    policy: Any,
    env: VectorEnv,
    per_env: int,
    key: jax.Array,
    *,
    greedy: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """As `evaluate`, as one pure function: returns float32 and lengths int32, both ``[N, per_env]``."""
    carry, key = _start(env, per_env, key)

    def chunk(numbered):
        number, carry = numbered
        carry = _play(logits_fn, policy, env, per_env, greedy, carry, jax.random.fold_in(key, number))
        return number + 1, carry

    unfinished = lambda numbered: jnp.any(numbered[1][3] < per_env)  # noqa: E731
    _, carry = jax.lax.while_loop(unfinished, chunk, (jnp.zeros((), jnp.int32), carry))
    return carry[4], carry[5]


def evaluate(
    logits_fn: Callable[[Any, jax.Array], jax.Array],
    policy: Any,
    env: VectorEnv,
    episodes: int,
    key: jax.Array,
    *,
    greedy: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Plays ``episodes / N`` episodes in each of the N environments.

    Args:
      logits_fn: ``(policy, obs [N, *obs_shape]) -> outputs [N, K]``, logits of discrete actions (see `lamjax.spaces`);
        compiled once for each function object.
      policy: the first argument of `logits_fn`, a pytree.
      env: N environments.
      episodes: how many episodes, a multiple of N.
      key: a typed PRNG key; with the same key an environment plays the same levels.
      greedy: take the most likely action; otherwise sample.
      progress: called with the number of episodes finished so far.

    Returns:
      Raw returns float32 ``[episodes]`` and lengths int32 ``[episodes]``.

    Raises:
      ValueError: if `episodes` is not a multiple of N.
    """
    n = env.num_envs
    if episodes % n:
        nearest = max(1, round(episodes / n)) * n
        told = f"episodes ({episodes}) must be a multiple of the number of environments ({n})"
        raise ValueError(f"{told}: ask for {nearest}.")
    per_env = episodes // n
    carry, key = _start(env, per_env, key)
    chunk = 0
    while (finished := int(carry[3].sum())) < episodes:
        if progress:
            progress(finished)
        carry = _play(logits_fn, policy, stepper(env), per_env, greedy, carry, jax.random.fold_in(key, chunk))
        chunk += 1
    return np.asarray(carry[4]).ravel(), np.asarray(carry[5]).ravel()
