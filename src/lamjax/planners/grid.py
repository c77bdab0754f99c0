"""Shortest paths over a grid's cells.

Dimension keys: H and W rows and columns; row 0 is the lowest, as in `lamjax.envs.native_state`.
"""

import heapq
from collections.abc import Iterable

import numpy as np

Cell = tuple[int, int]  # row and column

# Procgen's actions, and what they do to row and column.
LEFT, DOWN, NOOP, UP, RIGHT = 1, 3, 4, 5, 7
MOVES: dict[int, Cell] = {LEFT: (0, -1), RIGHT: (0, 1), DOWN: (-1, 0), UP: (1, 0)}
FAR = np.iinfo(np.int32).max


def distances(free: np.ndarray, goals: Iterable[Cell]) -> np.ndarray:
    """Counts the moves from every cell to the nearest goal, by breadth-first search.

    Args:
      free: bool ``[H, W]``, cells that can be entered; goals always can be.
      goals: the cells with distance 0.

    Returns:
      int32 ``[H, W]``; `FAR` where no goal is reachable.
    """
    height, width = free.shape
    stride = width + 2  # a border of walls saves the test of bounds
    padded = np.zeros((height + 2, stride), bool)
    padded[1:-1, 1:-1] = free
    open_cells = padded.ravel().tolist()
    result = [FAR] * len(open_cells)
    frontier = [(row + 1) * stride + column + 1 for row, column in goals]
    steps = 0
    for cell in frontier:
        result[cell] = 0
    while frontier:
        steps += 1
        following = []
        for cell in frontier:
            for neighbour in (cell - 1, cell + 1, cell - stride, cell + stride):
                if open_cells[neighbour] and result[neighbour] > steps:
                    result[neighbour] = steps
                    following.append(neighbour)
        frontier = following
    return np.array(result, np.int32).reshape(height + 2, stride)[1:-1, 1:-1]


def costs(entering: np.ndarray, goal: Cell) -> np.ndarray:
    """The cost of the cheapest path to a goal from every cell, int32 ``[H, W]``; `entering` is what a cell costs."""
    result = np.full(entering.shape, FAR, np.int32)
    queue = [(0, goal)]
    while queue:
        cost, cell = heapq.heappop(queue)
        if cost < result[cell]:
            result[cell] = cost
            for _, neighbour in neighbours(cell, entering.shape):
                heapq.heappush(queue, (cost + int(entering[cell]), neighbour))
    return result


def neighbours(cell: Cell, shape: tuple[int, int]) -> Iterable[tuple[int, Cell]]:
    """The actions that lead from a cell to another in the grid, each with that cell."""
    for action, (up, right) in MOVES.items():
        row, column = cell[0] + up, cell[1] + right
        if 0 <= row < shape[0] and 0 <= column < shape[1]:
            yield action, (row, column)


def descent(distance: np.ndarray, cell: Cell) -> int:
    """The action that leads from a cell to a neighbour nearer to the goal; `NOOP` if there is none."""
    best, nearest = NOOP, distance[cell]
    for action, neighbour in neighbours(cell, distance.shape):
        if distance[neighbour] < nearest:
            best, nearest = action, distance[neighbour]
    return best
