"""Dodgeball: goes to places from which a ball hits an enemy, throws, and leaves by the door when all enemies are gone.

A ball flies in the direction of the last move, one of eight. If one would hit, the planner turns that way and throws.
Otherwise it goes the shortest way to a place from which one would, or to the door. Enemies throw straight up, down and
sideways, so the planner prefers places on their diagonals. It takes the move whose path (`lamjax.planners.ships`) leads
nearest to a point further on that way, and touches no wall, enemy or ball.

Dimension keys: N balls, S steps of their flight, E enemies, W walls. Boxes are float32 ``[4, W]``: the walls' middles
and half their sides, x and y.
"""

import functools

import numpy as np

from lamjax.envs.native_state import Scene
from lamjax.planners.grid import FAR, MOVES, Cell, descent, distances
from lamjax.planners.rooms import PUSH, WALL_MARGIN, WORLD, detour, room
from lamjax.planners.ships import FIRE, Paths, at_rest, danger

WALL, ENEMY, DOOR, BALL = 1, 4, 5, 6
PATHS = Paths.of(push=PUSH, ahead=14, durations=(1, 4, 8))
BALL_SPEED, BALL_RADIUS = 0.5, 0.5  # cells a step along each axis, cells
FLIGHT, RELOADING = 36, 7  # S, and the steps between two throws
SURE, SURER = 1.2, 0.7  # how near to an enemy a ball must pass along each axis, now and from another place, in cells
MARGIN = 0.25  # extra distance from enemies and balls, in cells
CLOSE, BESIDE = 4, 2  # how far off an enemy the places are, and how far off its row and column, in cells
DEATH = 100.0  # a collision now, in cells of distance; one at the end of the path costs nothing
FURTHER, NEXT = 2, 5  # cells on the way to the point, and steps until the distance from it counts
EFFORT = 0.01  # a move along one axis, in cells of distance

_EIGHT = np.array([0, 1, 2, 3, 5, 6, 7, 8])
_RIGHT, _UP = np.array(np.divmod(_EIGHT, 3), np.float32) - np.float32(1)
_STEPS = np.arange(1, FLIGHT + 1, dtype=np.float32)


def plan(scene: Scene, memory: None = None) -> tuple[int, None]:
    """The next action; see `lamjax.planners.Plan`."""
    agent, things, kinds = scene.player, scene.entities, scene.entities["type"]
    walls, enemies = things[kinds == WALL], things[kinds == ENEMY]
    x, y = PATHS.places(agent, WORLD)
    dangers = things[(kinds == ENEMY) | (kinds == BALL) | (kinds == WALL)]
    margin = np.where(dangers["type"] == WALL, WALL_MARGIN, MARGIN).astype(np.float32)
    risk = DEATH * danger(x, y, dangers, agent, margin)
    safe = risk <= risk.min()

    boxes = np.array([walls[name] for name in ("x", "y", "rx", "ry")])
    if len(enemies) and scene.time - scene.own[4] >= RELOADING:
        start_x, start_y = np.full((2, 8), [[agent["x"]], [agent["y"]]], np.float32)
        targets = np.array([enemies[name] for name in ("x", "y", "vx", "vy")])
        hits = _EIGHT[_hits(start_x, start_y, _RIGHT, _UP, targets, boxes, SURE)].tolist()
        faced = 3 * round(np.cos(agent["rotation"])) - round(np.sin(agent["rotation"])) + 4
        if faced in hits and safe[PATHS.stay]:
            return FIRE, None
        for action in hits:
            if safe[PATHS.actions == action].any():
                return action, None

    goals = enemies if len(enemies) else things[kinds == DOOR]
    cells = tuple(zip(goals["y"].astype(int).tolist(), goals["x"].astype(int).tolist(), strict=True))
    here = int(agent["y"]), int(agent["x"])
    rest_x, rest_y = (float(at_rest(agent[axis], agent["v" + axis])) for axis in "xy")
    to_x, to_y = _point(boxes.tobytes(), cells, bool(len(enemies)), here, (rest_x, rest_y))
    off = np.hypot(x[:, NEXT - 1] - to_x, y[:, NEXT - 1] - to_y)
    return int(PATHS.actions[(risk + off + EFFORT * PATHS.effort).argmin()]), None


def _point(
    boxes: bytes, goals: tuple[Cell, ...], shoots: bool, here: Cell, rest: tuple[float, float]
) -> tuple[float, float]:
    """The point further on the way to the goals, x and y; through narrow gaps only if there is no other way."""
    way = _to_places if shoots else _to_door
    distance = way(boxes, goals, False)
    if distance[here] == FAR:
        if (side := detour(boxes, rest, here)) is not None:
            return side
        distance = way(boxes, goals, True)
    for _ in range(FURTHER):
        up, right = MOVES.get(descent(distance, here), (0, 0))
        here = here[0] + up, here[1] + right
    return room(boxes).x[here], room(boxes).y[here]


def _hits(
    x: np.ndarray,
    y: np.ndarray,
    right: np.ndarray,
    up: np.ndarray,
    enemies: np.ndarray,
    boxes: np.ndarray,
    sure: float,
) -> np.ndarray:
    """Whether balls from x and y ``[N]`` in directions ``[N]`` meet an enemy of ``[4, E]``, and no wall before."""
    ball_x, ball_y = (
        at[:, None, None] + BALL_SPEED * towards[:, None, None] * _STEPS for at, towards in ((x, right), (y, up))
    )
    enemy_x, enemy_y, vx, vy = enemies[..., None]
    wall_x, wall_y, wide, high = boxes[..., None]
    meets = (np.abs(ball_x - enemy_x - vx * _STEPS) < sure) & (np.abs(ball_y - enemy_y - vy * _STEPS) < sure)
    stops = (np.abs(ball_x - wall_x) < wide + BALL_RADIUS) & (np.abs(ball_y - wall_y) < high + BALL_RADIUS)
    meets, stops = meets.any(1), stops.any(1)
    return meets.any(-1) & (meets.argmax(-1) < np.where(stops.any(-1), stops.argmax(-1), FLIGHT))


@functools.lru_cache(4096)
def _to_door(boxes: bytes, door: tuple[Cell, ...], squeezes: bool) -> np.ndarray:
    return distances(room(boxes).free(squeezes), door)


@functools.lru_cache(8192)
def _to_places(boxes: bytes, enemies: tuple[Cell, ...], squeezes: bool) -> np.ndarray:
    """The way from every cell to the nearest place from which a ball hits one of the enemies, int32 ``[20, 20]``."""
    free = room(boxes).free(squeezes)
    hits = np.any([_places(boxes, enemy) for enemy in enemies], axis=0) & free
    rows, columns = np.indices(free.shape)
    beside = np.min([np.minimum(np.abs(rows - row), np.abs(columns - column)) for row, column in enemies], axis=0)
    to_good = distances(free, _cells(hits & (beside >= BESIDE)))
    if (to_good[free] < FAR).all():
        return to_good
    return np.where(to_good == FAR, distances(free, _cells(hits)), to_good)


def _cells(mask: np.ndarray) -> list[Cell]:
    """The cells where a mask ``[H, W]`` is true."""
    return [(row, column) for row, column in np.argwhere(mask).tolist()]


@functools.lru_cache(16384)
def _places(boxes: bytes, enemy: Cell) -> np.ndarray:
    """The cells from which a ball hits an enemy in this cell, bool ``[20, 20]``."""
    x, y = room(boxes).x.ravel(), room(boxes).y.ravel()
    at = np.array([[enemy[1] + 0.5], [enemy[0] + 0.5], [0], [0]], np.float32)
    to_x, to_y = at[0] - x, at[1] - y
    right, up = (np.sign(to) * (np.abs(to) >= 1) for to in (to_x, to_y))
    hits = _hits(x, y, right, up, at, np.frombuffer(boxes, np.float32).reshape(4, -1), SURER)
    return (hits & (np.maximum(np.abs(to_x), np.abs(to_y)) >= CLOSE)).reshape(WORLD, WORLD)
