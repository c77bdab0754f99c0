"""Describes where results come from: code, versions and machine."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

import lamjax


def describe_run(env: str, preset: str, name: str, command: str, seed: int) -> dict[str, Any]:
    """Returns the entries of ``summary.json`` that describe the run as a whole."""
    device = jax.devices()[0]
    versions = {module.__name__: module.__version__ for module in (jax, flax, optax, np)}
    return {
        "env": env,
        "preset": preset,
        "seed": seed,
        "name": name,
        "command": command,
        "git": git_hash(),
        "versions": {"lamjax": lamjax.__version__, "python": platform.python_version(), **versions},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.local_device_count()}
        | {"cpus": os.cpu_count()},
    }


def git_hash() -> str | None:
    """The commit of this checkout; None outside a checkout and without git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
