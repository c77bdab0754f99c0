"""Evaluates policies: their returns over a fixed number of episodes in each environment.

Stopping at the first E episodes to finish would favour short ones. So every environment plays the same number of
episodes, and all of them count.

Several policies can play side by side, each in its own N environments. These start in the same state and draw the same
random numbers, so a policy plays exactly as it would alone.

A policy that takes the likeliest action may get stuck until the game's time-out, in a few environments long after the
others. Then a smaller batch goes on with these, in the same states and with the same random numbers.

Dimension keys: P policies, N environments of each, M of them that play on, E episodes in each environment, K outputs of
a policy.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.custom_batching import sequential_vmap

from lamjax import acting
from lamjax.acting import PolicyFn
from lamjax.envs.api import VectorEnv, join_states, split_state, stepper

MOST = 16  # the most policies side by side on an accelerator
MOST_ENVS = 1024  # the most environments of all of them together
CHUNK = 32  # steps in a dispatch, and the most steps that are wasted after the last episode
FEW = 4  # at most an N / FEW of the environments are few
PATIENCE = 4  # dispatches with few environments before a smaller batch pays for its compilation


def most_together(num_envs: int, backend: str | None = None) -> int:
    """How many policies should play side by side in `num_envs` environments each: 1 on a CPU, which gains nothing."""
    if (backend or jax.default_backend()) == "cpu":
        return 1
    return max(1, min(MOST, MOST_ENVS // num_envs))


def side_by_side(params: Sequence[Any]) -> tuple[Any, tuple[int | None, ...]]:
    """Stacks the parameters of P policies of one structure; leaves that all of them share are kept only once.

    Returns:
      Parameters whose leaves are ``[P, ...]``, or unchanged if all policies hold the very same array; and for each leaf
      the axis of the policies: 0 or None.
    """
    structure = jax.tree.structure(params[0])
    columns = list(zip(*map(jax.tree.leaves, params), strict=True))
    axes = tuple(None if all(leaf is column[0] for leaf in column) else 0 for column in columns)
    leaves = [column[0] if axis is None else jnp.stack(column) for column, axis in zip(columns, axes, strict=True)]
    return jax.tree.unflatten(structure, leaves), axes


def over_policies(f: Callable, axes: tuple[int | None, ...]) -> Callable:
    """Prepares ``f(params, obs)`` for ``vmap`` over policies; `axes` comes from `side_by_side`.

    Policies that share a trunk run it once on all their observations. Policies that share nothing run one after
    another: together their convolutions would be grouped, which is slow on every backend.
    """
    return sequential_vmap(f) if axes and None not in axes else f


class Games(struct.PyTreeNode):
    """The games of P policies in M environments each, and their finished episodes. Every field is ``[P, M, ...]``.

    Attributes:
      rows: int32 ``[P, M]``, which of the N environments these are.
      position: observations and the environments' state.
      running: returns float32 and lengths int32 ``[P, M]`` of the running episodes.
      finished: int32 ``[P, M]``, how many of E episodes have finished.
      tables: returns float32 and lengths int32 ``[P, M, E]`` of the finished episodes.
    """

    rows: jax.Array
    position: acting.Position
    running: tuple[jax.Array, jax.Array]
    finished: jax.Array
    tables: tuple[jax.Array, jax.Array]


@functools.partial(jax.jit, static_argnames=("policy", "env", "axes", "n"))
def _play(policy, params, axes, env, n, greedy, games, key):
    """Plays another `CHUNK` steps in M of n environments."""
    space, outputs_of = env.action_space, over_policies(policy, axes)

    def play(params, greedy, games):
        def act(draw, obs, env_state):
            outputs = acting.respond(outputs_of, params, obs, env_state)
            # Draws for all n environments, so that each one gets the action that it gets when all play.
            everyone = jnp.zeros((n, *outputs.shape[1:]), outputs.dtype).at[games.rows].set(outputs)
            return space.clip(jnp.where(greedy, space.mode(outputs), draw(everyone)[games.rows])), None

        position, _, (reward, terminated, truncated) = acting.unroll(env, act, games.position, key, CHUNK)
        done = terminated | truncated
        running, totals = jax.lax.scan(acting.count, games.running, (reward, done))
        num_envs, per_env = games.tables[0].shape
        number = games.finished[None] + jnp.cumsum(done, axis=0) - done
        # Indices beyond a table are dropped: steps that end no episode, and episodes after the last that counts.
        places = jnp.arange(num_envs)[None], jnp.where(done, number, per_env)
        tables = jax.tree.map(lambda table, x: table.at[places].set(x, mode="drop"), games.tables, totals)
        finished = jnp.minimum(games.finished + done.sum(axis=0), per_env)
        return games.replace(position=position, running=running, finished=finished, tables=tables)

    # One key for all policies: each draws the numbers that it would draw alone.
    return jax.vmap(play, (jax.tree.unflatten(jax.tree.structure(params), axes), 0, 0))(params, greedy, games)


def _start(env: VectorEnv, key: jax.Array, count: int, per_env: int, wide: VectorEnv | None = None):
    """The games of P policies before their first step, and the key of all steps."""
    key_reset, key = jax.random.split(key)
    start = env.reset(key_reset)
    position = jax.tree.map(lambda leaf: leaf[None], start) if wide is None else _alike(env, wide, *start)
    zeros, table = (jnp.zeros((count, env.num_envs, *shape), jnp.float32) for shape in ((), (per_env,)))
    none = zeros.astype(jnp.int32)
    rows = jnp.broadcast_to(jnp.arange(env.num_envs), none.shape)
    return Games(rows, position, (zeros, none), none, (table, table.astype(jnp.int32))), key


def _alike(env: VectorEnv, wide: VectorEnv, obs: jax.Array, state: Any) -> acting.Position:
    """Repeats observations and state of N environments for P policies, ``[P, N, ...]``, in the P * N of `wide`."""
    copies = wide.num_envs // env.num_envs
    return jnp.broadcast_to(obs, (copies, *obs.shape)), _begin(wide, [env.get_state(state)] * copies, copies)


def _begin(wide: VectorEnv, saved: Sequence[dict[str, np.ndarray]], count: int) -> Any:
    """The state ``[P, M, ...]`` of P * M environments, `wide`, that go on from saved states."""

    def separate(leaf: jax.Array) -> jax.Array:
        if leaf.ndim and len(leaf) == wide.num_envs:
            return leaf.reshape(count, -1, *leaf.shape[1:])
        return jnp.broadcast_to(leaf, (count, *leaf.shape))

    return jax.tree.map(separate, wide.set_state(join_states(saved)))


def _narrowed(games: Games, wide: VectorEnv, narrow: VectorEnv) -> Games:
    """The games of the P * M environments with the most episodes to play, moved from `wide` to `narrow`."""
    count, n = games.finished.shape
    rows = np.argsort(np.asarray(games.finished), axis=1, kind="stable")[:, : narrow.num_envs // count]
    obs, state = games.position
    joined = jax.tree.map(lambda leaf: leaf[0] if leaf.ndim == 1 else leaf.reshape(-1, *leaf.shape[2:]), state)
    saved = split_state(wide.get_state(joined), count * n)
    state = _begin(narrow, [saved[number] for number in (rows + n * np.arange(count)[:, None]).ravel()], count)
    rest = games.replace(position=obs)
    rest = jax.tree.map(lambda leaf: leaf[np.arange(count)[:, None], rows], rest)
    return rest.replace(position=(rest.position, state))


def play_all(
    policy: PolicyFn, params: Any, env: VectorEnv, per_env: int, key: jax.Array, *, greedy: bool = False
) -> tuple[jax.Array, jax.Array]:
    """`evaluate` as one pure function: returns float32 and lengths int32, both ``[N, per_env]``."""
    games, key = _start(env, key, 1, per_env)
    joined, likeliest = side_by_side([params]), jnp.full(1, greedy)

    def chunk(numbered):
        number, games = numbered
        return number + 1, _play(policy, *joined, env, env.num_envs, likeliest, games, jax.random.fold_in(key, number))

    unfinished = lambda numbered: jnp.any(numbered[1].finished < per_env)  # noqa: E731
    _, games = jax.lax.while_loop(unfinished, chunk, (jnp.zeros((), jnp.int32), games))
    returns, lengths = games.tables
    return returns[0], lengths[0]


def evaluate_all(
    policy: PolicyFn,
    params: Sequence[Any],
    env: VectorEnv,
    episodes: int,
    key: jax.Array,
    *,
    greedy: Sequence[bool],
    wide: VectorEnv | None = None,
    make: Callable[[int], VectorEnv] | None = None,
    patience: int = PATIENCE,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Plays ``episodes / N`` episodes with each of P policies in each of N environments, side by side.

    Every policy plays the same levels and draws its actions with the same keys, so its returns are those that it would
    get alone.

    Args:
      policy: the function of all policies, ``(params, obs [N, *obs_shape]) -> outputs [N, K]`` (see `lamjax.spaces`),
        or a planner (`acting.respond`); equal ones compile once.
      params: the parameters of each policy, P pytrees of one structure (see `over_policies`).
      env: N environments.
      episodes: how many episodes each policy plays, a multiple of N.
      key: a typed PRNG key; with the same key an environment plays the same levels.
      greedy: for each policy, whether it takes the most likely action; otherwise it samples.
      wide: P * N environments like those of `env`; a single policy does not need them.
      make: makes any number of environments like those of `env`. With it, native Procgen goes on with fewer once few
        environments play. The results are the same.
      patience: the number of dispatches with few environments before that.
      progress: called with the number of episodes that all policies have finished so far.

    Returns:
      Raw returns float32 ``[P, episodes]`` and lengths int32 ``[P, episodes]``.

    Raises:
      ValueError: if `episodes` is not a multiple of N, or `wide` does not have P * N environments.
    """
    n, count = env.num_envs, len(params)
    if episodes % n:
        nearest = max(1, round(episodes / n)) * n
        mismatch = f"episodes ({episodes}) must be a multiple of the number of environments ({n})"
        raise ValueError(f"{mismatch}: ask for {nearest}.")
    if (wide or env).num_envs != count * n:
        raise ValueError(f"{count} policies in {n} environments each need {count * n}, not {(wide or env).num_envs}.")
    per_env, few = episodes // n, n // FEW
    games, key = _start(env, key, count, per_env, wide)
    joined, likeliest, players, chunk = side_by_side(params), jnp.asarray(greedy), stepper(env), 0
    # A planner may remember what it saw in an environment, so it keeps its batch.
    may_narrow = getattr(players, "ignores_key", False) and not getattr(policy, "reads_state", False)
    tables = [np.zeros(table.shape, table.dtype) for table in games.tables]
    with contextlib.ExitStack() as opened:
        while (left := per_env - np.asarray(games.finished)).any():
            if progress:
                progress(count * episodes - int(left.sum()))
            patience -= bool((left > 0).sum(1).max() <= few)
            if make and may_narrow and patience < 0 and players.num_envs > few:
                _keep(tables, games)
                narrow = opened.enter_context(contextlib.closing(make(count * few)))
                games, players = _narrowed(games, wide or env, narrow), dataclasses.replace(players, num_envs=few)
            games = _play(policy, *joined, players, n, likeliest, games, jax.random.fold_in(key, chunk))
            chunk += 1
        _keep(tables, games)
    returns, lengths = (table.reshape(count, -1) for table in tables)
    return returns, lengths


def _keep(tables: Sequence[np.ndarray], games: Games) -> None:
    """Copies the games' results to the tables of all environments, ``[P, N, E]``."""
    for table, part in zip(tables, games.tables, strict=True):
        np.put_along_axis(table, np.asarray(games.rows)[..., None], np.asarray(part), 1)


def evaluate(
    policy: PolicyFn,
    params: Any,
    env: VectorEnv,
    episodes: int,
    key: jax.Array,
    *,
    greedy: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One policy's returns and lengths, both ``[episodes]``: see `evaluate_all`."""
    returns, lengths = evaluate_all(policy, [params], env, episodes, key, greedy=[greedy], progress=progress)
    return returns[0], lengths[0]
