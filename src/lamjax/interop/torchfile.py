"""Files of ``torch.save``, read and written without PyTorch, and without running what is in them.

Such a file is a zip archive: ``data.pkl`` describes the object, ``data/<key>`` holds the numbers of each tensor. A
pickle is a program that may call anything it can name. Here the only names that resolve are those that rebuild a
tensor, and they make numpy arrays; every other name becomes an inert stand-in, so that checkpoints which also hold
configurations and loggers (LAPO's do) still give their weights, and nothing of theirs is imported or called.
"""

import collections
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lamjax.archives import brief

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_MAX_PICKLE = 2**28
_MAX_NODES, _MAX_DEPTH, _MAX_NAME = 300_000, 100, 10_000  # of the objects in a file, and of their dotted names


class TorchFileError(ValueError):
    """Raised for a file that ``torch.save`` did not write, or that is damaged; one sentence that names it."""


class Inert:
    """Stands for an object of a foreign class: accepts whatever a pickle does to it, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        """Makes one, whatever the arguments."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *_: Any, **__: Any) -> "Inert":
        """Returns another one, because a pickle may call the result of a call."""
        return Inert()

    def __setstate__(self, _: Any) -> None:
        """Forgets the state."""

    def _ignore(self, *_: Any) -> None:
        pass

    append = extend = add = update = __setitem__ = _ignore


class _Storage:
    def __init__(self, dtype: Any, data: bytes, count: int, byteorder: str):
        self.dtype = np.dtype(dtype)
        if len(data) != count * self.dtype.itemsize:
            raise ValueError(f"a storage holds {len(data)} bytes instead of {count * self.dtype.itemsize}")
        self.array = np.frombuffer(data, self.dtype)
        if byteorder == "big":
            self.array = self.array.byteswap()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """A tensor as a view of its storage, so that many tensors of one take no memory of their own.

    Raises ValueError if it reaches beyond its storage.
    """
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    offset, size, stride = int(offset), tuple(map(int, size)), tuple(map(int, stride))
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError("a tensor has impossible sizes")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(storage.array) or math.prod(size) > len(storage.array):
        raise ValueError("a tensor reaches beyond its storage")
    strides = [step * storage.dtype.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage.array[offset:], size, strides, writeable=False)


def _parameter(data: Any, *_: Any) -> Any:
    return data


_COPIES = {("collections", "OrderedDict"): collections.OrderedDict, ("torch", "Size"): tuple}
_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): name for name in _DTYPES},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, program: bytes, archive: zipfile.ZipFile, root: str, byteorder: str):
        super().__init__(io.BytesIO(program), encoding="utf-8")
        self._archive, self._root, self._byteorder = archive, root, byteorder
        self._storages: dict[str, _Storage] = {}
        self._to_copy = len(program)  # how many items may yet be copied from one object to another
        self._names = _NAMES | {name: self._copier(kind) for name, kind in _COPIES.items()}
        self._inert = type("Inert", (Inert,), {"__module__": __name__})

    def find_class(self, module: str, name: str) -> Any:
        """Returns the function that rebuilds a tensor, or a stand-in for any other name."""
        return self._names.get((module, name), self._inert)

    def _copier(self, kind: type) -> Any:
        """A function that makes a tuple or a mapping of another object, but not a large one again and again."""

        def copy(*content: Any) -> Any:
            self._to_copy -= sum(map(len, content))
            if self._to_copy < 0:
                raise ValueError("its pickle copies more than it holds")
            return kind(*content)

        return copy

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that a persistent id names."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or dtype not in _DTYPES or not str(key).isdigit():
            raise ValueError("it refers to something that is no tensor's storage of plain numbers")
        if key not in self._storages:
            data = _member(self._archive, f"{self._root}/data/{key}")
            self._storages[key] = _Storage(_DTYPES[dtype], data, int(count), self._byteorder)
        return self._storages[key]


def _check_program(program: bytes) -> None:
    """Raises ValueError if a pickle would make the unpickler ask for much more memory than the pickle has bytes.

    The unpickler's memory of earlier objects is a list, which grows to any place that a pickle names in four bytes
    (python/cpython#115952).
    """
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(program):
            raise ValueError(f"its pickle keeps an object at the place {argument} of {len(program)} bytes")


def _member(archive: zipfile.ZipFile, name: str, limit: int | None = None) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, which torch.save never does")
    if limit is not None and info.file_size > limit:
        raise ValueError(f"{name} has {info.file_size} bytes")
    return archive.read(info)


def read(path: Path) -> Any:
    """Reads a file of ``torch.save``: tensors become numpy arrays, foreign objects `Inert`; no foreign code runs.

    Args:
      path: the file, as PyTorch 1.6 and newer write it.

    Raises:
      TorchFileError: if there is no such file, or it is of another format or damaged.
    """
    if not path.is_file():
        raise TorchFileError(f"There is no file {path}: check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if sum(info.compress_size for info in archive.infolist()) > path.stat().st_size:
                raise ValueError("its members claim to be longer than the file")
            pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise TorchFileError(f"{path} is an archive that torch.save did not write: it has no data.pkl.")
            root = pickles[0].partition("/")[0]
            order = f"{root}/byteorder"
            byteorder = _member(archive, order).decode() if order in names else "little"
            if byteorder not in ("little", "big"):
                raise ValueError(f"its byte order is {byteorder!r}")
            program = _member(archive, pickles[0], _MAX_PICKLE)
            _check_program(program)
            return _Unpickler(program, archive, root, byteorder).load()
    except TorchFileError:
        raise
    except zipfile.BadZipFile as error:
        raise TorchFileError(
            f"{path} is damaged, or is not in the zip format of torch.save ({brief(error)}): copy it again, or save it "
            "with PyTorch 1.6 or newer."
        ) from None
    except Exception as error:  # a pickle that is damaged makes the unpickler raise whatever it meets
        raise TorchFileError(
            f"{path} is damaged, or torch.save did not write it ({brief(error)}): copy it again."
        ) from None


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of nested mappings and sequences by their dotted names.

    Raises:
      TorchFileError: if the tree holds itself, or is so large that only repetition can have made it.
    """
    arrays: dict[str, np.ndarray] = {}
    visits = 0

    def walk(node: Any, prefix: str, above: tuple[int, ...]) -> None:
        nonlocal visits
        visits += 1
        too_large = visits > _MAX_NODES or len(above) > _MAX_DEPTH or len(prefix) > _MAX_NAME
        if too_large or id(node) in above:
            raise TorchFileError("The file's objects hold themselves, or each other again and again: save it anew.")
        if isinstance(node, np.ndarray):
            arrays[prefix[:-1]] = node
        elif isinstance(node, Mapping | list | tuple):
            items = type(node).items(node) if isinstance(node, Mapping) else enumerate(node)
            for key, value in items:
                walk(value, f"{prefix}{key}.", (*above, id(node)))

    walk(tree, "", ())
    return arrays


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _pickled(array: np.ndarray, key: str) -> bytes:
    storage = next((name for name, dtype in _DTYPES.items() if np.dtype(dtype) == array.dtype), None)
    if storage is None:
        raise ValueError(f"torch.save has no storage for {array.dtype}")
    where = _tuple(_text("storage"), _global("torch", storage), _text(key), _text("cpu"), _integer(array.size))
    size = _tuple(*map(_integer, array.shape))
    stride = _tuple(*(_integer(step // array.itemsize) for step in array.strides))
    hooks = _global("collections", "OrderedDict") + b")R"
    # Storage, offset, size, stride, requires_grad, hooks.
    return (
        _global("torch._utils", "_rebuild_tensor_v2")
        + _tuple(where + b"Q", _integer(0), size, stride, b"\x89", hooks)
        + b"R"
    )


def write(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes nested mappings of arrays, which ``torch.load(path, weights_only=True)`` reads as tensors.

    Args:
      path: the file; it appears only when it is complete.
      tree: nested mappings with names as keys and numpy arrays as leaves.
    """
    arrays: list[np.ndarray] = []

    def walk(node: Any) -> bytes:
        if isinstance(node, Mapping):
            items = b"".join(_text(str(key)) + walk(value) for key, value in node.items())
            return b"}(" + items + b"u"
        arrays.append(np.asarray(node, order="C"))
        return _pickled(arrays[-1], str(len(arrays) - 1))

    program = b"\x80\x02" + walk(tree) + b"."
    partial = path.with_name(f".{path.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        members = {"data.pkl": program, "byteorder": b"little", "version": b"3\n"}
        members |= {
            f"data/{key}": array.astype(array.dtype.newbyteorder("<")).tobytes() for key, array in enumerate(arrays)
        }
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"{path.stem}/{name}"), data)
    partial.replace(path)
