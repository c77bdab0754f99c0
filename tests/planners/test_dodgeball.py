"""Levels with walls, enemies and balls, which move here by the rules that the planner counts on."""

import numpy as np
import pytest

from lamjax.envs.native_state import ENTITY, SPACE, Scene
from lamjax.planners import dodgeball
from lamjax.planners.dodgeball import BALL, DOOR, ENEMY, WALL
from lamjax.planners.grid import NOOP
from lamjax.planners.ships import FIRE

CELLS = np.full((20, 20), SPACE, np.int32)
RIGHT, RIGHT_UP, UP = 7, 8, 5
RADII = {0: (1.0, 1.0), ENEMY: (1.0, 1.0), DOOR: (1.5, 1.5), BALL: (0.5, 0.5)}


def thing(kind, x, y, vx=0.0, vy=0.0, radii=None):
    record = np.zeros(1, ENTITY)
    record["type"], record["x"], record["y"], record["vx"], record["vy"] = kind, x, y, vx, vy
    record["rx"], record["ry"] = radii or RADII[kind]
    return record


def wall(x, y, half_width, half_height):
    return thing(WALL, x, y, radii=(half_width, half_height))


def agent(x, y, facing=RIGHT):
    record = thing(0, x, y)
    right, up = facing // 3 - 1, facing % 3 - 1
    record["rotation"] = -np.arctan2(up, right)
    return record


def action(*things, since_throw=100):
    own = np.array([0, 0, 0, 0, 50, 1, 50], np.int32)  # the last throw was in step 50
    chosen, memory = dodgeball.plan(Scene("dodgeball", 50 + since_throw, CELLS, np.concatenate(things), own))
    assert memory is None and 0 <= chosen <= FIRE
    return chosen


def step(me, *things):
    """Moves the agent by the planned action, and what moves; returns whether something touches the agent."""
    chosen = action(me, *things)
    assert chosen != FIRE
    for axis, towards in zip("xy", divmod(chosen, 3), strict=True):
        me["v" + axis] = 0.9 * (0.5 * me["v" + axis] + 0.5 * 0.75 * (towards - 1))
        me[axis] = np.clip(me[axis] + me["v" + axis], 1, 19)
    for one in things:
        one["x"] += one["vx"]
        one["y"] += one["vy"]
    return [one for one in things if all(np.abs(one[a] - me[a]) < one["r" + a] + me["r" + a] for a in "xy")]


def test_it_turns_to_an_enemy_and_throws():
    above = thing(ENEMY, 12.0, 12.0)  # on the diagonal
    assert action(agent(5.0, 5.0, RIGHT), above) == RIGHT_UP
    assert action(agent(5.0, 5.0, RIGHT_UP), above) == FIRE
    assert action(agent(5.0, 5.0, RIGHT), thing(ENEMY, 15.0, 6.1)) == FIRE
    assert action(agent(5.0, 5.0, RIGHT), thing(ENEMY, 15.0, 5.0), since_throw=6) != FIRE
    assert action(agent(5.0, 5.0, RIGHT), thing(ENEMY, 15.0, 5.0), since_throw=7) == FIRE


def test_it_throws_where_the_enemy_will_be():
    # A ball flies 0.5 a step: it is at an enemy 10 away after 20 steps, in which that one walks one cell.
    assert action(agent(5.0, 5.0), thing(ENEMY, 15.0, 7.0, 0.0, -0.05)) == FIRE
    assert action(agent(5.0, 5.0), thing(ENEMY, 15.0, 7.0, 0.0, 0.05)) != FIRE


def test_walls_stop_balls():
    enemy = thing(ENEMY, 15.0, 5.0)
    assert action(agent(5.0, 5.0), enemy, wall(10.0, 5.0, 0.6, 3.0)) != FIRE
    assert action(agent(5.0, 5.0), enemy, wall(17.5, 5.0, 0.6, 3.0)) == FIRE  # behind the enemy
    assert action(agent(5.0, 5.0), enemy, wall(10.0, 9.0, 0.6, 3.0)) == FIRE  # above the ball's way


@pytest.mark.parametrize(("vx", "vy"), [(-0.5, 0.0), (0.5, 0.0), (0.0, 0.5), (0.0, -0.5)])
def test_balls_are_dodged(vx, vy):
    door = thing(DOOR, 10.0, 10.0)  # where the agent is: nothing else draws it away
    door["rx"] = door["ry"] = 0.0
    me, ball = agent(10.0, 10.0), thing(BALL, 10.0 - 12 * vx, 10.3 - 12 * vy, vx, vy)
    for _ in range(40):
        assert not any(one["type"] == BALL for one in step(me, ball, door))


def test_it_goes_where_a_ball_hits():
    enemy, between = thing(ENEMY, 5.0, 15.0), wall(10.0, 12.5, 0.6, 7.5)
    me = agent(15.0, 15.0)
    steps = 0
    while action(me, enemy, between) != FIRE:
        steps += 1
        assert step(me, enemy, between) == [] and steps < 60
        right, up = np.sign(me["vx"]), np.sign(me["vy"])
        me["rotation"] = -np.arctan2(up, right)
    assert steps > 10


@pytest.mark.parametrize("x", [3.0, 3.2, 3.4, 3.6])
def test_it_gets_through_a_narrow_gap_to_the_door(x):
    # The gap is 2.36 wide, and the agent 2 (test_rooms.py).
    things = thing(DOOR, 18.5, 16.6), wall(10.0, 12.5, 0.6, 7.5), wall(16.48, 12.5, 3.52, 0.6)
    me = agent(x, 4.0)
    for _ in range(150):
        touched = step(me, *things)
        if touched:
            break
    assert [one["type"].item() for one in touched] == [DOOR]


def test_it_stays_at_rest_with_nowhere_to_go():
    closed_in = wall(10.0, 10.0, 0.6, 10.0)
    assert action(agent(5.5, 5.5), thing(DOOR, 15.0, 5.0), closed_in) == NOOP
