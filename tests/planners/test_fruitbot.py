"""Courses with a few things, along which the robot flies by the rules that the planner counts on."""

import numpy as np
import pytest

from lamjax.envs.native_state import ENTITY, SPACE, Scene
from lamjax.planners import fruitbot
from lamjax.planners.fruitbot import FOOD, FRUIT, LEFT, NOOP, PRESENT, RIGHT, WALL

CELLS = np.full((60, 10), SPACE, np.int32)


class Course:
    """A robot with a side of 0.8 that climbs, and things (type, x, y), as wide and high as they are in the game."""

    def __init__(self, *things, at=5.0, height=5.0):
        rows = [(0, at, height, 0.4, 0.4), *((kind, x, y, 0.5, 0.5) for kind, x, y in things)]
        self.things = np.zeros(len(rows), ENTITY)
        self.things["type"], self.things["x"], self.things["y"], self.things["rx"], self.things["ry"] = zip(
            *rows, strict=True
        )
        self.things["vy"][0] = 0.1391

    def wall(self, y, left, right):
        """Adds a wall with a gap from left to right."""
        parts = np.zeros(2, ENTITY)
        parts["type"], parts["y"], parts["ry"] = WALL, y, 0.3
        parts["x"], parts["rx"] = (left / 2, (right + 10) / 2), (left / 2, (10 - right) / 2)
        self.things = np.append(self.things, parts)
        return self

    def plan(self):
        action, memory = fruitbot.plan(Scene("fruitbot", 0, CELLS, self.things, np.zeros(3, np.int32)))
        assert memory is None
        return action

    def fly(self, steps):
        """The types of all that the robot touches in so many steps."""
        touched = []
        for _ in range(steps):
            action, robot = self.plan(), self.things[0]
            robot["vx"] = 0.9 * (0.5 * robot["vx"] + 0.5 * 0.85 * {LEFT: -1, RIGHT: 1}.get(action, 0))
            robot["x"] = np.clip(robot["x"] + robot["vx"], 0.4, 9.6)
            robot["y"] += robot["vy"]
            near = [np.abs(self.things[axis] - robot[axis]) < self.things["r" + axis] + 0.4 for axis in "xy"]
            meets = near[0] & near[1]
            meets[0] = False
            touched += self.things["type"][meets].tolist()
            self.things = self.things[~meets]
        return touched


@pytest.mark.parametrize(("x", "action"), [(1.0, LEFT), (4.8, NOOP), (9.0, RIGHT)])
def test_the_robot_turns_to_the_next_fruit_at_once(x, action):
    assert Course((FRUIT, x, 10.0), (FRUIT, 5.0, 14.0)).plan() == action


def test_fruit_is_collected_on_both_sides():
    # It climbs 2.5 cells in 18 steps, in which it gets 11 cells to the side.
    course = Course((FRUIT, 1.0, 8.0), (FRUIT, 9.0, 10.5), (FRUIT, 1.5, 13.0), (FRUIT, 5.0, 14.5))
    assert course.fly(80) == [FRUIT] * 4


@pytest.mark.parametrize("x", [4.5, 5.0, 5.6])
def test_other_food_is_passed(x):
    assert Course((FOOD, x, 8.0)).fly(50) == []
    # Food before a fruit, with room on one side only.
    row = [(FOOD, x, 9.0), *((FOOD, 1.0 * place, 9.0) for place in (6, 7, 8, 9))]
    assert Course(*row, (FRUIT, 8.0, 12.5)).fly(70) == [FRUIT]


@pytest.mark.parametrize("gap", [(0.5, 2.5), (3.0, 5.0), (7.5, 9.5)])
def test_the_gap_is_found(gap):
    # The narrowest gap of the easy levels, two cells, and a fruit far away from it.
    assert Course((FRUIT, 9.0, 7.5)).wall(11.0, *gap).fly(70) == [FRUIT]


def test_a_fruit_behind_food_is_left():
    # All across but where the robot is: a fruit is not worth a meeting with food.
    row = [(FOOD, 1.0 * place, 9.0) for place in (1, 2, 3, 7, 8, 9)]
    assert Course(*row, (FRUIT, 1.0, 8.5)).fly(50) == []


def test_it_ends_between_two_presents():
    # Each is a cell wide, so in the middle of one the robot touches that alone.
    course = Course(*((PRESENT, place + 0.5, 59.5) for place in range(10)), at=2.5, height=57.0)
    assert course.fly(13) == [PRESENT] * 2
