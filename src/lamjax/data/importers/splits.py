"""Decides which files or episodes of a source are held out for testing, if its format does not say."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lamjax.data.format import split_of_level
from lamjax.data.importers.common import File
from lamjax.data.importers.errors import ImportDataError
from lamjax.data.importers.files import split_of_name

HELD_OUT = 0.1  # share of a single file


def split_files(files: Sequence[File], root: Path) -> list[File]:
    """Holds out files by their names, or by a hash if no name states a split; see `split_by_hash`."""
    return split_by_name(files, root) or split_by_hash(files, lambda file: number_of(file.name(root)))


def split_by_name(files: Sequence[File], root: Path) -> list[File] | None:
    """Assigns the split that the name of a file or its folder begins with, "train" or "test"; None if none does.

    Raises:
      ImportDataError: if some names state a split and others do not.
    """
    splits = [split_of_name(file.path, root) for file in files]
    if not any(splits):
        return None
    if None in splits:
        odd = files[splits.index(None)].path
        raise ImportDataError(f"{odd} belongs to neither train nor test by its name, but others do: rename it.")
    return [dataclasses.replace(file, split=split) for file, split in zip(files, splits, strict=True)]


def split_by_hash(files: Sequence[File], number: Callable[[File], int]) -> list[File]:
    """Holds out some files, or the end of a single file.

    A hash of a file's number holds out a tenth of all numbers, always the same ones. If it holds out none or all of
    these files, the file with the smallest number changes sides.
    """
    if len(files) == 1:
        return [dataclasses.replace(files[0], held_out=max(1, round((1 - HELD_OUT) * files[0].rows)))]
    splits = [split_of_level(number(file)) for file in files]
    if len(set(splits)) == 1:
        smallest = min(range(len(files)), key=lambda i: number(files[i]))
        splits[smallest] = "test" if splits[0] == "train" else "train"
    return [dataclasses.replace(file, split=split) for file, split in zip(files, splits, strict=True)]


def number_of(name: str) -> int:
    """A number in [0, 2^56) that identifies a name."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:7], "big")
