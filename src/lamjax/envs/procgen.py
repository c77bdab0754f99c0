"""Real Procgen inside ``jit``: native batches of games behind ``io_callback``.

The games live on the host; JAX carries a handle, the last frames and a step counter. The callbacks are unordered on
purpose, because ordered effects do not allow the same rollout on several devices. Instead the handle orders them: every
callback takes it and returns it, so each one waits for the one before.

A handle stands for one native batch of N environments, or for two of N / 2, the *groups*. C++ threads step a group
after ``act`` has returned, so a rollout can send one group its actions and compute the other's in the meantime
(`exchange`). The number of groups changes only the time that a rollout takes.

This module copies no frame. A callback returns views of a native batch's memory, which changes at the batch's next
``act``. XLA copies the results before the callback counts as done, under ``jit`` and outside it (there JAX compiles the
callback by itself): a test proves this for CPUs, and on a GPU jaxlib waits for the upload. The next ``act`` comes in a
callback that needs the handle of this one.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.experimental import io_callback

from lamjax.envs.api import Comparable, one_batch_under_vmap
from lamjax.spaces import Discrete

# (obs uint8 [M, 64, 64, 3], reward float32 [M], first bool [M], complete bool [M], level_seed int32 [M]).
Frames = tuple[np.ndarray, ...]

OBS_SHAPE = (64, 64, 3)
NUM_ACTIONS = 15
DISTRIBUTION_MODES = ("easy", "hard", "extreme", "memory", "exploration")
# The games that support the modes which not all support; in any other game the engine ends the process.
MODE_GAMES = {
    "extreme": ("chaser", "dodgeball", "leaper", "starpilot"),
    "memory": ("caveflyer", "dodgeball", "heist", "jumper", "maze", "miner"),
    "exploration": ("caveflyer", "climber", "coinrun", "heist", "jumper", "leaper", "maze", "ninja"),
}
MOST_LEVELS = 2**31  # the engine holds level seeds, and their number, as int32

# Attributes of gym3.libenv.CEnv: a step reads them without the copies and dictionaries that gym3's `observe` makes.
_BUFFERS = ("_ob", "_rew", "_first", "_info")
_MAX_STATE = 2**20  # the most bytes of a saved state, as Procgen has it
_MAX_THREADS = 16

T = TypeVar("T")

# The native batches of this process by handle: a pytree cannot hold a C++ object.
BATCHES: dict[int, tuple[Any, ...]] = {}
_NEXT_ID = itertools.count(1)


class ProcgenState(struct.PyTreeNode):
    """The state of the native batches that a rollout carries.

    Attributes:
      handle: int32 ``[]``, stands for the native batches in this process; the last callback returned it.
      obs: uint8 ``[N, 64, 64, 3]``, the last frames, which become ``final_observation`` if an episode ends.
      time: int32 ``[N]``, the number of steps in the running episode.
      time_limit: int32 ``[]``, the game's time-out; a step knows the game only by this and the handle.
      level_seed: int32 ``[N]``, the level that each environment plays now.
    """

    handle: jax.Array
    obs: jax.Array
    time: jax.Array
    time_limit: jax.Array
    level_seed: jax.Array


class ProcgenNotInstalledError(ImportError):
    """Raised if a Procgen game is requested without the ``procgen`` extra."""


def native_class() -> type:
    """Returns Procgen's own class of batched environments; raises `ProcgenNotInstalledError` without Procgen."""
    # procgen imports the retired `gym` only for its registration, and gym prints its own notice on stderr.
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            from procgen import ProcgenGym3Env
        except ImportError as error:
            raise ProcgenNotInstalledError(
                'Procgen is not installed: run `pip install "lamjax[procgen]"` (Python 3.11 or 3.12).'
            ) from error
    return ProcgenGym3Env


def default_groups(num_envs: int, backend: str | None = None) -> int:
    """The default number of groups that N environments are stepped in; `backend` is by default JAX's.

    On a CPU the policy and the games share the same cores, so computing both at once gains nothing, and one policy with
    N rows is faster than two with N / 2. On an accelerator the host is idle while the policy is computed.
    """
    return 1 if (backend or jax.default_backend()) == "cpu" or num_envs % 2 else 2


@dataclasses.dataclass(frozen=True)
class ProcgenStepper:
    """Steps N environments of any game: the state says which, so all games share one compiled rollout.

    Attributes:
      num_envs: N.
      groups: 1, or 2 that `exchange` can step in turn: the first and the second half of the rows.
      ignores_key: True, because a step draws nothing from its key.
    """

    num_envs: int
    groups: int = 1

    action_space: ClassVar[Discrete] = Discrete(NUM_ACTIONS)
    ignores_key: ClassVar[bool] = True

    @one_batch_under_vmap
    def step(self, key: jax.Array, state: ProcgenState, action: jax.Array, params: Any = None):
        """Steps all environments; see `VectorEnv.step`. The game draws its own randomness and ignores `key`."""
        del key, params
        state = state.replace(time=state.time + 1)
        return self._call(_host_step, state, 0, self.num_envs, action.astype(jnp.int32))

    def exchange(self, state: ProcgenState, action: jax.Array, group: jax.Array):
        """Sends one group its actions and receives the results of the other.

        Args:
          state: the state of all N environments.
          action: int ``[N / 2]``, the actions of the group that begins a step.
          group: int32 ``[]``, 0 or 1, the group that begins a step. The other group ends its step, if it has one.

        Returns:
          The values of `step` for the other group's N / 2 environments, but the state of all N.
        """
        half = self.num_envs // 2
        time = jax.lax.dynamic_slice_in_dim(state.time, group * half, half) + 1
        state = state.replace(time=jax.lax.dynamic_update_slice_in_dim(state.time, time, group * half, 0))
        return self._call(_host_exchange, state, (1 - group) * half, half, action.astype(jnp.int32), group)

    def receive(self, state: ProcgenState, group: jax.Array):
        """Receives the results of one group, as `exchange` does, and sends nothing."""
        half = self.num_envs // 2
        return self._call(_host_receive, state, group * half, half, group)

    def _call(self, callback: Callable, state: ProcgenState, start: Any, size: int, *sent: jax.Array):
        """Runs a callback that returns the `Frames` of `size` rows from `start`; `state.time` counts their step."""
        shapes = [jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((size, *OBS_SHAPE), jnp.uint8)]
        shapes += [jax.ShapeDtypeStruct((size,), dtype) for dtype in (jnp.float32, jnp.bool_, jnp.bool_, jnp.int32)]
        handle, obs, reward, done, complete, level_seed = io_callback(callback, shapes, state.handle, *sent)
        before = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), {"obs": state.obs, "time": state.time}
        )
        truncated = done & ~complete & (before["time"] >= state.time_limit)
        info = {
            "final_observation": before["obs"],
            "final_is_exact": jnp.zeros((), jnp.bool_),
            "level_complete": complete,
            "level_seed": level_seed,
        }
        after = {"obs": obs, "time": jnp.where(done, 0, before["time"]), "level_seed": level_seed}
        rows = {
            name: jax.lax.dynamic_update_slice_in_dim(getattr(state, name), new, start, 0)
            for name, new in after.items()
        }
        return obs, state.replace(handle=handle, **rows), reward, done & ~truncated, truncated, info


def over_environments(batch: Any, use: Callable[[int, bytes], T]) -> list[T]:
    """Calls ``use(number, state)`` with every environment of a native batch and its saved state (`Procgen.get_state`).

    Threads share the environments, as many as step the batch: the game writes states without Python's lock.
    """
    workers = max(1, min(batch.options["num_threads"], batch.num))
    if workers == 1:
        return _over_some(batch, use, range(batch.num))
    shares = [range(first, batch.num, workers) for first in range(workers)]
    results: list[Any] = [None] * batch.num
    for share, part in zip(shares, _readers().map(functools.partial(_over_some, batch, use), shares), strict=True):
        results[share.start :: workers] = part
    return results


def _over_some(batch: Any, use: Callable[[int, bytes], T], numbers: Sequence[int]) -> list[T]:
    buffer = np.empty(_MAX_STATE, np.uint8)
    pointer = batch._ffi.from_buffer("char[]", buffer)

    def state(number: int) -> bytes:
        return buffer[: batch.call_c_func("get_state", number, pointer, _MAX_STATE)].tobytes()

    return [use(number, state(number)) for number in numbers]


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS), "lamjax-states")


def _host_step(handle: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, ...]:
    batches = BATCHES[int(handle)]
    for batch, part in zip(batches, np.asarray(action).reshape(len(batches), -1), strict=True):
        batch.act(part)
    return np.asarray(handle), *_observe(batches)


def _host_exchange(handle: np.ndarray, action: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, ...]:
    batches, sent = BATCHES[int(handle)], int(group)
    batches[sent].act(np.asarray(action))
    return np.asarray(handle), *_observe(batches[1 - sent : 2 - sent])


def _host_receive(handle: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, ...]:
    batches, received = BATCHES[int(handle)], int(group)
    return np.asarray(handle), *_observe(batches[received : received + 1])


def _observe(batches: Sequence[Any]) -> Frames:
    """Waits until the batches have stepped, and returns their frames; a single batch's are views of its memory."""
    frames = []
    for batch in batches:
        batch.call_c_func("libenv_observe")
        first, info = batch._first, batch._info
        complete = info["prev_level_complete"].astype(np.bool_) & first
        frames.append((batch._ob["rgb"], batch._rew, first, complete, info["level_seed"]))
    return frames[0] if len(frames) == 1 else tuple(np.concatenate(parts) for parts in zip(*frames, strict=True))


class Procgen(Comparable):
    """N copies of one Procgen game, stepped together by its own C++ threads.

    Procgen resets itself inside ``act`` and never shows an episode's last frame. So ``info["final_observation"]`` is
    the frame before it, and ``info["final_is_exact"]`` is False. ``truncated`` means that the game's time-out ended the
    episode before the level was completed.

    Objects with equal settings are equal, so ``jit`` compiles once for all of them. `close` frees the batches that this
    object created. A ``reset`` inside a jitted function creates its batches through the object that was traced.
    """

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
        groups: int | None = None,
    ):
        """Describes the batch; ``reset`` creates it.

        Args:
          game: one of the 16 games.
          num_envs: N, environments in the batch.
          time_limit: the game's own time-out in steps (see the registry).
          num_levels: how many levels to draw from; 0 means all, and then `start_level` has no effect.
          start_level: the first level's seed.
          distribution_mode: one of `DISTRIBUTION_MODES`.
          num_threads: C++ threads; by default the machine's cores, at most 16.
          groups: 1, or 2 native batches of N / 2 that a rollout steps in turn, so that the host steps one half while
            the device computes the policy of the other; results are the same. By default see `default_groups`.

        Raises:
          ValueError: if an argument is out of range, the game lacks the mode, or N is odd with two groups.
          ProcgenNotInstalledError: if the ``procgen`` extra is absent.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}.")
        if num_levels < 0 or start_level < 0:
            raise ValueError(f"num_levels and start_level must not be negative, not {num_levels} and {start_level}.")
        if distribution_mode not in DISTRIBUTION_MODES:
            raise ValueError(f"distribution_mode must be one of {DISTRIBUTION_MODES}, not {distribution_mode!r}.")
        if game not in MODE_GAMES.get(distribution_mode, (game,)):
            modes = [mode for mode in DISTRIBUTION_MODES if game in MODE_GAMES.get(mode, (game,))]
            raise ValueError(
                f"{game} has no distribution_mode {distribution_mode!r}: choose one of {', '.join(modes)}."
            )
        if max(num_levels, start_level) >= MOST_LEVELS or start_level + num_levels > MOST_LEVELS:
            raise ValueError(
                f"start_level ({start_level}) + num_levels ({num_levels}) must be at most 2**31, and each of them less."
            )
        if num_threads is not None and num_threads < 0:
            raise ValueError(f"num_threads must not be negative, not {num_threads}.")
        groups = default_groups(num_envs) if groups is None else groups
        if groups not in (1, 2):
            raise ValueError(f"groups must be 1 or 2, not {groups}.")
        if num_envs % groups:
            raise ValueError(f"{num_envs} environments do not split into two groups: make their number even.")
        self._native = native_class()
        self.name = game
        self.num_envs = num_envs
        self.time_limit = time_limit
        self.groups = groups
        self.stepper = ProcgenStepper(num_envs, groups)
        self.env_params = {
            "num_levels": num_levels,
            "start_level": start_level,
            "distribution_mode": distribution_mode,
        }
        self._num_threads = num_threads if num_threads is not None else min(os.cpu_count() or 1, _MAX_THREADS)
        self._identity = (Procgen, game, num_envs, time_limit, *self.env_params.values(), self._num_threads, groups)
        self._handles: set[int] = set()

    @property
    def identity(self) -> tuple[Any, ...]:
        """See `Comparable`."""
        return self._identity

    def make_batch(self, num_envs: int, rand_seed: int) -> Any:
        """Creates a native batch; raises `ProcgenNotInstalledError` if this gym3 lacks the buffers that it reads."""
        batch = self._native(
            num=num_envs, env_name=self.name, rand_seed=rand_seed, num_threads=self._num_threads, **self.env_params
        )
        missing = [name for name in _BUFFERS if not hasattr(batch, name)]
        if missing:
            raise ProcgenNotInstalledError(
                f"This gym3 keeps no {' and '.join(missing)}, which Procgen's frames are read from: "
                'run `pip install "gym3==0.3.3"`.'
            )
        return batch

    def _hold(self, batches: tuple[Any, ...]) -> int:
        """Keeps the groups of native batches, and returns their handle."""
        handle = next(_NEXT_ID)
        BATCHES[handle] = batches
        self._handles.add(handle)
        return handle

    def _restore(self, blobs: Sequence[bytes]) -> int:
        """Makes native batches with the saved states of N environments; returns their handle."""
        each = self.num_envs // self.groups
        batches = tuple(self.make_batch(each, 0) for _ in range(self.groups))
        for group, batch in enumerate(batches):
            batch.callmethod("set_state", blobs[group * each : (group + 1) * each])
        return self._hold(batches)

    def _host_reset(self, rand_seed: np.ndarray) -> tuple[np.int32, np.ndarray, np.ndarray]:
        # One batch draws the levels, so that they do not depend on the number of groups.
        batch = self.make_batch(self.num_envs, int(rand_seed))
        obs, _, _, _, level_seed = _observe([batch])
        if self.groups == 1:
            return np.int32(self._hold((batch,))), obs, level_seed
        obs, level_seed = obs.copy(), level_seed.copy()
        handle = self._restore(batch.callmethod("get_state"))
        batch.close()
        return np.int32(handle), obs, level_seed

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, ProcgenState]:
        """Creates new native batches seeded by `key`; see `VectorEnv.reset`. `close` frees them."""
        del params
        rand_seed = jax.random.randint(key, (), 0, np.iinfo(np.int32).max, jnp.int32)
        handle, level_seed = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((), (self.num_envs,)))
        shapes = (handle, jax.ShapeDtypeStruct((self.num_envs, *OBS_SHAPE), jnp.uint8), level_seed)
        handle, obs, level_seed = io_callback(self._host_reset, shapes, rand_seed)
        time, time_limit = jnp.zeros(self.num_envs, jnp.int32), jnp.int32(self.time_limit)
        return obs, ProcgenState(handle, obs, time, time_limit, level_seed)

    def step(self, key: jax.Array, state: ProcgenState, action: jax.Array, params: Any = None):
        """Steps all environments; see `VectorEnv.step`. The game draws its own randomness and ignores `key`."""
        return self.stepper.step(key, state, action, params)

    def get_state(self, state: ProcgenState) -> dict[str, np.ndarray]:
        """Reads the native batches, about 38 kB per environment; call it between dispatches, never inside ``jit``.

        The saved state does not depend on the number of groups.
        """
        held: Any = jax.device_get(state)
        blobs = [blob for batch in BATCHES[int(held.handle)] for blob in batch.callmethod("get_state")]
        return {
            "native": np.frombuffer(b"".join(blobs), np.uint8),
            "native_lengths": np.array([len(blob) for blob in blobs], np.int64),
            "obs": held.obs,
            "time": held.time,
            "level_seed": held.level_seed,
        }

    def set_state(self, saved: dict[str, np.ndarray]) -> ProcgenState:
        """Creates native batches that continue from a saved state, even one from another number of groups."""
        ends = np.cumsum(saved["native_lengths"])
        native = np.asarray(saved["native"]).tobytes()
        blobs = [native[end - length : end] for end, length in zip(ends, saved["native_lengths"], strict=True)]
        return ProcgenState(
            jnp.int32(self._restore(blobs)),
            jnp.asarray(saved["obs"]),
            jnp.asarray(saved["time"]),
            jnp.int32(self.time_limit),
            jnp.asarray(saved["level_seed"]),
        )

    def close(self) -> None:
        """Frees the native batches that this object created; do not step their states again."""
        for handle in self._handles:
            for batch in BATCHES.pop(handle):
                batch.close()
        self._handles.clear()
