"""Writes a trajectory store, episode by episode."""

import collections
import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

import lamjax
from lamjax.data.format import (
    CODECS,
    ENDINGS,
    FORMAT,
    FRAMES_PER_CHUNK,
    MANIFEST,
    MAX_FRAMES,
    METADATA,
    SCALARS_PER_CHUNK,
    SPLITS,
    Episodes,
    StoreError,
    check_description,
    check_path,
    check_sizes,
    chunk_file,
    digest,
    layout,
    manifest_digest,
    split_of_level,
    to_json,
)

_JOURNAL = "journal.json"  # in a store that is still being written
_WRITES_IN_FLIGHT = 3
_CODEC_OPTIONS: dict[str, dict[str, Any]] = {
    "bytes": {"configuration": {"endian": "little"}},
    "zstd": {"configuration": {"level": 1}},
}
_UNBOUNDED = 2**40  # length of an array while it is written; cut to size at the end


class StoreWriter:
    """Writes a store, episode by episode, in constant memory.

    with StoreWriter(path, env="coinrun", obs_shape=(64, 64, 3), num_actions=15) as writer:
        writer.append_episode(observations, actions, rewards, level_seed=7, ending="terminated")

    The writer builds the store in a hidden folder beside `path`, and renames that folder when it is complete and on
    disk, so there is never half a store at `path`. An exception removes the hidden folder, and the next writer to the
    same path removes what a killed process left.

    A resumable writer keeps the hidden folder. The next resumable writer with the same description continues from the
    last `checkpoint`.

    Args:
        path: folder to create; it must not exist.
        env: name of the environment.
        obs_shape: shape of one observation.
        obs_dtype: dtype of the observations.
        num_actions: number of discrete actions; None for continuous ones.
        action_dim: length A of a continuous action; exactly one of the two is given.
        action_bounds: the least and the largest continuous action, A finite numbers each; None if the source does not
            say.
        distractor_dim: length D of a distractor's state; None without a distractor.
        env_params: what defines the environment besides its name; anything JSON can hold.
        policy: what chose the actions; anything JSON can hold.
        frames_per_chunk: observations in a chunk, the unit of compression and of digests.
        resumable: keeps what was written when the writing is interrupted.

    Attributes:
        num_frames: frames so far.
        num_episodes: episodes so far.
        position: the argument of the last `checkpoint`, None before the first.

    Raises:
        ValueError: no store can have such sizes or bounds, or JSON cannot hold a description.
        TypeError: a description has a type that JSON or a store cannot hold.
        StoreError: the path exists, is not UTF-8 or cannot be written, another process is writing to it, or the
            disk is full.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        env: str,
        obs_shape: tuple[int, ...],
        obs_dtype: Any = np.uint8,
        num_actions: int | None = None,
        action_dim: int | None = None,
        action_bounds: tuple[Sequence[float], Sequence[float]] | None = None,
        distractor_dim: int | None = None,
        env_params: Mapping[str, Any] | None = None,
        policy: Mapping[str, Any] | None = None,
        frames_per_chunk: int = FRAMES_PER_CHUNK,
        resumable: bool = False,
    ):
        check_sizes(obs_shape, obs_dtype, num_actions, action_dim, distractor_dim or None, frames_per_chunk)
        self.path = check_path(Path(path).absolute())
        self.num_frames = 0
        self.position: Any = None
        self._resumable = resumable
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._frames_per_chunk = frames_per_chunk
        self._interrupted = False
        self._arrays: dict[str, ArrayWriter] = {}
        self._episodes: dict[str, list[Any]] = {field.name: [] for field in dataclasses.fields(Episodes)}
        self._rewards: list[np.ndarray] = []  # of the running episode
        self._header = {
            "format": FORMAT,
            "version": 2 if distractor_dim else 1,
            "env": env,
            "env_params": dict(env_params or {}),
            "policy": dict(policy or {}),
            "obs_shape": [int(size) for size in obs_shape],
            "obs_dtype": np.dtype(obs_dtype).name,
            "num_actions": None if num_actions is None else int(num_actions),
            "action_dim": None if action_dim is None else int(action_dim),
        }
        if action_bounds is not None:
            self._header["action_bounds"] = [[float(bound) for bound in row] for row in action_bounds]
        if distractor_dim:
            self._header["distractor_dim"] = int(distractor_dim)
        # What JSON or a store cannot hold fails here, not after hours of recording. And what JSON changes, such as keys
        # that are numbers, changes before the digest is computed.
        try:
            self._header = json.loads(json.dumps(self._header, allow_nan=False))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"JSON cannot hold env_params, policy or action_bounds ({error})") from error
        check_description(self._header)

    def __enter__(self) -> "StoreWriter":
        if os.path.lexists(self.path):
            raise StoreError(f"{self.path} already exists; remove it or choose another path")
        with _explained_errors(self.path):
            self._lock = _claim(self._partial)
            try:
                journal = self._read_journal() if self._resumable else None
                if journal is None:
                    _empty(self._partial)
                for name, (shape, dtype) in layout(self._header).items():
                    rows = self._frames_per_chunk if name == "observations" else SCALARS_PER_CHUNK
                    written = journal and journal["arrays"][name]
                    self._arrays[name] = ArrayWriter(self._partial, name, shape, dtype, rows, written)
                if journal is not None:
                    self._episodes, self.position = journal["episodes"], journal["position"]
                    self.num_frames = sum(self._episodes["length"])
            except BaseException:
                self._release()
                raise
        return self

    @property
    def num_episodes(self) -> int:
        """Episodes so far."""
        return len(self._episodes["length"])

    def checkpoint(self, position: Any) -> None:
        """Makes what was appended so far survive an interruption, if the writer is resumable.

        Args:
            position: how far the source has been read, anything JSON can hold; the next writer has it as `position`.

        Raises:
            StoreError: the disk is full.
        """
        if not self._resumable:
            raise ValueError("only a resumable writer has checkpoints")
        if self._rewards:
            raise ValueError("an episode is running: end it before a checkpoint")
        with _explained_errors(self.path):
            journal = {
                "header": self._header,
                "frames_per_chunk": self._frames_per_chunk,
                "position": position,
                "episodes": self._episodes,
                "arrays": {name: array.suspend() for name, array in self._arrays.items()},
            }
            journal["sha256"] = manifest_digest(journal)
            partial = self._partial / f"{_JOURNAL}.partial"
            with open(partial, "w", encoding="utf-8") as file:
                file.write(to_json(journal))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self._partial / _JOURNAL)
        self.position = position

    def _read_journal(self) -> dict[str, Any] | None:
        """The journal of an interrupted writer, or None if it belongs to another store or is damaged."""
        try:
            journal = json.loads((self._partial / _JOURNAL).read_text(encoding="utf-8"))
            expected = (self._header, self._frames_per_chunk, manifest_digest(journal))
            if (journal["header"], journal["frames_per_chunk"], journal["sha256"]) != expected:
                return None
            for array in journal["arrays"].values():
                for file, (size, _) in array["files"].items():
                    if (self._partial / file).stat().st_size != size:
                        return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return journal

    def append_episode(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        level_seed: int | None,
        ending: str,
        *,
        split: str | None = None,
        distractor: np.ndarray | None = None,
    ) -> None:
        """Appends an episode of T >= 1 frames.

        Args:
            observations: [T, *obs_shape] of the store's dtype; finite.
            actions: integers [T] in [0, num_actions), or finite floats [T, action_dim]; the action
                at each observation.
            rewards: [T], the reward of each action; finite in float32, like all floats of a store.
            level_seed: in [0, 2^63), decides the split; None if the source does not say.
            ending: "terminated", "truncated", or "cut" if only the recording stopped.
            split: "train" or "test" if the source says so itself; needed without a level seed.
            distractor: [T, distractor_dim], needed exactly if the store has that array; finite.

        Raises:
            ValueError: an array's shape, dtype or range, or another argument, does not fit.
            StoreError: the disk is full.
        """
        if self._rewards:
            raise ValueError("an episode is running: end it before the next is appended")
        entry = _episode_entry(level_seed, ending, split)
        self.append_frames(observations, actions, rewards, distractor=distractor)
        self._end(entry)

    def append_frames(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        *,
        distractor: np.ndarray | None = None,
    ) -> None:
        """Appends T >= 1 frames to the running episode; `end_episode` ends it.

        Args:
            observations: as in `append_episode`.
            actions: likewise.
            rewards: likewise.
            distractor: likewise.

        Raises:
            ValueError: an array's shape, dtype or range does not fit.
            StoreError: the disk is full.
        """
        if not self._arrays:
            raise ValueError("use StoreWriter in a with statement; episodes are written inside it")
        length = len(observations)
        if length == 0:
            raise ValueError("an episode needs at least 1 frame")
        if self.num_frames + sum(map(len, self._rewards)) + length > MAX_FRAMES:
            raise ValueError(f"a store holds at most {MAX_FRAMES} frames")
        rows = {
            "observations": _as_observations(np.asarray(observations)),
            "is_first": (np.arange(length) == 0) & (not self._rewards),
            "actions": _as_actions(np.asarray(actions), self._header["num_actions"]),
            "rewards": as_float32(rewards, "rewards"),
        }
        if (distractor is None) == ("distractor_dim" in self._header):
            raise ValueError("give an episode's distractor exactly if the store has a distractor_dim")
        if distractor is not None:
            rows["distractor"] = as_float32(distractor, "the distractor")
        for name, (shape, dtype) in layout(self._header).items():
            if rows[name].shape != (length, *shape) or rows[name].dtype != dtype:
                raise ValueError(
                    f"{name} must be {dtype} {(length, *shape)}, got {rows[name].dtype} {rows[name].shape}"
                )
        self._interrupted = True
        with _explained_errors(self.path):
            for name, array in self._arrays.items():
                array.append(rows[name])
        self._interrupted = False
        self._rewards.append(rows["rewards"])

    def end_episode(self, level_seed: int | None, ending: str, *, split: str | None = None) -> None:
        """Ends the running episode; for the arguments see `append_episode`.

        Raises:
            ValueError: an argument does not fit, or no episode is running.
        """
        if not self._rewards:
            raise ValueError("an episode needs at least 1 frame")
        self._end(_episode_entry(level_seed, ending, split))

    def _end(self, entry: dict[str, Any]) -> None:
        rewards = np.concatenate(self._rewards)
        entry |= {"start": self.num_frames, "length": len(rewards)}
        entry["returns"] = float(np.sum(rewards, dtype=np.float64))
        for name, value in entry.items():
            self._episodes[name].append(value)
        self.num_frames += len(rewards)
        self._rewards = []

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        try:
            if exc_type is None:
                with _explained_errors(self.path):
                    self._commit()
        finally:
            self._release()

    def _release(self) -> None:
        for array in self._arrays.values():
            array.abandon()
        self._arrays = {}
        if self.position is None:
            shutil.rmtree(self._partial, ignore_errors=True)  # after a commit there is nothing left
        os.close(self._lock)

    def _commit(self) -> None:
        if self._interrupted or self._rewards:
            raise StoreError(f"an episode was cut off, so {self.path} was not written; record the store again")
        if not self.num_frames:
            raise StoreError(f"{self.path} would hold no frames, so it was not written; append an episode")
        files: dict[str, list[Any]] = {}
        for array in self._arrays.values():
            files |= array.close()
        manifest = self._header | {
            "created_by": f"lamjax {lamjax.__version__}",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "num_frames": self.num_frames,
            "episodes": self._episodes,
            "files": files,
        }
        with open(self._partial / MANIFEST, "w", encoding="utf-8") as file:
            manifest["sha256"] = manifest_digest(manifest)
            lines = (f"{to_json(key)}: {to_json(value)}" for key, value in manifest.items())
            file.write("{\n" + ",\n".join(lines) + "\n}\n")
            file.flush()
            os.fsync(file.fileno())
        (self._partial / _JOURNAL).unlink(missing_ok=True)
        for folder in (*(self._partial / name for name in self._arrays), self._partial):
            _fsync_folder(folder)
        try:
            os.rename(self._partial, self.path)
        except OSError as error:
            if not os.path.lexists(self.path):
                raise
            raise StoreError(f"{self.path} appeared while it was being written; remove it and record again") from error
        _fsync_folder(self.path.parent)


class ArrayWriter:
    """Appends rows to one zarr array, a chunk at a time, and keeps the digest of each chunk.

    Args:
        root: the folder that holds the array's folder.
        name: the array's name.
        row_shape: shape of a row.
        dtype: the array's dtype.
        rows_per_chunk: rows in a chunk.
        written: what an earlier writer's `suspend` returned, to continue its array; None for a new one.

    Attributes:
        in_flight: (chunk, future) of each chunk that is being written, oldest first.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        row_shape: tuple[int, ...],
        dtype: Any,
        rows_per_chunk: int,
        written: Mapping | None = None,
    ):
        self._root = root
        self._name = name
        self._buffer = np.empty((rows_per_chunk, *row_shape), dtype)
        self._filled = 0
        self._chunk = 0
        self.in_flight: collections.deque[tuple[int, Any]] = collections.deque()
        self._files = {}
        chunk_shape = [rows_per_chunk, *row_shape]
        self._array = tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(root / name)},
                "store_data_equal_to_fill_value": True,  # otherwise a black chunk would be a missing file
                "metadata": {
                    "shape": [_UNBOUNDED, *row_shape],
                    "data_type": np.dtype(dtype).name,
                    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
                    # "c.7.0.0.0": one flat folder of chunks.
                    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                    "codecs": [{"name": name, **_CODEC_OPTIONS.get(name, {})} for name in CODECS],
                },
            },
            create=written is None,
            open=written is not None,
        ).result()
        if written is not None:
            self._chunk, self._filled, self._files = written["chunk"], written["filled"], dict(written["files"])
            start = self._chunk * rows_per_chunk
            self._buffer[: self._filled] = self._array[start : start + self._filled].read().result()

    def suspend(self) -> dict[str, Any]:
        """Writes everything, including an unfinished chunk; returns what the next writer needs to continue."""
        while self.in_flight:
            self._await_oldest()
        if self._filled:
            start = self._chunk * len(self._buffer)
            self._array[start : start + self._filled].write(self._buffer[: self._filled]).result()
        return {"chunk": self._chunk, "filled": self._filled, "files": dict(self._files)}

    def append(self, rows: np.ndarray) -> None:
        """Appends rows [R, *row_shape]; blocks while more than a few chunks are being written."""
        while len(rows):
            count = min(len(rows), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = rows[:count]
            self._filled += count
            rows = rows[count:]
            if self._filled == len(self._buffer):
                self._flush()

    def close(self) -> dict[str, list]:
        """Writes the rest; returns {file: [bytes, sha256]} of the whole array."""
        num_rows = self._chunk * len(self._buffer) + self._filled
        if self._filled:
            self._flush()
        while self.in_flight:
            self._await_oldest()
        inner = [None] * (self._buffer.ndim - 1)
        self._array.resize(exclusive_max=[num_rows, *inner], resize_metadata_only=True).result()
        self._add_digest(f"{self._name}/{METADATA}")
        return self._files

    def abandon(self) -> None:
        """Waits for the chunks in flight and ignores their errors: each write would recreate a removed folder."""
        for _, write in self.in_flight:
            with contextlib.suppress(ValueError, OSError):
                write.result()
        self.in_flight.clear()

    def _flush(self) -> None:
        start = self._chunk * len(self._buffer)
        write = self._array[start : start + self._filled].write(self._buffer[: self._filled])
        self.in_flight.append((self._chunk, write))
        self._buffer = np.empty_like(self._buffer)  # the write in flight owns the old one
        self._chunk += 1
        self._filled = 0
        if len(self.in_flight) > _WRITES_IN_FLIGHT:
            self._await_oldest()

    def _await_oldest(self) -> None:
        chunk, write = self.in_flight.popleft()
        write.result()
        self._add_digest(chunk_file(self._name, chunk, self._buffer.ndim))

    def _add_digest(self, file: str) -> None:
        content = (self._root / file).read_bytes()
        self._files[file] = [len(content), digest(content)]


def _claim(folder: Path) -> int:
    """Creates a folder that only this process owns; returns the descriptor of its lock.

    The kernel drops the lock when its process dies, so a folder without one is a dead writer's.
    """
    while True:
        os.makedirs(folder, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            target = folder.with_name(folder.name[1 : -len(".partial")])
            raise StoreError(f"another process is writing {target}; wait for it or choose another path") from None
        except OSError:
            pass  # a file system without locks: the user must keep writers apart
        # Between open and lock, another writer may have renamed or removed the folder.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(folder), os.fstat(lock)):
                break
        os.close(lock)
    return lock


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextlib.contextmanager
def _explained_errors(path: Path):
    """Turns what the system, or tensorstore on its behalf, says about the disk into one sentence."""
    try:
        yield
    except StoreError:
        raise
    except (OSError, ValueError) as error:
        full = (errno.ENOSPC, errno.EDQUOT)
        if getattr(error, "errno", None) in full or any(os.strerror(code) in str(error) for code in full):
            problem = "its disk is full; free some space or choose another path"
        elif isinstance(error, OSError):
            problem = f"{error.strerror or error}; choose another path"
        else:
            raise
        raise StoreError(f"{path} cannot be written: {problem}") from error


def as_float32(values: Any, name: str) -> np.ndarray:
    """Converts numbers to float32; raises a ValueError if they are not numbers, or not finite in that type."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers, got {array.dtype}")
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32)
    if (bad := ~np.isfinite(converted)).any():
        raise ValueError(f"{name} must be finite numbers of float32, got {array[bad][0]}")
    return converted


def _as_observations(observations: np.ndarray) -> np.ndarray:
    if observations.dtype.kind not in "biu" and (bad := ~np.isfinite(observations)).any():
        raise ValueError(f"observations must be finite numbers, got {observations[bad][0]}")
    return observations


def _as_actions(actions: np.ndarray, num_actions: int | None) -> np.ndarray:
    if num_actions is None:
        return as_float32(actions, "continuous actions")
    if not np.issubdtype(actions.dtype, np.integer):
        raise ValueError(f"discrete actions must be integers, got {actions.dtype}")
    if actions.size and not 0 <= actions.min() <= actions.max() < num_actions:
        raise ValueError(f"actions must lie in [0, {num_actions}), got {actions.min()} to {actions.max()}")
    return actions.astype(np.int32)


def _episode_entry(level_seed: Any, ending: str, split: str | None) -> dict[str, Any]:
    """The manifest's entry for an episode without its frames; raises a ValueError that says what does not fit."""
    if ending not in ENDINGS:
        raise ValueError(f"ending must be one of {ENDINGS}, got {ending!r}")
    if split is None and level_seed is None:
        raise ValueError("an episode without a level seed needs a split")
    if level_seed is not None:
        is_integer = isinstance(level_seed, int | np.integer) and not isinstance(level_seed, bool)
        if not is_integer or not 0 <= level_seed < 2**63:
            raise ValueError(f"level_seed must be an integer in [0, 2^63), got {level_seed!r}")
    split = split_of_level(level_seed) if split is None else split
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    return {"level_seed": -1 if level_seed is None else int(level_seed), "ending": str(ending), "split": str(split)}


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
