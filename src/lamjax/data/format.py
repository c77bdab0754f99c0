"""The format of a trajectory store, which its writer and its reader share.

A store holds N frames of E episodes, laid end to end in time order:

    manifest.json   what the store is: environment, policy, episodes, a digest of every file
    observations/   [N, *obs_shape], in zarr 3 chunks of 512 frames (zstd level 1, crc32c)
    is_first/       bool [N], True at the first frame of each episode
    actions/        int32 [N], or float32 [N, A], the action at each observation
    rewards/        float32 [N], the reward of that action
    distractor/     float32 [N, D], the distractor's state in each frame; only in recordings with a distractor

zarr reads a missing chunk as zeros, and a checksum inside a chunk cannot show that two chunks were swapped. So the
manifest lists every file with its size and SHA-256 digest, and has a digest of itself; any mismatch is a `StoreError`
that names the file.

Learning latent actions must not see actions. `lamjax.data.reader` has no access to them: labels come from
`lamjax.data.labels`, which counts them.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lamjax.checks import is_utf8
from lamjax.spaces import Box

FORMAT = "lamjax-trajectories"
VERSIONS = (1, 2)  # 2 adds the array of a distractor; stores without one are still written as 1
ENDINGS = ("terminated", "truncated", "cut")  # cut: the recording stopped, not the episode
SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")
MANIFEST = "manifest.json"
METADATA = "zarr.json"  # in each array
FRAMES_PER_CHUNK = 512
SCALARS_PER_CHUNK = 65536  # of is_first, actions, rewards: 512 would make thousands of tiny files
MAX_FRAMES = 2**31 - 1  # window starts are int32
MAX_CHUNK_BYTES = 2**32  # for a chunk in memory, and for all chunks that are read at a time
CODECS = ("bytes", "zstd", "crc32c")  # of each chunk
ZSTD_RATIO = 2**15  # the most bytes that a byte of zstd can become: its blocks of 128 KiB take at least 4
_BITS = {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64)}
OBS_DTYPES = ("bool", "bfloat16", *(f"{kind}{bits}" for kind, sizes in _BITS.items() for bits in sizes))

Split = Literal["train", "test", "all"]


class StoreError(ValueError):
    """A store is missing, damaged, foreign or cannot be written; one sentence with the remedy."""


@dataclasses.dataclass(frozen=True)
class Episodes:
    """One entry per episode, in the order of the store.

    Attributes:
        level_seed: int64 [E], -1 if the source does not say.
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

    def holding(self, frames: np.ndarray) -> np.ndarray:
        """The number of the episode that holds each frame: int64 [B], from indices in the store, integers [B]."""
        return np.searchsorted(self.start, frames, side="right") - 1

    @classmethod
    def of(cls, columns: Mapping[str, Sequence]) -> "Episodes":
        """The episodes of a manifest; raises a ValueError, TypeError or OverflowError if its values are impossible."""
        integers = {name: columns[name] for name in ("level_seed", "start", "length")}
        if not all(type(value) is int for column in integers.values() for value in column):
            raise TypeError("level seeds, starts and lengths of episodes are not all integers")
        arrays = {name: np.asarray(column, np.int64) for name, column in integers.items()}
        arrays["returns"] = np.asarray(columns["returns"], np.float64)
        arrays |= {name: np.asarray(columns[name], np.str_) for name in ("ending", "split")}
        if {array.shape for array in arrays.values()} != {(len(columns["start"]),)}:
            raise ValueError("the columns of episodes are not equally long")
        return cls(**arrays)


def split_of_level(level_seed: int) -> str:
    """Returns "test" for a tenth of all level seeds and "train" for the rest, always the same."""
    hashed = hashlib.sha256(b"lamjax level %d" % int(level_seed)).digest()
    return "test" if int.from_bytes(hashed[:8], "big") % 10 == 0 else "train"


def layout(manifest: Mapping) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Row shape and dtype of each array."""
    discrete = manifest["action_dim"] is None
    dim = manifest.get("distractor_dim")
    return {
        "observations": (tuple(manifest["obs_shape"]), np.dtype(manifest["obs_dtype"])),
        "is_first": ((), np.dtype(bool)),
        "actions": (((), np.dtype(np.int32)) if discrete else ((manifest["action_dim"],), np.dtype(np.float32))),
        "rewards": ((), np.dtype(np.float32)),
    } | ({"distractor": ((dim,), np.dtype(np.float32))} if dim else {})


def check_sizes(
    obs_shape: Sequence[int],
    obs_dtype: Any,
    num_actions: int | None,
    action_dim: int | None,
    distractor_dim: int | None = None,
    frames_per_chunk: int = FRAMES_PER_CHUNK,
) -> None:
    """Raises a ValueError that says which size is impossible for a store; for the arguments see `StoreWriter`."""
    try:
        name = np.dtype(obs_dtype).name
    except TypeError as error:
        raise ValueError(f"{obs_dtype!r} is not the name of a dtype") from error
    if name not in OBS_DTYPES:
        raise ValueError(f"observations must be one of {', '.join(OBS_DTYPES)}, got {name}")
    if not all(_is_size(size) for size in obs_shape):
        raise ValueError(f"the sizes of an observation must be integers of at least 1, got {list(obs_shape)}")
    if (num_actions is None) == (action_dim is None):
        raise ValueError("give num_actions for discrete or action_dim for continuous actions")
    if num_actions is not None and not _is_size(num_actions, 2**31):
        raise ValueError(f"num_actions must be an integer from 1 to 2^31, got {num_actions}")
    for field, value in (("action_dim", action_dim), ("distractor_dim", distractor_dim)):
        if value is not None and not _is_size(value):
            raise ValueError(f"{field} must be an integer of at least 1, got {value}")
    if not _is_size(frames_per_chunk):
        raise ValueError(f"frames_per_chunk must be an integer of at least 1, got {frames_per_chunk}")
    row_bytes = math.prod(map(int, obs_shape)) * np.dtype(obs_dtype).itemsize
    for rows, size in (
        (frames_per_chunk, row_bytes),
        (SCALARS_PER_CHUNK, 4 * (action_dim or 1)),
        (SCALARS_PER_CHUNK, 4 * (distractor_dim or 1)),
    ):
        if rows * size > MAX_CHUNK_BYTES:
            raise ValueError(
                f"{rows} rows of {size} bytes, a chunk, are more than {MAX_CHUNK_BYTES} bytes: too large for a store"
            )


def _is_size(value: Any, most: int = 2**63 - 1) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 1 <= int(value) <= most


def check_description(description: Mapping) -> None:
    """Raises a ValueError, TypeError or KeyError unless the part of a manifest that describes a store is possible."""
    check_sizes(
        description["obs_shape"],
        description["obs_dtype"],
        description["num_actions"],
        description["action_dim"],
        description.get("distractor_dim"),
    )
    for key, kind in (("env", str), ("env_params", dict), ("policy", dict)):
        if not isinstance(description[key], kind):
            raise TypeError(f"{key} must be a {kind.__name__}, got {description[key]!r}")
    if "action_bounds" in description:
        low, high = map(tuple, description["action_bounds"])
        if Box(low, high).shape != (description["action_dim"],):
            raise ValueError(f"action_bounds must be two of action_dim numbers, got {description['action_bounds']}")
        if np.abs([low, high]).max() > np.finfo(np.float32).max:
            raise ValueError(f"action_bounds must be numbers of float32, got {description['action_bounds']}")


def check_manifest(manifest: Mapping) -> None:
    """Raises a ValueError, TypeError, KeyError or OverflowError unless a manifest describes a possible store."""
    check_description(manifest)
    if not isinstance(manifest["files"], dict):
        raise TypeError("files is not an object")
    for file, (size, sha256) in manifest["files"].items():
        if not isinstance(size, int) or not isinstance(sha256, str):
            raise TypeError(f"{file} has the size {size!r} and the digest {sha256!r}")
    episodes, num_frames = Episodes.of(manifest["episodes"]), manifest["num_frames"]
    ends = np.cumsum(episodes.length)
    if not _is_size(num_frames, MAX_FRAMES) or episodes.length.min() < 1 or ends[-1] != num_frames:
        raise ValueError(f"episodes of {ends[-1]} frames are not the {num_frames} frames of the store")
    if (episodes.start != ends - episodes.length).any() or (episodes.level_seed < -1).any():
        raise ValueError("episodes do not follow each other")
    if not np.isfinite(episodes.returns).all():
        raise ValueError("returns are not finite")
    if not (np.isin(episodes.ending, ENDINGS).all() and np.isin(episodes.split, SPLITS).all()):
        raise ValueError("an episode has an unknown ending or split")


def check_path(path: Path) -> Path:
    """Returns a store's path; raises a StoreError if it is not UTF-8, which tensorstore needs."""
    if not is_utf8(path.absolute()):
        raise StoreError(f"{path} is not UTF-8, as a store's path must be; choose another path")
    return path


def chunk_file(name: str, chunk: int, rank: int) -> str:
    """The file of a chunk, relative to the store: "observations/c.3.0" of an array of rank 2."""
    return f"{name}/c." + ".".join([str(chunk)] + ["0"] * (rank - 1))


def to_json(value: Any) -> str:
    """The only way in which a value is written, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def digest(content: bytes) -> str:
    """The SHA-256 digest of a file's content, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def manifest_digest(manifest: Mapping) -> str:
    """Digest of the whole manifest except the digest itself."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return digest(to_json(content).encode())
