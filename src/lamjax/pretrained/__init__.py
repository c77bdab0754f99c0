"""The latent action models that come with the package: one model folder (`lamjax.sharing`) for each game that has one.

`lamjax.load("coinrun")` and ``lamjax label coinrun clip.mp4`` use them. They were trained by ``lamjax train`` on
recordings of real Procgen; each folder's README.md says how, and how good it is beside its baselines.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

ROOT = Path(str(resources.files(__name__)))


def available() -> dict[str, dict[str, Any]]:
    """The results of every model, as in ``summary.json``, by its name."""
    notes = sorted(ROOT.glob("*/config.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8"))["summary"] for path in notes}


def resolve(path: str | Path) -> Path:
    """The folder that a path or name means: what exists under this path, else the model of this name, else the path."""
    path = Path(path)
    ours = ROOT / path.name
    return ours if str(path) == path.name and not path.exists() and (ours / "config.json").exists() else path
