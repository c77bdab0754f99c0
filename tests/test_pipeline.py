"""Pieces of the pipeline that a whole run would not notice."""

import numpy as np

from lamjax import pipeline


def test_still_windows_show_the_middle_frame_alone():
    windows = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8, 3), np.uint8)
    still = pipeline._still(windows)
    assert still.shape == windows.shape
    for frame in range(3):
        np.testing.assert_array_equal(still[:, frame], windows[:, 1])
    assert np.shares_memory(still, windows)
    longer = pipeline._still(np.concatenate([windows[:, :1], windows], axis=1))
    np.testing.assert_array_equal(longer, windows[:, 1:2].repeat(4, axis=1))  # o_t is the last frame but one
