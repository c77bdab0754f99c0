"""Detects scene changes in a video.

The change c_t of a frame is the mean absolute difference from the previous frame, in percent of the pixel range. A
scene begins at t if both c_t and c_t - c_{t-1} exceed a threshold: fast movement changes every frame, but a cut changes
only one. FFmpeg's filter ``scdet`` uses the same rule with |c_t - c_{t-1}| and a threshold of 10.

Dimension keys: R frames of a block, H, W, C of a frame.
"""

from collections.abc import Callable

import numpy as np

CONTEXT = 2  # how many frames back the rule looks


def scene_finder(threshold: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that finds where scenes begin; call it with the blocks of a video in order.

    Args:
      threshold: in percent.

    Returns:
      A function from uint8 ``[R, H, W, C]`` to bool ``[R]``. It treats the first frame that it sees as the start of the
      video. To start elsewhere, begin `CONTEXT` frames earlier and ignore its result for those frames.
    """
    previous: np.ndarray | None = None
    change = 0.0

    def find(frames: np.ndarray) -> np.ndarray:
        nonlocal previous, change
        before = frames[:1] if previous is None else previous
        joined = np.concatenate([before, frames]).astype(np.int16)
        changes = np.abs(np.diff(joined, axis=0)).mean((1, 2, 3)) * (100 / 255)
        rises = np.diff(changes, prepend=change)
        previous, change = frames[-1:].copy(), changes[-1]
        return (changes > threshold) & (rises > threshold)

    return find
