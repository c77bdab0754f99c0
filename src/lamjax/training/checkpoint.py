"""Saves and restores checkpoints with orbax, and checks a digest of every leaf.

Orbax restores a file with a flipped bit without an error. So each checkpoint keeps a SHA-256 digest per leaf, and
restoring falls back to the newest checkpoint whose leaves all match.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import textwrap
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from lamjax import parallel
from lamjax.training.disk import FULL, disk_is_full, require_space

KEEP = 2  # one to use, one to fall back to
_HOST = "host:"

log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """Raised when a checkpoint belongs to another configuration, or when none can be read."""


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Returns a pytree's leaves as host arrays by dotted name; PRNG keys become their data."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = {_name(path): _as_data(leaf) for path, leaf in leaves}
    return {name: np.asarray(array) for name, array in jax.device_get(arrays).items()}


def nest(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arrays by dotted names as nested dicts: the inverse of `flatten` for trees of dicts."""
    return traverse_util.unflatten_dict(dict(arrays), sep=".")


def unflatten(template: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Puts host arrays into the places of `template`.

    Raises:
      CheckpointError: if a name is missing or left over, or a shape or dtype differs; the message names the leaf.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [_name(path) for path, _ in leaves]
    if unmatched := sorted(set(names) ^ set(arrays)):
        raise CheckpointError(f"The checkpoint does not match the model: {unmatched[0]} is in only one of them.")
    restored = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        array, want = arrays[name], jax.eval_shape(_as_data, leaf)
        if array.shape != want.shape or array.dtype != want.dtype:
            raise CheckpointError(
                f"The checkpoint does not match the model: {name} is {array.dtype}{list(array.shape)} there and "
                f"{want.dtype}{list(want.shape)} here."
            )
        value = jnp.asarray(array)
        restored.append(jax.random.wrap_key_data(value) if _is_key(leaf) else value)
    return jax.tree_util.tree_unflatten(structure, restored)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _digest(array: np.ndarray) -> str:
    header = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def note_digest(note: Mapping[str, Any]) -> str:
    """The digest of a note without its entry ``sha256``, where the digest itself is kept."""
    content = {key: value for key, value in note.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def differing_field(ours: Any, theirs: Any, prefix: str = "") -> str | None:
    """Describes the first field in which two nested dicts differ, by its dotted name and values; None if none does."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}):
            if difference := differing_field(ours.get(key), theirs.get(key), f"{prefix}{key}."):
                return difference
        return None
    return None if ours == theirs else f"{prefix[:-1]} is {theirs!r} there and {ours!r} here"


def completed(config: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Adds to saved settings the defaults of fields that were introduced after the file was written."""
    settings = dict(saved)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in settings and field.default is not dataclasses.MISSING:
            settings[field.name] = as_json(field.default)
        elif dataclasses.is_dataclass(value) and isinstance(settings.get(field.name), Mapping):
            settings[field.name] = completed(value, settings[field.name])
    return settings


def as_json(config: Any) -> Any:
    """Converts a config dataclass to JSON values (tuples become lists)."""
    is_config = dataclasses.is_dataclass(config) and not isinstance(config, type)
    return json.loads(json.dumps(dataclasses.asdict(config) if is_config else config))


def from_json(kind: Any, values: Any) -> Any:
    """Rebuilds the config that `as_json` converted; a field without a saved value gets its default.

    `kind` is the config's class, or a union of classes, from which it builds the one that fits the values.

    Raises:
      CheckpointError: if the values fit no class of `kind`.
    """
    members = [m for m in typing.get_args(kind) or (kind,) if isinstance(m, type) and dataclasses.is_dataclass(m)]
    if not members or not isinstance(values, Mapping):
        return _as_tuples(values)

    def missing(member: type) -> int:
        return len({field.name for field in dataclasses.fields(member)} - values.keys())

    fitting = [m for m in members if values.keys() <= {field.name for field in dataclasses.fields(m)}]
    if not fitting:
        classes = " or ".join(member.__name__ for member in members)
        raise CheckpointError(f"The settings {', '.join(sorted(values))} are not those of a {classes}.")
    member = min(fitting, key=missing)
    kinds = typing.get_type_hints(member)
    return member(**{name: from_json(kinds[name], value) for name, value in values.items()})


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Restored:
    """An intact checkpoint: its step, the pytree, the host arrays beside it, and its meta data."""

    step: int
    tree: Any
    host: dict[str, np.ndarray]
    meta: dict[str, Any]


def save(
    folder: Path,
    step: int,
    tree: Any,
    *,
    config: Any,
    host: dict[str, np.ndarray] | None = None,
    meta: dict[str, Any] | None = None,
) -> None:
    """Saves a pytree as checkpoint `step` of a folder, and removes all but the newest `KEEP`.

    Args:
      folder: the checkpoints of one stage.
      step: the checkpoint's number; it replaces checkpoints of this and of later numbers. (A run returns to a step only
        if later checkpoints are damaged.)
      tree: a pytree of arrays.
      config: the dataclass that the tree belongs to; `restore` compares it.
      host: arrays of any shape to save beside the tree, such as native environments.
      meta: anything that JSON can hold.

    Raises:
      OSError: if the disk is full.
    """
    arrays = flatten(tree) | {_HOST + name: np.asarray(array) for name, array in (host or {}).items()}
    note = {
        "digests": {name: _digest(array) for name, array in arrays.items()},
        "config": as_json(config),
        "meta": meta or {},
    }
    note["sha256"] = note_digest(note)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # Orbax would write a traceback for each of its threads.
    require_space(folder, sum(array.nbytes for array in arrays.values()))
    with _manager(folder) as manager:
        for old in manager.all_steps():
            if old >= step:  # orbax silently skips a step below the newest
                manager.delete(old)
        try:
            parts = ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), note=ocp.args.JsonSave(note))
            manager.save(step, args=parts)
            manager.wait_until_finished()
        except Exception as error:  # tensorstore's errors hold only the system's words
            if any(os.strerror(code) in str(error) for code in FULL):
                raise disk_is_full(folder) from None
            raise


def restore(folder: Path, template: Any, *, config: Any) -> Restored | None:
    """Restores the newest intact checkpoint. If there are several hosts, the first one reads it for all.

    Args:
      folder: the checkpoints of one stage.
      template: a pytree with the structure, shapes and dtypes of the saved one.
      config: the dataclass of the caller's state; a field that is newer than the checkpoint must have its default
        value.

    Returns:
      The checkpoint, or None if the folder holds none.

    Raises:
      CheckpointError: if the newest intact one belongs to another configuration (the message names the field), or if
        there are checkpoints and none is intact.
    """
    newest = parallel.from_first(lambda: restore_arrays(folder))
    if newest is None:
        return None
    step, arrays, note = newest
    if field := differing_field(as_json(config), completed(config, note["config"])):
        raise CheckpointError(f"The checkpoint {folder / str(step)} is of another configuration: {field}.")
    host = {name.removeprefix(_HOST): array for name, array in arrays.items() if name.startswith(_HOST)}
    tree = {name: array for name, array in arrays.items() if not name.startswith(_HOST)}
    return Restored(step, unflatten(template, tree), host, note["meta"])


def restore_arrays(folder: Path) -> tuple[int, dict[str, np.ndarray], dict[str, Any]] | None:
    """Reads the newest intact checkpoint as ``(step, arrays by name, note)``; None if there is no checkpoint."""
    folder = folder.absolute()
    if not folder.is_dir():
        return None
    with _manager(folder) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        for step in steps:
            try:
                note = manager.restore(step, args=ocp.args.Composite(note=ocp.args.JsonRestore()))["note"]
                digest = note_digest(note)
                if note.get("sha256", digest) != digest:
                    raise ValueError("its note is not what was written")
                _check_memory(manager.item_metadata(step)["arrays"])
                as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in note["digests"]}
                args = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(restore_args=as_numpy))
                restored = manager.restore(step, args=args)["arrays"]
                arrays = {name: np.asarray(array) for name, array in restored.items()}
                damaged = [name for name, digest in note["digests"].items() if _digest(arrays[name]) != digest]
                if not damaged:
                    return step, arrays, note
                problem = f"is damaged in {damaged[0]}"
            except Exception as error:  # orbax raises whatever errors its JSON, zarr and proto readers raise
                problem = f"cannot be read ({textwrap.shorten(str(error), 120)})"
            log.warning("checkpoint %s %s; falling back to the one before", folder / str(step), problem)
    if steps:
        raise CheckpointError(f"No checkpoint in {folder} is intact: delete the folder to start the stage anew.")
    return None


def _check_memory(metadata: Any) -> None:
    """Raises ValueError if arrays claim more memory than exists: asking for it would kill the process, not raise."""
    leaves = jax.tree.leaves(getattr(metadata, "tree", metadata))
    claimed = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if claimed > memory:
        raise ValueError(f"its arrays claim {claimed} bytes of memory, and this machine has {memory}")


def _manager(folder: Path) -> ocp.CheckpointManager:
    folder.mkdir(parents=True, exist_ok=True)
    alone = {}
    if jax.process_count() > 1:  # orbax would wait for the other hosts, which have nothing to save
        ours = jax.process_index()
        only = ocp.options.MultiprocessingOptions(primary_host=ours, active_processes={ours})
        alone = {"multiprocessing_options": only}
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEEP),
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        create=False,
        **alone,
    )
    arrays, note = ocp.PyTreeCheckpointHandler(**alone), ocp.JsonCheckpointHandler(**alone)
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add("arrays", ocp.args.PyTreeSave, arrays)
    handlers.add("arrays", ocp.args.PyTreeRestore, arrays)
    handlers.add("note", ocp.args.JsonSave, note)
    handlers.add("note", ocp.args.JsonRestore, note)
    return ocp.CheckpointManager(folder, options=options, handler_registry=handlers)
