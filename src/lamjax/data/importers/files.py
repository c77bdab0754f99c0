"""The files of a source: links are followed, hidden files left out, and no file counts twice."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from lamjax.data.format import SPLITS
from lamjax.data.importers.errors import ImportDataError

_HIDDEN = (".", "_")  # as Spark, Hive and Arrow have it: ._copies of macOS, .ipynb_checkpoints, _temporary, __MACOSX


def find_files(
    folders: Iterable[Path], suffix: str | tuple[str, ...], deep: bool = True
) -> tuple[list[Path], list[Path]]:
    """Finds the files with a suffix in some folders.

    Args:
      folders: where to look.
      suffix: how a file's name ends, such as ".parquet", in small or capital letters; of several, each counts.
      deep: also look into the folders within.

    Returns:
      The files in the order of their paths. And what was left out because its name begins with a dot or an
      underscore: files with the suffix, and folders.

    Raises:
      ImportDataError: if links lead round in a circle or to nothing, if two paths are one file, or if a file cannot be
        read as one, such as a pipe; the message names it.
      OSError: if a folder may not be read.
    """
    paths: list[Path] = []
    hidden: list[Path] = []

    def walk(folder: Path, above: dict[tuple[int, int], Path]) -> None:
        identity = _identity(folder)
        if identity in above:
            raise ImportDataError(f"{folder} is a link back to {above[identity]}, which holds it: remove the link.")
        for name in sorted(os.listdir(folder)):
            path = folder / name
            wanted = name.lower().endswith(suffix)
            if name.startswith(_HIDDEN):
                hidden.extend([path] if wanted or (deep and path.is_dir()) else [])
            elif path.is_dir():
                if deep:
                    walk(path, above | {identity: folder})
            elif wanted:
                paths.append(path)

    for each in folders:
        walk(each, {})
    seen: dict[tuple[int, int], Path] = {}
    for path in sorted(paths):
        if not path.exists():
            raise ImportDataError(f"{path} is a link to nothing: remove it, or bring back what it leads to.")
        if not path.is_file():
            raise ImportDataError(f"{path} is not a regular file: remove it.")
        other = seen.setdefault(_identity(path), path)
        if other != path:
            raise ImportDataError(f"{path} and {other} are the same file, so its rows would count twice: remove one.")
    return sorted(paths), sorted(hidden)


def split_of_name(path: Path, root: Path) -> str | None:
    """The split that a file's name, or a folder between it and the root, begins with; None if there is none."""
    for part in reversed(path.relative_to(root).parts):
        for split in SPLITS:
            if re.match(rf"{split}(?![a-z])", part.lower()):
                return split
    return None


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them: 2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name.lower())]


def list_of(paths: list[Path], root: Path, most: int = 100) -> str:
    """Paths below `root` in words: "a.parquet, b.parquet", or the first `most` "and 7 more"."""
    names = [str(path.relative_to(root)) for path in paths]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
