"""Fights with a boss, rocks and bullets, which move here by the rules that the planner counts on."""

import numpy as np
import pytest

from lamjax.envs.native_state import ENTITY, SPACE, Scene
from lamjax.planners import bossfight
from lamjax.planners.bossfight import BOSS, BULLET, ROCK, SHOT
from lamjax.planners.grid import NOOP
from lamjax.planners.ships import FIRE

CELLS = np.full((20, 20), SPACE, np.int32)
LEFT, RIGHT = 1, 7
RADII = {0: (0.75, 0.5), SHOT: (0.25, 0.25), BOSS: (3.0, 2.5), BULLET: (0.5, 0.5), ROCK: (0.6, 0.6)}
# The game's own numbers: a list of two attacks with its length before it, then the shields 14 places after the length
# and the attacks, and others.
SHIELDS_UP = np.array([2, 3, 3, *[0] * 13, 1, *[0] * 9], np.int32)
SHIELDS_DOWN = np.array([2, 3, 3, *[0] * 13, 0, *[1] * 9], np.int32)


def thing(kind, x, y, vx=0.0, vy=0.0):
    record = np.zeros(1, ENTITY)
    record["type"], record["x"], record["y"], record["vx"], record["vy"] = kind, x, y, vx, vy
    record["rx"], record["ry"] = RADII[kind]
    return record


def action(*things, x=10.0, boss=(10.0, 13.0, 0.0), own=SHIELDS_DOWN, ship=None):
    """The planned action of a ship, by default at rest at the bottom, below a boss (x, y, vx)."""
    entities = np.concatenate([thing(0, x, 0.5) if ship is None else ship, thing(BOSS, *boss), *things])
    chosen, memory = bossfight.plan(Scene("bossfight", 0, CELLS, entities, own))
    assert memory is None and 0 <= chosen <= FIRE
    return chosen


# Shots rise 1 a step: from height 0.5 they are at the boss's height of 13 after 12.5 steps.
@pytest.mark.parametrize(
    ("x", "boss", "chosen"),
    [
        (10.0, (10.0, 13.0, 0.0), FIRE),
        (10.0, (12.4, 13.0, 0.0), FIRE),
        (10.0, (12.6, 13.0, 0.0), RIGHT),
        (10.0, (7.4, 13.0, 0.0), LEFT),
        (10.0, (5.0, 13.0, 0.4), FIRE),  # at 10 after 12.5 steps
        (10.0, (10.0, 13.0, -0.4), LEFT),  # at 5 then
        (16.0, (16.0, 13.0, 0.4), FIRE),  # at 21 then, but it turns back at 17
    ],
)
def test_it_shoots_where_the_boss_will_be(x, boss, chosen):
    assert action(x=x, boss=boss) == chosen


def test_with_the_shields_up_it_waits_in_the_middle():
    assert action(own=SHIELDS_UP) == NOOP
    assert action(x=4.0, boss=(4.0, 13.0, 0.0), own=SHIELDS_UP) == RIGHT
    assert action(x=16.0, boss=(16.0, 13.0, 0.0), own=SHIELDS_UP) == LEFT


def test_the_next_shot_waits_for_the_last_one():
    assert action(thing(SHOT, 10.0, 1.4, 0.0, 1.0)) == NOOP
    assert action(thing(SHOT, 10.0, 2.1, 0.0, 1.0)) == FIRE


def test_it_leaves_a_place_below_a_rock_and_does_not_shoot_there():
    assert action(thing(ROCK, 9.6, 4.0)) == RIGHT  # 0.4 off, and 0.6 + 0.25 or more is free
    assert action(thing(ROCK, 10.4, 4.0)) == LEFT
    assert action(thing(ROCK, 9.1, 4.0)) == FIRE


@pytest.mark.parametrize("own", [SHIELDS_UP, SHIELDS_DOWN])
@pytest.mark.parametrize("aims", [8.0, 9.5, 10.0, 10.5, 12.0])
def test_bullets_are_dodged(own, aims):
    """A fan of three bullets, 3.5 cells apart at the bottom, one of which goes to x = `aims`."""
    bullets = []
    for x in (aims - 3.5, aims, aims + 3.5):
        way = np.array([x - 10.0, 0.5 - 13.0])
        bullets.append(thing(BULLET, 10.0, 13.0, *(0.5 * way / np.linalg.norm(way))))
    ship, bullets = thing(0, 10.0, 0.5), np.concatenate(bullets)
    for _ in range(40):
        chosen = action(bullets, ship=ship, own=own)
        for axis, towards, radius in zip("xy", divmod(chosen if chosen != FIRE else NOOP, 3), (0.75, 0.5), strict=True):
            ship["v" + axis] = 0.9 * (0.5 * ship["v" + axis] + 0.5 * 0.85 * (towards - 1))
            ship[axis] = np.clip(ship[axis] + ship["v" + axis], radius, 20 - radius)
        for axis in "xy":
            bullets[axis] += bullets["v" + axis]
        gap_x, gap_y = (np.abs(bullets[axis] - ship[axis]) - bullets["r" + axis] - ship["r" + axis] for axis in "xy")
        assert not ((gap_x < 0) & (gap_y < 0)).any()


def test_dodging_comes_before_shooting():
    assert action(thing(BULLET, 10.0, 3.0, 0.0, -0.5)) in (LEFT, RIGHT)
