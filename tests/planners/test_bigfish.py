"""Ponds with one or two fish, which move here by the rules that the planner counts on."""

import numpy as np
import pytest

from lamjax.envs.native_state import ENTITY, SPACE, Scene
from lamjax.planners import bigfish

CELLS = np.full((20, 20), SPACE, np.int32)


class Pond:
    """An agent of radius 1 at rest, and fish (x, y, vx, radius) half as high as they are long."""

    def __init__(self, *fish, at=(10.0, 10.0)):
        self.things = np.zeros(1 + len(fish), ENTITY)
        rows = [(*at, 0.0, 1.0, 1.0), *((x, y, vx, radius, radius / 2) for x, y, vx, radius in fish)]
        for thing, (x, y, vx, rx, ry) in zip(self.things, rows, strict=True):
            thing["x"], thing["y"], thing["vx"], thing["rx"], thing["ry"] = x, y, vx, rx, ry
        self.things["type"][1:] = bigfish.FISH

    def step(self):
        """Moves everything by the planned action, and returns the radii of the fish that the agent touches."""
        action, memory = bigfish.plan(Scene("bigfish", 0, CELLS, self.things, np.zeros(2, np.int32)))
        assert memory is None and 0 <= action < 9
        agent, fish = self.things[0], self.things[1:]
        for axis, towards in (("x", action // 3 - 1), ("y", action % 3 - 1)):
            agent["v" + axis] = 0.9 * (0.5 * agent["v" + axis] + 0.5 * 0.5 * towards)
            radius = agent["r" + axis]
            agent[axis] = np.clip(agent[axis] + agent["v" + axis], radius, 20 - radius)
        fish["x"] += fish["vx"]
        near = [np.abs(fish[axis] - agent[axis]) < fish["r" + axis] + agent["r" + axis] for axis in "xy"]
        return fish["rx"][near[0] & near[1]].tolist()


def touched(pond, steps):
    """What the agent touches first within so many steps."""
    for _ in range(steps):
        if radii := pond.step():
            return radii
    return []


@pytest.mark.parametrize("place", [(10, 15), (10, 5), (13.5, 10), (6.5, 10), (13, 13)])
def test_a_smaller_fish_is_eaten(place):
    assert touched(Pond((*place, 0.0, 0.5)), 25) == [0.5]


@pytest.mark.parametrize(("height", "speed"), [(10.3, -0.4), (9.7, -0.4), (10.0, -0.2), (11.0, -0.3)])
def test_a_larger_fish_is_dodged(height, speed):
    assert touched(Pond((15, height, speed, 1.8)), 80) == []
    assert touched(Pond((5, height, -speed, 1.8)), 80) == []


def test_a_meal_is_eaten_after_the_larger_fish_before_it_has_passed():
    # Behind a fish twice the agent's size: straight on would end the game.
    pond = Pond((14.0, 10.0, -0.3, 0.5), (11.9 + 2.0, 10.0, -0.4, 1.9))
    assert touched(pond, 60) == [0.5]


@pytest.mark.parametrize("x", [1.5, 18.5])
def test_places_near_the_sides_are_left(x):
    pond = Pond(at=(x, 10.0))
    assert touched(pond, 30) == []
    assert 4 < pond.things["x"][0] < 16
