"""Transitions in Parquet files as a trajectory store.

A row is a step: an observation (nested or flat lists of uint8, or the bytes of a PNG, alone or in a struct as image
columns have it), the action taken there, its reward, ``done``, and perhaps ``truncated``. Files lie in a folder, in the
order of their names; those whose name or folder begins with ``train`` or ``test`` belong to that split.
"""

import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lamjax.data.format import SPLITS
from lamjax.data.importers.common import BLOCK, Done, ImportDataError, Reader, Rows, SourceFile, write_store


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the columns are called.

    Attributes:
      observation: the frames.
      action: the action taken at each, an integer.
      reward: the reward of that action.
      done: marks where an episode begins or ends.
      truncated: the same where a time limit ended it; may be absent.
    """

    observation: str = "observation"
    action: str = "action"
    reward: str = "reward"
    done: str = "done"
    truncated: str = "truncated"


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError('Reading Parquet files needs pyarrow: pip install "lamjax[import]".') from None
    return pyarrow.parquet


def _open(path: Path) -> Any:
    try:
        return _parquet().ParquetFile(path, page_checksum_verification=True)
    except ImportError:
        raise
    except Exception as error:  # Arrow raises its own errors and OSError, whatever its readers meet
        raise ImportDataError(
            f"{path} is damaged, or is no Parquet file ({_first_line(error)}): copy it again."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _split(path: Path, root: Path) -> str | None:
    """The split that a file's name, or a folder between it and the root, begins with."""
    for part in reversed(path.relative_to(root).parts):
        for split in SPLITS:
            if re.match(rf"{split}(?![a-z])", part.lower()):
                return split
    return None


def source_files(path: Path, columns: Columns = Columns()) -> tuple[list[SourceFile], Path]:
    """The Parquet files of a source in order, and the folder that they lie in.

    Args:
      path: one file, or a folder that is searched at all depths.
      columns: names of the columns.

    Raises:
      ImportDataError: if there is none, or a column is missing; the file is named.
    """
    if path.is_file():
        paths, root = [path], path.parent
    elif path.is_dir():
        paths, root = sorted(path.rglob("*.parquet")), path
    else:
        raise ImportDataError(f"There is no {path}: give a Parquet file, or a folder with some in it.")
    if not paths:
        raise ImportDataError(f"{path} holds no .parquet files: check the path.")
    files = []
    for each in paths:
        with _open(each) as file:
            names = file.schema_arrow.names
            for field in ("observation", "action", "reward", "done"):
                if (name := getattr(columns, field)) not in names:
                    raise ImportDataError(
                        f"{each} has no column {name!r} but {', '.join(names)}: name it with --columns.{field} NAME."
                    )
            if file.metadata.num_rows:
                files.append(SourceFile(each, file.metadata.num_rows, _split(each, root)))
    if not files:
        raise ImportDataError(f"{path} holds no rows.")
    if any(file.split for file in files) and not all(file.split for file in files):
        odd = next(file.path for file in files if file.split is None)
        raise ImportDataError(f"{odd} belongs neither to train nor to test by its name, as others do: rename it.")
    return files, root


def _reader(columns: Columns, shape: tuple[int, int, int]) -> Reader:
    """A reader of files with these columns."""

    def read(source: SourceFile, start: int) -> Iterator[Rows]:
        with _open(source.path) as file:
            names = [getattr(columns, field.name) for field in dataclasses.fields(Columns)]
            names = [name for name in names if name in file.schema_arrow.names]
            counts = np.array([file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)], int)
            ends = np.cumsum(counts)
            first = int(np.searchsorted(ends, start, side="right"))  # the row group that holds row `start`
            if first == len(counts):
                return
            skip = start - int(ends[first] - counts[first])
            groups = list(range(first, len(counts)))
            try:
                for batch in file.iter_batches(batch_size=BLOCK, row_groups=groups, columns=names):
                    rows = _rows(batch, columns, shape)
                    if skip < len(rows):
                        yield rows[skip:]
                    skip = max(skip - len(rows), 0)
            except ImportDataError as error:
                raise ImportDataError(f"{source.path} does not fit: {error}.") from None
            except (OSError, ValueError, TypeError, NotImplementedError) as error:
                raise ImportDataError(f"{source.path} is damaged ({_first_line(error)}): copy it again.") from None

    return read


def _rows(batch: Any, columns: Columns, shape: tuple[int, int, int]) -> Rows:
    def column(name: str, kinds: str) -> np.ndarray:
        array = batch.column(name)
        if array.null_count:
            raise ImportDataError(f"column {name!r} has rows without a value")
        values = array.to_numpy(zero_copy_only=False)
        if values.dtype.kind not in kinds:
            raise ImportDataError(
                f"column {name!r} holds {array.type}, not {'numbers' if 'f' in kinds else 'integers'}"
            )
        return values

    done = column(columns.done, "biuf") != 0
    has_truncated = columns.truncated in batch.schema.names
    truncated = column(columns.truncated, "biuf") != 0 if has_truncated else np.zeros_like(done)
    frames = _frames(batch.column(columns.observation), columns.observation, shape)
    return Rows(frames, column(columns.action, "iu"), column(columns.reward, "fiub"), done, truncated)


def _frames(array: Any, name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """A column of frames as uint8 ``[R, *shape]``."""
    import pyarrow as pa

    rows = len(array)
    if pa.types.is_struct(array.type):
        if array.type.get_field_index("bytes") < 0:
            raise ImportDataError(f"column {name!r} is a struct without a field 'bytes'")
        array = array.field("bytes")
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return np.stack([_png(data.as_py(), name, shape) for data in array])
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        if array.null_count:
            raise ImportDataError(f"column {name!r} has rows without a value")
        lengths = np.diff(array.offsets.to_numpy()) if hasattr(array, "offsets") else []
        if len(lengths) and lengths.min() != lengths.max():
            raise ImportDataError(f"column {name!r} has frames of different sizes")
        array = array.flatten()
    if array.type != pa.uint8() or array.null_count:
        raise ImportDataError(f"column {name!r} holds {array.type} instead of bytes in lists, or the bytes of a PNG")
    if len(array) != rows * int(np.prod(shape)):
        raise ImportDataError(f"column {name!r} has {len(array) / rows:.6g} numbers a frame, not {list(shape)}")
    return array.to_numpy().reshape(rows, *shape)


def _png(data: bytes | None, name: str, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    if data is None:
        raise ImportDataError(f"column {name!r} has rows without a value")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (shape[1], shape[0]):
                raise ImportDataError(
                    f"column {name!r} has a picture of {image.size[1]} x {image.size[0]}, not {list(shape)}"
                )
            frame = np.asarray(image.convert("RGB" if shape[2] == 3 else "L"))
    except ImportDataError:
        raise
    except Exception as error:  # a damaged PNG makes Pillow raise whatever it meets
        raise ImportDataError(
            f"column {name!r} has a picture that is damaged or no PNG ({_first_line(error)})"
        ) from None
    return frame.reshape(shape)


def import_parquet(
    path: Path,
    out: Path,
    *,
    env: str,
    columns: Columns = Columns(),
    shape: tuple[int, int, int] = (64, 64, 3),
    num_actions: int = 15,
    done: Done = "auto",
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Writes a trajectory store from Parquet files.

    The same call continues an interrupted import. Memory holds an episode and a row group, never a file.

    Args:
      path: one file, or a folder that is searched at all depths.
      out: folder of the store; it must not exist.
      env: name of the environment.
      columns: what the columns are called.
      shape: ``(H, W, C)`` of a frame; nested lists must have it, flat ones are cut to it.
      num_actions: actions lie in ``[0, num_actions)``.
      done: what ``done`` marks: the "first" frame of an episode, its "last" one, or "auto" to decide by the frames.
      progress: called with ``(rows done, rows in all)``.
      say: called with the decision of "auto".

    Raises:
      ImportError: if pyarrow is absent.
      ImportDataError: if a file is missing, damaged or of another layout; it is named.
      StoreError: if the store exists or the disk is full.
    """
    files, root = source_files(path, columns)
    split = "the names of the files" if files[0].split else "a hash of the episode's number"
    write_store(
        out,
        files,
        root,
        _reader(columns, shape),
        source={"format": "parquet", "columns": dataclasses.asdict(columns)},
        env=env,
        obs_shape=shape,
        num_actions=num_actions,
        split=f"{split}; train and test may share levels",
        done=done,
        progress=progress,
        say=say,
    )
