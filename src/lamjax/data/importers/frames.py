"""Reads a column of a Parquet file as frames, or as vectors.

A frame is a PNG, either plain bytes or in a struct, as in image columns; or numbers in nested lists or a tensor, with
channels last or first; or one flat list of all its numbers.

Dimension keys: R rows, H, W, C of a frame, A numbers of an action.
"""

import math
from typing import Any

import numpy as np

from lamjax.data.importers.errors import RowError
from lamjax.data.importers.pictures import PictureError, read_png

Shape = tuple[int, int, int]


def plain(array: Any) -> Any:
    """Decodes dictionaries and unwraps extension types, except tensors, of an Arrow array."""
    import pyarrow as pa

    while True:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif isinstance(array, pa.ExtensionArray) and not _is_tensor(array):
            array = array.storage
        else:
            return array


def empty(kind: Any) -> Any:
    """An Arrow array without rows; with it, `read_frames` can reject a column's type before reading any values."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, empty(kind.storage_type))
    return pa.array([], kind)


def refuse_nulls(array: Any, name: str, per_row: int = 1) -> None:
    """Raises a `RowError` if an Arrow array with `per_row` entries per row contains a null."""
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0]) // per_row
        raise RowError(row, f"column {name!r} has rows without a value")


def read_frames(array: Any, name: str, shape: Shape) -> np.ndarray:
    """Reads an Arrow array as frames uint8 ``[R, H, W, C]``; raises a `RowError` that names the column."""
    import pyarrow as pa

    array = plain(array)
    refuse_nulls(array, name)
    if pa.types.is_struct(array.type):
        if array.type.get_field_index("bytes") < 0:
            raise RowError(0, f"column {name!r} is a struct without a field 'bytes', which would hold a PNG")
        array = plain(array.field("bytes"))
        if array.null_count == len(array) > 0:
            raise RowError(0, f"column {name!r} has only paths to images: save the file with the images in it")
        refuse_nulls(array, name)
    if _is_binary(array.type):
        return _pictures(array, name, shape)
    if _is_tensor(array):
        return _tensor(array, name, shape)
    return _arranged(_numbers(array, name), name, shape)


def read_vectors(array: Any, name: str) -> np.ndarray:
    """Reads an Arrow array of lists, or of numbers (A = 1), as vectors ``[R, A]``; raises a `RowError`."""
    array = plain(array)
    refuse_nulls(array, name)
    values = _numbers(array, name, "actions")
    return values.reshape(len(array), -1) if len(array) else values.reshape(0, 0)


def _pictures(array: Any, name: str, shape: Shape) -> np.ndarray:
    frames = np.empty((len(array), *shape), np.uint8)
    for row, data in enumerate(array):
        try:
            frames[row] = read_png(data.as_py(), shape)
        except PictureError as error:
            raise RowError(row, f"column {name!r} {error}", error.damaged) from None
    return frames


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    tests = (getattr(pa.types, f"is_{each}", None) for each in ("binary", "large_binary", "binary_view"))
    return pa.types.is_fixed_size_binary(kind) or any(test(kind) for test in tests if test)


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is a kind of list."""
    import pyarrow as pa

    names = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(test(kind) for each in names if (test := getattr(pa.types, f"is_{each}", None)))


def _is_tensor(array: Any) -> bool:
    return getattr(array.type, "extension_name", "") == "arrow.fixed_shape_tensor"


def _numbers(array: Any, name: str, what: str = "frames") -> np.ndarray:
    """Nested lists as an array ``[R, ...]``; at each depth all lists have the same length. Frames must be uint8."""
    import pyarrow as pa
    import pyarrow.compute

    lengths: list[int] = []
    rows = len(array)
    while is_list(array.type):
        refuse_nulls(array, name, math.prod(lengths) or 1)
        each = pyarrow.compute.list_value_length(array).to_numpy(zero_copy_only=False)
        if len(each) and (odd := each != each[0]).any():
            raise RowError(odd.argmax() // math.prod(lengths), f"column {name!r} has {what} of different sizes")
        lengths.append(int(each[0]) if len(each) else 0)
        array = plain(array.flatten())
    if what == "frames" and array.type != pa.uint8():
        raise RowError(
            0, f"column {name!r} holds {array.type} instead of lists of bytes, or the bytes of a PNG: save it as uint8"
        )
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise RowError(0, f"column {name!r} holds {array.type}, not numbers")
    refuse_nulls(array, name, math.prod(lengths) or 1)
    return array.to_numpy(zero_copy_only=False).reshape(rows, *lengths)


def _tensor(array: Any, name: str, shape: Shape) -> np.ndarray:
    """Reads an array of tensors as frames.

    Arrow's specification and pyarrow disagree on the direction of a permutation of dimensions (pyarrow 26 does not read
    what it writes). So we choose the direction that gives the dimensions of a frame.
    """
    frames = _numbers(array.storage, name).reshape(len(array), *array.type.shape)
    order = array.type.permutation
    if order is None:
        return _arranged(frames, name, shape)
    readings = {tuple(order), tuple(np.argsort(order).tolist())}
    fitting = [reading for reading in readings if _fits([frames.shape[1 + axis] for axis in reading], shape)]
    if len(fitting) != 1:
        raise RowError(
            0, f"column {name!r} has tensors of {array.type.shape} permuted by {order}: save them without a permutation"
        )
    return _arranged(frames.transpose(0, *(1 + axis for axis in fitting[0])), name, shape)


def _fits(sizes: list[int], shape: Shape) -> bool:
    """Whether sizes are those of a frame: channels last, channels first, or no channel axis if there is one channel."""
    height, width, channels = shape
    return sizes in ([height, width, channels], [channels, height, width]) or (
        channels == 1 and sizes == [height, width]
    )


def _arranged(frames: np.ndarray, name: str, shape: Shape) -> np.ndarray:
    """Rearranges frames ``[R, ...]`` to ``[R, H, W, C]``: flat ones, ones of that shape, or with the channels first."""
    rows, *sizes = frames.shape
    height, width, channels = shape
    while len(sizes) > 3 and sizes[0] == 1:
        sizes = sizes[1:]
    if not rows:
        return np.zeros((0, *shape), np.uint8)
    if len(sizes) < 2:
        if math.prod(sizes) != math.prod(shape):
            raise RowError(0, f"column {name!r} has {math.prod(sizes)} numbers a frame, not {list(shape)}")
        return frames.reshape(rows, *shape)
    if _fits(sizes, shape):
        if sizes == [channels, height, width] and sizes != list(shape):
            return frames.reshape(rows, *sizes).transpose(0, 2, 3, 1)
        return frames.reshape(rows, *shape)
    raise RowError(
        0,
        f"column {name!r} has frames of {' x '.join(map(str, sizes))}, not {height} x {width} x {channels} "
        "(or with the channels first): set their height, width and channels with --shape",
    )
