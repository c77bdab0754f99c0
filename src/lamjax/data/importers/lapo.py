"""Imports LAPO's published data set.

The data set has one folder per game, ``<game>/{train,test}/<number>.npz``. A file holds consecutive frames, 32,768 in
``train`` and 4,096 in ``test``. Its arrays are ``obs`` uint8 ``[N, 64, 64, 3]``, ``ta`` integers ``[N]`` (the true
action), ``done`` bool ``[N]``, ``rewards`` float32 ``[N]``, and others that are not read.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lamjax import archives
from lamjax.data.format import SPLITS, check_sizes
from lamjax.data.importers.common import (
    BLOCK,
    Done,
    Rows,
    Source,
    SourceFile,
    checked,
    describe,
    write_store,
)
from lamjax.data.importers.errors import DamagedFileError, ImportDataError
from lamjax.data.importers.files import find_files

NUM_ACTIONS = 15
_NAMES = {"obs": "obs", "action": "ta", "reward": "rewards", "done": "done", "truncated": "done"}
_KINDS = {"ta": "iu", "rewards": "f", "done": "biuf"}


def _read(file: SourceFile, start: int) -> Iterator[Rows]:
    """Yields the blocks of a file from row `start` on; verifies the checksums at its end."""
    with _explained(file.path), archives.opened(file.path) as archive:
        members = _members(archive)
        for position in range(0, file.rows, BLOCK):
            block = {key: member.read(min(BLOCK, file.rows - position)) for key, member in members.items()}
            if position + BLOCK > start:
                unmarked = np.zeros(len(block["done"]), bool)
                rows = Rows(block["obs"], block["ta"], block["rewards"], block["done"], unmarked)
                yield rows[max(start - position, 0) :]
        for member in members.values():
            member.finish()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Adds the file's name to errors that occur while it is read."""
    try:
        yield
    except archives.DamagedArchiveError as error:
        raise DamagedFileError(path, str(error)) from None
    except archives.ArchiveError as error:
        raise ImportDataError(f"{path} is not a file of LAPO's data set: {error}.") from None


def _members(archive: archives.Archive) -> dict[str, archives.Member]:
    """The arrays of a file, after checking their shapes and dtypes."""
    members = {key: archive.member(key) for key in ("obs", *_KINDS)}
    obs = members["obs"]
    if obs.dtype != np.uint8 or len(obs.shape) != 4 or obs.shape[-1] != 3:
        raise archives.ArchiveError(f"obs is {obs.dtype} {list(obs.shape)} instead of uint8 [N, 64, 64, 3]")
    for key, kinds in _KINDS.items():
        member = members[key]
        if member.shape != obs.shape[:1] or member.dtype.kind not in kinds:
            raise archives.ArchiveError(f"{key} is {member.dtype} {list(member.shape)} for {obs.shape[0]} frames")
    try:
        check_sizes(obs.shape[1:], obs.dtype, NUM_ACTIONS, None)
    except ValueError as error:
        raise archives.ArchiveError(str(error)) from None
    return members


def _find(folder: Path, max_files: int) -> tuple[list[Path], list[Path]]:
    """The files of a game in time order, and hidden files that are left out."""
    if max_files < 0:
        raise ImportDataError(f"--max-files must be 0, for all, or more, got {max_files}.")
    if not folder.is_dir():
        raise ImportDataError(f"There is no folder {folder}: give the folder of one game, with train and test in it.")
    if not (folder / "train").is_dir():
        games = sorted(path.parent.name for path in folder.glob("*/train"))
        if games:
            raise ImportDataError(f"{folder} holds several games ({', '.join(games)}): name one, {folder / games[0]}.")
        raise ImportDataError(f"{folder} has no folder train with numbered .npz files in it, so it is not LAPO's data.")
    folders = {split: folder / split for split in SPLITS if (folder / split).is_dir()}
    paths, hidden = find_files(folders.values(), ".npz", deep=False)
    for path in paths:
        if not re.fullmatch(r"\d+", path.stem):
            raise ImportDataError(f"{path} is not named by a number, so its place in time is unknown: move it away.")
    chosen = []
    for split, each in folders.items():
        numbered = sorted((path for path in paths if path.parent == each), key=lambda path: int(path.stem))
        if split == "train" and not numbered:
            raise ImportDataError(f"{each} holds no .npz files: check the path.")
        chosen += numbered[: max_files or None]
    return chosen, hidden


def _describe(path: Path) -> tuple[SourceFile, tuple[int, ...]]:
    """A file, and the shape of its frames."""
    with _explained(path), archives.opened(path) as archive:
        rows, *shape = _members(archive)["obs"].shape
    return SourceFile(path, rows, path.parent.name), tuple(shape)


def import_lapo(
    folder: Path,
    out: Path,
    *,
    env: str | None = None,
    done: Done = "auto",
    max_files: int = 80,
    skip_damaged: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    announce: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Writes a trajectory store from a game of LAPO's published data set.

    Calling it again continues an interrupted import. Memory holds a few blocks of rows, however large the files and
    episodes are.

    Args:
      folder: ``<game>``, with ``train`` and perhaps ``test`` in it. Links are followed; files whose names begin with
        a dot or an underscore are left out.
      out: folder of the store; it must not exist.
      env: name of the environment; by default the folder's.
      done: what ``done`` marks: the "first" frame of an episode, its "last" one, or "auto" to decide from the frames.
      max_files: reads at most this many files of each split; the reference reads 80. 0 means all.
      skip_damaged: leaves out damaged files and lists them in the manifest; every file is read twice.
      progress: called with ``(frames done, total frames)``.
      say: called with the decision that "auto" leads to.
      announce: called with the list of files before the first one is read.

    Raises:
      ImportDataError: if a file is missing, damaged or in another layout; the message names it, and the row and column
        if one of its values is invalid.
      StoreError: if the store exists or the disk is full.
    """
    paths, hidden = _find(folder, max_files)
    read = checked(_read, _NAMES, NUM_ACTIONS)
    shapes: dict[Path, tuple[int, ...]] = {}

    def look(path: Path) -> list[SourceFile]:
        file, shapes[path] = _describe(path)
        return [file]

    files, skipped = describe(paths, folder, look, read, skip_damaged)
    obs_shape = shapes[files[0].path]
    for file in files:
        if (shape := shapes[file.path]) != obs_shape:
            raise ImportDataError(f"{file.path} has frames of {list(shape)}, and others have {list(obs_shape)}.")
    write_store(
        out,
        Source(folder, files, read, hidden, skipped),
        description={"format": "lapo", "truncations": "not distinguished from terminations"},
        env=env or Path(os.path.abspath(folder)).name,
        obs_shape=obs_shape,
        num_actions=NUM_ACTIONS,
        split="the source's folders train and test; they may share levels",
        done=done,
        progress=progress,
        say=say,
        announce=announce,
    )
