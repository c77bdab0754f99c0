"""Leaper: crosses the lanes to the finish by a search (A*) over waits and hops that predicts the traffic.

Cars and logs keep their speed. A hop takes six steps, in which actions do nothing, and ends one cell further. A car
that touches the agent ends the game; so does water where a hop ends beside a log. A log takes the agent along. Cars and
logs that have not come in yet are unforeseen, so the agent keeps off the side from which a lane's cars come, and plans
anew after every hop.
"""

import dataclasses
import heapq
import itertools

from lamjax.envs.native_state import Scene
from lamjax.planners.grid import DOWN, LEFT, MOVES, NOOP, RIGHT, UP

LOG, CAR = 1, 4
REACH = 0.4  # half the agent's side
FLIGHT = (0.4, 0.7, 0.9, 1.0, 1.0, 1.0)  # cells from the start after each step of a hop
LANDED = len(FLIGHT)
CAR_X, CAR_Y = 0.5 + REACH + 0.05, 0.25 + REACH  # distances at which a car touches the agent, with a little to spare
LOG_HOLDS = 0.45 - 0.03  # distance at which a log carries the agent, with a little to spare
ENTRY = 1.1  # cells from the side from which a lane's cars come
AHEAD = 100  # steps
PATIENCE = 4  # the most steps that the agent waits before it looks again
SEARCHED = 150  # places that one search may look at

Movers = dict[int, list[tuple[float, float]]]  # by lane: place and speed


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What moves, and where: lanes are numbered from 0, where the agent starts.

    Attributes:
      cars, logs: by lane, the places now and the speeds, in cells a step.
      sides: by lane of the road, the sign of its cars' speed.
      water: the lanes of the river.
      finish: the lane of the finish.
      width: cells of a lane.
    """

    cars: Movers
    logs: Movers
    sides: dict[int, float]
    water: frozenset[int]
    finish: int
    width: int

    def hit(self, x: float, y: float, time: int) -> bool:
        """Whether a car touches the agent so many steps from now, or could come in upon it."""
        for lane in {int(y), int(y + 0.6)}:
            side = self.sides.get(lane)
            if side is None or abs(lane + 0.5 - y) >= CAR_Y:
                continue
            if (x if side > 0 else self.width - x) < ENTRY:
                return True
            if any(abs(at + speed * time - x) < CAR_X for at, speed in self.cars.get(lane, ())):
                return True
        return False

    def carried(self, x: float, y: float, time: int) -> float | None:
        """The speed of the log below the agent; None if there is none."""
        return next(
            (
                speed
                for at, speed in self.logs.get(int(y), ())
                if abs(at + speed * time - x) < LOG_HOLDS and abs(int(y) + 0.5 - y) < LOG_HOLDS
            ),
            None,
        )

    def move(self, x: float, lane: int, time: int, action: int) -> tuple[float, int, int] | None:
        """The agent's place, lane and time after a wait or a hop; None if it dies on the way."""
        up, right = MOVES.get(action, (0, 0))
        before = 0.0
        for step, flown in enumerate(FLIGHT if action != NOOP else (0.0,), 1):
            x, y = x + right * (flown - before), lane + REACH + up * flown
            before = flown
            if not REACH <= x <= self.width - REACH or self.hit(x, y, time + step):
                return None
            drift = self.carried(x, y, time + step)
            lands = action == NOOP or step == LANDED
            if lands and drift is None and int(y) in self.water:
                return None
            x += drift or 0.0
        return x, lane + up, time + step


def plan(scene: Scene, memory: int | None = None) -> tuple[int, int]:
    """The next action, and how many steps to wait after it; see `lamjax.planners.Plan`."""
    player = scene.player
    if memory or player["vx"] or player["vy"]:
        return NOOP, max(0, (memory or 0) - 1)
    action, waits = first_move(see(scene), float(player["x"]), int(player["y"]))
    return action, min(waits, PATIENCE) - 1 if action == NOOP else 0


def see(scene: Scene) -> Traffic:
    """The traffic of a scene."""
    own = scene.own
    speeds = own.view("float32")
    road, lanes = int(own[0]), int(own[1])
    river, streams = int(own[2 + lanes]), int(own[3 + lanes])
    movers: dict[int, Movers] = {CAR: {}, LOG: {}}
    for kind, x, y, speed in zip(*(scene.entities[name].tolist() for name in ("type", "x", "y", "vx")), strict=True):
        if kind in movers:
            movers[kind].setdefault(int(y), []).append((x, speed))
    return Traffic(
        movers[CAR],
        movers[LOG],
        {road + lane: float(speeds[2 + lane]) for lane in range(lanes)},
        frozenset(range(river, river + streams)),
        int(own[4 + lanes + streams]) - 1,
        scene.cells.shape[1],
    )


def first_move(traffic: Traffic, x: float, lane: int) -> tuple[int, int]:
    """The first action of the quickest way to the finish; if none is found, of the one that leads furthest alive.

    Returns:
      The action, and for how many steps it is repeated, if it is a wait.
    """
    numbers = itertools.count()
    queue = [(LANDED * (traffic.finish - lane), next(numbers), (x, lane, 0), (NOOP, 0))]
    seen: set[tuple[float, int, int]] = set()
    best = (-1, -1), (NOOP, 1)
    for _ in range(SEARCHED):
        if not queue:
            break
        _, _, (at, on, time), first = heapq.heappop(queue)
        if on == traffic.finish:
            return first
        best = max(best, ((min(time, 2 * LANDED), on), first))
        for action in (UP, NOOP, LEFT, RIGHT, DOWN):
            after = traffic.move(at, on, time, action) if (action != DOWN or on) else None
            if after is None or after[2] > AHEAD or (key := (round(after[0], 1), *after[1:])) in seen:
                continue
            seen.add(key)
            estimate = after[2] + LANDED * (traffic.finish - after[1])
            waiting = action == NOOP and first == (NOOP, time)
            heapq.heappush(
                queue, (estimate, next(numbers), after, (action, after[2]) if waiting or not time else first)
            )
    return best[1]
