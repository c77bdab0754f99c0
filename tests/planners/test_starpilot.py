"""Battles with a few flyers and bullets, which move here by the rules that the planner counts on."""

import numpy as np
import pytest

from lamjax.envs.native_state import ENTITY, SPACE, Scene
from lamjax.planners import starpilot
from lamjax.planners.grid import NOOP
from lamjax.planners.ships import FIRE
from lamjax.planners.starpilot import FLYER, SHOT

CELLS = np.full((16, 16), SPACE, np.int32)
BULLET = 2
UP = 5
RADIUS = {SHOT: 0.4, BULLET: 0.4, FLYER: 0.5}


def thing(kind, x, y, vx=0.0, vy=0.0):
    record = np.zeros(1, ENTITY)
    record["type"], record["x"], record["y"], record["vx"], record["vy"] = kind, x, y, vx, vy
    record["rx"] = record["ry"] = RADIUS.get(kind, 0.4)
    return record


class Battle:
    """A ship at rest, where it likes to be, and other things."""

    def __init__(self, *things, at=(2.0, 8.0)):
        self.things = np.concatenate([thing(0, *at), *things])
        self.kills = 0

    def action(self):
        action, memory = starpilot.plan(Scene("starpilot", 0, CELLS, self.things, np.zeros(1, np.int32)))
        assert memory is None and 0 <= action <= FIRE
        return action

    def step(self):
        """Moves everything by the planned action, and returns whether something touches the ship."""
        action, ship = self.action(), self.things[0]
        right, up = divmod(action if action != FIRE else NOOP, 3)
        for axis, towards in (("x", right - 1), ("y", up - 1)):
            ship["v" + axis] = 0.9 * (0.5 * ship["v" + axis] + 0.5 * 0.75 * towards)
        for axis in "xy":
            self.things[axis] += self.things["v" + axis]
            ship[axis] = np.clip(ship[axis], 0.4, 15.6)
        self.hit_flyers()
        kinds = self.things["type"]
        touched = self.near(ship)[np.isin(kinds, (BULLET, FLYER))].any()
        if action == FIRE:
            self.things = np.append(self.things, thing(SHOT, ship["x"] + 0.4, ship["y"], 0.8))
        return touched

    def near(self, one):
        gaps = [np.abs(self.things[axis] - one[axis]) - self.things["r" + axis] - one["r" + axis] for axis in "xy"]
        return (gaps[0] < 0) & (gaps[1] < 0)

    def hit_flyers(self):
        keeps = np.full(len(self.things), True)
        for number in np.flatnonzero(self.things["type"] == SHOT):
            targets = np.flatnonzero(self.near(self.things[number]) & (self.things["type"] == FLYER) & keeps)
            if len(targets):
                self.things["life_time"][targets[0]] += 1
                keeps[number] = False
                keeps[targets[0]] = self.things["life_time"][targets[0]] < 2  # the second shot destroys it
        self.kills += (~keeps & (self.things["type"] == FLYER)).sum()
        self.things = self.things[keeps]


# A shot starts 0.4 in front of the ship and flies 0.8 a step. It closes 1.1 a step with a flyer that comes at 0.3, and
# so it meets one that is 11 away after 10 steps.
@pytest.mark.parametrize(
    ("flyer", "action"),
    [
        ((10.0, 8.0), FIRE),
        ((10.0, 8.8), FIRE),
        ((10.0, 8.89), UP),  # 0.9 would hit
        ((13.4, 11.0, -0.3, -0.3), FIRE),  # at height 8 when the shot meets it
        ((13.4, 8.0, -0.3, 0.3), UP),  # at height 11 then
        ((13.4, 14.0, -0.3, 0.3), NOOP),  # out of the world then
        ((1.0, 12.0, -0.3, 0.0), NOOP),  # behind the ship
    ],
)
def test_it_shoots_where_the_flyer_will_be(flyer, action):
    assert Battle(thing(FLYER, *flyer)).action() == action


def test_two_shots_are_enough_for_a_flyer():
    flyer, shots = thing(FLYER, 10.0, 8.0), [thing(SHOT, x, 8.3, 0.8) for x in (4.0, 5.0)]
    assert Battle(flyer, shots[0]).action() == FIRE
    assert Battle(flyer, *shots).action() == NOOP
    assert Battle(flyer, shots[0], thing(SHOT, 5.0, 9.0, 0.8)).action() == FIRE  # the other one misses


def test_shots_hit_the_first_flyer_on_their_way():
    near, far = thing(FLYER, 10.0, 8.0), thing(FLYER, 13.0, 8.0)
    shots = [thing(SHOT, x, 8.0, 0.8) for x in (4.0, 5.0, 6.0, 7.0)]
    assert Battle(far, near, *shots[:2]).action() == FIRE
    assert Battle(far, near, *shots).action() == FIRE  # all four at the near one
    past = thing(SHOT, 11.0, 8.0, 0.8)
    assert Battle(far, near, *shots[:2], past, past).action() == NOOP


@pytest.mark.parametrize("angle", np.linspace(-1.0, 1.0, 5))
@pytest.mark.parametrize("distance", [3.0, 8.0])
def test_a_bullet_is_dodged(angle, distance):
    away, aside = np.cos(angle), np.sin(angle)
    bullet = thing(BULLET, 2.0 + distance * away, 8.0 + distance * aside, -0.5 * away, -0.5 * aside)
    battle = Battle(bullet)
    assert not any(battle.step() for _ in range(30))


def test_dodging_comes_before_shooting():
    flyer, bullet = thing(FLYER, 10.0, 8.0), thing(BULLET, 4.2, 8.0, -0.5)
    assert Battle(flyer).action() == FIRE
    assert Battle(flyer, bullet).action() != FIRE


def test_a_group_of_flyers_is_shot_down():
    flyers = [thing(FLYER, 16.5 + 1.5 * number, 5.0, -0.3, slope) for number, slope in enumerate((0.0, 0.1, -0.1))]
    battle = Battle(*flyers, at=(4.0, 12.0))
    assert not any(battle.step() for _ in range(60))
    assert battle.kills == 3
    assert battle.action() == NOOP  # back in its place, with nothing to do
    assert abs(battle.things["x"][0] - 2) < 1 and abs(battle.things["y"][0] - 8) < 1
