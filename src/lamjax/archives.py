"""Reads arrays from ``.npz`` archives without trusting what an archive claims about itself.

A header may claim terabytes, so the reader allocates no more memory than the archive's own bytes can fill. It unpickles
nothing. It reads members by name and writes none to disk, so a name that leads elsewhere does no harm.
"""

import contextlib
import math
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_LONGEST = 150  # characters of another library's message
_RATIO = 1032  # the most bytes that deflate can expand one byte to


class ArchiveError(ValueError):
    """Raised if an archive lacks what is asked for; the message is part of a sentence and omits the file's name."""


class DamagedArchiveError(ArchiveError):
    """Raised if an archive is damaged, or the file is no archive."""


class Member:
    """An array of an archive, read row by row.

    Attributes:
      shape: its shape.
      dtype: its dtype.
    """

    def __init__(self, file: Any, name: str, size: int):
        """Reads the header.

        Args:
          file: the open member.
          name: the array's name, for messages.
          size: bytes of the member.
        """
        self._file, self._name = file, name
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ArchiveError(f"its array {name!r} is of the unknown format {version}")
        self.shape, self._fortran, self.dtype = read_header[version](file)
        if self.dtype.hasobject:
            raise ArchiveError(f"its array {name!r} does not hold numbers (Object arrays cannot be loaded)")
        if min(self.shape, default=0) < 0:
            raise DamagedArchiveError(f"its array {name!r} claims to have the shape {self.shape}")
        claimed, left = math.prod(self.shape) * self.dtype.itemsize, size - file.tell()
        if claimed != left:
            raise DamagedArchiveError(f"its array {name!r} claims to have {claimed} bytes and has {left}")

    def read(self, rows: int) -> np.ndarray:
        """The next rows; raises an ArchiveError if the array does not consist of rows."""
        if self._fortran or not self.shape:
            raise ArchiveError(f"its array {self._name!r} does not hold numbers in rows")
        size = rows * math.prod(self.shape[1:]) * self.dtype.itemsize
        return np.frombuffer(self._bytes(size), self.dtype).reshape(rows, *self.shape[1:])

    def read_all(self) -> np.ndarray:
        """The whole array."""
        data = self._bytes(math.prod(self.shape) * self.dtype.itemsize)
        self.finish()
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if self._fortran else "C").copy()

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise DamagedArchiveError(f"its array {self._name!r} ends early")
        return data

    def finish(self) -> None:
        """Reads to the end of the member, so that the checksum of the whole array is checked."""
        if self._file.read(1):
            raise DamagedArchiveError(f"its array {self._name!r} is longer than it says")


class Archive:
    """An open archive.

    Attributes:
      names: the arrays' names.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int, stack: contextlib.ExitStack):
        """Use `opened`."""
        self._archive, self._stack = archive, stack
        if sum(info.compress_size for info in archive.infolist()) > size:
            raise DamagedArchiveError(f"its members claim to be longer than its {size} bytes")
        self.names = [name.removesuffix(".npy") for name in archive.namelist()]

    def member(self, name: str) -> Member:
        """Opens an array; raises an ArchiveError if the archive has none of this name."""
        try:
            info = self._archive.getinfo(f"{name}.npy")
        except KeyError:
            raise ArchiveError(f"it has no array {name!r}") from None
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise ArchiveError(f"its array {name!r} is encrypted, or compressed in a way that numpy never uses")
        if info.file_size > _RATIO * info.compress_size:
            raise DamagedArchiveError(f"its array {name!r} claims to have {info.file_size} bytes")
        return Member(self._stack.enter_context(self._archive.open(info)), name, info.file_size)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Opens an ``.npz`` archive.

    Raises:
      ArchiveError: if the archive lacks what the block asks for, or is damaged; the message omits the file's name.
      OSError: if the archive cannot be opened.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive, contextlib.ExitStack() as stack:
                yield Archive(archive, os.fstat(file.fileno()).st_size, stack)
        except (ArchiveError, MemoryError):
            raise
        except Exception as error:  # on a damaged archive zipfile, zlib and numpy raise errors of all kinds
            raise DamagedArchiveError(brief(error)) from error


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` archive by name; see `opened`."""
    with opened(path) as archive:
        return {name: archive.member(name).read_all() for name in archive.names}


def brief(error: Exception) -> str:
    """Another library's error on one short line, without memory addresses and unprintable characters."""
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    line = re.sub(r"<([\w.]+) object at 0x[0-9a-f]+>", r"\1", line)
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line.rstrip(".") if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
