"""When the frames of clips are shown, as a store's manifest keeps it.

Dimension keys: T frames of a clip, N frames of a store.
"""

from typing import Any

import numpy as np

from lamjax.data.reader import Store

_STEADY = 2e-3  # seconds by which time stamps may miss a constant rate; some files round them to a thousandth


def as_json(seconds: np.ndarray) -> Any:
    """Time stamps ``[T]`` for a manifest: their start and their rate where that is constant, else each by itself.

    NaN, which stands for an unknown time, becomes None.
    """
    if not np.isfinite(seconds).all():
        return None
    step = (seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1)
    if np.abs(seconds - seconds[0] - step * np.arange(len(seconds))).max() <= _STEADY:
        return {"start": round(float(seconds[0]), 6), "step": round(float(step), 9)}
    return np.round(seconds, 6).tolist()


def from_json(value: Any, count: int) -> np.ndarray:
    """The inverse of `as_json`: float64 ``[count]``, NaN where the time is unknown."""
    if value is None:
        return np.full(count, np.nan)
    if isinstance(value, dict):
        return value["start"] + value["step"] * np.arange(count)
    return np.asarray(value, np.float64)


def seconds_of(store: Store) -> np.ndarray:
    """When each frame of a store is shown in its clip, float64 ``[N]``; NaN where the store does not say it."""
    lengths = store.episodes.length
    clips = store.policy.get("clips") or [{}] * len(lengths)
    parts = [from_json(clip.get("seconds"), int(n)) for clip, n in zip(clips, lengths, strict=True)]
    return np.concatenate(parts)


def files_of(store: Store) -> list[str]:
    """The source file of each episode; empty strings where the store does not say it."""
    clips = store.policy.get("clips") or [{}] * len(store.episodes)
    return [clip.get("file", "") for clip in clips]
