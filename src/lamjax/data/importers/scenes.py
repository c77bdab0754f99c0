"""Where the scene of a video changes.

The change c_t of a frame is the mean absolute difference between it and the one before, in percent of the range of a
pixel. A scene begins at t if both c_t and c_t - c_{t-1} exceed a threshold: fast movement changes every frame, a cut
only one. FFmpeg's filter ``scdet`` has the same rule, with the size of c_t - c_{t-1}, and a threshold of 10.

Dimension keys: R frames of a block, H, W, C of a frame.
"""

from collections.abc import Callable

import numpy as np

CONTEXT = 2  # frames that the rule looks back


def scene_finder(threshold: float) -> Callable[[np.ndarray], np.ndarray]:
    """A function that finds where scenes begin in the blocks of a video, which it is given one after the other.

    Args:
      threshold: in percent.

    Returns:
      A function from uint8 ``[R, H, W, C]`` to bool ``[R]``. It takes the first frame that it sees for the beginning of
      the video. Where reading begins elsewhere, give it `CONTEXT` more frames and ignore what it says of those.
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
