"""Paths and dangers, against movement step by step."""

import numpy as np
import pytest

from lamjax.envs.native_state import ENTITY
from lamjax.planners.grid import NOOP
from lamjax.planners.ships import Paths, danger

PATHS = Paths.of(push=0.3, ahead=5, durations=(1, 2))
LEFT, UP, RIGHT_DOWN = 1, 5, 6


def thing(x, y, vx=0.0, vy=0.0, radius=0.5):
    record = np.zeros(1, ENTITY)
    record["x"], record["y"], record["vx"], record["vy"] = x, y, vx, vy
    record["rx"] = record["ry"] = radius
    return record


def test_each_move_has_a_path_of_each_duration():
    assert PATHS.actions.tolist() == [action for action in range(9) for _ in (1, 2)]
    assert PATHS.actions[PATHS.stay] == NOOP
    assert PATHS.effort[PATHS.actions == LEFT].tolist() == [1, 1]
    assert PATHS.effort[PATHS.actions == RIGHT_DOWN].tolist() == [2, 2]


@pytest.mark.parametrize("action", [LEFT, NOOP, UP, RIGHT_DOWN])
def test_places_are_those_of_movement_step_by_step(action):
    agent = thing(5.0, 5.0, 0.2, -0.1)[0]
    x, y = PATHS.places(agent, 10.0)
    for path, duration in zip(np.flatnonzero(PATHS.actions == action), (1, 2), strict=True):
        place, speed = np.array([5.0, 5.0]), np.array([0.2, -0.1])
        for t in range(5):
            towards = np.array(divmod(action, 3)) - 1 if t < duration else np.zeros(2)
            speed = 0.45 * speed + 0.3 * towards
            place = place + speed
            np.testing.assert_allclose([x[path, t], y[path, t]], place, rtol=1e-5)


def test_places_end_at_the_sides():
    x, y = PATHS.places(thing(0.6, 9.4)[0], 10.0)
    assert x.min() == 0.5 and y.max() == 9.5  # the agent's radius from the side


def test_danger_is_greater_the_sooner_it_comes():
    agent = thing(5.0, 5.0)[0]
    x, y = PATHS.places(agent, 10.0)
    # Sides 1 apart touch at once; from 2.4 at speed 0.5 they do in the third of five steps, from 4 not yet.
    for distance, expected in ((1.4, 1.0), (2.4, 0.6), (4.0, 0.0)):
        assert danger(x, y, thing(5.0 + distance, 5.5, -0.5), agent, 0.0)[PATHS.stay] == pytest.approx(expected)
    assert danger(x, y, thing(5.0, 6.1), agent, 0.0)[PATHS.stay] == 0
    assert danger(x, y, thing(5.0, 6.1), agent, 0.2)[PATHS.stay] == 1  # with a margin
    assert danger(x, y, thing(5.0, 6.1), agent, 0.0)[PATHS.actions == UP].tolist() == [1, 1]
    assert danger(x, y, np.zeros(0, ENTITY), agent, 0.0).tolist() == [0] * 18
