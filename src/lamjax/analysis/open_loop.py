"""Measures how far ahead a model predicts, and how much its latents influence what it predicts.

From the first frames of a clip, the forward model predicts the next frame given the latent action inferred from the
true frames, then the frame after from its own prediction, and so on. The baseline is the last true frame, repeated.

Controllability is Genie's delta PSNR (arXiv 2402.15391): the PSNR with the clip's own latents minus the PSNR with those
of another clip. If it is 0, the latents have no influence.

    PSNR = 10 log10(1 / mean squared error)

The mean is over all clips, because the PSNR of a single frame is infinite if nothing moves. The 1 is the range of
pixels, or one standard deviation of standardised numbers. With `focus`, only the square around what moves in the clip's
first window counts, because the forward model does not learn the rest of the frame.

Dimension keys: M batches, B clips in a batch, E clips, L frames in a clip, k + 1 + T, T horizons, S a frame's shape.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import dynamics
from lamjax.analysis.latents import unroll
from lamjax.dynamics import DynamicsState
from lamjax.preprocess import cut_squares, normalise_obs
from lamjax.statistics import stderr_over_groups
from lamjax.training.driver import over_batches

HORIZON = 8  # frames ahead; Genie reports 4
_DECIBEL = 10 / np.log(10)


def squared_errors(state: DynamicsState, clips: jax.Array) -> dict[str, jax.Array]:
    """Mean squared errors of the frames that follow the first k + 1 of each clip.

    Args:
      state: stage 1.
      clips: ``[B, L, *S]``; the other latents for a clip are those of the clip half a batch away.

    Returns:
      float32 ``[B, T]``: ``own`` for predictions with the clip's own latents, ``other`` with another clip's latents,
      and ``copy_last`` for the last true frame.
    """
    past = state.config.window - 1
    horizons = clips.shape[1] - past

    def infer(first: jax.Array) -> jax.Array:
        windows = jax.lax.dynamic_slice_in_dim(clips, first, past + 1, axis=1)
        return dynamics.infer_latents(state, windows).quantized

    latents = jax.lax.map(infer, jnp.arange(horizons)).swapaxes(0, 1)
    frames = normalise_obs(dynamics.clean_frames(state.config, clips), state.obs_stats)
    if side := state.config.focus:
        frames = cut_squares(frames, dynamics.focus_corners(state.config, frames[:, : past + 1], state.locator), side)
    truth = frames[:, past:]

    def predict(latents: jax.Array) -> jax.Array:
        seen = functools.partial(dynamics.predict_seen, state)
        return unroll(seen, frames[:, :past], latents, clips.dtype == jnp.uint8)

    predictions = {
        "own": predict(latents),
        "other": predict(jnp.roll(latents, len(clips) // 2, axis=0)),
        "copy_last": jnp.broadcast_to(frames[:, past - 1 : past], truth.shape),
    }
    axes = tuple(range(2, truth.ndim))
    return {name: jnp.square(predicted - truth).mean(axes) for name, predicted in predictions.items()}


_all_errors = over_batches(squared_errors)


def open_loop(state: DynamicsState, batches: jax.Array, episodes: np.ndarray) -> dict[str, Any]:
    """Measures predictions of held-out clips.

    Args:
      state: stage 1.
      batches: ``[M, B, L, *S]``.
      episodes: int ``[M * B]``, the episode of each clip.

    Returns:
      ``psnr``: rows ``[t, model, stderr, copy last, stderr]``, t frames ahead, in decibels; ``controllability``: rows
      ``[t, delta PSNR, stderr]``; ``clips``: E. Standard errors are over episodes.
    """
    errors = {name: np.concatenate(rows) for name, rows in jax.device_get(_all_errors(state, batches)).items()}
    psnr, control = [], []
    for t in range(errors["own"].shape[1]):
        own, other, copied = (errors[name][:, t].astype(np.float64) for name in ("own", "other", "copy_last"))
        psnr.append([t + 1, *decibels(own, episodes), *decibels(copied, episodes)])
        control.append([t + 1, *gain(own, other, episodes)])
    return {"psnr": psnr, "controllability": control, "clips": len(episodes)}


def decibels(errors: np.ndarray, episodes: np.ndarray) -> tuple[float, float]:
    """PSNR of squared errors float ``[E]``, and its standard error to first order, over episodes int ``[E]``."""
    mean = max(errors.mean(), 1e-12)
    return float(-_DECIBEL * np.log(mean)), _DECIBEL * stderr_over_groups(errors / mean, episodes)


def gain(errors: np.ndarray, others: np.ndarray, episodes: np.ndarray) -> tuple[float, float]:
    """The PSNR of `errors` minus that of `others`, float ``[E]`` each, and its standard error as in `decibels`."""
    mean, other = max(errors.mean(), 1e-12), max(others.mean(), 1e-12)
    influence = others / other - errors / mean
    return float(_DECIBEL * np.log(other / mean)), _DECIBEL * stderr_over_groups(influence, episodes)
