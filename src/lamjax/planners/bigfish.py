"""Bigfish: eats smaller fish and avoids larger ones, by looking ahead.

Fish swim straight on, and each step the agent's speed becomes 0.45 of the old one plus 0.225 towards the action. So the
path of an action for a while and then another one is known, and there are 9 x 9 of them. The planner takes the first
action of the best path: meals count more the sooner they come, and a collision with a larger fish counts far more. New
fish come in at the sides, unforeseen, so places near the sides count against a path.

Dimension keys: P = 9 paths along an axis, T steps ahead, F fish.
"""

import numpy as np

from lamjax.envs.native_state import Scene
from lamjax.planners.ships import KEEPS

FISH = 2
WORLD = 20.0  # cells along each side
AHEAD, SWITCH = 32, 6  # T, and the steps after which a path's second action begins
PUSH = 0.225  # cells a step
DISCOUNT = 0.97  # per step
DEATH = 40.0  # in meals
MARGIN = 0.2  # extra distance from larger fish, in cells
SIDE, CROWDED = 3.5, 0.1  # how far from the sides new fish matter, in cells, and what a step there costs, in meals
HUNGER = 0.03  # what a cell of distance from the nearest meal costs at a path's end

_AXIS = np.array([-1, 0, 1])
_FIRST, _SECOND = (axis.ravel() for axis in np.meshgrid(_AXIS, _AXIS, indexing="ij"))
_DISCOUNTS = (DISCOUNT ** np.arange(AHEAD + 1)).astype(np.float32)


def _responses() -> tuple[np.ndarray, np.ndarray]:
    """Displacements float32 ``[T]`` by a speed of 1 that rolls out, and ``[P, T]`` by the actions of each path."""
    speed, rolled = 1.0, np.zeros(AHEAD)
    driven, at, pushed = np.zeros(9), np.zeros(9), np.zeros((9, AHEAD))
    for t in range(AHEAD):
        speed *= KEEPS
        rolled[t] = (rolled[t - 1] if t else 0.0) + speed
        driven = KEEPS * driven + PUSH * (_FIRST if t < SWITCH else _SECOND)
        at = at + driven
        pushed[:, t] = at
    return rolled.astype(np.float32), pushed.astype(np.float32)


_ROLLED, _PUSHED = _responses()


def plan(scene: Scene, memory: None = None) -> tuple[int, None]:
    """The next action; see `lamjax.planners.Plan`."""
    player, fish = scene.player, scene.entities[scene.entities["type"] == FISH]
    x, y = (_paths(player[axis], player["v" + axis], player["r" + axis]) for axis in "xy")
    value = _meetings(player, fish, x, y)
    from_side = np.minimum(x, WORLD - x) - player["rx"]
    value -= CROWDED * (_DISCOUNTS[:AHEAD] * np.maximum(1 - from_side / SIDE, 0)).sum(-1)[:, None]
    meals = fish[fish["rx"] <= player["rx"]]
    if len(meals):
        to_x = np.abs(x[:, -1:] - np.clip(meals["x"] + AHEAD * meals["vx"], 0, WORLD)[None])
        to_y = np.abs(y[:, -1:] - meals["y"][None])
        value -= HUNGER * np.maximum(to_x[:, None], to_y[None]).min(-1)
    right, up = np.divmod(np.argmax(value), 9)
    return int(3 * (_FIRST[right] + 1) + _FIRST[up] + 1), None


def _paths(place: float, speed: float, radius: float) -> np.ndarray:
    """The agent's places float32 ``[P, T]`` along an axis."""
    return np.clip(place + speed * _ROLLED[None] + _PUSHED, radius, WORLD - radius)


def _meetings(player: np.void, fish: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """What the fish on the way are worth, float32 ``[P, P]`` by the path along x and along y, in meals."""
    larger = fish["rx"] > player["rx"]
    wide, high = (fish["r" + axis] + player["r" + axis] + MARGIN * larger for axis in "xy")
    place = fish["x"][:, None] + fish["vx"][:, None] * np.arange(1, AHEAD + 1, dtype=np.float32)
    near_x = np.abs(x[:, None] - place[None]) < wide[None, :, None]
    near_y = np.abs(y[:, None] - fish["y"][None, :, None]) < high[None, :, None]
    meets = near_x[:, None] & near_y[None]  # [P, P, F, T]
    when = np.where(meets.any(-1), meets.argmax(-1), AHEAD)
    death = np.where(larger, when, AHEAD).min(-1, initial=AHEAD)
    eats = ~larger & (when < death[..., None])
    value = np.where(eats, _DISCOUNTS[when], 0).sum(-1)
    return value - DEATH * np.where(death < AHEAD, _DISCOUNTS[death], 0)
