"""A corridor with a door, drawn by hand."""

import numpy as np
import pytest

from lamjax.envs.native_state import ENTITY, SPACE, WALL, Scene
from lamjax.planners import heist

# From left to right: a key, the agent's start, a door, the gem. Above and below are walls.
KEY_AT, START, DOOR_AT, GEM_AT = 0, 1, 2, 3


def scene(x, y=1.5, *, has_key, speed=(0.0, 0.0)):
    """The agent at a place, with or without the key of the door."""
    cells = np.full((3, 4), WALL, np.int32)
    cells[1] = SPACE
    kinds = [(0, x, y), (heist.DOOR, DOOR_AT + 0.5, 1.5), (heist.GEM, GEM_AT + 0.5, 1.5)]
    kinds += [] if has_key else [(heist.KEY, KEY_AT + 0.5, 1.5)]
    things = np.zeros(len(kinds), ENTITY)
    for thing, (kind, at_x, at_y) in zip(things, kinds, strict=True):
        thing["type"], thing["x"], thing["y"] = kind, at_x, at_y
    things["vx"][0], things["vy"][0] = speed
    return Scene("heist", 0, cells, things, np.array([1, 9, 1, has_key], np.int32))  # keys, world, its key ring


LEFT, RIGHT = 1, 7


def test_the_key_comes_before_the_door():
    assert heist.plan(scene(START + 0.5, has_key=False))[0] == LEFT
    assert heist.plan(scene(START + 0.5, has_key=True))[0] == RIGHT
    assert heist.plan(scene(KEY_AT + 0.5, has_key=True))[0] == RIGHT


@pytest.mark.parametrize(
    ("y", "vy", "expected"),
    [
        (1.5, 0.0, "right"),
        (1.38, 0.0, "right-up"),  # too low in the corridor
        (1.62, 0.0, "right-down"),
        (1.38, 0.15, "right"),  # rolls out 0.15 x 0.45 / 0.55 = 0.12 higher
        (1.5, -0.2, "right-up"),  # rolls out 0.16 lower
    ],
)
def test_the_agent_is_steered_back_to_the_middle(y, vy, expected):
    from lamjax.envs import ACTION_NAMES

    action, memory = heist.plan(scene(START + 0.5, y, has_key=True, speed=(0.0, vy)))
    assert ACTION_NAMES[action] == expected and memory is None


def test_without_a_way_the_agent_waits():
    alone = scene(START + 0.5, has_key=True)
    alone = Scene(alone.game, alone.time, alone.cells, alone.entities[:1], alone.own)
    assert heist.plan(alone)[0] == 4
