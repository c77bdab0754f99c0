"""Bossfight: keeps to the bottom, shoots from below the boss while its shields are down, and dodges by looking ahead.

The planner takes the first move of the best path (`lamjax.planners.ships`): nothing touches the ship on it, and it ends
low, and near the place at which a shot would hit the boss; with the shields up, near the middle. Rocks stop shots, so
places below a rock are worse. Firing takes the place of a move. The planner fires if that is as safe as any move, if
the shot would hit the boss, and if the last shot is far enough for the next one.
"""

import numpy as np

from lamjax.envs.native_state import Scene
from lamjax.planners.ships import FIRE, Paths, danger

SHOT, BOSS, BULLET, ROCK = 1, 2, 4, 7
WORLD = 20.0  # cells along each side
PATHS = Paths.of(push=0.3825, ahead=20, durations=(1, 3, 6))
SHOT_SPEED, SHOT_RADIUS = 1.0, 0.25  # cells a step, cells
RELOADED = 1.5  # how far off the last shot is when the next one can be fired, in cells
MARGIN = 0.15  # extra distance from dangers, in cells
SURE = 2.5  # how near to the boss's middle a shot must pass, in cells; 3.25 would hit
# What counts against a path, in cells of distance from below the boss:
DEATH = 100.0  # a collision now; one at the end of the path costs nothing
NEXT = 5  # steps until the distance counts
BLOCKED = 3.0  # a place below a rock
HEIGHT = 0.5  # a cell of height
STRAYING = 0.2  # a cell of distance from the middle while the shields are up
EFFORT = 0.01  # a move along one axis
_SHIELDS = 14  # the place of the shields after the list of attacks, among the game's own numbers


def plan(scene: Scene, memory: None = None) -> tuple[int, None]:
    """The next action; see `lamjax.planners.Plan`."""
    ship, things, kinds = scene.player, scene.entities, scene.entities["type"]
    boss, rocks = things[kinds == BOSS][0], things[kinds == ROCK]
    x, y = PATHS.places(ship, WORLD)
    dangers = things[(kinds == BULLET) | (kinds == ROCK) | (kinds == BOSS)]
    risk = DEATH * danger(x, y, dangers, ship, MARGIN)
    cost = risk + HEIGHT * y[:, -1] + EFFORT * PATHS.effort
    at = x[:, NEXT - 1]
    if scene.own[scene.own[0] + _SHIELDS]:
        cost += STRAYING * np.abs(at - WORLD / 2)
        return int(PATHS.actions[cost.argmin()]), None

    target = boss["x"] + boss["vx"] * (boss["y"] - ship["y"]) / SHOT_SPEED
    target = min(max(target, boss["rx"]), WORLD - boss["rx"])
    loaded = (things["y"][kinds == SHOT] >= ship["y"] + RELOADED).all()
    hits = abs(target - ship["x"]) < SURE and not _below(rocks, ship["x"])
    if loaded and hits and risk[PATHS.stay] <= risk.min():
        return FIRE, None
    cost += np.abs(at - target) + BLOCKED * _below(rocks, at)
    return int(PATHS.actions[cost.argmin()]), None


def _below(rocks: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Whether a rock would stop a shot from each of these places."""
    return (np.abs(rocks["x"] - x[..., None]) < rocks["rx"] + SHOT_RADIUS).any(-1)
