"""Errors of stages 1 and 2 on windows of held-out levels, in one dispatch for all batches.

The windows lie in device memory (`EvaluationWindows.batches`). The loop over batches runs inside ``jit``, even on a
CPU, where it is no slower without a backward pass.

Dimension keys: M batches, B windows in a batch, L frames in a window, Z latent size.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import cloning, dynamics
from lamjax.cloning import CloningState
from lamjax.dynamics import DynamicsState
from lamjax.training.driver import over_batches


def _cloning_error(state: CloningState, windows: jax.Array, latents: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(cloning.predict_latents(state, windows[:, -2]) - latents))


_evaluate, _evaluate_swapped = over_batches(dynamics.evaluate), over_batches(dynamics.evaluate_swapped)
_evaluate_cloning = over_batches(_cloning_error)


def held_out_errors(state: DynamicsState, batches: jax.Array) -> dict[str, Any]:
    """Forward-model errors over all windows, and how often each code was used.

    Args:
      state: stage 1.
      batches: ``[M, B, L, *obs_shape]``.

    Returns:
      ``fdm_mse``, ``copy_last_mse`` and their ratio ``fdm_ratio``; ``code_counts``, float32 ``[N, codes]``.
    """
    rows = jax.device_get(_evaluate(state, batches))
    fdm, copy = (float(np.mean(rows[name])) for name in ("fdm_mse", "copy_last_mse"))
    return {
        "fdm_mse": fdm,
        "copy_last_mse": copy,
        "fdm_ratio": fdm / max(copy, 1e-12),
        "code_counts": rows["code_counts"].sum(0),
    }


def swapped_error(state: DynamicsState, batches: jax.Array) -> float:
    """The forward model's error if the windows in each batch ``[M, B, L, *obs_shape]`` swap their latents."""
    return float(np.mean(_evaluate_swapped(state, batches)))


def cloning_error(state: CloningState, batches: jax.Array, latents: jax.Array) -> float:
    """Mean squared error of the latent policy at o_t of all windows.

    Args:
      state: stage 2.
      batches: ``[M, B, L, *obs_shape]``.
      latents: float32 ``[M * B, Z]``, the inverse model's latents of the windows.
    """
    targets = latents.reshape(*batches.shape[:2], -1)
    return float(np.mean(_evaluate_cloning(state, batches, targets)))
