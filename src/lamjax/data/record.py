"""Records a policy's trajectories into a store.

Dimension keys: T steps, N environments.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lamjax import acting
from lamjax.acting import PolicyFn
from lamjax.data.writer import StoreWriter
from lamjax.envs.api import VectorEnv, stepper
from lamjax.spaces import ActionSpace, Box

CHUNK = 32  # steps in a dispatch: the frames of 64 environments are 25 MB of host memory


@functools.partial(jax.jit, static_argnames=("env", "policy", "random_share"))
def _play(env, policy, params, start, key, random_share):
    read = functools.partial(acting.level_and_distractor, env)
    return acting.demonstrate(env, policy, params, start, key, CHUNK, read, random_share)


def _actions(space: ActionSpace) -> dict[str, Any]:
    """The arguments of a store's writer that describe actions."""
    if isinstance(space, Box):
        return {"action_dim": space.size, "action_bounds": (space.low, space.high)}
    return {"num_actions": space.n}


def _check_finite(env: str, what: str, values: np.ndarray, first: int) -> None:
    """Raises `ValueError` if ``[T, N, ...]``, the steps from `first` on, holds a value that is NaN or infinite."""
    if values.dtype.kind == "f" and (bad := ~np.isfinite(values)).any():
        step, number, *_ = np.argwhere(bad)[0]
        raise ValueError(
            f"{env} returned {values[bad][0]} in the {what} of step {first + step} of its copy {number} (both counted "
            "from 0): the models need finite numbers, so correct the environment."
        )


def record(
    path: Path,
    env: VectorEnv,
    policy: PolicyFn,
    params: Any,
    frames: int,
    key: jax.Array,
    *,
    source: Mapping[str, Any],
    random_share: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Records sampled actions of a policy until the store holds `frames` frames, whole episodes first.

    Each environment's episodes are written as they end. Once enough has been played, the running episodes are written
    too, marked as cut, so that the store holds everything that was played and does not favour short episodes. Actions
    are those that the environment executed: continuous ones lie within their bounds. Under a distractor (`Distracted`)
    the store holds the frames with it and, in a separate array for probes, its state; the policy sees clean frames
    (`acting.demonstrate`).

    Args:
      path: folder of the store; it must not exist, and appears only when the recording is complete.
      env: N environments.
      policy: ``(params, obs [N, *obs_shape]) -> outputs [N, K]`` (see `lamjax.spaces`), or a planner
        (`acting.respond`).
      params: the policy's parameters.
      frames: the least number of frames to record; the last dispatch may add up to ``32 N`` more.
      key: a typed PRNG key.
      source: what the manifest says about the policy.
      random_share: probability in [0, 1] that a step's action is uniformly random, independently in each environment.
      progress: called with the number of frames played so far.

    Raises:
      StoreError: if the path exists or the disk is full.
      ValueError: if the environment returns an observation or a reward that is NaN or infinite; the message names the
        step.
    """
    num_envs, distractor_dim, numbers = env.num_envs, acting.distractor_dim(env), itertools.count()
    running: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(num_envs)]
    with StoreWriter(
        path,
        env=env.name,
        obs_shape=env.obs_shape,
        obs_dtype=np.dtype(env.obs_dtype),
        **_actions(env.action_space),
        distractor_dim=distractor_dim,
        env_params=env.env_params,
        policy=source,
    ) as writer:

        def write(pieces: list[tuple[np.ndarray, ...]], ending: str) -> None:
            obs, action, reward, seeds, distractor = (np.concatenate(part) for part in zip(*pieces, strict=True))
            number = next(numbers)
            level = int(seeds[0]) if seeds[0] >= 0 else number  # without levels the number of the episode splits
            writer.append_episode(obs, action, reward, level, ending, distractor=distractor if distractor_dim else None)

        key_reset, key = jax.random.split(key)
        position = env.reset(key_reset)
        chunk = 0
        while chunk * CHUNK * num_envs < frames:
            position, *steps = _play(
                stepper(env), policy, params, position, jax.random.fold_in(key, chunk), random_share
            )
            (obs, action, read), (reward, terminated, truncated) = jax.device_get(steps)
            for what, values in (("observation", obs), ("reward", reward)):
                _check_finite(env.name, what, values, chunk * CHUNK)
            chunk += 1
            done = terminated | truncated
            for n in range(num_envs):
                for rows in np.split(np.arange(CHUNK), np.flatnonzero(done[:, n]) + 1):
                    if not len(rows):
                        continue
                    # Indices like these copy: a view would keep the whole dispatch in memory until the episode ends.
                    running[n].append(tuple(x[rows, n] for x in (obs, action, reward, *read)))
                    if done[rows[-1], n]:
                        write(running[n], "terminated" if terminated[rows[-1], n] else "truncated")
                        running[n] = []
            if progress:
                progress(chunk * CHUNK * num_envs)
        for pieces in running:
            if pieces:
                write(pieces, "cut")
