"""Trajectories on disk, windows of frames, and buffers on the device."""

from lamjax.data.store import (
    Episodes,
    LabelledSubset,
    Store,
    StoreError,
    StoreWriter,
    evaluation_actions,
    open_store,
    split_mask,
    split_of_level,
)
from lamjax.data.stream import (
    Buffer,
    EvaluationWindows,
    ObservationStream,
    gather,
    sample,
    sample_starts,
    shard_episodes,
)
from lamjax.data.windows import epoch_positions, permute, valid_starts

__all__ = [
    "Buffer",
    "Episodes",
    "EvaluationWindows",
    "LabelledSubset",
    "ObservationStream",
    "Store",
    "StoreError",
    "StoreWriter",
    "epoch_positions",
    "evaluation_actions",
    "gather",
    "open_store",
    "permute",
    "sample",
    "sample_starts",
    "shard_episodes",
    "split_mask",
    "split_of_level",
    "valid_starts",
]
