"""Starpilot: flies to the height at which its shots meet a flyer, and dodges, by looking ahead.

Flyers and bullets move straight on. The planner takes the first move of the best path (`lamjax.planners.ships`):
nothing touches the ship on it, and it ends near the next flyer's height, and near the left side, where there is time to
dodge. Firing takes the place of a move. The planner fires if that is as safe as any move, and if the shot would hit a
flyer that is not yet the target of two shots, which are enough. It counts the shots that can be seen, not a flyer's
health.

Dimension keys: F flyers, S shots of the ship.
"""

import numpy as np

from lamjax.envs.native_state import Scene
from lamjax.planners.ships import FIRE, Paths, danger

SHOT, FLYER = 1, 4
IS_DANGER = np.isin(np.arange(128), (2, 3, FLYER, 5, 7, 8))  # by type: bullets, flyers, meteors and turrets
WORLD = 16.0  # cells along each side
PATHS = Paths.of(push=0.3375, ahead=14, durations=(1, 4))
SHOT_SPEED, SHOT_RADIUS = 0.8, 0.4  # cells a step, cells
ENOUGH = 2  # shots that destroy a flyer
MARGIN = 0.15  # extra distance from dangers, in cells
SURE = 0.85  # how near to a flyer's middle a shot must pass, in cells; 0.9 would hit
# What counts against a path, in cells of distance from the next flyer's height:
DEATH = 100.0  # a collision now; one at the end of the path costs nothing
HOME, STRAYING = 2.0, 0.3  # a cell of distance from this far off the left side
EFFORT = 0.01  # a move along one axis
NEXT = 5  # steps until the height counts
WAITING = 0.5  # what a step until a shot meets a flyer counts, in cells of height, when the next flyer is chosen


def plan(scene: Scene, memory: None = None) -> tuple[int, None]:
    """The next action; see `lamjax.planners.Plan`."""
    ship, things = scene.player, scene.entities
    x, y = PATHS.places(ship, WORLD)
    risk = DEATH * danger(x, y, things[IS_DANGER[things["type"]]], ship, MARGIN)

    muzzle = ship["x"] + ship["rx"]
    flyers = things[things["type"] == FLYER]
    flyers = flyers[flyers["x"] > muzzle]
    delay, height = _meeting(flyers, muzzle)
    targeted = _shots_at(flyers, things[things["type"] == SHOT])
    wanted = (targeted < ENOUGH) & (height > 0) & (height < WORLD)
    off = np.abs(height - ship["y"])
    if (wanted & (off < SURE)).any() and risk[PATHS.stay] <= risk.min():
        return FIRE, None

    cost = risk + STRAYING * np.abs(x[:, -1] - HOME) + EFFORT * PATHS.effort
    if wanted.any():
        goal = height[np.where(wanted, off + WAITING * delay, np.inf).argmin()]
        cost += np.abs(y[:, NEXT - 1] - goal)
    else:
        cost += STRAYING * np.abs(y[:, NEXT - 1] - WORLD / 2)
    return int(PATHS.actions[cost.argmin()]), None


def _meeting(flyers: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The steps until a shot from x meets each flyer, and the flyers' heights then."""
    delay = (flyers["x"] - x) / (SHOT_SPEED - flyers["vx"])
    return delay, flyers["y"] + flyers["vy"] * delay


def _shots_at(flyers: np.ndarray, shots: np.ndarray) -> np.ndarray:
    """How many shots will hit each flyer, int ``[F]``: a shot hits the first one on its way."""
    if not len(flyers):
        return np.zeros(0, int)
    delay, height = _meeting(flyers, shots["x"][:, None])  # [S, F]
    hits = (delay > 0) & (np.abs(height - shots["y"][:, None]) < flyers["ry"] + SHOT_RADIUS)
    first = np.where(hits, delay, np.inf).argmin(-1)
    return np.bincount(first[hits.any(-1)], minlength=len(flyers))
