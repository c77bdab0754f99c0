"""Folders to share: weights that any reader of safetensors opens, what rebuilds their owner, and a card.

- ``model.safetensors``: arrays by dotted names, float32 or float16
- ``config.json``: a note, anything JSON can hold, with digests of the weights and of itself
- ``README.md``: the card, with the front matter that model hubs read
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy

import lamjax
from lamjax.archives import brief
from lamjax.training import checkpoint

Dtype = Literal["float32", "float16"]
VERSION = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


class ModelError(ValueError):
    """Raised where a folder is no model, or a damaged one; one sentence that says what to do."""


def write(folder: Path, kind: str, arrays: Mapping[str, np.ndarray], note: Mapping[str, Any], card: str) -> None:
    """Writes a folder beside its place and renames it, so that there is never half a folder.

    Args:
      folder: must not exist.
      kind: what it holds, such as "lamjax-model".
      arrays: the weights by name, as `converted` returns them.
      note: what else rebuilds their owner.
      card: Markdown.

    Raises:
      ModelError: if the folder exists.
      OSError: if it cannot be written.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise ModelError(f"{folder} already exists: remove it, or choose another folder.")
    weights = safetensors.numpy.save(dict(arrays))
    header = {"format": kind, "version": VERSION, "created_by": f"lamjax {lamjax.__version__}"}
    content = header | dict(note) | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    content["sha256"] = checkpoint.note_digest(content)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / WEIGHTS).write_bytes(weights)
    (partial / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (partial / CARD).write_text(card, encoding="utf-8")
    os.rename(partial, folder)


def kind_of(folder: Path) -> str | None:
    """What a folder says that it holds, None if it says nothing; it is not checked."""
    try:
        note = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return note.get("format") if isinstance(note, dict) else None


def read(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads a folder that `write` wrote: its note, and its arrays, of which float16 ones become float32.

    Raises:
      ModelError: if it is missing, damaged, of a newer version, of another kind or of another library.
    """
    try:
        note = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"There is no model in {folder}: {Path(error.filename).name} is missing.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{folder / CONFIG} is damaged ({brief(error)}): fetch the folder again.") from error
    if not isinstance(note, dict) or note.get("format") != kind:
        what = kind.replace("lamjax-", "")
        raise ModelError(f"{folder} holds no {what} of lamjax: its {CONFIG} does not have the format {kind!r}.")
    if note.get("version") != VERSION:
        raise ModelError(
            f"{folder} is a model of version {note.get('version')}, and this lamjax reads version {VERSION}: update it."
        )
    if note.get("sha256") != checkpoint.note_digest(note):
        raise ModelError(f"{folder / CONFIG} is not what was written: fetch the folder again.")
    if note["weights_sha256"] != hashlib.sha256(weights).hexdigest():
        raise ModelError(f"{folder / WEIGHTS} is not what was written: fetch the folder again.")
    arrays = safetensors.numpy.load(weights)
    return note, {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in arrays.items()}


def converted(arrays: Mapping[str, np.ndarray], dtype: Dtype) -> dict[str, np.ndarray]:
    """Arrays whose floats have another type.

    Raises:
      ModelError: if one is not finite in that type.
    """
    with np.errstate(over="ignore"):
        result = {name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in arrays.items()}
    if not_finite := [name for name, x in result.items() if not np.isfinite(x).all()]:
        raise ModelError(f"{not_finite[0]} is not finite in {dtype}: nothing was written.")
    return result


def shareable(value: Any) -> Any:
    """Results without the folders of the machine that they were made on: of each absolute path the name is left."""
    if isinstance(value, dict):
        return {key: shareable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shareable(each) for each in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value
