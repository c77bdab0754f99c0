"""Latent action models in JAX: learn from video what the actions are, then turn them into a policy.

    folder = lamjax.train("coinrun")  # a whole run: record, three stages, evaluation, report
    run = lamjax.load(folder)         # its settings, results, models and policies
    env = lamjax.make("coinrun", 64)  # environments to act in, inside ``jit``

The stages are pure functions in `lamjax.dynamics` (1), `lamjax.cloning` (2) and `lamjax.decoding` (3); `lamjax.ppo` and
`lamjax.linear` can be used alone, and `lamjax.presets` holds the settings. What is not used is not imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamjax import cloning, decoding, dynamics, linear, ppo, presets
    from lamjax.cloning import CloningConfig, CloningState
    from lamjax.dynamics import DynamicsConfig, DynamicsState, Latents
    from lamjax.envs import make
    from lamjax.loading import load
    from lamjax.pipeline.train import train

__version__ = "0.1.0"

__all__ = [
    "CloningConfig",
    "CloningState",
    "DynamicsConfig",
    "DynamicsState",
    "Latents",
    "__version__",
    "cloning",
    "decoding",
    "dynamics",
    "linear",
    "load",
    "make",
    "ppo",
    "presets",
    "train",
]

# Where each name is defined; a name that is not here is a module.
_DEFINED_IN = {
    **dict.fromkeys(("CloningConfig", "CloningState"), "lamjax.cloning"),
    **dict.fromkeys(("DynamicsConfig", "DynamicsState", "Latents"), "lamjax.dynamics"),
    "load": "lamjax.loading",
    "make": "lamjax.envs",
    "train": "lamjax.pipeline",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'lamjax' has no attribute {name!r}")
    if name in _DEFINED_IN:
        return getattr(importlib.import_module(_DEFINED_IN[name]), name)
    return importlib.import_module(f"lamjax.{name}")


def __dir__() -> list[str]:
    return __all__
