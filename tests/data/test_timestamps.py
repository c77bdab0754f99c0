"""Time stamps come back from a manifest as they were."""

import json

import numpy as np
import pytest

from lamjax import data
from lamjax.data import timestamps


@pytest.mark.parametrize(
    ("seconds", "short"),
    [
        (np.arange(500) / 30, True),
        (np.round(np.arange(500) / 30, 3), True),
        (np.array([4.2]), True),
        (np.array([0, 0.1, 0.4, 0.5]), False),
        (np.full(3, np.nan), True),
    ],
)
def test_they_come_back(seconds, short):
    text = json.dumps(timestamps.as_json(seconds), allow_nan=False)
    np.testing.assert_allclose(timestamps.from_json(json.loads(text), len(seconds)), seconds, atol=2e-3)
    assert not short or len(text) < 50


def test_a_store_that_does_not_say_them(store):
    assert np.isnan(timestamps.seconds_of(store)).all() and timestamps.seconds_of(store).shape == (40,)
    assert timestamps.files_of(store) == [""] * 5


@pytest.mark.parametrize("per_episode", [True, False])
def test_clips_of_one_or_of_several_episodes(tmp_path, per_episode):
    steady = {"start": 0.0, "step": 0.5}
    if per_episode:  # as older stores have it
        clips = [{"file": "a", "seconds": steady}, {"file": "a", "seconds": [1, 2]}, {"file": "b", "seconds": None}]
    else:
        clips = [{"file": "a", "frames": 5, "seconds": [0, 0.5, 1, 1, 2]}, {"file": "b", "frames": 4, "seconds": None}]
    frames = np.zeros((3, 2, 2, 1), np.uint8)
    with data.StoreWriter(
        tmp_path / "store", env="a", obs_shape=(2, 2, 1), num_actions=1, policy={"clips": clips}
    ) as writer:
        for length in (3, 2, 3) if per_episode else (3, 2, 1, 3):
            writer.append_episode(frames[:length], np.zeros(length, int), np.zeros(length), 0, "cut")
    store = data.open_store(tmp_path / "store")
    assert timestamps.files_of(store) == (["a", "a", "b"] if per_episode else ["a", "a", "b", "b"])
    np.testing.assert_array_equal(timestamps.seconds_of(store)[:5], [0, 0.5, 1, 1, 2])
    assert np.isnan(timestamps.seconds_of(store)[5:]).all()
