"""Rooms of dodgeball: where an agent fits between deadly walls, and how it gets through narrow gaps.

A push moves the agent by `STRIDE` in the end, so it comes to rest only at some places: one stride apart. A gap that is
narrower than a stride may lie between them. Then the agent first goes to a side of the world, which stops it, and from
which a whole number of strides leads into the gap.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from lamjax.planners.grid import FAR, MOVES, Cell, descent, distances
from lamjax.planners.ships import KEEPS

WORLD = 20  # cells along each side
RADIUS = 1.0  # the agent's, in cells
PUSH = 0.3375  # cells a step
STRIDE = PUSH / (1 - KEEPS)  # cells
WALL_MARGIN = 0.01  # extra distance from walls, in cells
BEYOND = 0.5  # how far behind the side the point lies to which the agent goes there, in cells
_ROWS, _COLUMNS = np.indices((WORLD, WORLD), np.float32).reshape(2, -1) + np.float32(0.5)
_OFFSETS = np.meshgrid(*[np.linspace(-0.4, 0.4, 5, dtype=np.float32)] * 2)


@dataclasses.dataclass(frozen=True)
class Room:
    """The cells of a level, ``[20, 20]``.

    Attributes:
      x: the place in each cell that is furthest from the walls.
      y: the same along y.
      spare: by how much the agent's distance from walls is greater there than it must be, in cells.
      gaps: for each narrow gap, the axis across it (0 or 1), and the ends of the places of the agent in it.
    """

    x: np.ndarray
    y: np.ndarray
    spare: np.ndarray
    gaps: tuple[tuple[int, float, float], ...]

    def free(self, squeezes: bool) -> np.ndarray:
        """The cells that the agent can be in, bool; with or without the narrow gaps."""
        return self.spare > (WALL_MARGIN if squeezes else STRIDE / 2)


@functools.lru_cache(512)
def room(boxes: bytes) -> Room:
    """The room between walls, float32 ``[4, W]``: their middles, x and y, and half their sides."""
    walls = np.frombuffer(boxes, np.float32).reshape(4, -1)
    wall_x, wall_y, wide, high = walls
    x, y = (at[:, None] + offset.ravel() for at, offset in zip((_COLUMNS, _ROWS), _OFFSETS, strict=True))
    off = np.maximum(np.abs(x[..., None] - wall_x) - wide, np.abs(y[..., None] - wall_y) - high)
    inside = (np.minimum(x, y) > RADIUS) & (np.maximum(x, y) < WORLD - RADIUS)
    spare = np.where(inside, off.min(-1, initial=2 * RADIUS) - RADIUS, -1)
    best = (spare - 0.01 * np.hypot(*_OFFSETS).ravel()).argmax(-1)[:, None]
    x, y, spare = (np.take_along_axis(a, best, 1).reshape(WORLD, WORLD) for a in (x, y, spare))
    narrow = (spare > WALL_MARGIN) & (spare <= STRIDE / 2)
    gaps = {gap for cell in np.argwhere(narrow) for gap in _gaps(walls, (x[tuple(cell)], y[tuple(cell)]))}
    return Room(x, y, spare, tuple(gaps))


def _gaps(walls: np.ndarray, place: tuple[float, float]) -> Iterator[tuple[int, float, float]]:
    """The narrow gaps at a place, as in `Room`."""
    for axis in (0, 1):
        across, along = walls[axis] - place[axis], walls[1 - axis] - place[1 - axis]
        half, near = walls[2 + axis], np.abs(along) < walls[3 - axis] + RADIUS
        reach = RADIUS + WALL_MARGIN  # more than the agent needs at a side of the world, which it may touch
        low = (walls[axis] + half)[near & (across < 0)].max(initial=-2 * WALL_MARGIN) + reach
        high = (walls[axis] - half)[near & (across > 0)].min(initial=WORLD + 2 * WALL_MARGIN) - reach
        if low < high < low + STRIDE:
            yield axis, float(low), float(high)


def detour(boxes: bytes, rest: tuple[float, float], here: Cell) -> tuple[float, float] | None:
    """The point on the way to a side from which whole strides lead into a gap; None if the agent fits into all gaps.

    Args:
      boxes: the walls; see `room`.
      rest: where the agent would come to rest, x and y.
      here: its cell.
    """
    level = room(boxes)
    for axis, low, high in level.gaps:
        if _fits(rest[axis], low, high):
            continue
        for side, line in ((RADIUS, 1), (WORLD - RADIUS, WORLD - 2)):
            distance = _to_side(boxes, axis, line)
            if not _fits(side, low, high) or distance[here] == FAR:
                continue
            up, right = MOVES.get(descent(distance, here), (0, 0))
            cell = here[0] + up, here[1] + right
            point = [float(level.x[cell]), float(level.y[cell])]
            if cell == here:
                point[axis] = side + np.copysign(BEYOND, side - WORLD / 2)
            return point[0], point[1]
    return None


def _fits(rest: float, low: float, high: float) -> bool:
    """Whether whole strides lead from a place into a gap."""
    return (high - rest) % STRIDE <= high - low


@functools.lru_cache(1024)
def _to_side(boxes: bytes, axis: int, line: int) -> np.ndarray:
    """The way to the cells of a column (axis 0) or row (axis 1), without narrow gaps, int32 ``[20, 20]``."""
    cells = [(line, other) if axis else (other, line) for other in range(WORLD)]
    free = room(boxes).free(False)
    return distances(free, [cell for cell in cells if free[cell]])
