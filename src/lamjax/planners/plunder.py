"""Plunder: shoots the ships that look like the one on the sign, and spares the others.

Ships sail straight on, and a ball flies straight up, so the ship that a shot would hit first is known. The planner
fires as soon as that is a ship to sink, well inside its sides and well clear of the others. Otherwise it sails below
the nearest ship that it could shoot from there, or the nearest of all, and without one to the middle. It counts the
balls that are under way, so each ship gets two. One would do, but the rarer the shots, the less a policy learns to
fire. Apart from the ships' exact speed, all that the planner reads is in the frame.

Dimension keys: B balls, S ships, P ships to sink, T steps ahead.
"""

import numpy as np

from lamjax.envs.native_state import Scene
from lamjax.planners.grid import LEFT, NOOP, RIGHT
from lamjax.planners.ships import FIRE, KEEPS, at_rest

BALL, SIGN, SHIP = 1, 2, 7
WORLD, SIGN_WIDTH = 20.0, 4.0  # cells; the agent keeps to the right of the sign
CRUISE = 0.695  # the agent's speed after some steps, in cells a step
RISE, REACH = 1.0, 0.25  # a ball's speed, in cells a step, and half its side
COUNTS = 4.5  # how far a ball has risen when it counts, in cells; the cannon fires at most every third step
AHEAD = 18  # T, until a ball has left
FAR = 1000.0  # steps, more than any way takes
INSIDE, CLEAR = 0.7, 0.3  # how far inside a ship's sides a shot must be, and how far off those of others, in cells
SLACK = 0.35  # how far from the place of a shot the agent may come to rest, in cells

_STEPS = np.arange(AHEAD, dtype=np.float32)


def plan(scene: Scene, memory: None = None) -> tuple[int, None]:
    """The next action; see `lamjax.planners.Plan`."""
    player, things = scene.player, scene.entities
    kinds = things["type"]
    ships, balls = things[kinds == SHIP], things[kinds == BALL]
    balls = balls[balls["y"] > player["y"] + COUNTS]
    ships = ships[~_doomed(balls, ships)]
    prey = ships["image_theme"] == things["image_theme"][kinds == SIGN]
    x, y, rest = player["x"], player["y"], at_rest(player["x"], player["vx"])
    first, last = SIGN_WIDTH + player["rx"], WORLD - player["rx"]
    goal = (first + last) / 2
    if prey.any():
        below, delay = _below(ships[prey], y, rest, first, last)
        # A ball appears where the agent is after the step in which it fires.
        starts = np.concatenate([[x + KEEPS * player["vx"]], below], dtype=np.float32)
        good = _good_shots(starts, y, np.concatenate([[1], 1 + delay], dtype=np.float32), ships, prey)
        if good[0]:
            return FIRE, None
        goal = below[np.where(good[1:], delay, delay + FAR).argmin()]
    away = goal - rest
    return (NOOP if abs(away) < SLACK else RIGHT if away > 0 else LEFT), None


def _below(prey: np.ndarray, y: float, rest: float, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
    """The places below where a ball would meet each ship's middle, and the steps to get there, both ``[P]``."""
    away = prey["x"] + prey["vx"] * (1 + (prey["y"] - prey["ry"] - REACH - y) / RISE) - rest
    steps = np.abs(away) / (CRUISE - np.sign(away) * prey["vx"])
    below = np.clip(rest + away + prey["vx"] * steps, first, last)
    return below, np.abs(below - rest) / CRUISE


def _contacts(x: np.ndarray, y: np.ndarray, delay: np.ndarray, ships: np.ndarray, wider: np.ndarray) -> np.ndarray:
    """When balls meet ships that are so much wider ``[S]``: bool ``[B, S, T]``, `delay` steps ``[B]`` from now and on.

    The balls start at x and y ``[B]`` after the delay.
    """
    high = (y[:, None] + RISE * _STEPS)[:, None]
    near_y = np.abs(ships["y"][None, :, None] - high) < (ships["ry"] + REACH)[None, :, None]
    times = (delay[:, None] + _STEPS)[:, None]
    place = ships["x"][None, :, None] + ships["vx"][None, :, None] * times
    return near_y & (np.abs(place - x[:, None, None]) < (ships["rx"] + REACH + wider)[None, :, None])


def _doomed(balls: np.ndarray, ships: np.ndarray) -> np.ndarray:
    """The ships that balls will hit, bool ``[S]``."""
    doomed = np.zeros(len(ships), bool)
    if len(balls) and len(ships):
        balls = balls[np.argsort(-balls["y"])]
        none = np.zeros(len(balls), np.float32)
        for met in _contacts(balls["x"], balls["y"], none, ships, np.zeros(len(ships), np.float32)):
            when = np.where(~doomed & met.any(-1), met.argmax(-1), AHEAD)
            if when.min() < AHEAD:
                doomed[when.argmin()] = True
    return doomed


def _good_shots(x: np.ndarray, y: float, delays: np.ndarray, ships: np.ndarray, prey: np.ndarray) -> np.ndarray:
    """Whether a shot from each place, after the delay, hits a ship to sink well before all others: bool ``[1 + P]``."""
    wider = np.where(prey, -INSIDE, CLEAR).astype(np.float32)
    met = _contacts(x, np.full(len(x), y, np.float32), delays, ships, wider)
    when = np.where(met.any(-1), met.argmax(-1), AHEAD)
    return np.where(prey, when, AHEAD).min(-1) < np.where(prey, AHEAD, when).min(-1)
