"""Bays with a few ships, in which everything moves by the rules that the planner counts on."""

import numpy as np
import pytest

from lamjax.envs.native_state import ENTITY, SPACE, Scene
from lamjax.planners import plunder
from lamjax.planners.plunder import BALL, FIRE, LEFT, NOOP, RIGHT, SHIP, SIGN

CELLS = np.full((20, 20), SPACE, np.int32)
WANTED, OTHER = 3, 5  # themes
HEIGHT = 1.9  # of the agent


class Bay:
    """An agent 3 cells long, at rest; ships (theme, x, y, vx) 3 cells long and 2 high; and balls (x, y) under way."""

    def __init__(self, *ships, at=12.0, balls=()):
        sign = (SIGN, WANTED, 2.0, 2.0, 0.0, 0.0, 2.2, 1.3)
        ships = [(SHIP, theme, x, y, vx, 0.0, 1.5, 1.0) for theme, x, y, vx in ships]
        self.things = records([(0, OTHER, at, HEIGHT, 0.0, 0.0, 1.5, 0.9), sign, *ships, *(ball(*b) for b in balls)])
        self.loaded = 0

    def plan(self):
        action, memory = plunder.plan(Scene("plunder", 0, CELLS, self.things, np.zeros(32, np.int32)))
        assert memory is None
        return action

    def step(self):
        """Moves everything by the planned action, and returns the themes of the ships that were hit."""
        action, agent = self.plan(), self.things[0]
        agent["vx"] = 0.9 * (0.5 * agent["vx"] + 0.5 * 0.85 * {LEFT: -1, RIGHT: 1}.get(action, 0))
        self.things["x"] += self.things["vx"]
        self.things["y"] += self.things["vy"]
        agent["x"] = np.clip(agent["x"], 5.5, 18.5)
        gone, hit = set(), []
        for shot in np.flatnonzero(self.things["type"] == BALL):
            for ship in np.flatnonzero(self.things["type"] == SHIP):
                apart = [abs(self.things[axis][ship] - self.things[axis][shot]) for axis in "xy"]
                if not {shot, ship} & gone and apart[0] < 1.75 and apart[1] < 1.25:
                    gone |= {shot, ship}
                    hit.append(int(self.things["image_theme"][ship]))
        self.things = np.delete(self.things, sorted(gone))
        self.loaded -= 1
        if action == FIRE and self.loaded <= 0:
            self.things = np.append(self.things, records([ball(float(self.things["x"][0]), HEIGHT)]))
            self.loaded = 3
        return hit


def ball(x, y):
    return BALL, 0, x, y, 0.0, 1.0, 0.25, 0.25


def records(rows):
    things = np.zeros(len(rows), ENTITY)
    for thing, row in zip(things, rows, strict=True):
        for name, value in zip(("type", "image_theme", "x", "y", "vx", "vy", "rx", "ry"), row, strict=True):
            thing[name] = value
    return things


@pytest.mark.parametrize(
    ("x", "vx", "action"),
    [
        # A ball rises a cell a step: it appears after one step and touches a ship at height 14 after 11 more, at 12.9.
        (12.0, 0.0, FIRE),
        (9.0, 0.25, FIRE),  # at 12 then
        (15.0, -0.25, FIRE),
        (12.0, 0.25, RIGHT),  # at 15 then, 3 from the ball
        (12.0, -0.25, LEFT),
        (7.0, 0.0, LEFT),
        (18.0, 0.0, RIGHT),
    ],
)
def test_it_fires_when_the_ball_and_the_ship_meet(x, vx, action):
    assert Bay((WANTED, x, 14.0, vx)).plan() == action


def test_ships_that_the_sign_does_not_show_are_spared():
    assert Bay((OTHER, 12.0, 14.0, 0.0)).plan() == NOOP
    assert Bay((WANTED, 12.0, 16.0, 0.0), (OTHER, 12.5, 14.0, 0.0)).plan() != FIRE  # it is in the way
    assert Bay((WANTED, 12.0, 14.0, 0.0), (OTHER, 12.5, 16.0, 0.0)).plan() == FIRE


def test_a_ship_to_which_a_ball_is_under_way_needs_no_other():
    assert Bay((WANTED, 12.0, 14.0, 0.0), balls=[(12.0, 8.0)]).plan() == NOOP
    assert Bay((WANTED, 12.0, 14.0, 0.0), (WANTED, 7.0, 14.0, 0.0), balls=[(12.0, 8.0)]).plan() == LEFT
    assert Bay((WANTED, 12.0, 14.0, 0.0), balls=[(16.0, 8.0)]).plan() == FIRE  # that one passes


def test_without_a_ship_to_sink_it_waits_in_the_middle():
    assert [Bay(at=x).plan() for x in (6.0, 12.0, 18.0)] == [RIGHT, NOOP, LEFT]


def test_it_waits_beside_the_sign_for_ships_above_it():
    assert Bay((WANTED, 2.0, 14.0, 0.0), at=8.0).plan() == LEFT
    assert Bay((WANTED, 2.0, 14.0, 0.0), at=5.5).plan() == NOOP


@pytest.mark.parametrize("speed", [0.15, 0.25])
def test_the_right_ships_are_sunk(speed):
    bay = Bay(
        (WANTED, 1.0, 14.0, speed), (OTHER, 7.0, 14.0, speed), (WANTED, 17.0, 16.0, -speed), (OTHER, 9.0, 16.0, 0)
    )
    assert [theme for _ in range(90) for theme in bay.step()] == [WANTED, WANTED]
