"""Heist: a breadth-first search to the gem or, while doors bar it, to the nearest key.

The agent accelerates, so the planner steers it through each cell: towards the next cell of the path, and on the other
axis back to the middle of its own cell, since a corridor is one cell wide and the agent three quarters of one.
"""

import functools

import numpy as np

from lamjax.envs.native_state import WALL, Scene
from lamjax.planners.grid import FAR, MOVES, NOOP, Cell, descent, distances
from lamjax.planners.ships import at_rest

DOOR, KEY, GEM = 1, 2, 9
SLACK = 0.1  # how far from the middle of a corridor the agent may be, in cells, before it is steered back


def plan(scene: Scene, memory: None = None) -> tuple[int, None]:
    """The next action; see `lamjax.planners.Plan`."""
    player, things = scene.player, scene.entities
    has_key = scene.own[3 : 3 + scene.own[2]].tolist()
    names = ("type", "image_theme", "y", "x")
    kinds, themes, rows, columns = (things[name].astype(np.int32).tolist() for name in names)
    places: dict[int, list[Cell]] = {DOOR: [], KEY: [], GEM: []}
    for kind, theme, row, column in zip(kinds, themes, rows, columns, strict=True):
        if kind in places and not (kind == DOOR and has_key[theme]):
            places[kind].append((row, column))
    here = int(player["y"]), int(player["x"])
    cells, doors = (scene.cells.tobytes(), scene.cells.shape), tuple(places[DOOR])
    to_goal = _distances(*cells, doors, tuple(places[GEM]))
    if to_goal[here] == FAR:
        to_goal = _distances(*cells, doors, tuple(places[KEY]))
    move = descent(to_goal, here)
    return (NOOP if move == NOOP else steer(player, MOVES[move], here)), None


def steer(player: np.void, move: Cell, here: Cell) -> int:
    """The action that enters the next cell: along the move, and back to the middle on the other axis."""
    up, right = move
    if up:
        right = _towards(here[1] + 0.5, player["x"], player["vx"])
    else:
        up = _towards(here[0] + 0.5, player["y"], player["vy"])
    return 3 * (right + 1) + up + 1


def _towards(middle: float, position: float, speed: float) -> int:
    """-1, 0 or 1: the direction of the middle, from where the agent would roll out."""
    rest = at_rest(position, speed)
    return 0 if abs(middle - rest) < SLACK else int(np.sign(middle - rest))


@functools.lru_cache(4096)
def _distances(cells: bytes, shape: tuple[int, int], doors: tuple[Cell, ...], goals: tuple[Cell, ...]) -> np.ndarray:
    free = np.frombuffer(cells, np.int32).reshape(shape) != WALL
    for door in doors:
        free[door] = False
    return distances(free, goals)
