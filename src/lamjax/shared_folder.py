"""Folders to share: weights that any reader of safetensors can open, a note to rebuild the model from, and a card.

- ``model.safetensors``: arrays by dotted names, float32 or float16
- ``config.json``: the note, any JSON, with digests of the weights and of itself
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
    """Raised if a folder is not a model, or is damaged; the message is one sentence that says what to do."""


def write(folder: Path, kind: str, arrays: Mapping[str, np.ndarray], note: Mapping[str, Any], card: str) -> None:
    """Writes a folder under a temporary name and renames it, so an incomplete folder is never visible.

    Args:
      folder: must not exist.
      kind: what it holds, such as "lamjax-model".
      arrays: the weights by name, as `converted` returns them.
      note: everything else that is needed to rebuild the model.
      card: the model card, in Markdown.

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
    """The kind that a folder states, None if it states none; nothing is verified."""
    try:
        note = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return note.get("format") if isinstance(note, dict) else None


def read(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads a folder that `write` wrote: its note and its arrays. float16 arrays become float32.

    Raises:
      ModelError: if it is missing, damaged, of another kind, from a newer version or from another library.
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
        raise ModelError(f"{folder} does not hold a {what} of lamjax: its {CONFIG} does not have the format {kind!r}.")
    if note.get("version") != VERSION:
        raise ModelError(
            f"{folder} is a model of version {note.get('version')}, but this lamjax reads version {VERSION}: update it."
        )
    if note.get("sha256") != checkpoint.note_digest(note):
        raise ModelError(f"{folder / CONFIG} was changed or damaged after it was written: fetch the folder again.")
    if note["weights_sha256"] != hashlib.sha256(weights).hexdigest():
        raise ModelError(f"{folder / WEIGHTS} was changed or damaged after it was written: fetch the folder again.")
    arrays = safetensors.numpy.load(weights)
    return note, {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in arrays.items()}


def converted(arrays: Mapping[str, np.ndarray], dtype: Dtype) -> dict[str, np.ndarray]:
    """Converts the floating-point arrays to another type.

    Raises:
      ModelError: if an array is not finite in that type.
    """
    with np.errstate(over="ignore"):
        result = {name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in arrays.items()}
    if not_finite := [name for name, x in result.items() if not np.isfinite(x).all()]:
        raise ModelError(f"{not_finite[0]} is not finite in {dtype}: nothing was written.")
    return result


def shareable(value: Any) -> Any:
    """Removes the machine's folders from results: of each absolute path, only the last part stays."""
    if isinstance(value, dict):
        return {key: shareable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shareable(each) for each in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value
