"""Fruitbot: collects fruit, avoids other food, and flies through the gaps, by looking ahead.

The robot climbs at a constant speed, so where it can be across the world at each height is known: the best path over a
grid of heights and places is found backwards from the last height. Walls, food and fruit are worth something where they
lie; in addition each place costs a little by its distance from the next fruit or gap, so that the robot goes there at
once and not at the last moment. All that it reads is in the frame. It knows the easy levels, which have no doors.

Dimension keys: T heights ahead, X places across, E things.
"""

import numpy as np

from lamjax.envs.native_state import Scene
from lamjax.planners.grid import LEFT, NOOP, RIGHT
from lamjax.planners.ships import at_rest

WALL, FOOD, FRUIT, PRESENT = 1, 4, 7, 12
WORLD = 10.0  # cells across
CLIMB = 0.2782  # cells that the robot climbs in two steps
AHEAD = 24  # T, the heights that it looks ahead, two steps apart
REACH = 0.4  # half the robot's side
APART = 0.2  # between places, in cells
SIDEWAYS = 4  # places that the robot passes in two steps
ATTRACTION = 0.004  # what a cell of distance from the next fruit or gap costs, in fruits for two steps
LATE = 0.3  # cells beyond the middle of a fruit at which the robot must have reached it

_PLACES = np.arange(0.4, WORLD - REACH, APART, dtype=np.float32)
_PUSHES = 0.695 * np.array([0, -1, 1], np.float32)  # how far a step of each action moves the robot in the end, in cells
_CLIMBS = CLIMB * np.arange(1, AHEAD + 1, dtype=np.float32)
# By type: what a meeting is worth in two steps, in fruits, and how much wider and higher the thing counts, in cells.
_WORTH, _WIDER, _HIGHER = np.zeros((3, 16), np.float32)
_WORTH[[WALL, FOOD, FRUIT, PRESENT]] = -30, -3, 1, 2
_WIDER[[WALL, FOOD, FRUIT, PRESENT]] = 0.35, 0.3, -0.2, 0
_HIGHER[[WALL, FOOD]] = 0.2


def plan(scene: Scene, memory: None = None) -> tuple[int, None]:
    """The next action; see `lamjax.planners.Plan`."""
    player, things = scene.player, scene.entities
    heights = player["y"] + _CLIMBS
    value = _worth(things, player["y"], heights)
    value -= ATTRACTION * np.abs(_PLACES - _next(things, player["y"], heights)[:, None])
    best = np.full(len(_PLACES) + 2 * SIDEWAYS, -np.inf, np.float32)
    here = best[SIDEWAYS:-SIDEWAYS]
    here[:] = value[-1]
    for row in value[-2::-1]:
        two = np.maximum(best[:-1], best[1:])
        four = np.maximum(two[:-2], two[2:])
        eight = np.maximum(four[:-4], four[4:])
        here[:] = np.maximum(eight[:-1], eight[1:]) + row
    rest = at_rest(player["x"], player["vx"])
    return (NOOP, LEFT, RIGHT)[np.interp(rest + _PUSHES, _PLACES, here).argmax()], None


def _worth(things: np.ndarray, height: float, heights: np.ndarray) -> np.ndarray:
    """What each place is worth at each height, float32 ``[T, X]``, in fruits."""
    things = things[(things["y"] > height - 1.5) & (things["y"] < heights[-1] + 1.5)]
    kinds = things["type"]
    # A fruit counts once, shortly before the robot has passed it; the rest counts at each height where it is met.
    is_fruit = kinds == FRUIT
    middle = things["y"] + LATE * is_fruit
    high = np.where(is_fruit, CLIMB / 2, things["ry"] + REACH + _HIGHER[kinds])
    wide = things["rx"] + REACH + _WIDER[kinds]
    at_height = np.abs(heights[:, None] - middle[None]) < high[None]
    at_place = np.abs(_PLACES[None] - things["x"][:, None]) < wide[:, None]
    return (at_height * _WORTH[kinds][None]).astype(np.float32) @ at_place.astype(np.float32)


def _next(things: np.ndarray, height: float, heights: np.ndarray) -> np.ndarray:
    """Where the next fruit or gap after each height is, float32 ``[T]``; the middle of the world after the last."""
    fruit, walls = things[things["type"] == FRUIT], things[things["type"] == WALL]
    left, right = walls[::2], walls[1::2]  # a wall's two parts follow each other
    gap = (left["x"] + left["rx"] + right["x"] - right["rx"]) / 2
    place = np.concatenate([fruit["x"], gap, [WORLD / 2]])
    end = np.concatenate([fruit["y"] + LATE, left["y"] + left["ry"] + REACH, [np.inf]])
    order = np.argsort(end)
    return place[order][np.searchsorted(end[order], heights)]
