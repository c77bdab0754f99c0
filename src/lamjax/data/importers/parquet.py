"""Imports transitions from Parquet files.

A row is a step: an observation (see `lamjax.data.importers.frames`), the action taken there, its reward, ``done``, and
perhaps ``truncated``. The files of a folder are read in the order of their paths; those whose name or folder begins
with ``train`` or ``test`` belong to that split.

Dimension keys: R rows of a block, H, W, C of a frame, A numbers of an action.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamjax.archives import brief
from lamjax.checks import library
from lamjax.data.format import check_sizes
from lamjax.data.importers.common import (
    BLOCK,
    Done,
    Reader,
    Rows,
    Source,
    SourceFile,
    bounds_of,
    checked,
    describe,
    write_store,
)
from lamjax.data.importers.errors import DamagedFileError, ImportDataError, RowError
from lamjax.data.importers.files import files_of
from lamjax.data.importers.frames import empty, is_list, plain, read_frames, read_vectors, refuse_nulls
from lamjax.data.importers.splits import split_by_name
from lamjax.data.importers.values import as_vectors

_BUFFER = 2**20  # bytes to read of a column at once; by default Arrow keeps the whole file in memory


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of the columns.

    Attributes:
      observation: the frames.
      action: the action taken at each frame, an integer or a list of numbers.
      reward: the reward for that action.
      done: marks where an episode begins or ends.
      truncated: marks where a time limit ended an episode; this column may be missing.
    """

    observation: str = "observation"
    action: str = "action"
    reward: str = "reward"
    done: str = "done"
    truncated: str = "truncated"


def _parquet() -> Any:
    return library("pyarrow.parquet", 'Reading Parquet files needs pyarrow: pip install "lamjax[import]".')


def opened(path: Path) -> Any:
    """Opens a Parquet file; use it in a ``with`` statement.

    Raises:
      ImportError: if pyarrow is not installed.
      ImportDataError: if the file is damaged or cannot be read.
      OSError: if there is no such file.
    """
    parquet = _parquet()
    try:
        return parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER, page_checksum_verification=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except UnicodeEncodeError:
        raise ImportDataError(f"{path} has a name that is not UTF-8, which Arrow needs: rename it.") from None
    except Exception as error:  # Arrow's readers raise its own errors, OSError and others
        raise _explained(path, error, "or is not a Parquet file: ") from None


def _explained(path: Path, error: Exception, prefix: str = "") -> ImportDataError:
    """Returns the error that says whether a file is damaged, or uses a feature that pyarrow cannot read."""
    reason = brief(error)
    if isinstance(error, NotImplementedError) or "crypt" in reason:
        return ImportDataError(f"{path} uses a feature that cannot be read ({reason}): write it without that feature.")
    return DamagedFileError(path, prefix + reason)


def _describe(path: Path, columns: Columns, shape: tuple[int, int, int]) -> SourceFile:
    """Checks a file's schema and finds the bounds of its actions; raises an `ImportDataError` if it does not fit."""
    with opened(path) as file:
        names, present = file.schema_arrow.names, _present(file, columns)
        for field, name in present.items():
            if name not in names:
                raise ImportDataError(
                    f"{path} has no column {name!r}, only {', '.join(names)}: choose one with --columns.{field} NAME."
                )
            if names.count(name) > 1:
                raise ImportDataError(
                    f"{path} has {names.count(name)} columns {name!r}: rename all but one, or choose another with "
                    f"--columns.{field} NAME."
                )
        schema = file.schema_arrow
        try:
            _rows({name: empty(schema.field(name).type) for name in present.values()}, columns, shape)
        except RowError as error:
            raise ImportDataError(f"{path} does not fit: {error}.") from None
        bounds = bounds_of(vectors_of(path, columns.action)) if is_list(schema.field(columns.action).type) else None
        return SourceFile(path, file.metadata.num_rows, None, bounds=bounds)


def _present(file: Any, columns: Columns) -> dict[str, str]:
    """The columns to read from a file, by field of `Columns`; leaves out ``truncated`` if the file lacks it."""
    names = dataclasses.asdict(columns)
    if columns.truncated not in file.schema_arrow.names:
        del names["truncated"]
    return names


def _reader(columns: Columns, shape: tuple[int, int, int]) -> Reader:
    """Returns a reader of files with these columns."""

    def read(source: SourceFile, start: int) -> Iterator[Rows]:
        with opened(source.path) as file:
            names = list(_present(file, columns).values())
        for first, batch in read_batches(source.path, names, start):
            try:
                rows = _rows({name: batch.column(name) for name in names}, columns, shape)
            except RowError as error:
                raise error.located(source.path, first) from None
            except (OSError, ValueError, TypeError, MemoryError, NotImplementedError) as error:
                raise _explained(source.path, error) from None
            yield rows[max(start - first, 0) :]

    return read


def read_batches(path: Path, names: Sequence[str], start: int = 0) -> Iterator[tuple[int, Any]]:
    """Yields the number of a batch's first row, and the batch: at most `BLOCK` rows of some columns, as Arrow has them.

    Args:
      path: the file.
      names: the columns.
      start: the first batch is the one that contains this row.

    Raises:
      ImportDataError: if the file is damaged or cannot be read.
    """
    with opened(path) as file:
        counts = np.array([file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)], int)
        ends = np.cumsum(counts)
        group = int(np.searchsorted(ends, start, side="right"))  # the row group that holds row `start`
        if group == len(counts):
            return
        first = int(ends[group] - counts[group])  # the row at which the next block begins
        groups = list(range(group, len(counts)))
        batches = file.iter_batches(batch_size=BLOCK, row_groups=groups, columns=list(names))
        while True:
            try:
                batch = next(batches, None)
            except (OSError, ValueError, TypeError, MemoryError, NotImplementedError) as error:
                raise _explained(path, error) from None
            if batch is None:
                return
            if first + len(batch) > start:
                yield first, batch
            first += len(batch)


def _rows(arrays: Mapping[str, Any], columns: Columns, shape: tuple[int, int, int]) -> Rows:
    """Converts Arrow arrays, by column name, to rows; raises a `RowError` if they do not fit."""

    def numbers(name: str, kinds: str) -> np.ndarray:
        array = plain(arrays[name])
        refuse_nulls(array, name)
        values = array.to_numpy(zero_copy_only=False)
        if values.dtype.kind not in kinds:
            raise RowError(0, f"column {name!r} holds {array.type}, not {'numbers' if 'f' in kinds else 'integers'}")
        return values

    done = numbers(columns.done, "biuf")
    truncated = numbers(columns.truncated, "biuf") if columns.truncated in arrays else np.zeros(len(done), bool)
    frames = read_frames(arrays[columns.observation], columns.observation, shape)
    if is_list(arrays[columns.action].type):
        action = read_vectors(arrays[columns.action], columns.action)
    else:
        action = numbers(columns.action, "iu")
    return Rows(frames, action, numbers(columns.reward, "fiub"), done, truncated)


def vectors_of(path: Path, name: str) -> Iterator[np.ndarray]:
    """Yields a column of lists in blocks float32 ``[R, A]``; raises an `ImportDataError` that names an invalid row."""
    for first, batch in read_batches(path, [name]):
        try:
            yield as_vectors(read_vectors(batch.column(name), name), name)
        except RowError as error:
            raise error.located(path, first) from None


def import_parquet(
    path: Path,
    out: Path,
    *,
    env: str,
    columns: Columns = Columns(),
    shape: tuple[int, int, int] = (64, 64, 3),
    num_actions: int = 15,
    done: Done = "auto",
    skip_damaged: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    announce: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Writes a trajectory store from Parquet files.

    Calling it again continues an interrupted import. Memory holds a few blocks of rows, however large files, row groups
    and episodes are.

    Args:
      path: one file, or a folder that is searched recursively. Links are followed; names that begin with a dot or an
        underscore are left out.
      out: folder of the store; it must not exist.
      env: name of the environment.
      columns: the names of the columns.
      shape: ``(H, W, C)`` of a frame.
      num_actions: integer actions lie in ``[0, num_actions)``; lists of numbers become vectors.
      done: what ``done`` marks: the "first" frame of an episode, its "last" one, or "auto" to decide from the frames.
      skip_damaged: leaves out damaged files and lists them in the manifest; every file is read twice.
      progress: called with ``(rows done, total rows)``.
      say: called with the decision that "auto" leads to.
      announce: called with the list of files before the first one is read.

    Raises:
      ImportError: if pyarrow is not installed.
      ImportDataError: if a file is missing, damaged or in another layout; the message names it, and the row and column
        if one of its values is invalid.
      StoreError: if the store exists or the disk is full.
    """
    names = dataclasses.asdict(columns)
    if len(set(names.values())) < len(names):
        raise ImportDataError(f"Two of the columns {', '.join(names.values())} are the same: give each its own name.")
    try:
        check_sizes(shape, np.uint8, num_actions, None)
    except ValueError as error:
        raise ImportDataError(f"{error}: change --shape or --num-actions.") from None
    paths, hidden, root = files_of(path, "Parquet", (".parquet",))
    read = checked(_reader(columns, shape), names, num_actions)
    files, skipped = describe(paths, root, lambda each: [_describe(each, columns, shape)], read, skip_damaged)
    files = split_by_name(files, root) or files
    split = "the names of the files" if files[0].split else "a hash of the episode's number"
    write_store(
        out,
        Source(root, files, read, hidden, skipped),
        description={"format": "parquet", "columns": names},
        env=env,
        obs_shape=shape,
        num_actions=num_actions,
        split=f"{split}; train and test may share levels",
        done=done,
        progress=progress,
        say=say,
        announce=announce,
    )
