"""A maze drawn by hand."""

import numpy as np

from lamjax.envs.native_state import ENTITY, SPACE, WALL, Scene
from lamjax.planners import maze
from lamjax.planners.grid import LEFT, NOOP, RIGHT, UP


def scene(row, column):
    """The agent at a place of this maze; row 0 is the lowest, and the cheese (2) is behind the wall."""
    cells = np.array([[1, 1, 1], [0, 0, 1], [2, 1, 1]])
    cells = np.where(cells == 1, SPACE, np.where(cells == 0, WALL, cells)).astype(np.int32)
    player = np.zeros(1, ENTITY)
    player["x"], player["y"] = column + 0.5, row + 0.5
    return Scene("maze", 0, cells, player, np.array([3, 3], np.int32))


def test_every_move_is_one_of_a_shortest_path():
    path = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1)]
    assert [maze.plan(scene(*place))[0] for place in path] == [RIGHT, RIGHT, UP, UP, LEFT, LEFT]
    assert maze.plan(scene(2, 0))[0] == NOOP


def test_nothing_is_remembered():
    assert maze.plan(scene(0, 0)) == (RIGHT, None)
