"""Latent action models in JAX: learn from video what the actions are, then turn them into a policy."""

from lamjax import cloning, dynamics
from lamjax.cloning import CloningConfig, CloningState
from lamjax.dynamics import DynamicsConfig, DynamicsState, Latents

__version__ = "0.1.0"

__all__ = [
    "CloningConfig",
    "CloningState",
    "DynamicsConfig",
    "DynamicsState",
    "Latents",
    "__version__",
    "cloning",
    "dynamics",
]
