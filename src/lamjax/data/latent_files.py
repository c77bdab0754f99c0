"""Files of latent actions, one row per frame: Parquet, npz or safetensors, by the name's suffix.

The columns are ``episode``, ``t`` (the frame's number in its episode), ``seconds``, ``z``, ``codes`` (all codebooks and
latents in a row), and ``action`` if there is a decoder. Where no window fits around a frame, as at the first and the
last frames of a clip, there is no latent: Parquet has nulls there. npz and safetensors, which have no nulls, hold NaN
(and -1 for integers), and ``mask`` says where there is a latent.

Dimension keys: R rows, Z latent size, K codes of a latent, A numbers of a continuous action.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamjax import archives
from lamjax.checks import library
from lamjax.data.format import StoreError

ENDINGS = (".parquet", ".npz", ".safetensors")
_ROWS = 16_384  # in a row group of Parquet
_KEY = "lamjax"  # in the metadata


class LatentFileError(ValueError):
    """Raised if a file of latents cannot be read or written; one sentence that names the file."""


@dataclasses.dataclass(frozen=True)
class LatentRows:
    """Rows of frames.

    Attributes:
      episode: int32 ``[R]``.
      t: int32 ``[R]``, frames from the episode's beginning.
      seconds: float64 ``[R]``, NaN if the time is unknown.
      mask: bool ``[R]``, whether there is a latent.
      z: float32 ``[R, Z]``, before the quantiser; NaN without a latent.
      codes: int32 ``[R, K]``, -1 without a latent; None for a model without a quantiser.
      action: int32 ``[R]`` or float32 ``[R, A]``, the decoded action, -1 or NaN without a latent; None without a
        decoder.
    """

    episode: np.ndarray
    t: np.ndarray
    seconds: np.ndarray
    mask: np.ndarray
    z: np.ndarray
    codes: np.ndarray | None = None
    action: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.episode)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that exist, by name."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: array for name, array in arrays.items() if array is not None}


def join(parts: Sequence[LatentRows]) -> LatentRows:
    """Concatenates rows."""
    return LatentRows(**{name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns})


def check_name(path: Path) -> None:
    """Raises a `LatentFileError` unless a file can be written under this name."""
    if path.suffix not in ENDINGS:
        raise LatentFileError(f"{path} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, which says the format.")
    if path.suffix == ".parquet":
        _parquet()
    if not path.parent.is_dir():
        raise LatentFileError(f"There is no folder {path.parent}: create it, or choose another --out.")


def write(path: Path, parts: Iterable[LatentRows], about: Mapping[str, Any]) -> None:
    """Writes rows as they come. Parquet holds few of them in memory, and the others all, which are small.

    The file is written under a temporary name and renamed, so there is never half a file.

    Args:
      path: a name that `check_name` accepts.
      parts: the rows, at least one part.
      about: further information for the file, anything JSON can hold.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.suffix == ".parquet":
            _write_parquet(partial, parts, about)
        else:
            columns = join(list(parts)).columns
            if path.suffix == ".npz":
                with partial.open("wb") as file:
                    np.savez_compressed(file, **dict[str, Any](columns), about=np.array(json.dumps(about)))
            else:
                import safetensors.numpy

                safetensors.numpy.save_file(columns, partial, {_KEY: json.dumps(about)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> tuple[LatentRows, dict[str, Any]]:
    """Reads a file that `write` wrote; returns its rows and its further information.

    Raises:
      LatentFileError: if the file is missing, damaged, or lacks a column.
    """
    columns, about = read_columns(path)
    return _rows(path, columns), about


def read_columns(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads all columns of a file, whatever their names; returns them and the file's further information.

    Raises:
      LatentFileError: if the file is damaged, or its name does not end in one of `ENDINGS`.
    """
    with _explained(path):
        if path.suffix == ".parquet":
            return _read_parquet(path)
        if path.suffix == ".npz":
            columns = archives.read(path)
            return columns, json.loads(str(columns.pop("about", "{}")))
        if path.suffix == ".safetensors":
            import safetensors

            with safetensors.safe_open(path, "numpy") as file:
                columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return columns, json.loads((file.metadata() or {}).get(_KEY, "{}"))
    raise LatentFileError(f"{path} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}.")


def _rows(path: Path, columns: Mapping[str, np.ndarray]) -> LatentRows:
    names = [field.name for field in dataclasses.fields(LatentRows)]
    count = len(columns["z"]) if "z" in columns else 0
    defaults = {"seconds": np.full(count, np.nan)}
    if "z" in columns and columns["z"].ndim == 2:
        defaults["mask"] = np.isfinite(columns["z"]).all(1)
    columns = defaults | {name: array for name, array in columns.items() if name in names}
    if missing := [name for name in ("episode", "t", "z", "mask") if name not in columns]:
        raise LatentFileError(f"{path} has no column {missing[0]!r}: rename it, or label the frames with lamjax.")
    if odd := [name for name, array in columns.items() if len(array) != count]:
        raise LatentFileError(f"{path} has {len(columns[odd[0]])} rows of {odd[0]!r} and {count} of 'z'.")
    return LatentRows(**columns)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (LatentFileError, ImportError, OSError, StoreError):
        raise
    except Exception as error:  # on damaged files each library raises errors of its own
        raise LatentFileError(f"{path} cannot be read as latents ({archives.brief(error)}): write it again.") from None


def _parquet() -> Any:
    sentence = 'Parquet files need pyarrow: pip install "lamjax[import]", or choose a name that ends in .npz.'
    return library("pyarrow.parquet", sentence)


def _write_parquet(path: Path, parts: Iterable[LatentRows], about: Mapping[str, Any]) -> None:
    parquet, writer = _parquet(), None
    waiting: list[LatentRows] = []
    with contextlib.ExitStack() as stack:

        def flush() -> None:
            nonlocal writer
            table = _table(join(waiting), about)
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(path, table.schema, compression="zstd"))
            writer.write_table(table)
            waiting.clear()

        for part in parts:
            waiting.append(part)
            if sum(map(len, waiting)) >= _ROWS:
                flush()
        if waiting:
            flush()


def _table(rows: LatentRows, about: Mapping[str, Any]) -> Any:
    """Rows as an Arrow table, with nulls where there is no latent."""
    import pyarrow as pa

    nothing = pa.array(~rows.mask)
    columns = {}
    for name, array in rows.columns.items():
        if name == "mask":
            continue
        absent = nothing if name in ("z", "codes", "action") else None
        if array.ndim == 2:
            flat = pa.array(array.reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1], mask=absent)
        else:
            lacking = np.isnan(array) if name == "seconds" else None if absent is None else ~rows.mask
            columns[name] = pa.array(array, mask=lacking)
    return pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about)})


def _read_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    table = _parquet().read_table(path)
    columns: dict[str, np.ndarray] = {}
    for name in table.column_names:
        array = table[name].combine_chunks()
        absent = array.is_null().to_numpy(zero_copy_only=False)
        if hasattr(array.type, "list_size") or hasattr(array, "value_lengths"):
            flat = array.flatten().to_numpy(zero_copy_only=False)  # without the values of null rows
            width = len(flat) // max((~absent).sum(), 1)
            values = np.full((len(array), width), -1 if flat.dtype.kind in "iu" else np.nan, flat.dtype)
            values[~absent] = flat.reshape(-1, width)
        else:
            values = (array.fill_null(-1) if absent.any() and _is_integer(array) else array).to_numpy(
                zero_copy_only=False
            )
        columns[name] = values
        if name == "z":
            columns["mask"] = ~absent
    about = json.loads((table.schema.metadata or {}).get(_KEY.encode(), b"{}"))
    return columns, about


def _is_integer(array: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(array.type)
