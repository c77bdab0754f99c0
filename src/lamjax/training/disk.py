"""Files on a disk that may be full. Space is checked first: libraries that write in own threads fail late, or wait."""

import errno
import os
import shutil
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
SPARE = 2**20  # bytes that stay free: rows of metrics, events and JSON need far less between two checks


def disk_is_full(path: Path) -> OSError:
    """The error of a full disk, with the path for which there is no space."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name and renames it, so that no reader sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)


def require_space(folder: Path, size: int = 0) -> None:
    """Raises the `OSError` of a full disk unless an existing folder has space for `size` bytes and a little more."""
    if shutil.disk_usage(folder).free < size + SPARE:
        raise disk_is_full(folder)
