"""The times at which frames of clips are shown, in the form in which a store's manifest keeps them.

Dimension keys: T frames of a clip, N frames of a store.
"""

from typing import Any

import numpy as np

from lamjax.data.reader import Store

_STEADY = 2e-3  # seconds by which time stamps may miss a constant rate; some files round them to milliseconds


def as_json(seconds: np.ndarray) -> Any:
    """Time stamps ``[T]`` for a manifest: their start and rate if that is constant, otherwise each of them.

    An unknown time, which is NaN, becomes None.
    """
    if not np.isfinite(seconds).all():
        return None
    step = (seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1)
    if np.abs(seconds - seconds[0] - step * np.arange(len(seconds))).max() <= _STEADY:
        return {"start": round(float(seconds[0]), 6), "step": round(float(step), 9)}
    return np.round(seconds, 6).tolist()


def from_json(value: Any, count: int) -> np.ndarray:
    """The inverse of `as_json`: float64 ``[count]``, NaN for unknown times."""
    if value is None:
        return np.full(count, np.nan)
    if isinstance(value, dict):
        return value["start"] + value["step"] * np.arange(count)
    return np.asarray(value, np.float64)


def seconds_of(store: Store) -> np.ndarray:
    """When each frame of a store is shown in its clip, float64 ``[N]``; NaN if the store does not say."""
    lengths = store.episodes.length
    clips = store.policy.get("clips") or [{}] * len(lengths)
    parts = [from_json(clip.get("seconds"), int(n)) for clip, n in zip(clips, lengths, strict=True)]
    return np.concatenate(parts)


def files_of(store: Store) -> list[str]:
    """The source file of each episode; an empty string if the store does not say."""
    clips = store.policy.get("clips") or [{}] * len(store.episodes)
    return [clip.get("file", "") for clip in clips]
