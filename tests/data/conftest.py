"""Small stores whose frames say which frame they are, and the memory that a program takes."""

import subprocess
import sys

import numpy as np
import pytest

from lamjax import data


class NumberedStores:
    """Writes stores with observations uint8 [4]: the four bytes of each frame's index."""

    def __init__(self, folder):
        self.folder = folder

    def make(self, lengths, name="store", level_seeds=None, frames_per_chunk=8):
        """A store of episodes of these lengths; level seeds count up from 0 by default."""
        level_seeds = range(len(lengths)) if level_seeds is None else level_seeds
        path = self.folder / name
        with self.writer(path, frames_per_chunk=frames_per_chunk) as writer:
            for length, level_seed in zip(lengths, level_seeds, strict=True):
                self.append(writer, length, level_seed)
        return data.open_store(path)

    def writer(self, path, **kwargs):
        return data.StoreWriter(path, env="toy", obs_shape=(4,), num_actions=5, **kwargs)

    def append(self, writer, length, level_seed=0):
        frames = np.arange(writer.num_frames, writer.num_frames + length)
        rewards = np.ones(length)
        writer.append_episode(self.frames(frames), self.actions(frames), rewards, level_seed, "terminated")

    @staticmethod
    def frames(numbers):
        return np.asarray(numbers, "<u4").view(np.uint8).reshape(-1, 4)

    @staticmethod
    def numbers(frames):
        return np.ascontiguousarray(frames).view("<u4")[..., 0].astype(np.int64)

    @staticmethod
    def actions(numbers):
        return np.asarray(numbers) * 7 % 5


@pytest.fixture
def stores(tmp_path):
    return NumberedStores(tmp_path)


@pytest.fixture
def store(stores):
    """40 frames in 5 chunks of observations."""
    return stores.make([10, 3, 20, 1, 6])


@pytest.fixture
def traced_memory():
    """Runs a program with arguments in a process of its own; returns the peak of its `tracemalloc`, in bytes.

    Tracing goes on until that process ends: `tracemalloc.stop` crashes now and then where threads outside of Python,
    such as tensorstore's, free memory at the same time (python/cpython#128679, in all of Python 3.11).
    """

    def run(program, *arguments):
        traced = (
            "import os, sys, tracemalloc",
            program,
            "print(tracemalloc.get_traced_memory()[1], flush=True)",
            "os._exit(0)",
        )
        command = [sys.executable, "-c", "\n".join(traced), *map(str, arguments)]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    return run
