"""The trajectory store: observations without actions, in a folder that can be trusted.

A store holds N frames of E episodes, laid end to end in time order:

    manifest.json   what the store is: environment, policy, episodes, a digest of every file
    observations/   [N, *obs_shape], in zarr 3 chunks of 512 frames (zstd level 1, crc32c)
    is_first/       bool [N], True at the first frame of each episode
    actions/        int32 [N], or float32 [N, A]: the action taken at each observation
    rewards/        float32 [N], the reward of that action
    distractor/     float32 [N, D], what each frame shows of a distractor; only in recordings under one

zarr reads a missing chunk as zeros, and a checksum inside a chunk cannot tell that two chunks
were swapped. So the manifest lists every file with its size and SHA-256 digest, and itself
carries one; whatever does not match is a `StoreError` that names the file.

Learning latent actions must not see actions. `Store` has no access to them: labels come from
`LabelledSubset`, which counts them, and probes use `evaluation_actions` and `evaluation_distractor`.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorstore

from lamjax.data import windows
from lamjax.spaces import ActionSpace, Box, Discrete

FORMAT = "lamjax-trajectories"
VERSIONS = (1, 2)  # 2 adds the array of a distractor; stores without one are still written as 1
ENDINGS = ("terminated", "truncated", "cut")  # cut: the recording stopped, not the episode
SPLITS = ("train", "test")

Split = Literal["train", "test", "all"]

_MANIFEST = "manifest.json"
_JOURNAL = "journal.json"  # of a store that is still being written
_METADATA = "zarr.json"
_SCALARS_PER_CHUNK = 65536  # of is_first, actions, rewards: 512 would make thousands of tiny files
_WRITES_IN_FLIGHT = 3
_UNBOUNDED = 2**40  # length of an array while it is written; cut to size at the end
_RESTORE = "restore it from a copy or record the store again"


class StoreError(ValueError):
    """A store is missing, damaged, foreign or cannot be written; one sentence with the remedy."""


@dataclasses.dataclass(frozen=True)
class Episodes:
    """One entry per episode, in the order of the store.

    Attributes:
        level_seed: int64 [E], -1 where the source does not tell.
        start: int64 [E], index of the first frame.
        length: int64 [E], frames.
        returns: float64 [E], undiscounted sum of rewards.
        ending: str [E], one of `ENDINGS`.
        split: str [E], one of `SPLITS`.
    """

    level_seed: np.ndarray
    start: np.ndarray
    length: np.ndarray
    returns: np.ndarray
    ending: np.ndarray
    split: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


def split_of_level(level_seed: int) -> str:
    """Returns "test" for a tenth of all level seeds and "train" for the rest, for ever the same."""
    digest = hashlib.sha256(b"lamjax level %d" % int(level_seed)).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"


def split_mask(episodes: Episodes, split: Split) -> np.ndarray:
    """The episodes of a split as a mask, bool [E]; "all" selects every episode."""
    if split == "all":
        return np.ones(len(episodes), bool)
    if split not in SPLITS:
        raise ValueError(f"split must be one of {(*SPLITS, 'all')}, got {split!r}")
    return episodes.split == split


# Writing


class StoreWriter:
    """Writes a store, episode by episode, in constant memory.

    with StoreWriter(path, env="coinrun", obs_shape=(64, 64, 3), num_actions=15) as writer:
        writer.append_episode(observations, actions, rewards, level_seed=7, ending="terminated")

    The store is built in a hidden folder beside `path` and renamed when it is complete and on
    disk, so there is never half a store at `path`. An exception removes the hidden folder; what
    a killed process left behind is removed by the next writer to the same path.

    A resumable writer keeps the hidden folder, and the next resumable writer of a store of the
    same description goes on from its last `checkpoint`.

    Args:
        path: folder to create; it must not exist.
        env: name of the environment.
        obs_shape: shape of one observation.
        obs_dtype: dtype of the observations.
        num_actions: number of discrete actions; None for continuous ones.
        action_dim: length A of a continuous action; exactly one of the two is given.
        action_bounds: the least and the largest continuous action, A finite numbers each; None where
            the source does not tell.
        distractor_dim: numbers D that tell a distractor's state; None where nothing distracts.
        env_params: what defines the environment beside its name; anything JSON can hold.
        policy: what chose the actions; anything JSON can hold.
        frames_per_chunk: observations in a chunk, the unit of compression and of digests.
        resumable: keep what was written when the writing is interrupted.

    Attributes:
        num_frames: frames so far.
        num_episodes: episodes so far.
        position: what the last `checkpoint` said, None where there was none.

    Raises:
        StoreError: the path exists or cannot be written, another process is writing to it, or the
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
        frames_per_chunk: int = 512,
        resumable: bool = False,
    ):
        if (num_actions is None) == (action_dim is None):
            raise ValueError("give num_actions for discrete or action_dim for continuous actions")
        if action_bounds is not None and Box(*map(tuple, action_bounds)).shape != (action_dim,):
            raise ValueError(f"action_bounds must be two of action_dim ({action_dim}) numbers, got {action_bounds}")
        self.path = Path(path).absolute()
        self.num_frames = 0
        self.position: Any = None
        self._resumable = resumable
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._frames_per_chunk = frames_per_chunk
        self._interrupted = False
        self._arrays = {}
        self._episodes = {field.name: [] for field in dataclasses.fields(Episodes)}
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
        _to_json(self._header)  # what JSON cannot hold fails here, not after hours of recording

    def __enter__(self) -> "StoreWriter":
        if os.path.lexists(self.path):
            raise StoreError(f"{self.path} already exists; remove it or choose another path")
        with _explained_errors(self.path):
            self._lock = _claim(self._partial)
            try:
                journal = self._read_journal() if self._resumable else None
                if journal is None:
                    _empty(self._partial)
                for name, (shape, dtype) in _layout(self._header).items():
                    rows = self._frames_per_chunk if name == "observations" else _SCALARS_PER_CHUNK
                    written = journal and journal["arrays"][name]
                    self._arrays[name] = _ArrayWriter(self._partial, name, shape, dtype, rows, written)
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
            position: where the source stands, anything JSON can hold; `position` of the writer that
                goes on.

        Raises:
            StoreError: the disk is full.
        """
        if not self._resumable:
            raise ValueError("only a resumable writer has checkpoints")
        with _explained_errors(self.path):
            journal = {
                "header": self._header,
                "frames_per_chunk": self._frames_per_chunk,
                "position": position,
                "episodes": self._episodes,
                "arrays": {name: array.suspend() for name, array in self._arrays.items()},
            }
            journal["sha256"] = _manifest_digest(journal)
            partial = self._partial / f"{_JOURNAL}.partial"
            with open(partial, "w", encoding="utf-8") as file:
                file.write(_to_json(journal))
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self._partial / _JOURNAL)
        self.position = position

    def _read_journal(self) -> dict[str, Any] | None:
        """The journal of an interrupted writer, or None if it is of another store, or damaged."""
        try:
            journal = json.loads((self._partial / _JOURNAL).read_text(encoding="utf-8"))
            header = json.loads(_to_json(self._header))
            expected = (header, self._frames_per_chunk, _manifest_digest(journal))
            if (journal["header"], journal["frames_per_chunk"], journal["sha256"]) != expected:
                return None
            for array in journal["arrays"].values():
                for file, (size, _) in array["files"].items():
                    if (self._partial / file).stat().st_size != size:
                        return None
        except (OSError, ValueError, KeyError, TypeError):
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
            observations: [T, *obs_shape] of the store's dtype.
            actions: integers [T] in [0, num_actions), or finite floats [T, action_dim]; the action
                taken at each observation.
            rewards: [T], the reward of each action.
            level_seed: decides the split; None where the source does not tell.
            ending: "terminated", "truncated", or "cut" where only the recording stopped.
            split: "train" or "test" where the source says so itself; needed without a level seed.
            distractor: [T, distractor_dim], given exactly if the store has that array.

        Raises:
            ValueError: an array's shape, dtype or range, or another argument, does not fit.
            StoreError: the disk is full.
        """
        if not self._arrays:
            raise ValueError("use StoreWriter in a with statement; episodes are written inside it")
        if ending not in ENDINGS:
            raise ValueError(f"ending must be one of {ENDINGS}, got {ending!r}")
        if split is None and level_seed is None:
            raise ValueError("an episode without a level seed needs a split")
        split = split_of_level(level_seed) if split is None else split
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        length = len(observations)
        if length == 0:
            raise ValueError("an episode needs at least 1 frame")
        rows = {
            "observations": np.asarray(observations),
            "is_first": np.arange(length) == 0,
            "actions": _as_actions(np.asarray(actions), self._header["num_actions"]),
            "rewards": np.asarray(rewards, np.float32),
        }
        if (distractor is None) == ("distractor_dim" in self._header):
            raise ValueError("give an episode's distractor exactly if the store has a distractor_dim")
        if distractor is not None:
            rows["distractor"] = np.asarray(distractor, np.float32)
        for name, (shape, dtype) in _layout(self._header).items():
            if rows[name].shape != (length, *shape) or rows[name].dtype != dtype:
                raise ValueError(
                    f"{name} must be {dtype} {(length, *shape)}, got {rows[name].dtype} {rows[name].shape}"
                )
        self._interrupted = True
        with _explained_errors(self.path):
            for name, array in self._arrays.items():
                array.append(rows[name])
        self._interrupted = False
        entry = {
            "level_seed": -1 if level_seed is None else int(level_seed),
            "start": self.num_frames,
            "length": length,
            "returns": float(np.sum(rows["rewards"], dtype=np.float64)),
            "ending": ending,
            "split": split,
        }
        for name, value in entry.items():
            self._episodes[name].append(value)
        self.num_frames += length

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
        if self._interrupted:
            raise StoreError(f"an episode was cut off, so {self.path} was not written; record the store again")
        if not self.num_frames:
            raise StoreError(f"{self.path} would hold no frames, so it was not written; append an episode")
        files = {}
        for array in self._arrays.values():
            files |= array.close()
        manifest = self._header | {
            "created_by": f"lamjax {_lamjax_version()}",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "num_frames": self.num_frames,
            "episodes": self._episodes,
            "files": files,
        }
        with open(self._partial / _MANIFEST, "w", encoding="utf-8") as file:
            manifest["sha256"] = _manifest_digest(manifest)
            lines = (f"{_to_json(key)}: {_to_json(value)}" for key, value in manifest.items())
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


class _ArrayWriter:
    """Appends rows to one zarr array, a chunk at a time, and keeps the digest of each chunk.

    It goes on from what `suspend` of an earlier writer gave as `written`, if anything.
    """

    def __init__(self, root: Path, name: str, row_shape, dtype, rows_per_chunk: int, written: Mapping | None = None):
        self._root = root
        self._name = name
        self._buffer = np.empty((rows_per_chunk, *row_shape), dtype)
        self._filled = 0
        self._chunk = 0
        self._in_flight = collections.deque()
        self._files = {}
        chunk_shape = [rows_per_chunk, *row_shape]
        self._array = tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(root / name)},
                "store_data_equal_to_fill_value": True,  # else a black chunk is a missing file
                "metadata": {
                    "shape": [_UNBOUNDED, *row_shape],
                    "data_type": np.dtype(dtype).name,
                    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
                    # "c.7.0.0.0": one flat folder of chunks.
                    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                    "codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {"name": "zstd", "configuration": {"level": 1}},
                        {"name": "crc32c"},
                    ],
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
        """Writes everything, an unfinished chunk too; returns what it takes to go on."""
        while self._in_flight:
            self._await_oldest()
        if self._filled:
            start = self._chunk * len(self._buffer)
            self._array[start : start + self._filled].write(self._buffer[: self._filled]).result()
        return {"chunk": self._chunk, "filled": self._filled, "files": dict(self._files)}

    def append(self, rows: np.ndarray) -> None:
        while len(rows):
            taken = min(len(rows), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + taken] = rows[:taken]
            self._filled += taken
            rows = rows[taken:]
            if self._filled == len(self._buffer):
                self._flush()

    def close(self) -> dict[str, list]:
        """Writes the rest; returns {file: [bytes, sha256]} of the whole array."""
        num_rows = self._chunk * len(self._buffer) + self._filled
        if self._filled:
            self._flush()
        while self._in_flight:
            self._await_oldest()
        inner = [None] * (self._buffer.ndim - 1)
        self._array.resize(exclusive_max=[num_rows, *inner], resize_metadata_only=True).result()
        self._add_digest(f"{self._name}/{_METADATA}")
        return self._files

    def abandon(self) -> None:
        """Waits for what is being written, whatever comes of it: its folder could not be removed before."""
        for _, write in self._in_flight:
            with contextlib.suppress(ValueError, OSError):
                write.result()
        self._in_flight.clear()

    def _flush(self) -> None:
        start = self._chunk * len(self._buffer)
        write = self._array[start : start + self._filled].write(self._buffer[: self._filled])
        self._in_flight.append((self._chunk, write))
        self._buffer = np.empty_like(self._buffer)  # the write in flight owns the old one
        self._chunk += 1
        self._filled = 0
        if len(self._in_flight) > _WRITES_IN_FLIGHT:
            self._await_oldest()

    def _await_oldest(self) -> None:
        chunk, write = self._in_flight.popleft()
        write.result()
        self._add_digest(_chunk_file(self._name, chunk, self._buffer.ndim))

    def _add_digest(self, file: str) -> None:
        data = (self._root / file).read_bytes()
        self._files[file] = [len(data), hashlib.sha256(data).hexdigest()]


def _claim(folder: Path) -> int:
    """Creates a folder that this process alone owns; returns the descriptor of its lock.

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
            pass  # a file system without locks: keeping writers apart is left to the user
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
    """Turns what the system, or tensorstore for it, says about the disk into one sentence."""
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


def _as_actions(actions: np.ndarray, num_actions: int | None) -> np.ndarray:
    if num_actions is None:
        if not np.isfinite(actions).all():
            raise ValueError("continuous actions must be finite numbers")
        return actions.astype(np.float32)
    if not np.issubdtype(actions.dtype, np.integer):
        raise ValueError(f"discrete actions must be integers, got {actions.dtype}")
    if actions.size and not 0 <= actions.min() <= actions.max() < num_actions:
        raise ValueError(f"actions must lie in [0, {num_actions}), got {actions.min()} to {actions.max()}")
    return actions.astype(np.int32)


def _layout(manifest: Mapping) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Row shape and dtype of each array."""
    discrete = manifest["action_dim"] is None
    dim = manifest.get("distractor_dim")
    return {
        "observations": (tuple(manifest["obs_shape"]), np.dtype(manifest["obs_dtype"])),
        "is_first": ((), np.dtype(bool)),
        "actions": (((), np.dtype(np.int32)) if discrete else ((manifest["action_dim"],), np.dtype(np.float32))),
        "rewards": ((), np.dtype(np.float32)),
    } | ({"distractor": ((dim,), np.dtype(np.float32))} if dim else {})


def _chunk_file(name: str, chunk: int, rank: int) -> str:
    return f"{name}/c." + ".".join([str(chunk)] + ["0"] * (rank - 1))


def _to_json(value) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _manifest_digest(manifest: Mapping) -> str:
    """Digest of everything in the manifest but the digest itself."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(_to_json(content).encode()).hexdigest()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lamjax_version() -> str:
    try:
        return importlib.metadata.version("lamjax")
    except importlib.metadata.PackageNotFoundError:
        return "from source"


# Reading


def open_store(path: str | os.PathLike, verify: bool = True) -> "Store":
    """Opens a store; checks its manifest, and that exactly the files it lists are there.

    Args:
        path: the folder.
        verify: also compare the SHA-256 digest of each chunk whenever it is read. Without it a
            cut or flipped chunk is still refused, but a swapped one is not.

    Raises:
        StoreError: the folder is not a store, is of another version, or is damaged.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    _check_files(path, manifest)
    return Store(path, manifest, verify)


class Store:
    """A trajectory store open for reading; made by `open_store`. It cannot read actions.

    Attributes:
        path: the folder.
        manifest: everything the manifest says, as plain JSON values.
        env, env_params, policy: where the trajectories come from.
        num_frames: N.
        obs_shape, obs_dtype: of one observation.
        num_actions: number of discrete actions, None for continuous ones.
        action_dim: length of a continuous action, None for discrete ones.
        action_space: `Discrete`, or `Box`; None for continuous actions whose bounds are not told.
        distractor_dim: numbers that tell a distractor's state, 0 where there are none.
        episodes: `Episodes`.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], verify: bool = True):
        self.path = path
        self.manifest = manifest
        self.verify = verify
        self.env: str = manifest["env"]
        self.env_params: dict = manifest["env_params"]
        self.policy: dict = manifest["policy"]
        self.num_frames: int = manifest["num_frames"]
        self.obs_shape = tuple(manifest["obs_shape"])
        self.obs_dtype = np.dtype(manifest["obs_dtype"])
        self.num_actions: int | None = manifest["num_actions"]
        self.action_dim: int | None = manifest["action_dim"]
        self.action_space: ActionSpace | None = None
        if self.num_actions is not None:
            self.action_space = Discrete(self.num_actions)
        elif "action_bounds" in manifest:
            self.action_space = Box(*map(tuple, manifest["action_bounds"]))
        self.distractor_dim: int = manifest.get("distractor_dim", 0)
        columns = manifest["episodes"]
        self.episodes = Episodes(
            level_seed=np.asarray(columns["level_seed"], np.int64),
            start=np.asarray(columns["start"], np.int64),
            length=np.asarray(columns["length"], np.int64),
            returns=np.asarray(columns["returns"], np.float64),
            ending=np.asarray(columns["ending"], np.str_),
            split=np.asarray(columns["split"], np.str_),
        )
        self._observations = _ArrayReader(path, "observations", manifest, verify)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, env={self.env!r}, {self.num_frames} frames, {len(self.episodes)} episodes)"

    @functools.cached_property
    def is_first(self) -> np.ndarray:
        """True at the first frame of each episode, bool [N]."""
        reader = _ArrayReader(self.path, "is_first", self.manifest, self.verify)
        return reader.take(np.arange(self.num_frames))

    def observations(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames start .. stop-1 as [stop - start, *obs_shape]; chunks are read in parallel."""
        stop = self.num_frames if stop is None else stop
        if not 0 <= start <= stop <= self.num_frames:
            raise IndexError(f"frames {start} to {stop} are not in [0, {self.num_frames}]")
        return self._observations.take(np.arange(start, stop))

    def observations_at(self, frames: np.ndarray) -> np.ndarray:
        """Frames at any indices [...], as [..., *obs_shape]; each chunk is read once."""
        return self._observations.take(frames)

    def windows(self, starts: np.ndarray, length: int = 3) -> np.ndarray:
        """The windows [B, length, *obs_shape] that start at frames [B]."""
        return self.observations_at(np.asarray(starts)[:, None] + np.arange(length)[None, :])

    def starts(self, split: Split, length: int = 3, mask_boundaries: bool = True) -> np.ndarray:
        """The valid window starts of a split, int32 [S]; see `lamjax.data.valid_starts`."""
        in_split = np.repeat(split_mask(self.episodes, split), self.episodes.length)
        return windows.valid_starts(self.is_first, in_split=in_split, length=length, mask_boundaries=mask_boundaries)


class _ArrayReader:
    """Reads rows of one zarr array; every file is checked against the manifest."""

    def __init__(self, root: Path, name: str, manifest: Mapping, verify: bool):
        self._root = root
        self._name = name
        self._files = manifest["files"]
        self._verify = verify
        file = f"{name}/{_METADATA}"
        self._check_digest(file)
        try:
            self._array = tensorstore.open(
                {
                    "driver": "zarr3",
                    "kvstore": {"driver": "file", "path": str(root / name)},
                    "fill_missing_data_reads": False,
                },
                open=True,
                read=True,
            ).result()
        except ValueError as error:
            raise StoreError(f"{_described(root, file)} cannot be read; {_RESTORE}") from error
        shape, dtype = _layout(manifest)[name]
        if self._array.shape != (manifest["num_frames"], *shape) or (self._array.dtype.numpy_dtype != dtype):
            raise StoreError(f"{root / name} does not hold what the manifest says; {_RESTORE}")
        self._rows_per_chunk = self._array.chunk_layout.read_chunk.shape[0]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows at indices [...], as [..., *row_shape]; threads each read whole chunks."""
        rows = np.asarray(rows)
        num_rows, *row_shape = self._array.shape
        flat = rows.reshape(-1).astype(np.int64)
        if flat.size and not 0 <= flat.min() <= flat.max() < num_rows:
            raise IndexError(f"frames {flat.min()} to {flat.max()} are not in [0, {num_rows})")
        taken = np.empty((flat.size, *row_shape), self._array.dtype.numpy_dtype)
        chunk_of = flat // self._rows_per_chunk
        by_chunk = np.argsort(chunk_of, kind="stable")
        chunks, counts = np.unique(chunk_of, return_counts=True)

        def read(chunk, where):
            taken[where] = self._read_chunk(chunk)[flat[where] - chunk * self._rows_per_chunk]

        groups = np.split(by_chunk, np.cumsum(counts)[:-1]) if flat.size else []
        with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
            list(pool.map(read, chunks.tolist(), groups))  # list: raises what a thread raised
        return taken.reshape(*rows.shape, *row_shape)

    def _read_chunk(self, chunk: int) -> np.ndarray:
        file = _chunk_file(self._name, chunk, self._array.rank)
        if self._verify:
            self._check_digest(file)
        start = chunk * self._rows_per_chunk
        stop = min(start + self._rows_per_chunk, self._array.shape[0])
        try:
            return self._array[start:stop].read().result()
        except (OSError, ValueError) as error:
            raise StoreError(f"{_described(self._root, file)} is missing or damaged; {_RESTORE}") from error

    def _check_digest(self, file: str) -> None:
        try:
            digest = hashlib.sha256((self._root / file).read_bytes()).hexdigest()
        except OSError as error:
            raise StoreError(f"{_described(self._root, file)} cannot be read; {_RESTORE}") from error
        if digest != self._files[file][1]:
            raise StoreError(f"{_described(self._root, file)} is not what was written; {_RESTORE}")


def _described(root: Path, file: str) -> str:
    """A file of an array in words: "chunk 3 of observations (/stores/a/observations/c.3.0)"."""
    array, name = file.split("/")
    part = "the metadata" if name == _METADATA else f"chunk {name.split('.')[1]}"
    return f"{part} of {array} ({root / file})"


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / _MANIFEST
    if not path.is_dir():
        raise StoreError(f"there is no trajectory store at {path}; record one or check the path")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is not a trajectory store, it has no {_MANIFEST}; check the path") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} cannot be read; {_RESTORE}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{file} is not of a lamjax trajectory store; check the path")
    if manifest.get("version") not in VERSIONS:
        raise StoreError(
            f"{path} has format version {manifest.get('version')} but this lamjax reads versions "
            f"{' and '.join(map(str, VERSIONS))}; read it with {manifest.get('created_by')} or record the store again"
        )
    if manifest.get("sha256") != _manifest_digest(manifest):
        raise StoreError(f"{file} is not what was written; {_RESTORE}")
    return manifest


def _check_files(path: Path, manifest: Mapping) -> None:
    """Every listed file is there with its size, and no other file lies beside it."""
    found = {}
    for name in _layout(manifest):
        with contextlib.suppress(FileNotFoundError), os.scandir(path / name) as entries:
            for entry in entries:
                if not entry.name.startswith("."):  # what desktops and NFS leave behind
                    found[f"{name}/{entry.name}"] = entry.stat().st_size
    for file, (size, _) in manifest["files"].items():
        if file not in found:
            raise StoreError(f"{_described(path, file)} is missing; {_RESTORE}")
        if found[file] != size:
            raise StoreError(f"{_described(path, file)} has {found[file]} bytes instead of {size}; {_RESTORE}")
    foreign = sorted(found.keys() - manifest["files"].keys())
    if foreign:
        raise StoreError(f"{path / foreign[0]} does not belong to this store; remove it")


# Labels


class LabelledSubset:
    """The few transitions whose actions a decoder may see; counts the labels it hands out.

    Windows are drawn uniformly without replacement from the valid starts of a split. Draws are
    nested: with the same seed, n = 16 gives the first 16 of n = 32.

    Args:
        store: where from.
        n: number of labelled windows.
        seed: of the draw.
        split: "train", "test" or "all".
        length: frames in a window; the label belongs to the last frame but one.

    Attributes:
        starts: int32 [n], first frames of the windows, in the order of the draw.
        labels_used: how many labels were handed out so far, 0 or n.

    Raises:
        StoreError: the split has fewer than n windows.
    """

    def __init__(self, store: Store, n: int, seed: int = 0, split: Split = "train", length: int = 3):
        starts = store.starts(split, length)
        if not 1 <= n <= len(starts):
            raise StoreError(
                f"cannot draw {n} labelled windows: the {split} split of {store.path} has "
                f"{len(starts)}; ask for fewer or record more"
            )
        self.store = store
        self.length = length
        self.starts = np.random.default_rng(seed).permutation(starts)[:n]
        self.labels_used = 0

    @functools.cached_property
    def actions(self) -> np.ndarray:
        """The action a_t at the middle frame o_t of each window, int32 [n] or float32 [n, A]."""
        self.labels_used = len(self.starts)
        return evaluation_actions(self.store, self.starts, self.length)

    def windows(self) -> np.ndarray:
        """The windows' observations, [n, length, *obs_shape]."""
        return self.store.windows(self.starts, self.length)


def evaluation_actions(store: Store, starts: np.ndarray, length: int = 3) -> np.ndarray:
    """True actions of any windows, for probes and metrics only: nothing may be trained on them.

    Args:
        store: where from.
        starts: integers [B], first frames of windows.
        length: frames in a window.

    Returns:
        int32 [B] or float32 [B, A], the action taken at the last frame but one of each window:
        the one that a latent inferred from `[o_{t-1}, o_t, o_{t+1}]` should describe.
    """
    reader = _ArrayReader(store.path, "actions", store.manifest, store.verify)
    return reader.take(np.asarray(starts) + length - 2)


def evaluation_distractor(store: Store, starts: np.ndarray, length: int = 3) -> np.ndarray:
    """What a distractor looked like in any windows, for probes alone; D = 0 where the store tells of none.

    Args:
        store: where from.
        starts: integers [B], first frames of windows.
        length: frames in a window.

    Returns:
        float32 [B, 2, D], at the last frame but one and at the last of each window.
    """
    last = np.asarray(starts)[:, None] + np.arange(length - 2, length)[None, :]
    if not store.distractor_dim:
        return np.zeros((*last.shape, 0), np.float32)
    return _ArrayReader(store.path, "distractor", store.manifest, store.verify).take(last)
