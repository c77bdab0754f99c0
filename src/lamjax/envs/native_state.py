"""Reads the scene from a Procgen game's saved state: the grid, the entities, and the game's own numbers.

`read` follows the order in which Procgen 0.10 writes a state: numbers of four bytes, and strings and lists preceded by
their length, so that only the beginning lies at a fixed offset. It does not use the random generators in the state.

Dimension keys: H and W rows and columns of the grid, E entities, K the game's own numbers. Row 0 is the lowest.
"""

import dataclasses
import struct

import numpy as np

PLAYER, SPACE, WALL = 0, 100, 51  # ids that all games share

ENTITY = np.dtype(
    [(name, np.float32) for name in ("x", "y", "vx", "vy", "rx", "ry")]
    + [(name, np.int32) for name in ("type", "image_type", "image_theme", "render_z", "will_erase", "collides")]
    + [(name, np.float32) for name in ("collision_margin", "rotation", "vrot")]
    + [(name, np.int32) for name in ("reflected", "fire_time", "spawn_time", "life_time", "expire_time", "absolute")]
    + [("friction", np.float32)]
    + [(name, np.int32) for name in ("smart_step", "avoids_collisions", "auto_erase")]
    + [(name, np.float32) for name in ("alpha", "health", "theta", "grow_rate", "alpha_decay", "climber_spawn_x")]
)

# Lengths of the parts between strings, in numbers.
_OPTIONS, _EPISODE, _DRAWING, _VIEW = 17, 15, 19, 9
_GRID_STEP, _TIME = 12, 13  # places among the options, and in the episode's part
_VERSION, _END = 0, 0xCAFECAFE
_WORD = 4


class StateLayoutError(ValueError):
    """Raised if a saved state does not have the layout of Procgen 0.10."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """One environment at one step.

    Attributes:
      game: the game's name.
      time: the number of steps in the running episode.
      cells: int32 ``[H, W]``, ids of what fills each cell of the grid.
      entities: records ``[E]`` of the type `ENTITY`, positions and sizes in cells, speeds in cells a step.
      own: int32 ``[K]``, what the game adds to the state; some of the numbers may be floats (``own.view(float32)``).
    """

    game: str
    time: int
    cells: np.ndarray
    entities: np.ndarray
    own: np.ndarray

    @property
    def player(self) -> np.void:
        """The agent's record."""
        return self.entities[np.flatnonzero(self.entities["type"] == PLAYER)[0]]


def read(state: bytes | memoryview) -> Scene:
    """Reads one environment's saved state (`Procgen.get_state`).

    Raises:
      StateLayoutError: if its layout is different.
    """
    try:
        return _read(state)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise StateLayoutError(
            f"This state is not laid out as Procgen 0.10's ({error}), so nothing can be planned from it: "
            'run `pip install "procgen-mirror==0.10.7"`.'
        ) from error


def _read(state: bytes | memoryview) -> Scene:
    def number(at: int) -> int:
        return struct.unpack_from("<i", state, at)[0]

    def after_string(at: int) -> int:
        length = number(at)
        _check(0 <= length <= len(state) - at, f"a string of {length} bytes at {at}")
        return at + _WORD + length

    _check(number(0) == _VERSION, f"version {number(0)}")
    options = after_string(_WORD)
    game = bytes(state[2 * _WORD : options]).decode("ascii")
    episode = after_string(after_string(options + _WORD * (_OPTIONS + 1)) + _WORD)  # past two random generators
    time, grid_size, count = (number(episode + _WORD * place) for place in (_TIME, _EPISODE, _EPISODE + 1))
    first = episode + _WORD * (_EPISODE + 2)
    _check(0 < count <= (len(state) - first) // ENTITY.itemsize, f"{count} entities")
    entities = np.frombuffer(state, ENTITY, count, first)
    players = np.count_nonzero(entities["type"] == PLAYER)
    _check(players == 1, f"{players} players")
    view = after_string(first + ENTITY.itemsize * count + _WORD * (_DRAWING + 1))  # past a random generator
    grid = view + _WORD * _VIEW
    width, height, size = struct.unpack_from("<3i", state, grid)
    _check(width > 0 and width * height == size == grid_size, f"a grid of {width} x {height} = {size} cells")
    words = np.frombuffer(state, np.int32, (len(state) - grid) // _WORD - 3, grid + 3 * _WORD)
    _check(len(words) > size and words[-1] == np.int32(_END - 2**32), "no mark at its end")
    return Scene(game, time, words[:size].reshape(height, width), entities, words[size:-1])


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)
