"""States are read in every game, and a state of another layout is refused."""

import struct

import numpy as np
import pytest

from lamjax import envs
from lamjax.envs import native_state
from lamjax.envs.native_state import PLAYER, StateLayoutError
from tests.envs.scenes import random_steps, saved_states

STEPS = 3
# Rows and columns of the grid on easy, where they are the same for all levels.
GRIDS = {
    "bigfish": (20, 20),
    "chaser": (11, 11),
    "heist": (9, 9),
    "leaper": (9, 9),
    "maze": (15, 15),
    "miner": (10, 10),
}


@pytest.mark.parametrize("game", envs.PROCGEN_GAMES)
def test_a_real_state_of_every_game_is_read(game):
    env = envs.make(game, 1, num_threads=0)
    state = random_steps(env, STEPS)
    (blob,) = saved_states(env, state)
    env.close()
    scene = native_state.read(memoryview(blob))
    assert scene.game == game and scene.time == int(state.time[0]) == STEPS
    assert scene.cells.dtype == np.int32 and scene.cells.shape == GRIDS.get(game, scene.cells.shape)
    assert scene.player["type"] == PLAYER and np.count_nonzero(scene.entities["type"] == PLAYER) == 1
    height, width = scene.cells.shape
    assert 0 <= scene.player["x"] <= width and 0 <= scene.player["y"] <= height
    assert 0 < scene.player["rx"] <= 2 and set(scene.entities["will_erase"]) <= {0, 1}
    assert (scene.entities["friction"] > 0).all() and (scene.entities["alpha"] >= 0).all()


@pytest.fixture(scope="module")
def blob():
    env = envs.make("maze", 1, num_threads=0)
    (blob,) = saved_states(env, random_steps(env, 0))
    env.close()
    return blob


def test_the_cells_of_a_maze(blob):
    scene = native_state.read(blob)
    cells, counts = np.unique(scene.cells, return_counts=True)
    assert cells.tolist() == [2, 51, 100] and counts[0] == 1  # one cheese, walls, ways
    row, column = int(scene.player["y"]), int(scene.player["x"])
    assert (scene.player["x"], scene.player["y"]) == (column + 0.5, row + 0.5) and scene.cells[row, column] == 100
    assert scene.own.tolist()[1] == 15  # the world's size, after that of the maze in it


def test_a_state_of_another_layout_is_refused(blob):
    another_version = struct.pack("<i", 1) + blob[4:]
    cut, shifted, longer = blob[:-4], blob[:60] + b"\0" + blob[60:], blob + b"\0\0\0\0"
    empty = b""
    for state in (another_version, cut, shifted, longer, empty):
        with pytest.raises(
            StateLayoutError, match=r"^This state is not laid out as Procgen 0\.10's \(.*procgen-mirror"
        ):
            native_state.read(state)
    with pytest.raises(StateLayoutError, match=r"\(version 1\)"):
        native_state.read(another_version)
    with pytest.raises(StateLayoutError, match="no mark at its end"):
        native_state.read(cut)
    at = blob.index(struct.pack("<3i", 15, 15, 225))
    with pytest.raises(StateLayoutError, match="a grid of 14 x 15 = 225 cells"):
        native_state.read(blob[:at] + struct.pack("<i", 14) + blob[at + 4 :])
