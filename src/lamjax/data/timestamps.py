"""Time stamps of frames, as a store's manifest records them.

Dimension keys: T frames of a clip, N frames of a store.
"""

from typing import Any

import numpy as np

from lamjax.data.reader import Store

_STEADY = 2e-3  # seconds by which time stamps may deviate from a constant rate; some files round to milliseconds


def as_json(seconds: np.ndarray) -> Any:
    """Converts time stamps ``[T]``, in seconds, for a manifest: start and step if the rate is constant, else all.

    The result is None if any time is unknown (NaN).
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
    """When each frame of a store is shown in its clip, in seconds, float64 ``[N]``; NaN if the store does not say."""
    return np.concatenate([from_json(clip.get("seconds"), count) for clip, count in _clips(store)])


def files_of(store: Store) -> list[str]:
    """The source file of each episode; an empty string if the store does not say."""
    clips = _clips(store)
    ends = np.cumsum([count for _, count in clips])
    return [clips[i][0].get("file", "") for i in np.searchsorted(ends, store.episodes.start, side="right")]


def _clips(store: Store) -> list[tuple[dict[str, Any], int]]:
    """The clips of a store, each with its number of frames.

    A clip may hold several episodes. Older stores do not record the number of frames: there, each clip is one episode.
    """
    lengths = store.episodes.length.tolist()
    clips = store.policy.get("clips") or [{}] * len(lengths)
    if "frames" in clips[0]:
        return [(clip, clip["frames"]) for clip in clips]
    return list(zip(clips, lengths, strict=True))
