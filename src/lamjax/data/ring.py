"""Chooses the frames in device memory if a split does not fit there: a ring of blocks, refilled during training.

The split is cut into blocks of whole episodes. They form an endless sequence, pass after pass, in an order drawn from
(seed, pass); entry i of it lies in slot i % R. During phase p, which lasts S steps, the entries p .. p + R - 1 are
resident. Then entry p + R, which a thread has read in the meantime, replaces entry p. All of this is a pure function of
(seed, step), so a run restored at any step finds the blocks that the uninterrupted one had.

Dimension keys: F frames in a slot, R slots, S steps in a phase.
"""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

SLOTS = 8


@dataclasses.dataclass(frozen=True)
class Block:
    """Frames that are resident together.

    Attributes:
      frames: int64 ``[<= F]``, their indices in the store.
      starts: int32, where in `frames` a window may start.
    """

    frames: np.ndarray
    starts: np.ndarray


def cut(frames: np.ndarray, lengths: np.ndarray, capacity: int, window: int) -> list[np.ndarray]:
    """Cuts episodes into blocks of at most `capacity` frames.

    An episode that is longer than a block is cut into pieces that share ``window - 1`` frames, so that each of its
    windows lies in one piece.

    Args:
      frames: int ``[N]``, the indices in the store of episodes laid end to end.
      lengths: int ``[E]``, the frames of each episode, N in total.
      capacity: F, at least `window`.
      window: frames in a window.

    Returns:
      The indices in the store of each block's frames.
    """
    if capacity < window:
        raise ValueError(f"a block of {capacity} frames holds no window of {window}; enlarge ring_frames")
    step = capacity - window + 1
    blocks: list[list[np.ndarray]] = []
    room = 0
    for episode in np.split(frames, np.cumsum(lengths)[:-1]):
        for offset in range(0, max(len(episode) - window + 1, 1), step):
            piece = episode[offset : offset + capacity]
            if len(piece) > room:
                blocks.append([])
                room = capacity
            blocks[-1].append(piece)
            room -= len(piece)
    return [np.concatenate(block) for block in blocks]


def entry(seed: int, shard: int, index: int, num_blocks: int) -> int:
    """The block at place `index` of the endless sequence of a device's shard."""
    turn, place = divmod(index, num_blocks)
    return int(np.random.default_rng([seed, shard, turn]).permutation(num_blocks)[place])


def steps_per_phase(blocks: list[Block], batch_size: int, align: int) -> int:
    """S: as many steps as use up one block's windows on average, a multiple of `align`; 0 if there are too few windows.

    A pass over the sequence then draws as many windows as the shard has. Which R blocks meet is not known in advance,
    so the R smallest must suffice for a phase.
    """
    sizes = np.sort([len(block.starts) for block in blocks])
    enough = min(sizes.sum() // len(sizes), sizes[:SLOTS].sum()) // batch_size
    return int(enough) // align * align


class Prefetcher:
    """Loads one entry ahead in a thread; `take` returns it, or loads the requested one now if it is another."""

    def __init__(self, load):
        self._load = load
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ring")
        self._next: tuple[int, Future] | None = None

    def ask(self, index: int) -> Future:
        """Starts to load an entry, and returns its future."""
        future = self._thread.submit(self._load, index)
        self._next = (index, future)
        return future

    def take(self, index: int):
        """The loaded entry; waits for it, and raises any error from loading."""
        loading, future = self._next or (None, None)
        if future is None or loading != index:
            future = self.ask(index)
        self._next = None
        return future.result()
