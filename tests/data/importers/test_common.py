"""What the importers share."""

from pathlib import Path

import numpy as np
import pytest

from lamjax.data.importers.common import SourceFile, action_bounds, bounds_of, choose_camera, summed
from lamjax.data.importers.errors import ImportDataError
from lamjax.data.importers.splits import split_by_hash
from lamjax.spaces import Box


def test_rewards_between_kept_frames():
    rewards = np.array([1.0, 2, 4, 8, 16])
    assert summed(rewards, np.arange(5)).tolist() == rewards.tolist()
    assert summed(rewards, np.array([0, 2, 4])).tolist() == [3, 12, 16]
    assert summed(rewards, np.array([0, 0, 3])).tolist() == [0, 7, 24]
    assert np.isfinite(summed(np.array([1, 2, np.inf, 4]), np.arange(4))).tolist() == [True, True, False, False]


def test_bounds_hold_all_actions():
    blocks = [np.array([[1.0, 5], [2, 5]]), np.zeros((0, 2)), np.array([[-1.0, 5]])]
    bounds = bounds_of(blocks)
    assert bounds.tolist() == [[-1, 5], [2, 5]] and bounds_of([]) is None
    files = [SourceFile(Path("a"), 3, None, bounds=bounds), SourceFile(Path("b"), 3, None, bounds=bounds - 1)]
    low, high = action_bounds(files)
    assert low == [-2, 4] and high == [2, 5]
    box = Box(*map(tuple, action_bounds(files[:1])))  # whose second action never changes
    assert box.low == (-1, 5) and box.high[0] == 2 and 5 < box.high[1] < 5.01
    assert action_bounds([SourceFile(Path("a"), 3, None)]) is None
    with pytest.raises(ImportDataError, match="b does not fit: its actions are integers, and others are vectors of 2"):
        action_bounds([files[0], SourceFile(Path("b"), 3, None)])


def test_a_camera_is_chosen_by_its_name_or_the_last_part_of_it():
    cameras = ["images.top", "images.left.wrist", "images.right.wrist", "obs/front"]
    for camera, want in (("images.top", 0), ("top", 0), ("front", 3), ("images.left.wrist", 1)):
        assert choose_camera(cameras, camera, Path("a")) == cameras[want]
    assert choose_camera(cameras[:1], None, Path("a")) == "images.top"
    for camera in (None, "wrist"):
        with pytest.raises(ImportDataError, match=r"several cameras: choose one with --camera .*left\.wrist \| im"):
            choose_camera(cameras, camera, Path("a"))
    with pytest.raises(ImportDataError, match=r"a has no camera 'rist', only images\.top, "):
        choose_camera(cameras, "rist", Path("a"))


def test_something_is_held_out_whatever_the_hash_says():
    files = [SourceFile(Path(str(number)), 10, None) for number in range(40)]
    many = split_by_hash(files, lambda file: int(file.path.name))
    assert {file.split for file in many} == {"train", "test"}
    for start in range(0, 40, 2):
        pair = split_by_hash(files[start : start + 2], lambda file: int(file.path.name))
        assert sorted(file.split for file in pair) == ["test", "train"]
    (alone,) = split_by_hash(files[:1], lambda file: 0)
    assert alone.held_out == 9 and [alone.split_at(row) for row in (8, 9)] == ["train", "test"]
