"""Returns of policies over a fixed number of episodes in each environment.

Stopping at the first E episodes to finish would favour short ones. Here every environment plays the same number, and
each counts.

Several policies can play side by side: each in N environments of its own, which start alike and draw alike, so that a
policy plays what it would play alone.

Dimension keys: P policies, N environments of each, E episodes in each environment, K outputs of a policy.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lamjax.envs.api import VectorEnv, join_states, stepper

MOST = 16  # policies that play side by side on an accelerator,
MOST_ENVS = 1024  # in so many environments altogether
CHUNK = 32  # steps a dispatch: rarely more than a chunk is played after the last episode has ended


def most_together(num_envs: int, backend: str | None = None) -> int:
    """How many policies should play side by side in `num_envs` environments each: one on a CPU, which gains nothing."""
    if (backend or jax.default_backend()) == "cpu":
        return 1
    return max(1, min(MOST, MOST_ENVS // num_envs))


@struct.dataclass
class SideBySide:
    """P policies with one ``logits_fn``.

    Attributes:
      shared: leaves that all policies hold, the very same arrays.
      own: the other leaves, ``[P, ...]``.
      structure: of one policy (static).
      is_shared: for each leaf of a policy, in order (static).
    """

    shared: tuple[jax.Array, ...]
    own: tuple[jax.Array, ...]
    structure: Any = struct.field(pytree_node=False)
    is_shared: tuple[bool, ...] = struct.field(pytree_node=False)

    def policy(self, own: tuple[jax.Array, ...]) -> Any:
        """One policy, from its own leaves."""
        shared, rest = iter(self.shared), iter(own)
        leaves = [next(shared) if alike else next(rest) for alike in self.is_shared]
        return jax.tree.unflatten(self.structure, leaves)


def side_by_side(policies: Sequence[Any]) -> SideBySide:
    """Puts together policies of one structure; what they have in common is kept once."""
    leaves = [jax.tree.leaves(policy) for policy in policies]
    is_shared = tuple(all(leaf is first for leaf in others) for first, *others in zip(*leaves, strict=True))
    shared = tuple(leaf for leaf, alike in zip(leaves[0], is_shared, strict=True) if alike)
    own = [jnp.stack(column) for column, alike in zip(zip(*leaves, strict=True), is_shared, strict=True) if not alike]
    return SideBySide(shared, tuple(own), jax.tree.structure(policies[0]), is_shared)


def outputs_of(logits_fn: Callable[[Any, jax.Array], jax.Array], policies: SideBySide, obs: jax.Array) -> jax.Array:
    """Outputs ``[P, N, K]`` of P policies, each at its own observations: `obs` is ``[P, N, *obs_shape]``.

    Policies that share something, a trunk, run it once, on P * N observations. Those that share nothing run one after
    the other: their convolutions together would be grouped ones, which are slow everywhere.
    """
    one = lambda own, obs: logits_fn(policies.policy(own), obs)  # noqa: E731
    if policies.shared or not policies.own:
        return jax.vmap(one)(policies.own, obs)
    return jax.lax.map(lambda args: one(*args), (policies.own, obs))


@jax.vmap
@jax.vmap
def _record(table: jax.Array, slot: jax.Array, counts: jax.Array, value: jax.Array) -> jax.Array:
    """Writes each environment's value into its row of a table ``[P, N, E]``, where it counts."""
    return jnp.where(counts & (jnp.arange(len(table)) == slot), value, table)


@functools.partial(jax.jit, static_argnames=("logits_fn", "env", "per_env"))
def _play(logits_fn, policies, env, per_env, greedy, carry, key):
    space = env.action_space

    def choose(key, outputs, greedy):
        return space.clip(jnp.where(greedy, space.mode(outputs), space.sample(key, outputs)))

    def step(carry, step_key):
        obs, env_state, running, finished, total, lengths, length = carry
        key_action, key_env = jax.random.split(step_key)
        # One key for all policies: each draws what it would draw alone.
        action = jax.vmap(choose, in_axes=(None, 0, 0))(key_action, outputs_of(logits_fn, policies, obs), greedy)
        play = jax.vmap(env.step, in_axes=(None, 0, 0))
        obs, env_state, reward, terminated, truncated, _ = play(key_env, env_state, action)
        running, length = running + reward, length + 1
        done = terminated | truncated
        counts = done & (finished < per_env)
        total = _record(total, finished, counts, running)
        lengths = _record(lengths, finished, counts, length)
        running, length = jnp.where(done, 0.0, running), jnp.where(done, 0, length)
        return (obs, env_state, running, finished + counts, total, lengths, length), None

    carry, _ = jax.lax.scan(step, carry, jax.random.split(key, CHUNK))
    return carry


def _start(obs: jax.Array, state: Any, per_env: int) -> tuple[Any, ...]:
    """What `_play` carries before the first step of environments ``[P, N]``."""
    zeros = jnp.zeros(obs.shape[:2])
    counts = zeros.astype(jnp.int32)
    table = jnp.zeros((*zeros.shape, per_env))
    return obs, state, zeros, counts, table, table.astype(jnp.int32), counts


def _alike(env: VectorEnv, wide: VectorEnv, obs: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """Observations and state of N environments as those of P times N, ``[P, N, ...]``, which `wide` plays."""
    copies = wide.num_envs // env.num_envs

    def separate(leaf: jax.Array) -> jax.Array:
        if leaf.ndim and len(leaf) == wide.num_envs:
            return leaf.reshape(copies, env.num_envs, *leaf.shape[1:])
        return jnp.broadcast_to(leaf, (copies, *leaf.shape))

    state = wide.set_state(join_states([env.get_state(state)] * copies))
    return jnp.broadcast_to(obs, (copies, *obs.shape)), jax.tree.map(separate, state)


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
    key_reset, key = jax.random.split(key)
    carry = _start(*jax.tree.map(lambda leaf: leaf[None], env.reset(key_reset)), per_env)
    policies, greedy = side_by_side([policy]), jnp.full(1, greedy)

    def chunk(numbered):
        number, carry = numbered
        carry = _play(logits_fn, policies, env, per_env, greedy, carry, jax.random.fold_in(key, number))
        return number + 1, carry

    unfinished = lambda numbered: jnp.any(numbered[1][3] < per_env)  # noqa: E731
    _, carry = jax.lax.while_loop(unfinished, chunk, (jnp.zeros((), jnp.int32), carry))
    return carry[4][0], carry[5][0]


def evaluate_all(
    logits_fn: Callable[[Any, jax.Array], jax.Array],
    policies: Sequence[Any],
    env: VectorEnv,
    episodes: int,
    key: jax.Array,
    *,
    greedy: Sequence[bool],
    wide: VectorEnv | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Plays ``episodes / N`` episodes with each of P policies in each of N environments, side by side.

    Every policy meets the same levels, and its actions are drawn with the same keys: it gets what it would get alone.

    Args:
      logits_fn: ``(policy, obs [N, *obs_shape]) -> outputs [N, K]``, logits of discrete actions (see `lamjax.spaces`);
        compiled once for each function object.
      policies: P first arguments of `logits_fn`, pytrees of one structure (see `outputs_of`).
      env: N environments.
      episodes: how many episodes of each policy, a multiple of N.
      key: a typed PRNG key; with the same key an environment plays the same levels.
      greedy: for each policy, whether it takes the most likely action; otherwise it samples.
      wide: P * N environments like those of `env`; not needed by a single policy.
      progress: called with the number of episodes finished so far, of all policies together.

    Returns:
      Raw returns float32 ``[P, episodes]`` and lengths int32 ``[P, episodes]``.

    Raises:
      ValueError: if `episodes` is not a multiple of N, or `wide` does not have P * N environments.
    """
    n, count = env.num_envs, len(policies)
    if episodes % n:
        nearest = max(1, round(episodes / n)) * n
        mismatch = f"episodes ({episodes}) must be a multiple of the number of environments ({n})"
        raise ValueError(f"{mismatch}: ask for {nearest}.")
    if (wide or env).num_envs != count * n:
        raise ValueError(f"{count} policies in {n} environments each need {count * n}, not {(wide or env).num_envs}.")
    key_reset, key = jax.random.split(key)
    start = env.reset(key_reset)
    carry = _start(
        *(jax.tree.map(lambda leaf: leaf[None], start) if wide is None else _alike(env, wide, *start)), episodes // n
    )
    joined, greedy = side_by_side(policies), jnp.asarray(greedy)
    chunk = 0
    while (finished := int(carry[3].sum())) < count * episodes:
        if progress:
            progress(finished)
        carry = _play(logits_fn, joined, stepper(env), episodes // n, greedy, carry, jax.random.fold_in(key, chunk))
        chunk += 1
    return np.asarray(carry[4]).reshape(count, -1), np.asarray(carry[5]).reshape(count, -1)


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
    """One policy's returns and lengths, both ``[episodes]``: see `evaluate_all`."""
    returns, lengths = evaluate_all(logits_fn, [policy], env, episodes, key, greedy=[greedy], progress=progress)
    return returns[0], lengths[0]
