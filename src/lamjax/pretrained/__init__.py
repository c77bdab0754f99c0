"""The latent action models that come with the package: one model folder (`lamjax.sharing`) per game.

`lamjax.load("coinrun")` and ``lamjax label coinrun clip.mp4`` use them. They were trained with ``lamjax train`` on
recordings of real Procgen; the README.md of each folder says how, and compares the model with its baselines.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

ROOT = Path(str(resources.files(__name__)))


def available() -> dict[str, dict[str, Any]]:
    """The results of each model, as in ``summary.json``, by name."""
    notes = sorted(ROOT.glob("*/config.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8"))["summary"] for path in notes}


def resolve(path: str | Path) -> Path:
    """Resolves a path or name: an existing path, else the folder of the model with this name, else the path itself."""
    path = Path(path)
    ours = ROOT / path.name
    return ours if str(path) == path.name and not path.exists() and (ours / "config.json").exists() else path
