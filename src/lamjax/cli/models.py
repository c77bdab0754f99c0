"""``lamjax export``: what is done with a model that is trained."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a run's models into a folder to share: weights as safetensors, all settings, and a model card.

    Attributes:
      source: the run folder.
      folder: the folder to write; it must not exist. It can be uploaded to a model hub as it is.
    """

    source: Positional[Path] = tyro.MISSING
    folder: Positional[Path] = tyro.MISSING


def export(args: Export) -> None:
    """`lamjax export`."""
    load_run(args.source).export(args.folder)
    print(args.folder)


def load_run(path: Path) -> Any:
    """Loads a run or a shared model as a `LoadedRun`; raises a `ModelError` if it is a policy alone."""
    from lamjax.loading import LoadedRun, load
    from lamjax.sharing import ModelError

    loaded = load(path)
    if not isinstance(loaded, LoadedRun):
        raise ModelError(f"{path} is a policy, and a policy has no latents: give the folder of its run.")
    return loaded
