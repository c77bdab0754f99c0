"""Trajectories on disk, windows of frames, and buffers on the device."""

from lamjax.data.format import Episodes, StoreError, split_of_level
from lamjax.data.labels import LabelledSubset, evaluation_actions, evaluation_distractor
from lamjax.data.reader import Store, open_store, split_mask
from lamjax.data.stream import (
    Buffer,
    EvaluationWindows,
    Labels,
    ObservationStream,
    StreamBesidePlay,
    gather,
    sample,
    sample_labelled,
    sample_starts,
    sample_with_play,
    shard_episodes,
    upload_labels,
)
from lamjax.data.windows import epoch_positions, permute, valid_starts
from lamjax.data.writer import StoreWriter

__all__ = [
    "Buffer",
    "Episodes",
    "EvaluationWindows",
    "LabelledSubset",
    "Labels",
    "ObservationStream",
    "Store",
    "StoreError",
    "StoreWriter",
    "StreamBesidePlay",
    "epoch_positions",
    "evaluation_actions",
    "evaluation_distractor",
    "gather",
    "open_store",
    "permute",
    "sample",
    "sample_labelled",
    "sample_starts",
    "sample_with_play",
    "shard_episodes",
    "split_mask",
    "split_of_level",
    "upload_labels",
    "valid_starts",
]
