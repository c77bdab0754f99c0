"""Checks of settings, names and libraries: a mistake ends a run before its first step, in a sentence that names it."""

import dataclasses
import importlib
import math
import numbers
import os
import re
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

SEEDS = 2**32  # a key of JAX holds 32 bits of a seed: a larger one would repeat the run of a smaller one

_FOLDER = re.compile(r"[^./\\\s\x00-\x1f](?:[^/\\\x00-\x1f]*[^./\\\s\x00-\x1f])?")
_BOUNDS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "at_least_1": ("must be at least 1", lambda x: x >= 1),
    "at_least_0": ("must not be negative", lambda x: x >= 0),
    "above_0": ("must be above 0", lambda x: x > 0),
    "finite": ("must not be negative or infinite", lambda x: 0 <= x < math.inf),
    "shares": ("must lie in [0, 1]", lambda x: 0 <= x <= 1),
    "seeds": (f"must lie in [0, {SEEDS - 1}]", lambda x: 0 <= x < SEEDS),
}


def check_fields(config: Any, prefix: str = "", **bounds: Sequence[str]) -> None:
    """Checks every field of a frozen dataclass by its type, and some by bounds; call it in ``__post_init__``.

    It converts lists to tuples, numpy numbers to Python's, and floats such as 2e4 to int where the field is an int, so
    that the config can be hashed and written as JSON.

    Args:
      config: the dataclass.
      prefix: the config's own name, which messages put before the field's.
      **bounds: for each bound the names of the fields that must respect it; every element of a tuple must. The bounds
        are ``at_least_1``, ``at_least_0``, ``above_0``, ``finite`` (and not negative), ``shares`` (of 1), ``seeds`` (of
        JAX's keys), and ``not_empty`` (for tuples).

    Raises:
      ValueError: if a value does not fit; the message names the field and the value.
    """
    start = f"{prefix}." if prefix else ""
    for field in dataclasses.fields(config):
        value = _converted(getattr(config, field.name))
        if problem := _type_problem(field.type, value):
            raise ValueError(f"{start}{field.name} {problem}, not {value!r}.")
        object.__setattr__(config, field.name, _whole(field.type, value))
    for name in bounds.pop("not_empty", ()):
        if not getattr(config, name):
            raise ValueError(f"{start}{name} must not be empty.")
    for bound, names in bounds.items():
        words, fits = _BOUNDS[bound]
        for name in names:
            value = getattr(config, name)
            if value is not None and not all(fits(x) for x in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"{start}{name} {words}, not {value}.")


def _converted(value: Any) -> Any:
    """Converts lists to tuples, and numpy numbers to Python's."""
    if isinstance(value, list | tuple):
        return tuple(map(_converted, value))
    if isinstance(value, numbers.Number) and hasattr(value, "item"):
        return value.item()
    return value


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _whole(kind: Any, value: Any) -> Any:
    """The value with floats that are whole numbers as int, where the type asks for int."""
    if isinstance(value, tuple) and get_args(kind)[1:] == (...,):
        return tuple(_whole(get_args(kind)[0], x) for x in value)
    return int(value) if isinstance(value, float) and int in _members(kind) else value


def _type_problem(kind: Any, value: Any) -> str | None:
    """Says what a value of this type must be, or None if `value` fits; types without a check accept everything."""
    if get_origin(kind) is Literal:
        return None if value in get_args(kind) else f"must be one of {', '.join(map(str, get_args(kind)))}"
    members = _members(kind)
    if len(members) > 1:
        if any(_type_problem(member, value) is None for member in members):
            return None
        return f"must be one of {', '.join(member.__name__ for member in members)}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is types.NoneType:
        return None if value is None else "must be None"
    if kind is int:
        return None if is_number and value == value // 1 else "must be a whole number"
    if kind is float:
        return None if is_number and not math.isnan(value) else "must be a number"
    if kind is bool:
        return None if isinstance(value, bool) else "must be True or False"
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return "must be a tuple"
        *kinds, last = get_args(kind)
        kinds = kinds * len(value) if last is ... else [*kinds, last]
        if len(kinds) != len(value):
            return f"must hold {len(kinds)} values"
        return next(filter(None, map(_type_problem, kinds, value)), None)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return None if isinstance(value, kind) else f"must be a {kind.__name__}"
    return None


def check_path_name(option: str, name: str | None, *, nested: bool = False) -> str:
    """Returns a name that becomes a folder, or, if it may be `nested`, a path of folders such as "minatar/breakout".

    Raises:
      ValueError: if the path would leave the folder that it is put in, or some file systems reject it; the message
        calls the name `option`.
    """
    words = (name.split("/") if nested else [name]) if isinstance(name, str) else []
    if not isinstance(name, str) or not all(
        is_utf8(word) and _FOLDER.fullmatch(word) and len(word.encode()) <= 200 for word in words
    ):
        slashes = "" if nested else " or slashes"
        raise ValueError(
            f"{option} must be the name of a folder, without dots or spaces at its ends{slashes}, not {name!r}."
        )
    return name


def library(name: str, sentence: str) -> Any:
    """Imports a library that not every installation has; without it raises an `ImportError` with this sentence."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(sentence) from None


def is_utf8(path: str | os.PathLike) -> bool:
    """Whether a path can be encoded as UTF-8; libraries that encode paths this way cannot open any other."""
    try:
        str(path).encode()
    except UnicodeEncodeError:  # the file system's bytes are not text
        return False
    return True
