"""Finds the files of a source: follows links, leaves out hidden files, and counts no file twice."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from lamjax.data.format import SPLITS
from lamjax.data.importers.errors import ImportDataError

_HIDDEN = (".", "_")  # as in Spark, Hive and Arrow: ._copies of macOS, .ipynb_checkpoints, _temporary, __MACOSX


def find_files(
    folders: Iterable[Path], suffix: str | tuple[str, ...], deep: bool = True
) -> tuple[list[Path], list[Path]]:
    """Finds the files with a suffix in some folders.

    Args:
      folders: where to look.
      suffix: how a file's name ends, such as ".parquet", in upper or lower case; a tuple allows several suffixes.
      deep: also searches subfolders.

    Returns:
      The files, sorted by path; and the files with the suffix and folders that were left out because their names begin
      with a dot or an underscore.

    Raises:
      ImportDataError: if links form a cycle or are broken, if two paths are the same file, or if a path is not a
        regular file, such as a pipe; the message names it.
      OSError: if a folder may not be read.
    """
    paths: list[Path] = []
    hidden: list[Path] = []

    def walk(folder: Path, above: dict[tuple[int, int], Path]) -> None:
        identity = _identity(folder)
        if identity in above:
            raise ImportDataError(f"{folder} is a link back to {above[identity]}, which contains it: remove the link.")
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
            raise ImportDataError(f"{path} is a broken link: remove it, or restore its target.")
        if not path.is_file():
            raise ImportDataError(f"{path} is not a regular file: remove it.")
        other = seen.setdefault(_identity(path), path)
        if other != path:
            raise ImportDataError(f"{path} and {other} are the same file, so its rows would count twice: remove one.")
    return sorted(paths), sorted(hidden)


def files_of(path: Path, kind: str, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path], Path]:
    """Finds the files of a source that is one file, or a folder that is searched recursively.

    Args:
      path: the file or folder.
      kind: what messages call the files, such as "Parquet".
      suffixes: how their names may end, such as (".parquet",).

    Returns:
      The files, sorted by path; hidden files and folders that were left out; and the root folder.

    Raises:
      ImportDataError: if there are none, or as `find_files`.
    """
    if path.is_file():
        return [path], [], path.parent
    if not path.is_dir():
        raise ImportDataError(f"There is no {path}: give one {kind} file, or a folder of them.")
    paths, hidden = find_files([path], suffixes)
    if not paths:
        files = f"files that end in {', '.join(suffixes)}" if len(suffixes) > 1 else f"{suffixes[0]} files"
        but = f" except hidden ones such as {hidden[0]}" if hidden else ""
        raise ImportDataError(f"{path} holds no {files}{but}: check the path.")
    return paths, hidden, path


def split_of_name(path: Path, root: Path) -> str | None:
    """The split that the name of a file begins with, or of a folder between it and the root; None if there is none."""
    for part in reversed(path.relative_to(root).parts):
        for split in SPLITS:
            if re.match(rf"{split}(?![a-z])", part.lower()):
                return split
    return None


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key that compares the numbers in names numerically: 2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name.lower())]


def list_of(paths: list[Path], root: Path, most: int = 100) -> str:
    """Lists paths relative to `root`: "a.parquet, b.parquet", or the first `most` of them "and 7 more"."""
    names = [str(path.relative_to(root)) for path in paths]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
