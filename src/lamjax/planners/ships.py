"""Where each move leads, and what touches the agent there, in games in which it flies or walks freely.

Each step the agent's speed becomes 0.45 of the old one plus a push towards the action. So the path of each move that is
kept up for a while, after which the agent rolls out, is known.

Dimension keys: P paths, T steps ahead, D dangers.
"""

import dataclasses
from typing import Any, Self

import numpy as np

FIRE = 9
KEEPS = 0.45  # what is left of a speed after a step


def at_rest(place: Any, speed: Any) -> Any:
    """Where along an axis something comes to rest that is no longer pushed."""
    return place + speed * KEEPS / (1 - KEEPS)


@dataclasses.dataclass(frozen=True)
class Paths:
    """The paths of the nine moves, each kept up for each of some durations.

    Attributes:
      actions: int ``[P]``, the move of each path.
      stay: the number of the path without a move.
      effort: ``[P]``, along how many axes the move pushes.
      rolled: ``[T]``, displacements by a speed of 1 that rolls out.
      pushed: ``[2, P, T]``, displacements along x and y by each path's move.
    """

    actions: np.ndarray
    stay: int
    effort: np.ndarray
    rolled: np.ndarray
    pushed: np.ndarray

    @classmethod
    def of(cls, push: float, ahead: int, durations: tuple[int, ...]) -> Self:
        """The paths for so many steps, with pushes in cells a step, and durations in steps."""
        speed, rolled = 1.0, np.zeros(ahead, np.float32)
        driven, pushed = np.zeros(len(durations)), np.zeros((len(durations), ahead), np.float32)
        for t in range(ahead):
            speed *= KEEPS
            driven = KEEPS * driven + push * (t < np.array(durations))
            rolled[t], pushed[:, t] = speed, driven
        actions = np.arange(9).repeat(len(durations))
        towards = np.array(np.divmod(actions, 3), np.float32) - np.float32(1)  # [2, P]
        pushed = np.tile(pushed.cumsum(-1), (9, 1))
        effort = np.abs(towards).sum(0)
        return cls(actions, int(effort.argmin()), effort, rolled.cumsum(), towards[:, :, None] * pushed)

    def places(self, agent: np.void, world: float) -> tuple[np.ndarray, np.ndarray]:
        """The agent's places, x and y float32 ``[P, T]``, in a world with sides of so many cells."""
        x, y = (
            (agent[axis] + agent["v" + axis] * self.rolled + pushed).clip(agent["r" + axis], world - agent["r" + axis])
            for axis, pushed in zip("xy", self.pushed, strict=True)
        )
        return x, y


def danger(x: np.ndarray, y: np.ndarray, dangers: np.ndarray, agent: np.void, margin: float | np.ndarray) -> np.ndarray:
    """How soon something touches the agent on each path, ``[P]``: from 1, in the next step, to 0, not at all.

    Args:
      x: the agent's places ``[P, T]``.
      y: the same along y.
      dangers: records ``[D]`` of what it must not touch, which moves straight on.
      agent: its record, for its size.
      margin: extra distance, in cells; one of them or ``[D]``.
    """
    ahead = x.shape[1]
    steps = np.arange(1, ahead + 1, dtype=np.float32)
    near_x, near_y = (
        np.abs(at[:, None] - (dangers[axis][:, None] + dangers["v" + axis][:, None] * steps))
        < (dangers["r" + axis] + agent["r" + axis] + margin)[:, None]
        for axis, at in (("x", x), ("y", y))
    )
    meets = (near_x & near_y).any(1)
    return np.where(meets.any(-1), 1 - meets.argmax(-1) / ahead, 0)
