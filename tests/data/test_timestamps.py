"""Time stamps come back from a manifest as they were."""

import json

import numpy as np
import pytest

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
