"""Real Procgen inside ``jit``: one native batch of games behind ``io_callback``.

The native batch lives on the host; what JAX carries is its id, the last frames and a step counter. The callbacks are
unordered on purpose: each one needs the frames of the one before, so data dependence already orders them, and the
same rollout can run on several devices (one native batch each), which ordered effects do not allow.
"""

import contextlib
import dataclasses
import io
import itertools
import os
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import io_callback

from lamjax.envs.api import one_batch_under_vmap
from lamjax.spaces import Discrete

OBS_SHAPE = (64, 64, 3)
NUM_ACTIONS = 15
DISTRIBUTION_MODES = ("easy", "hard", "extreme", "memory", "exploration")

# The native batches of this process by id. JAX carries the id, because a pytree cannot hold a C++ object.
_BATCHES: dict[int, Any] = {}
_NEXT_ID = itertools.count(1)


@struct.dataclass
class ProcgenState:
    """What a rollout carries of a native batch.

    Attributes:
      handle: int32 ``[]``, the id of the native batch in this process.
      obs: uint8 ``[N, 64, 64, 3]``, the last frames, which become ``final_observation`` where an episode ends.
      time: int32 ``[N]``, steps taken in the running episode.
      time_limit: int32 ``[]``, the game's time-out; with the handle all that tells a step which game it is.
      level_seed: int32 ``[N]``, the level each environment plays now.
    """

    handle: jax.Array
    obs: jax.Array
    time: jax.Array
    time_limit: jax.Array
    level_seed: jax.Array


class ProcgenNotInstalledError(ImportError):
    """Raised when a Procgen game is asked for and the ``procgen`` extra is absent."""


def _native_class():
    # procgen imports the retired `gym` for its registration alone, and that prints a notice of its own on stderr.
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            from procgen import ProcgenGym3Env
        except ImportError as error:
            raise ProcgenNotInstalledError(
                'Procgen is not installed: run `pip install "lamjax[procgen]"` (Python 3.11 or 3.12).'
            ) from error
    return ProcgenGym3Env


@dataclasses.dataclass(frozen=True)
class ProcgenStepper:
    """Steps N environments of whichever game their state names, so that all games share one compiled rollout.

    Attributes:
      num_envs: N.
    """

    num_envs: int

    action_space: ClassVar[Discrete] = Discrete(NUM_ACTIONS)

    def _host_step(self, handle: np.ndarray, action: np.ndarray):
        batch = _BATCHES[int(handle)]
        batch.act(np.asarray(action, np.int32))
        reward, obs, first = batch.observe()
        info = batch.get_info()
        complete = np.fromiter((i["prev_level_complete"] for i in info), np.bool_, self.num_envs)
        return obs["rgb"].copy(), reward.astype(np.float32), first.copy(), complete & first, _level_seeds(batch)

    @one_batch_under_vmap
    def step(self, key: jax.Array, state: ProcgenState, action: jax.Array, params: Any = None):
        """Steps the native batch; see `VectorEnv.step`. The game draws its randomness itself: `key` is not used."""
        del key, params
        n = self.num_envs
        shapes = (
            jax.ShapeDtypeStruct((n, *OBS_SHAPE), jnp.uint8),
            jax.ShapeDtypeStruct((n,), jnp.float32),
            jax.ShapeDtypeStruct((n,), jnp.bool_),
            jax.ShapeDtypeStruct((n,), jnp.bool_),
            jax.ShapeDtypeStruct((n,), jnp.int32),
        )
        obs, reward, done, complete, level_seed = io_callback(
            self._host_step, shapes, state.handle, action.astype(jnp.int32)
        )
        time = state.time + 1
        truncated = done & ~complete & (time >= state.time_limit)
        info = {
            "final_observation": state.obs,
            "final_is_exact": jnp.zeros((), jnp.bool_),
            "level_complete": complete,
            "level_seed": level_seed,
        }
        state = state.replace(obs=obs, time=jnp.where(done, 0, time), level_seed=level_seed)
        return obs, state, reward, done & ~truncated, truncated, info


class Procgen:
    """N copies of one Procgen game, stepped together by its own C++ threads.

    Procgen resets itself inside ``act`` and never shows an episode's last frame. So ``info["final_observation"]`` is
    the last frame that was seen, one step early, and ``info["final_is_exact"]`` is False. ``truncated`` means that
    the game's time-out ended the episode without the level having been completed.

    Objects of equal settings compare equal, so ``jit`` compiles once for all of them. `close` frees the batches that
    this object made; a ``reset`` inside a jitted function makes its batch through the object that was traced.
    """

    num_actions = NUM_ACTIONS
    action_space = Discrete(NUM_ACTIONS)
    obs_shape = OBS_SHAPE
    obs_dtype = jnp.uint8

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        time_limit: int,
        num_levels: int = 0,
        start_level: int = 0,
        distribution_mode: str = "easy",
        num_threads: int | None = None,
    ):
        """Describes the batch; ``reset`` makes it.

        Args:
          game: one of the 16 games.
          num_envs: N, environments in the batch.
          time_limit: the game's own time-out in steps (see the registry).
          num_levels: how many levels to draw from; 0 means all of them, and then `start_level` has no effect.
          start_level: the first level's seed.
          distribution_mode: one of `DISTRIBUTION_MODES`.
          num_threads: C++ threads; by default the machine's cores, at most 16.

        Raises:
          ValueError: if an argument is out of range.
          ProcgenNotInstalledError: if the ``procgen`` extra is absent.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}.")
        if num_levels < 0 or start_level < 0:
            raise ValueError(f"num_levels and start_level must not be negative, not {num_levels} and {start_level}.")
        if distribution_mode not in DISTRIBUTION_MODES:
            raise ValueError(f"distribution_mode must be one of {DISTRIBUTION_MODES}, not {distribution_mode!r}.")
        self._native = _native_class()
        self.name = game
        self.num_envs = num_envs
        self.time_limit = time_limit
        self.stepper = ProcgenStepper(num_envs)
        self.env_params = {
            "num_levels": num_levels,
            "start_level": start_level,
            "distribution_mode": distribution_mode,
        }
        self._num_threads = num_threads if num_threads is not None else min(os.cpu_count() or 1, 16)
        self._settings = (game, num_envs, time_limit, *self.env_params.values(), self._num_threads)
        self._handles: set[int] = set()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Procgen) and self._settings == other._settings

    def __hash__(self) -> int:
        return hash(self._settings)

    def _create(self, rand_seed: int) -> int:
        """Makes a native batch and returns its id."""
        handle = next(_NEXT_ID)
        _BATCHES[handle] = self._native(
            num=self.num_envs,
            env_name=self.name,
            rand_seed=int(rand_seed),
            num_threads=self._num_threads,
            **self.env_params,
        )
        self._handles.add(handle)
        return handle

    def _host_reset(self, rand_seed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        handle = self._create(int(rand_seed))
        _, obs, _ = _BATCHES[handle].observe()
        return np.int32(handle), obs["rgb"].copy(), _level_seeds(_BATCHES[handle])

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, ProcgenState]:
        """Makes a new native batch seeded by `key`; see `VectorEnv.reset`. `close` frees it."""
        del params
        rand_seed = jax.random.randint(key, (), 0, np.iinfo(np.int32).max, jnp.int32)
        shapes = (
            jax.ShapeDtypeStruct((), jnp.int32),
            jax.ShapeDtypeStruct((self.num_envs, *OBS_SHAPE), jnp.uint8),
            jax.ShapeDtypeStruct((self.num_envs,), jnp.int32),
        )
        handle, obs, level_seed = io_callback(self._host_reset, shapes, rand_seed)
        time, time_limit = jnp.zeros(self.num_envs, jnp.int32), jnp.int32(self.time_limit)
        return obs, ProcgenState(handle, obs, time, time_limit, level_seed)

    def step(self, key: jax.Array, state: ProcgenState, action: jax.Array, params: Any = None):
        """Steps the native batch; see `VectorEnv.step`. The game draws its randomness itself: `key` is not used."""
        return self.stepper.step(key, state, action, params)

    def get_state(self, state: ProcgenState) -> dict[str, np.ndarray]:
        """Reads the native batch (about 38 kB an environment); call it between dispatches, never inside ``jit``."""
        state = jax.device_get(state)
        blobs = _BATCHES[int(state.handle)].callmethod("get_state")
        return {
            "native": np.frombuffer(b"".join(blobs), np.uint8),
            "native_lengths": np.array([len(blob) for blob in blobs], np.int64),
            "obs": state.obs,
            "time": state.time,
            "level_seed": state.level_seed,
        }

    def set_state(self, saved: dict[str, np.ndarray]) -> ProcgenState:
        """Makes a new native batch that goes on where the saved one stood."""
        handle = self._create(0)
        ends = np.cumsum(saved["native_lengths"])
        native = np.asarray(saved["native"]).tobytes()
        blobs = [native[end - length : end] for end, length in zip(ends, saved["native_lengths"], strict=True)]
        _BATCHES[handle].callmethod("set_state", blobs)
        return ProcgenState(
            jnp.int32(handle),
            jnp.asarray(saved["obs"]),
            jnp.asarray(saved["time"]),
            jnp.int32(self.time_limit),
            jnp.asarray(saved["level_seed"]),
        )

    def close(self) -> None:
        """Frees the native batches that this object made; states that name them must not be stepped again."""
        for handle in self._handles:
            _BATCHES.pop(handle).close()
        self._handles.clear()


def _level_seeds(batch: Any) -> np.ndarray:
    return np.array([info["level_seed"] for info in batch.get_info()], np.int32)
