"""Miner: collects every diamond and leaves by the exit, with a model of how boulders and diamonds fall.

The game draws nothing at random once a level is laid out, so `World.step` predicts it exactly, and the planner plans
the whole episode at once: diamond after diamond by shortest paths, the nearest first. Where a path would kill the
agent, a search over the worlds that its moves lead to (A*) replaces it; where an order of the diamonds leads nowhere,
the planner tries another. It follows the plan while the game shows what the plan predicts, and otherwise plans again.
"""

import dataclasses
import functools
import heapq
import itertools
import re
from collections.abc import Callable, Iterator

import numpy as np

from lamjax.envs.native_state import SPACE, Scene
from lamjax.planners.grid import DOWN, FAR, MOVES, NOOP, costs, descent, distances

BOULDER, DIAMOND, FALLING_BOULDER, FALLING_DIAMOND, EXIT, DIRT = 1, 2, 3, 4, 6, 9
_BOULDERS, _DIAMONDS = (BOULDER, FALLING_BOULDER), (DIAMOND, FALLING_DIAMOND)
_PASSABLE = bytes(thing not in _BOULDERS for thing in range(256))  # what a boulder bars, by id
_ROUND = re.compile(b"[\1-\4]")  # boulders and diamonds
_STILL = {BOULDER: BOULDER, FALLING_BOULDER: BOULDER, DIAMOND: DIAMOND, FALLING_DIAMOND: DIAMOND}
_FALLING = {BOULDER: FALLING_BOULDER, FALLING_BOULDER: FALLING_BOULDER, DIAMOND: FALLING_DIAMOND}
_FALLING[FALLING_DIAMOND] = FALLING_DIAMOND

SEARCHED = 300  # worlds that the searches of one plan may look at
LEGS = 150  # ways to a diamond or the exit that one plan may try; many diamonds have too many orders
BARS = 6  # steps that a search expects to spend on getting past a boulder
GREED = 2  # how much the expected steps weigh against those already taken
TRIED = 8  # boulders that may end an episode
ROOM = 6  # cells that the agent must be able to reach, or it counts as enclosed
GIVES_UP = (
    0.7  # steps a cell of the mine after which the agent ends an episode that it cannot complete, under a boulder
)
LOOKS_AGAIN = 24  # steps until the next attempt after no plan worked


@dataclasses.dataclass(frozen=True)
class World:
    """A level at one step; cells are numbered by row, from the lowest.

    Attributes:
      cells: one byte a cell, what fills it.
      width: cells in a row.
      agent: the agent's cell.
      exit: the exit's cell.
      remaining: diamonds that the exit waits for, counted after the last step.
      over: whether the agent left or died.
      left: whether it left by the exit.
    """

    cells: bytes
    width: int
    agent: int
    exit: int
    remaining: int
    over: bool = False
    left: bool = False

    @property
    def grid(self) -> np.ndarray:
        """The cells, uint8 ``[H, W]``."""
        return np.frombuffer(self.cells, np.uint8).reshape(-1, self.width)

    def place(self, cell: int) -> tuple[int, int]:
        """A cell's row and column."""
        return divmod(cell, self.width)

    def step(self, action: int) -> "World":
        """The world after an action."""
        cells, width = bytearray(self.cells), self.width
        agent = self._moved(cells, action)
        left = agent == self.exit and not self.remaining
        if agent == self.agent and action in MOVES:
            agent = self._pushed(cells, action)
        if cells[agent] in (DIRT, DIAMOND):
            cells[agent] = SPACE
        died = _fall(cells, width, agent)
        remaining = cells.count(DIAMOND) + cells.count(FALLING_DIAMOND)
        return World(bytes(cells), width, agent, self.exit, remaining, left or died, left)

    def _moved(self, cells: bytearray, action: int) -> int:
        up, right = MOVES.get(action, (0, 0))
        row, column = self.place(self.agent)
        row, column = row + up, column + right
        if not (0 <= column < self.width and 0 <= row < len(cells) // self.width):
            return self.agent
        target = row * self.width + column
        return self.agent if cells[target] in _BOULDERS else target

    def _pushed(self, cells: bytearray, action: int) -> int:
        right = MOVES[action][1]
        column = self.agent % self.width
        room = column < self.width - 2 if right > 0 else column > 1
        if not (right and room):
            return self.agent
        target, beyond = self.agent + right, self.agent + 2 * right
        if cells[target] != BOULDER or cells[beyond] != SPACE:
            return self.agent
        cells[target], cells[beyond] = SPACE, BOULDER
        return target


def _fall(cells: bytearray, width: int, agent: int) -> bool:
    """Lets boulders and diamonds fall and roll, cell after cell as the game does; whether one falls on the agent."""
    died = False

    def free(cell: int) -> bool:
        return cells[cell] == SPACE and cell != agent

    for each in _ROUND.finditer(bytes(cells)):
        cell = each.start()
        while True:
            thing, below, column = cells[cell], cell - width, cell % width
            under = cells[below] if below >= 0 else DIRT  # neither falls through
            rolls = under <= FALLING_DIAMOND
            if under == SPACE and below != agent:
                cells[cell], cells[below] = SPACE, _FALLING[thing]
            elif below == agent and thing >= FALLING_BOULDER:
                died = True
            elif rolls and column > 0 and free(cell - 1) and free(below - 1):
                cells[cell], cells[cell - 1] = SPACE, _STILL[thing]
            elif rolls and column < width - 1 and free(cell + 1) and free(below + 1):
                cells[cell], cells[cell + 1] = SPACE, _STILL[thing]
                cell += 1  # which the game comes to next
                continue
            else:
                cells[cell] = _STILL[thing]
            break
    return died


@dataclasses.dataclass(frozen=True)
class Course:
    """Actions, and the worlds that they lead to, one after the other."""

    actions: tuple[int, ...] = ()
    worlds: tuple[World, ...] = ()

    def then(self, other: "Course") -> "Course":
        """This course, followed by another."""
        return Course(self.actions + other.actions, self.worlds + other.worlds)


def plan(scene: Scene, memory: Course | None = None) -> tuple[int, Course | None]:
    """The next action, and the course after it; see `lamjax.planners.Plan`."""
    world = see(scene)
    if memory is None or not _same(memory.worlds[0], world):
        memory = Course((NOOP,), (world,)).then(course(world))
    if len(memory.worlds) > 1:
        return memory.actions[1], Course(memory.actions[1:], memory.worlds[1:])
    # Nothing that is left can be reached: move on, look again now and then, and in the end give up.
    looks = scene.time % LOOKS_AGAIN == 0
    if looks and scene.time > GIVES_UP * len(world.cells) and (end := _end(world)):
        return end.actions[0], end
    action = _stray(world, scene.time)
    return action, None if looks else Course((action,), (world.step(action),))


def see(scene: Scene) -> World:
    """The world that a scene shows."""
    width = scene.cells.shape[1]
    (leave,) = scene.entities[scene.entities["type"] == EXIT]
    agent, leave = (int(thing["y"]) * width + int(thing["x"]) for thing in (scene.player, leave))
    return World(scene.cells.astype(np.uint8).tobytes(), width, agent, leave, int(scene.own[0]))


def course(world: World) -> Course:
    """A course that collects every diamond and leaves, or else the one with the most diamonds that was tried."""
    budget, best, legs = [SEARCHED], [Course()], itertools.count()

    def extend(so_far: Course, here: World) -> Course | None:
        for goal in _goals(here):
            for leg in _legs(here, goal, budget):
                if next(legs) >= LEGS:
                    return None
                after, whole = leg.worlds[-1], so_far.then(leg)
                if after.left:
                    return whole
                if _diamonds(after) < _diamonds((world, *best[0].worlds)[-1]) and _moves_on(after):
                    best[0] = whole
                if _open(after) and (finished := extend(whole, after)):
                    return finished
        return None

    return extend(Course(), world) or best[0]


def _same(ours: World, theirs: World) -> bool:
    return (ours.cells, ours.agent, ours.exit) == (theirs.cells, theirs.agent, theirs.exit)


def _diamonds(world: World) -> int:
    return world.cells.count(DIAMOND) + world.cells.count(FALLING_DIAMOND)


def _goals(world: World) -> list[int]:
    """The cells to go to next, the nearest first: diamonds, or else the exit."""
    diamonds = [cell for cell, thing in enumerate(world.cells) if thing in _DIAMONDS]
    if not diamonds:
        return [world.exit]
    far = _distances(world, world.agent)
    return sorted(diamonds, key=lambda cell: (int(far[world.place(cell)]), cell))


def _distances(world: World, goal: int) -> np.ndarray:
    """Moves to a cell around the boulders, int32 ``[H, W]``."""
    return _around(world.cells.translate(_PASSABLE), world.width, goal)


@functools.lru_cache(4096)
def _around(free: bytes, width: int, goal: int) -> np.ndarray:
    return distances(np.frombuffer(free, np.bool_).reshape(-1, width), [divmod(goal, width)])


def _open(world: World) -> bool:
    """Whether no boulder bars the ways to the exit and to every diamond."""
    far = _distances(world, world.agent)
    ends = [world.exit, *(cell for cell, thing in enumerate(world.cells) if thing in _DIAMONDS)]
    return all(far[world.place(end)] < FAR for end in ends)


def _moves_on(world: World) -> bool:
    """Whether boulders do not enclose the agent."""
    return int(np.count_nonzero(_distances(world, world.agent) < FAR)) >= ROOM


def _reached(world: World, before: World) -> bool:
    """Whether the agent has got another diamond, or left with all of them."""
    left = _diamonds(world)
    return left < _diamonds(before) or (world.left and not left)


def _legs(world: World, goal: int, budget: list[int]) -> Iterator[Course]:
    """Courses to a cell: the shortest path if it goes well, then one that a search finds."""
    if walk := _walk(world, goal, lambda here: _reached(here, world)):
        yield walk
    if longer_way := _search(world, goal, budget):
        yield longer_way


def _walk(world: World, goal: int, arrived: Callable[[World], bool]) -> Course | None:
    """Goes to a cell along shortest paths, found anew at each step since boulders move, until it has arrived."""
    actions: list[int] = []
    worlds: list[World] = []
    here = world
    while len(actions) < len(world.cells) and not here.over:
        action = descent(_distances(here, goal), here.place(here.agent))
        if action == NOOP and here.agent != goal:
            return None
        here = here.step(action)
        actions.append(action)
        worlds.append(here)
        if arrived(here):
            return Course(tuple(actions), tuple(worlds))
    return None


def _search(world: World, goal: int, budget: list[int]) -> Course | None:
    """Finds a course after which the way is still open, by A*; `budget` counts down the worlds that are looked at."""
    far = costs(np.where(np.isin(world.grid, _BOULDERS), BARS, 1), world.place(goal))
    numbers = itertools.count()
    queue = [(0, next(numbers), Course((), (world,)))]
    seen = {(world.cells, world.agent)}
    while queue and budget[0] > 0:
        budget[0] -= 1
        _, _, so_far = heapq.heappop(queue)
        here = so_far.worlds[-1]
        for action in (*MOVES, NOOP):
            after = here.step(action)
            longer = so_far.then(Course((action,), (after,)))
            if _reached(after, world) and (after.left or (not after.over and _open(after))):
                return Course(longer.actions, longer.worlds[1:])
            if not after.over and (after.cells, after.agent) not in seen:
                seen.add((after.cells, after.agent))
                estimate = len(longer.actions) + GREED * int(far[after.place(after.agent)])
                heapq.heappush(queue, (estimate, next(numbers), longer))
    return None


def _end(world: World) -> Course | None:
    """A course under a boulder that falls: to the cell below one, a cell down, and wait."""
    width, far = world.width, _distances(world, world.agent)
    below = [cell - width for cell, thing in enumerate(world.cells) if thing in _BOULDERS and cell >= 2 * width]
    below = [cell for cell in below if far[world.place(cell)] < FAR and world.cells[cell - width] not in _BOULDERS]
    for cell in sorted(below, key=lambda cell: (int(far[world.place(cell)]), cell))[:TRIED]:
        course = _walk(world, cell, functools.partial(_is_at, cell))
        for action in (DOWN, NOOP, NOOP):
            if course and not course.worlds[-1].over:
                course = course.then(Course((action,), (course.worlds[-1].step(action),)))
        if course and course.worlds[-1].over:
            return course
    return None


def _is_at(cell: int, world: World) -> bool:
    return world.agent == cell


def _stray(world: World, time: int) -> int:
    """A move, another one at each step, that neither kills nor encloses the agent if there is such a move."""
    moves = list(MOVES)
    order = [moves[(time * 7 + world.agent + turn) % 4] for turn in range(4)]
    alive = [move for move in order if not world.step(move).over]
    return next((move for move in alive if _moves_on(world.step(move))), (alive or order)[0])
