"""Packs files that come back from the machine into archives below a limit."""

import tarfile
from pathlib import Path

LIMIT = 16 * 2**20  # bytes of a file
AUTOTUNING = "xla_gpu_per_fusion_autotune_cache_dir"  # where JAX keeps XLA's choices, inside its own cache


class TooLargeError(ValueError):
    """Raised for a file above the limit, which has been deleted."""


def check_size(path: Path, limit: int = LIMIT) -> Path:
    """Returns `path` if the file is below the limit, and deletes it otherwise.

    Raises:
      TooLargeError: if it is larger.
    """
    size = path.stat().st_size
    if size > limit:
        path.unlink()
        name = path.name.removeprefix(".partial-")
        raise TooLargeError(f"{name} has {size / 2**20:.1f} MiB, more than {limit / 2**20:.0f}, and is left out.")
    return path


def _archive(path: Path, files: list[tuple[Path, str]], mode: str, limit: int) -> None:
    """Writes an archive of ``(file, name in it)``; only a complete one replaces an earlier archive."""
    partial = path.with_name(f".partial-{path.name}")
    with tarfile.open(partial, mode, format=tarfile.GNU_FORMAT) as archive:  # one header a file
        for file, name in files:
            archive.add(file, name)
    check_size(partial, limit).replace(path)


def pack_run(run: Path, stage: str, path: Path, limit: int = LIMIT) -> Path:
    """Packs what a stage of a run resumes from: settings, metrics, newest checkpoint, and a finished policy.

    Raises:
      FileNotFoundError: if the stage has no checkpoint yet.
      TooLargeError: if the archive is above the limit.
    """
    checkpoints = run / "checkpoints" / stage
    steps = [folder for folder in checkpoints.glob("*") if folder.name.isdecimal()]
    if not steps:
        raise FileNotFoundError(f"{checkpoints} holds no checkpoint yet.")
    newest = max(steps, key=lambda folder: int(folder.name))
    parts = (run / "config.json", run / "summary.json", run / "metrics.jsonl", run / "policies", newest)
    _archive(path, [(part, str(part.relative_to(run))) for part in parts if part.exists()], "w:xz", limit)
    return path


def unpack(path: Path, folder: Path) -> None:
    """Unpacks an archive into a folder.

    Raises:
      ValueError: if it cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}).") from error


def choose(sizes: dict[str, int], limit: int) -> list[str]:
    """Chooses files of a cache that fit: autotuning results, then the largest programs, which take longest to compile.

    Args:
      sizes: bytes by name.
      limit: of the archive.
    """
    room, names = limit - 10_240, []  # an archive ends with up to 10,240 bytes of zeros
    for name in sorted(sizes, key=lambda name: (not name.startswith(AUTOTUNING), -sizes[name])):
        size = 512 * (2 + (len(name) > 100) * 2) + sizes[name]  # headers, and the rounding of each file up to 512
        if size <= room:
            room -= size
            names.append(name)
    return names


def pack_cache(folder: Path, path: Path, limit: int = LIMIT) -> tuple[int, int]:
    """Packs as much of JAX's compilation cache as fits; its entries are compressed already.

    Returns:
      The number of packed files, and of all files.
    """
    sizes = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file() and not file.name.endswith("-atime")
    }
    names = choose(sizes, limit)
    _archive(path, [(folder / name, name) for name in names], "w", limit)
    return len(names), len(sizes)
