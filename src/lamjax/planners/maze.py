"""Maze: a breadth-first search to the cheese. Each move is a whole cell."""

import functools

import numpy as np

from lamjax.envs.native_state import WALL, Scene
from lamjax.planners.grid import descent, distances

CHEESE = 2


def plan(scene: Scene, memory: None = None) -> tuple[int, None]:
    """The next move of a shortest path; see `lamjax.planners.Plan`."""
    player = scene.player
    return descent(_to_cheese(scene.cells.tobytes(), scene.cells.shape), (int(player["y"]), int(player["x"]))), None


@functools.lru_cache(1024)
def _to_cheese(cells: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Distances int32 ``[H, W]``: the same at every step of an episode."""
    grid = np.frombuffer(cells, np.int32).reshape(shape)
    return distances(grid != WALL, zip(*np.nonzero(grid == CHEESE), strict=True))
