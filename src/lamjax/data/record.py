"""Recording a policy's trajectories into a store.

Dimension keys: T steps, N environments.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lamjax.data.writer import StoreWriter
from lamjax.envs.api import VectorEnv, stepper
from lamjax.spaces import ActionSpace, Box

CHUNK = 32  # steps a dispatch: 64 environments' frames are 25 MB of host memory


@functools.partial(jax.jit, static_argnames=("logits_fn", "env"))
def _play(logits_fn, policy, env, carry, key):
    def step(carry, step_key):
        obs, env_state = carry
        key_action, key_env = jax.random.split(step_key)
        # Under a distractor the demonstrator sees the game alone, so that its play does not depend on the distractor.
        seen = getattr(env_state, "clean", obs)
        action = env.action_space.clip(env.action_space.sample(key_action, logits_fn(policy, seen)))
        level_seed = getattr(env_state, "level_seed", None)
        distractor = env.shown(env_state) if _distractor_dim(env) else None
        next_obs, env_state, reward, terminated, truncated, _ = env.step(key_env, env_state, action)
        return (next_obs, env_state), (obs, action, reward, terminated, truncated, level_seed, distractor)

    return jax.lax.scan(step, carry, jax.random.split(key, CHUNK))


def _distractor_dim(env: VectorEnv) -> int:
    return getattr(env, "distractor_dim", 0)


def _actions(space: ActionSpace) -> dict[str, Any]:
    """What a store's writer is told of actions."""
    if isinstance(space, Box):
        return {"action_dim": space.size, "action_bounds": (space.low, space.high)}
    return {"num_actions": space.n}


def record(
    path: Path,
    env: VectorEnv,
    logits_fn: Callable[[Any, jax.Array], jax.Array],
    policy: Any,
    frames: int,
    key: jax.Array,
    *,
    source: Mapping[str, Any],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Records sampled actions of a policy until `frames` frames lie in the store, whole episodes first.

    Each environment's episodes are written as they end. When enough has been played the running episodes are written
    too, marked as cut, so that the store holds what was played and short episodes are not favoured. Actions are those
    that were carried out: continuous ones lie within their bounds. Under a distractor (`Distracted`) the store holds
    the frames with it, and apart from them what they show of it, for probes; the policy acts on the frames without.

    Args:
      path: folder of the store; it must not exist, and appears only when the recording is complete.
      env: N environments.
      logits_fn: ``(policy, obs [N, *obs_shape]) -> outputs [N, K]`` (see `lamjax.spaces`).
      policy: its first argument, a pytree.
      frames: at least so many frames are recorded; the last dispatch may bring up to ``32 N`` more.
      key: a typed PRNG key.
      source: what the manifest says of the policy.
      progress: called with the number of frames played so far.

    Raises:
      StoreError: if the path exists or the disk is full.
    """
    num_envs = env.num_envs
    running: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(num_envs)]
    episodes = 0
    with StoreWriter(
        path,
        env=env.name,
        obs_shape=env.obs_shape,
        obs_dtype=np.dtype(env.obs_dtype),
        **_actions(env.action_space),
        distractor_dim=_distractor_dim(env),
        env_params=env.env_params,
        policy=source,
    ) as writer:

        def write(pieces: list[tuple[np.ndarray, ...]], ending: str) -> None:
            nonlocal episodes
            obs, action, reward, seeds, *distractor = (np.concatenate(part) for part in zip(*pieces, strict=True))
            # An environment without levels splits by the number of the episode.
            level = int(seeds[0]) if seeds[0] >= 0 else episodes
            writer.append_episode(obs, action, reward, level, ending, distractor=distractor[0] if distractor else None)
            episodes += 1

        key_reset, key = jax.random.split(key)
        carry = env.reset(key_reset)
        chunk = 0
        while chunk * CHUNK * num_envs < frames:
            carry, steps = _play(logits_fn, policy, stepper(env), carry, jax.random.fold_in(key, chunk))
            chunk += 1
            obs, action, reward, terminated, truncated, seeds, distractor = (
                None if s is None else np.asarray(s) for s in steps
            )
            seeds = np.full(terminated.shape, -1, np.int32) if seeds is None else seeds
            done = terminated | truncated
            kept = (obs, action, reward, seeds) + (() if distractor is None else (distractor,))
            for n in range(num_envs):
                begin = 0
                for end in (*(np.flatnonzero(done[:, n]) + 1), CHUNK):
                    if begin < end:
                        rows = slice(begin, end)
                        # Copies: a view would keep the whole dispatch in memory until the episode ends.
                        running[n].append(tuple(x[rows, n].copy() for x in kept))
                    if end > begin and done[end - 1, n]:
                        write(running[n], "terminated" if terminated[end - 1, n] else "truncated")
                        running[n] = []
                    begin = end
            if progress:
                progress(chunk * CHUNK * num_envs)
        for pieces in running:
            if pieces:
                write(pieces, "cut")
