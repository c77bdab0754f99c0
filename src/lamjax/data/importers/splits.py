"""Which files or episodes of a source are held out for tests, where its format does not say it."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lamjax.data.format import split_of_level
from lamjax.data.importers.common import File
from lamjax.data.importers.errors import ImportDataError
from lamjax.data.importers.files import split_of_name

HELD_OUT = 0.1  # of a single file


def split_files(files: Sequence[File], root: Path) -> list[File]:
    """Holds out files by their names, or else by a hash of them; see `split_by_hash`."""
    return split_by_name(files, root) or split_by_hash(files, lambda file: number_of(file.name(root)))


def split_by_name(files: Sequence[File], root: Path) -> list[File] | None:
    """Files with the splits that their names or folders begin with, "train" or "test"; None if none does.

    Raises:
      ImportDataError: if some names say it and others do not.
    """
    splits = [split_of_name(file.path, root) for file in files]
    if not any(splits):
        return None
    if None in splits:
        odd = files[splits.index(None)].path
        raise ImportDataError(f"{odd} belongs neither to train nor to test by its name, as others do: rename it.")
    return [dataclasses.replace(file, split=split) for file, split in zip(files, splits, strict=True)]


def split_by_hash(files: Sequence[File], number: Callable[[File], int]) -> list[File]:
    """Holds out files, or the end of a single one.

    The hash of a file's number holds out a tenth of all numbers, for ever the same ones. If it holds out none of
    these files, or all, the one with the smallest number changes sides.
    """
    if len(files) == 1:
        return [dataclasses.replace(files[0], held_out=max(1, round((1 - HELD_OUT) * files[0].rows)))]
    splits = [split_of_level(number(file)) for file in files]
    if len(set(splits)) == 1:
        smallest = min(range(len(files)), key=lambda i: number(files[i]))
        splits[smallest] = "test" if splits[0] == "train" else "train"
    return [dataclasses.replace(file, split=split) for file, split in zip(files, splits, strict=True)]


def number_of(name: str) -> int:
    """A number in [0, 2^56) that tells names apart."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:7], "big")
