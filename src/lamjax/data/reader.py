"""Reads a trajectory store: observations and where episodes begin, never actions."""

import concurrent.futures
import contextlib
import functools
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorstore

from lamjax.data import windows
from lamjax.data.format import (
    CODECS,
    FORMAT,
    MANIFEST,
    MAX_CHUNK_BYTES,
    METADATA,
    SPLITS,
    VERSIONS,
    ZSTD_RATIO,
    Episodes,
    Split,
    StoreError,
    check_manifest,
    check_path,
    chunk_file,
    digest,
    layout,
    manifest_digest,
)
from lamjax.spaces import ActionSpace, Box, Discrete

_REMEDY = "restore it from a copy or record the store again"


def split_mask(episodes: Episodes, split: Split) -> np.ndarray:
    """The episodes of a split as a mask, bool [E]; "all" selects every episode."""
    if split == "all":
        return np.ones(len(episodes), bool)
    if split not in SPLITS:
        raise ValueError(f"split must be one of {(*SPLITS, 'all')}, got {split!r}")
    return episodes.split == split


def open_store(path: str | os.PathLike, verify: bool = True) -> "Store":
    """Opens a store; checks its manifest, and that the store has exactly the files that the manifest lists.

    Args:
        path: the folder.
        verify: also compares the SHA-256 digest of each chunk whenever it is read. Without this a cut or flipped chunk
            is still refused, but a swapped one is not.

    Raises:
        StoreError: the folder is not a store, has another format version, or is damaged.
    """
    path = check_path(Path(path))
    manifest = _read_manifest(path)
    _check_files(path, manifest)
    return Store(path, manifest, verify)


class Store:
    """A trajectory store open for reading, as `open_store` returns it. It cannot read actions.

    Attributes:
        path: the folder.
        manifest: the whole manifest, as plain JSON values.
        env, env_params, policy: where the trajectories come from.
        num_frames: N.
        obs_shape, obs_dtype: shape and dtype of one observation.
        num_actions: number of discrete actions, None for continuous ones.
        action_dim: length of a continuous action, None for discrete ones.
        action_space: `Discrete`, or `Box`; None for continuous actions without bounds in the manifest.
        distractor_dim: length of a distractor's state, 0 without a distractor.
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
        self.episodes = Episodes.of(manifest["episodes"])
        self._observations = ArrayReader(path, "observations", manifest, verify)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, env={self.env!r}, {self.num_frames} frames, {len(self.episodes)} episodes)"

    @property
    def has_actions(self) -> bool:
        """Whether its actions are usable: there are at least two, or continuous ones have bounds."""
        return self.action_space not in (None, Discrete(1))

    @functools.cached_property
    def is_first(self) -> np.ndarray:
        """True at the first frame of each episode, bool [N]."""
        reader = ArrayReader(self.path, "is_first", self.manifest, self.verify)
        return reader.take(np.arange(self.num_frames))

    def observations(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames start .. stop-1 as [stop - start, *obs_shape]; reads chunks in parallel."""
        stop = self.num_frames if stop is None else stop
        if not 0 <= start <= stop <= self.num_frames:
            raise IndexError(f"frames {start} to {stop} are not in [0, {self.num_frames}]")
        return self._observations.take(np.arange(start, stop))

    def observations_at(self, frames: np.ndarray) -> np.ndarray:
        """Frames at any indices [...], as [..., *obs_shape]; reads each chunk once."""
        return self._observations.take(frames)

    def windows(self, starts: np.ndarray, length: int = 3) -> np.ndarray:
        """The windows [B, length, *obs_shape] that start at frames [B]."""
        return self.observations_at(np.asarray(starts)[:, None] + np.arange(length)[None, :])

    def starts(self, split: Split, length: int = 3, mask_boundaries: bool = True) -> np.ndarray:
        """The valid window starts of a split, int32 [S]; see `lamjax.data.windows.valid_starts`."""
        in_split = np.repeat(split_mask(self.episodes, split), self.episodes.length)
        return windows.valid_starts(self.is_first, in_split=in_split, length=length, mask_boundaries=mask_boundaries)


class ArrayReader:
    """Reads rows of one array of a store; checks every file against the manifest.

    Args:
        root: the store's folder.
        name: the array's name.
        manifest: the store's manifest.
        verify: also compares the digest of each chunk.

    Raises:
        StoreError: the array's metadata are damaged; later, a chunk is missing or damaged.
    """

    def __init__(self, root: Path, name: str, manifest: Mapping, verify: bool):
        self._root = root
        self._name = name
        self._files = manifest["files"]
        self._verify = verify
        file = f"{name}/{METADATA}"
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
            raise StoreError(f"{_described(root, file)} cannot be read; {_REMEDY}") from error
        shape, dtype = layout(manifest)[name]
        if self._array.shape != (manifest["num_frames"], *shape) or (self._array.dtype.numpy_dtype != dtype):
            raise StoreError(f"{root / name} does not hold what the manifest says; {_REMEDY}")
        chunks = self._array.chunk_layout
        read_chunk, write_chunk = cast(list[tuple[int, ...]], [chunks.read_chunk.shape, chunks.write_chunk.shape])
        self._rows_per_chunk = read_chunk[0]
        self._chunk_bytes = math.prod(read_chunk) * dtype.itemsize
        codecs = tuple(codec["name"] for codec in self._array.spec().to_json()["metadata"]["codecs"])
        num_chunks = -(-manifest["num_frames"] // self._rows_per_chunk)
        names = [chunk_file(name, chunk, self._array.rank) for chunk in range(min(num_chunks, len(self._files)))]
        if (
            read_chunk != write_chunk
            or read_chunk[1:] != shape
            or codecs != CODECS
            or self._chunk_bytes > MAX_CHUNK_BYTES
            or len(names) != num_chunks
            or not all(file in self._files for file in names)
        ):
            raise StoreError(f"{root / name} has other chunks than the manifest says; {_REMEDY}")
        for each in names:  # before asking for memory
            if self._chunk_bytes > ZSTD_RATIO * (size := self._files[each][0]):
                raise StoreError(
                    f"{_described(root, each)} has {size} bytes, which cannot hold the {self._chunk_bytes} that the "
                    f"metadata claim; {_REMEDY}"
                )

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows at indices [...], as [..., *row_shape]; threads read whole chunks, as many as memory allows."""
        rows = np.asarray(rows)
        num_rows, *row_shape = self._array.shape
        flat = rows.reshape(-1).astype(np.int64)
        if flat.size and not 0 <= flat.min() <= flat.max() < num_rows:
            raise IndexError(f"frames {flat.min()} to {flat.max()} are not in [0, {num_rows})")
        values = np.empty((flat.size, *row_shape), self._array.dtype.numpy_dtype)
        chunk_of = flat // self._rows_per_chunk
        by_chunk = np.argsort(chunk_of, kind="stable")
        chunks, counts = np.unique(chunk_of, return_counts=True)

        def read(chunk, where):
            values[where] = self._read_chunk(chunk)[flat[where] - chunk * self._rows_per_chunk]

        groups = np.split(by_chunk, np.cumsum(counts)[:-1]) if flat.size else []
        together = max(1, min(os.cpu_count() or 1, 16, MAX_CHUNK_BYTES // self._chunk_bytes))
        with concurrent.futures.ThreadPoolExecutor(together) as pool:
            list(pool.map(read, chunks.tolist(), groups))  # list: raises what a thread raised
        return values.reshape(*rows.shape, *row_shape)

    def _read_chunk(self, chunk: int) -> np.ndarray:
        file = chunk_file(self._name, chunk, self._array.rank)
        if self._verify:
            self._check_digest(file)
        start = chunk * self._rows_per_chunk
        stop = min(start + self._rows_per_chunk, self._array.shape[0])
        try:
            return self._array[start:stop].read().result()
        except (OSError, ValueError) as error:
            raise StoreError(f"{_described(self._root, file)} is missing or damaged; {_REMEDY}") from error

    def _check_digest(self, file: str) -> None:
        try:
            content = (self._root / file).read_bytes()
        except OSError as error:
            raise StoreError(f"{_described(self._root, file)} cannot be read; {_REMEDY}") from error
        if file not in self._files or digest(content) != self._files[file][1]:
            raise StoreError(f"{_described(self._root, file)} is not what was written; {_REMEDY}")


def _described(root: Path, file: str) -> str:
    """A file of an array in words: "chunk 3 of observations (/stores/a/observations/c.3.0)"."""
    array, name = file.split("/")
    part = "the metadata" if name == METADATA else f"chunk {name.split('.')[1]}"
    return f"{part} of {array} ({root / file})"


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not path.is_dir():
        raise StoreError(f"there is no trajectory store at {path}; record one or check the path")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is not a trajectory store, it has no {MANIFEST}; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{file} cannot be read; {_REMEDY}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{file} does not belong to a lamjax trajectory store; check the path")
    if manifest.get("version") not in VERSIONS:
        raise StoreError(
            f"{path} has format version {manifest.get('version')} but this lamjax reads versions "
            f"{' and '.join(map(str, VERSIONS))}; read it with {manifest.get('created_by')} or record the store again"
        )
    try:
        written = manifest.get("sha256") == manifest_digest(manifest)
    except ValueError:  # NaN, which the writer never writes
        written = False
    if not written:
        raise StoreError(f"{file} is not what was written; {_REMEDY}")
    try:
        check_manifest(manifest)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"{file} describes no store that can be ({error!r}); {_REMEDY}") from error
    return manifest


def _check_files(path: Path, manifest: Mapping) -> None:
    """Checks that every listed file exists with its size, and that no other file does."""
    sizes = {}
    for name in layout(manifest):
        with contextlib.suppress(FileNotFoundError), os.scandir(path / name) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_file():  # hidden files come from desktops and NFS
                    sizes[f"{name}/{entry.name}"] = entry.stat().st_size
    for file, (size, _) in manifest["files"].items():
        if not re.fullmatch(r"\w+/(zarr\.json|c(\.\d+)+)", file):
            raise StoreError(f"{path / MANIFEST} lists a file that no store has, {file!r}; {_REMEDY}")
        if file not in sizes:
            raise StoreError(f"{_described(path, file)} is missing; {_REMEDY}")
        if sizes[file] != size:
            raise StoreError(f"{_described(path, file)} has {sizes[file]} bytes instead of {size}; {_REMEDY}")
    foreign = sorted(sizes.keys() - manifest["files"].keys())
    if foreign:
        raise StoreError(f"{path / foreign[0]} does not belong to this store; remove it")
