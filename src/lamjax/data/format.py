"""The format of a trajectory store: what its writer and its reader share.

A store holds N frames of E episodes, laid end to end in time order:

    manifest.json   what the store is: environment, policy, episodes, a digest of every file
    observations/   [N, *obs_shape], in zarr 3 chunks of 512 frames (zstd level 1, crc32c)
    is_first/       bool [N], True at the first frame of each episode
    actions/        int32 [N], or float32 [N, A], the action at each observation
    rewards/        float32 [N], the reward of that action
    distractor/     float32 [N, D], the distractor's state in each frame; only in recordings with a distractor

zarr reads a missing chunk as zeros, and a checksum inside a chunk cannot tell that two chunks
were swapped. So the manifest lists every file with its size and SHA-256 digest, and itself
carries one; whatever does not match is a `StoreError` that names the file.

Learning latent actions must not see actions. `lamjax.data.reader` has no access to them: labels come from
`lamjax.data.labels`, which counts them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

FORMAT = "lamjax-trajectories"
VERSIONS = (1, 2)  # 2 adds the array of a distractor; stores without one are still written as 1
ENDINGS = ("terminated", "truncated", "cut")  # cut: the recording stopped, not the episode
SPLITS = ("train", "test")
MANIFEST = "manifest.json"
METADATA = "zarr.json"  # of each array

Split = Literal["train", "test", "all"]


class StoreError(ValueError):
    """A store is missing, damaged, foreign or cannot be written; one sentence with the remedy."""


@dataclasses.dataclass(frozen=True)
class Episodes:
    """One entry per episode, in the order of the store.

    Attributes:
        level_seed: int64 [E], -1 where the source does not say.
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


def chunk_file(name: str, chunk: int, rank: int) -> str:
    """The file of a chunk, relative to the store: "observations/c.3.0" of an array of rank 2."""
    return f"{name}/c." + ".".join([str(chunk)] + ["0"] * (rank - 1))


def to_json(value: Any) -> str:
    """The one way in which a value is written, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def digest(content: bytes) -> str:
    """The SHA-256 digest of a file's content, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def manifest_digest(manifest: Mapping) -> str:
    """Digest of everything in the manifest but the digest itself."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return digest(to_json(content).encode())
