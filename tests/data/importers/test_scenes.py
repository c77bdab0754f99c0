"""A cut changes one frame by much; movement, flicker and fades do not look like one."""

import numpy as np
import pytest

from lamjax.data.importers.scenes import scene_finder


def cuts_in(levels, threshold=10.0, block=100):
    """Where scenes begin in frames of these brightnesses, in percent."""
    frames = np.round(np.array(levels, float) * 2.55).astype(np.uint8)[:, None, None, None].repeat(3, -1)
    find = scene_finder(threshold)
    marks = [find(frames[first : first + block]) for first in range(0, len(frames), block)]
    return np.flatnonzero(np.concatenate(marks)).tolist()


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_a_cut_is_found_whatever_the_blocks(block):
    assert cuts_in([20, 22, 21, 60, 62, 61, 20, 20], block=block) == [3, 6]


def test_what_is_no_cut():
    assert cuts_in([20] * 10) == []
    assert cuts_in(range(0, 100, 5)) == []  # a fade
    assert cuts_in([0, 50] * 5) == [1]  # flicker: after its beginning all changes are alike
    assert cuts_in([20, 28, 20]) == [] and cuts_in([20, 28, 20], threshold=5) == [1]
    assert cuts_in([80]) == []


def test_a_flash_is_one_cut_and_not_two():
    assert cuts_in([20, 20, 90, 20, 20]) == [2]
