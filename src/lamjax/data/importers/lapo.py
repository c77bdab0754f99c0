"""LAPO's published data set as a trajectory store.

The data set is a folder a game, ``<game>/{train,test}/<number>.npz``. A file holds consecutive frames, 32,768 of them
in ``train`` and 4,096 in ``test``, under the names ``obs`` uint8 ``[N, 64, 64, 3]``, ``ta`` integers ``[N]`` (the true
action), ``done`` bool ``[N]``, ``rewards`` float32 ``[N]``, and others that are not read.
"""

import contextlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lamjax.data.format import SPLITS
from lamjax.data.importers.common import BLOCK, Done, ImportDataError, Rows, SourceFile, write_store

NUM_ACTIONS = 15
_KEYS = ("obs", "ta", "rewards", "done")


class _Member:
    """One array of an ``.npz``, read row by row; nothing is unpickled."""

    def __init__(self, archive: zipfile.ZipFile, key: str, stack: contextlib.ExitStack):
        try:
            self._file = stack.enter_context(archive.open(f"{key}.npy"))
        except KeyError:
            raise ImportDataError(f"it has no array {key!r}") from None
        version = np.lib.format.read_magic(self._file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ImportDataError(f"its array {key!r} is of the unknown format {version}")
        shape, fortran, self.dtype = read_header[version](self._file)
        if self.dtype.hasobject or fortran or not shape:
            raise ImportDataError(f"its array {key!r} does not hold numbers in rows")
        self.shape = shape
        self._row = self.dtype.itemsize * int(np.prod(shape[1:]))

    def read(self, rows: int) -> np.ndarray:
        data = self._file.read(rows * self._row)
        if len(data) != rows * self._row:
            raise EOFError("it ends early")
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])

    def finish(self) -> None:
        """Reads what is left, so that the checksum of the whole array is compared."""
        if self._file.read(1):
            raise ImportDataError("an array is longer than it says")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, _Member], tuple[int, ...]]]:
    """Opens a file's arrays; gives them and the shape of ``obs``, and says which file it is if anything is wrong."""
    try:
        with zipfile.ZipFile(path) as archive, contextlib.ExitStack() as stack:
            members = {}
            for key in _KEYS:
                members[key] = _Member(archive, key, stack)
            _check(members)
            yield members, members["obs"].shape
    except ImportDataError as error:
        raise ImportDataError(f"{path} is not a file of LAPO's data set: {error}.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError) as error:
        raise ImportDataError(f"{path} is damaged ({error}): copy it again.") from None


def _read(file: SourceFile, start: int) -> Iterator[Rows]:
    """The blocks of a file from row `start`; compares the checksums at its end."""
    with _opened(file.path) as (members, (rows, *_)):
        for position in range(0, rows, BLOCK):
            block = {key: member.read(min(BLOCK, rows - position)) for key, member in members.items()}
            if position + BLOCK > start:
                done = block["done"] != 0
                rows_read = Rows(block["obs"], block["ta"], block["rewards"], done, np.zeros_like(done))
                yield rows_read[max(start - position, 0) :]
        for member in members.values():
            member.finish()


def _check(members: dict[str, _Member]) -> None:
    """Shapes and dtypes of a file's arrays fit."""
    obs = members["obs"]
    if obs.dtype != np.uint8 or len(obs.shape) != 4 or obs.shape[-1] != 3:
        raise ImportDataError(f"obs is {obs.dtype} {list(obs.shape)} instead of uint8 [N, 64, 64, 3]")
    for key, kinds in (("ta", "iu"), ("rewards", "f"), ("done", "biuf")):
        member = members[key]
        if member.shape != obs.shape[:1] or member.dtype.kind not in kinds:
            raise ImportDataError(f"{key} is {member.dtype} {list(member.shape)} beside {obs.shape[0]} frames")


def source_files(folder: Path, max_files: int = 80) -> tuple[list[SourceFile], tuple[int, ...]]:
    """The files of a game in time order, and the shape of an observation.

    Args:
      folder: ``<game>``, with ``train`` and perhaps ``test`` in it.
      max_files: of each split at most so many, from the lowest number; 0 means all.

    Raises:
      ImportDataError: if the folder has another layout, or files have different frames.
    """
    if not folder.is_dir():
        raise ImportDataError(f"There is no folder {folder}: give the folder of one game, with train and test in it.")
    if not (folder / "train").is_dir():
        games = sorted(path.parent.name for path in folder.glob("*/train"))
        if games:
            raise ImportDataError(f"{folder} holds several games ({', '.join(games)}): name one, {folder / games[0]}.")
        raise ImportDataError(f"{folder} has no folder train with numbered .npz files in it, so it is not LAPO's data.")
    files, shapes = [], {}
    for split in SPLITS:
        paths = list((folder / split).glob("*.npz"))
        for path in paths:
            if not re.fullmatch(r"\d+", path.stem):
                raise ImportDataError(
                    f"{path} has no number for a name, so its place in time is not known: move it away."
                )
        paths.sort(key=lambda path: int(path.stem))
        for path in paths[: max_files or None]:
            with _opened(path) as (_, shapes[path]):
                pass
            files.append(SourceFile(path, shapes[path][0], split))
    if not any(file.split == "train" for file in files):
        raise ImportDataError(f"{folder / 'train'} holds no .npz files: check the path.")
    obs_shape = shapes[files[0].path][1:]
    for path, shape in shapes.items():
        if shape[1:] != obs_shape:
            raise ImportDataError(f"{path} has frames of {list(shape[1:])}, the others of {list(obs_shape)}.")
    return files, obs_shape


def import_lapo(
    folder: Path,
    out: Path,
    *,
    env: str | None = None,
    done: Done = "auto",
    max_files: int = 80,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Writes a trajectory store from a game of LAPO's published data set.

    The same call continues an interrupted import. Memory holds an episode, never a file.

    Args:
      folder: ``<game>``, with ``train`` and perhaps ``test`` in it.
      out: folder of the store; it must not exist.
      env: name of the environment; by default the folder's.
      done: what ``done`` marks: the "first" frame of an episode, its "last" one, or "auto" to decide by the frames.
      max_files: of each split at most so many files, as the reference reads 80; 0 means all.
      progress: called with ``(frames done, frames in all)``.
      say: called with the decision of "auto".

    Raises:
      ImportDataError: if a file is missing, damaged or of another layout; it is named.
      StoreError: if the store exists or the disk is full.
    """
    files, obs_shape = source_files(folder, max_files)
    write_store(
        out,
        files,
        folder,
        _read,
        source={"format": "lapo", "truncations": "not told apart from terminations"},
        env=env or folder.resolve().name,
        obs_shape=obs_shape,
        num_actions=NUM_ACTIONS,
        split="the source's folders train and test; they may share levels",
        done=done,
        progress=progress,
        say=say,
    )
