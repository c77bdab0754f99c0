"""A level with a narrow gap: a wall on x = 10 above 5, and one at height 12.5 that begins 2.36 beside it."""

import numpy as np
import pytest

from lamjax.planners.rooms import STRIDE, detour, room

BOXES = np.array([[10.0, 16.48], [12.5, 12.5], [0.6, 3.52], [7.5, 0.6]], np.float32).tobytes()
NO_BOXES = np.zeros((4, 0), np.float32).tobytes()


def test_without_walls_the_agent_can_be_everywhere_but_at_the_sides():
    level = room(NO_BOXES)
    for squeezes in (False, True):
        free = level.free(squeezes)
        assert free[1:-1, 1:-1].all() and free.sum() == 18 * 18
    assert level.gaps == ()
    assert level.x[3, 4] == pytest.approx(4.5) and level.y[3, 4] == pytest.approx(3.5)


def test_a_narrow_gap_is_seen():
    level = room(BOXES)
    (gap,) = level.gaps
    # The agent's middle is 1 from both walls, and a little more.
    assert gap == (0, pytest.approx(11.61, abs=1e-3), pytest.approx(11.95, abs=1e-3))
    assert level.free(True)[12, 11] and not level.free(False)[12, 11]
    assert not level.free(True)[12, 10] and not level.free(True)[12, 12]
    assert 11.61 < level.x[12, 11] < 11.95


def test_the_agent_goes_to_the_side_from_which_it_fits():
    # Strides of 0.6136: the 12th from 19 ends at 11.64, in the gap; those from 1 at 11.43 and 12.05, beside it.
    assert pytest.approx(0.6136, abs=1e-4) == STRIDE
    for strides in (0, 5, 12):
        assert detour(BOXES, (19 - strides * STRIDE, 3.0), (2, 13)) is None
    for strides in (0, 10, 17):
        x, y = detour(BOXES, (1 + strides * STRIDE, 3.0), (2, 13))
        assert 14 < x < 15 and 2 < y < 3  # the next cell on the way to the side at 19
    x, y = detour(BOXES, (18.8, 2.5), (2, 18))
    assert x > 19 and 2 < y < 3  # against the side


def test_a_gap_at_a_side_is_entered_along_the_side():
    boxes = np.array([[11.0], [10.0], [8.6], [0.6]], np.float32).tobytes()  # from 2.4 to 19.6
    (gap,) = room(boxes).gaps
    assert gap == (0, pytest.approx(1.0, abs=0.02), pytest.approx(1.39, abs=1e-3))
    assert detour(boxes, (1.0, 5.0), (5, 1)) is None
    x, y = detour(boxes, (1.5, 5.0), (5, 1))
    assert x < 1 and 5 < y < 6
