"""The demonstrators that come with the package: one policy folder for each game that has one."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from lamjax.policies import Network, PolicyError, load_policy


def folder(env: str) -> Path:
    """The folder for the expert of an environment, whether it exists or not."""
    return Path(str(resources.files(__name__))) / env.replace("/", "_")


def available() -> dict[str, dict[str, Any]]:
    """The provenance of every shipped expert, by environment."""
    root = Path(str(resources.files(__name__)))
    notes = {path.parent.name: json.loads(path.read_text())["info"] for path in sorted(root.glob("*/policy.json"))}
    return {info.get("env", name): info for name, info in notes.items()}


def load(env: str) -> tuple[Network, Any, dict[str, Any]]:
    """The expert of `env`; see `policies.load_policy`.

    Raises:
      PolicyError: if none is shipped for the environment.
    """
    if not (folder(env) / "policy.json").exists():
        have = ", ".join(available()) or "none"
        raise PolicyError(
            f"No expert is shipped for {env} (there are: {have}): train one with `lamjax expert --env {env}`."
        )
    return load_policy(folder(env))
