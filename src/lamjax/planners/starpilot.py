"""Starpilot: flies to the height at which its shots meet a flyer, and dodges, by looking ahead.

Flyers and bullets move straight on, and each step the ship's speed becomes 0.45 of the old one plus 0.3375 towards the
action. So the path of each move that is kept up for one step or for four is known. The planner takes the first move of
the path on which nothing touches the ship, and which ends nearest to the next flyer's height and to the left side,
where there is time to dodge. Firing takes the place of a move. The planner fires if that is as safe as any move, and if
the shot would hit a flyer that is not yet the target of two shots, which are enough. It counts the shots that can be
seen, not a flyer's health.

Dimension keys: P = 18 paths (9 moves, each of 2 durations), T steps ahead, D dangers, F flyers, S shots of the ship.
"""

import numpy as np

from lamjax.envs.native_state import Scene

SHOT, FLYER = 1, 4
IS_DANGER = np.isin(np.arange(128), (2, 3, FLYER, 5, 7, 8))  # by type: bullets, flyers, meteors and turrets
NOOP, FIRE = 4, 9
WORLD = 16.0  # cells along each side
AHEAD, DURATIONS = 14, (1, 4)  # T, and the steps for which a path's move is kept up
KEEPS, PUSH = 0.45, 0.3375
SHOT_SPEED, SHOT_RADIUS, ENOUGH = 0.8, 0.4, 2  # cells a step, cells, and the shots that a flyer survives at most one of
MARGIN = 0.15  # extra distance from dangers, in cells
SURE = 0.85  # how near to a flyer's middle a shot must pass, in cells; 0.9 would hit
# What counts against a path, in cells of distance from the next flyer's height:
DEATH = 100.0  # a collision now; one at the end of the path costs nothing
HOME, STRAYING = 2.0, 0.3  # a cell of distance from this far off the left side
EFFORT = 0.01  # a move instead of none
NEXT = 5  # steps until the height counts
WAITING = 0.5  # cells of height that are as good as a step less until a shot meets the flyer, to choose the next one


def _responses() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Displacements ``[T]`` by a speed of 1 that rolls out, and ``[P, T]`` along x and y by each path's move."""
    duration = np.array(DURATIONS)
    speed, rolled = 1.0, np.zeros(AHEAD, np.float32)
    driven, pushed = np.zeros(len(duration)), np.zeros((len(duration), AHEAD), np.float32)
    for t in range(AHEAD):
        speed *= KEEPS
        driven = KEEPS * driven + PUSH * (t < duration)
        rolled[t], pushed[:, t] = speed, driven
    right, up = np.divmod(np.arange(9, dtype=np.float32), 3) - np.float32(1)
    pushed = pushed.cumsum(-1)
    along_x, along_y = ((towards[:, None, None] * pushed).reshape(-1, AHEAD) for towards in (right, up))
    return rolled.cumsum(), along_x, along_y


_ROLLED, *_PUSHED = _responses()
_STAY = NOOP * len(DURATIONS)
_STEPS = np.arange(1, AHEAD + 1, dtype=np.float32)
_EFFORT = EFFORT * (np.arange(len(_PUSHED[0])) // len(DURATIONS) != NOOP)


def plan(scene: Scene, memory: None = None) -> tuple[int, None]:
    """The next action; see `lamjax.planners.Plan`."""
    ship, things = scene.player, scene.entities
    radius = ship["rx"]
    x, y = (
        (ship[axis] + ship["v" + axis] * _ROLLED + pushed).clip(radius, WORLD - radius)
        for axis, pushed in zip("xy", _PUSHED, strict=True)
    )
    danger = DEATH * _danger(radius + MARGIN, things[IS_DANGER[things["type"]]], x, y)

    muzzle = ship["x"] + radius
    flyers = things[things["type"] == FLYER]
    flyers = flyers[flyers["x"] > muzzle]
    delay, height = _meeting(flyers, muzzle)
    targeted = _shots_at(flyers, things[things["type"] == SHOT])
    wanted = (targeted < ENOUGH) & (height > 0) & (height < WORLD)
    off = np.abs(height - ship["y"])
    if (wanted & (off < SURE)).any() and danger[_STAY] <= danger.min():
        return FIRE, None

    cost = danger + STRAYING * np.abs(x[:, -1] - HOME) + _EFFORT
    if wanted.any():
        goal = height[np.where(wanted, off + WAITING * delay, np.inf).argmin()]
        cost += np.abs(y[:, NEXT - 1] - goal)
    else:
        cost += STRAYING * np.abs(y[:, NEXT - 1] - WORLD / 2)
    return int(cost.argmin()) // len(DURATIONS), None


def _danger(radius: float, dangers: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """From 0, if nothing comes nearer to the ship than its radius, to 1, if something does at once: ``[P]``."""
    near_x, near_y = (
        np.abs(at[:, None] - (dangers[axis][:, None] + dangers["v" + axis][:, None] * _STEPS))
        < (dangers["r" + axis] + radius)[:, None]
        for axis, at in (("x", x), ("y", y))
    )
    meets = (near_x & near_y).any(1)
    return np.where(meets.any(-1), 1 - meets.argmax(-1) / AHEAD, 0)


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
