"""Arrays that show what stage 1 learned: latents of many windows, predictions, imagined rollouts.

Dimension keys: B batch, A latent actions, T steps, K strips, Z latent size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import dynamics
from lamjax.dynamics import DynamicsState
from lamjax.preprocess import normalise_obs
from lamjax.training.driver import over_batches

BATCH = 256


@jax.jit
def _infer(state: DynamicsState, windows: jax.Array) -> dynamics.Latents:
    return dynamics.infer_latents(state, windows)


_infer_all = over_batches(dynamics.infer_latents)


def latents_of(state: DynamicsState, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents of windows ``[E, k + 2, *obs_shape]``: continuous float32 ``[E, Z]`` and codes int32 ``[E, N, H]``.

    Windows in host memory go to the device batch by batch; batches do not wait for each other's results.
    """
    latents = in_batches(lambda batch: _infer(state, batch), windows)
    return latents.continuous, latents.codes


def in_batches(function: Callable[[np.ndarray], Any], rows: np.ndarray) -> Any:
    """Applies a jitted function to rows ``[E, ...]`` in host memory, `BATCH` of them at a time.

    The last batch is padded, so that all have one shape. Batches do not wait for each other's results.

    Returns:
      The function's arrays ``[E, ...]`` in host memory.
    """
    pieces = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        missing = BATCH - len(batch) if len(rows) > BATCH else 0
        pieces.append(function(np.concatenate([batch, batch[:1].repeat(missing, 0)])))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(rows)], *jax.device_get(pieces))


def latents_of_batches(state: DynamicsState, batches: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Like `latents_of`, for windows ``[M, B, k + 2, *obs_shape]`` in device memory (E = M * B), in one dispatch."""
    latents = _infer_all(state, batches)
    continuous, codes = jax.device_get((latents.continuous, latents.codes))
    return continuous.reshape(-1, *continuous.shape[2:]), codes.reshape(-1, *codes.shape[2:])


def to_uint8(frames: jax.Array) -> np.ndarray:
    """Converts float32 pixels in [-0.5, 0.5], clipped, to uint8."""
    return np.asarray(jnp.clip(jnp.round((frames + 0.5) * 255), 0, 255).astype(jnp.uint8))


def strips(state: DynamicsState, windows: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the last two context frames, the next frame and its prediction for windows ``[K, k + 2, *obs_shape]``.

    Pixels are uint8, cleaned as for stage 1; vectors are standardised. With `focus`, ``strip_squares`` int32 ``[K, 3]``
    has the upper left corner, row and column, and the side of what the inverse model saw.
    """
    latents = _infer(state, windows)
    prediction = jax.jit(dynamics.predict_next)(state, windows[:, :-1], latents.quantized)
    pixels = windows.dtype == np.uint8
    clean = dynamics.clean_frames(state.config, jnp.asarray(windows)) if pixels else None
    frames = np.asarray(clean if pixels else normalise_obs(jnp.asarray(windows), state.obs_stats))
    squares = {}
    if state.config.focus:
        corners = _corners(state, frames)
        squares["strip_squares"] = np.concatenate([corners, np.full((len(corners), 1), state.config.focus)], axis=1)
    return squares | {
        "strip_context": frames[:, :-1][:, -2:],
        "strip_truth": frames[:, -1],
        "strip_prediction": to_uint8(prediction) if pixels else np.asarray(prediction),
    }


@jax.jit
def _corners(state: DynamicsState, frames: jax.Array) -> jax.Array:
    return dynamics.focus_corners(state.config, normalise_obs(frames), state.locator)


@jax.jit
def imagine(state: DynamicsState, context: jax.Array, latents: jax.Array) -> jax.Array:
    """Predicts frame after frame from the forward model's own predictions, each under a latent action.

    Args:
      state: stage 1.
      context: true frames ``[B, k + 1, *obs_shape]``.
      latents: float32 ``[B, T, Z]``, quantised latents.

    Returns:
      float32 ``[B, T, *obs_shape]``, pixels in [-0.5, 0.5], or standardised numbers.
    """
    imagining = state.replace(obs_stats=None)  # frames are normalised once
    frames = normalise_obs(dynamics.clean_frames(state.config, context), state.obs_stats)
    predict = lambda frames, latent: dynamics.predict_next(imagining, frames, latent)  # noqa: E731
    return unroll(predict, frames, latents, context.dtype == jnp.uint8)


def unroll(
    predict: Callable[[jax.Array, jax.Array], jax.Array], frames: jax.Array, latents: jax.Array, pixels: bool
) -> jax.Array:
    """Predicts frame after frame from a model's own predictions; runs inside ``jit``.

    Args:
      predict: ``(frames [B, k + 1, *S], latents [B, Z]) -> [B, *S]``.
      frames: the first frames float32 ``[B, k + 1, *S]``, normalised.
      latents: float32 ``[B, T, Z]``.
      pixels: whether predictions are clipped to [-0.5, 0.5].

    Returns:
      float32 ``[B, T, *S]``.
    """

    def step(frames, latent):
        following = predict(frames, latent)
        following = jnp.clip(following, -0.5, 0.5) if pixels else following
        return jnp.concatenate([frames[:, 1:], following[:, None]], axis=1), following

    return jax.lax.scan(step, frames, latents.swapaxes(0, 1))[1].swapaxes(0, 1)


def imagined_rollouts(state: DynamicsState, context: np.ndarray, quantized: np.ndarray, steps: int = 12) -> np.ndarray:
    """Rolls the forward model out from one context under each of A constant latent actions.

    Args:
      state: stage 1.
      context: ``[k + 1, *obs_shape]``.
      quantized: float32 ``[A, Z]``.
      steps: T.

    Returns:
      ``[A, T + 1, *obs_shape]``, the last true frame first: uint8 pixels, or standardised vectors.
    """
    frames = jnp.broadcast_to(context[None], (len(quantized), *context.shape))
    imagined = imagine(state, frames, jnp.repeat(jnp.asarray(quantized)[:, None], steps, axis=1))
    if context.dtype == np.uint8:
        return np.concatenate([np.asarray(frames[:, -1:]), to_uint8(imagined)], axis=1)
    return np.concatenate([np.asarray(normalise_obs(frames[:, -1:], state.obs_stats)), imagined], axis=1)


def most_used(codes: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent joint codes and where each first occurs: codes int ``[E, N, H]`` to ``[A, N, H]``, ``[A]``."""
    flat = codes.reshape(len(codes), -1)
    unique, first, counts = np.unique(flat, axis=0, return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:count]
    return unique[order].reshape(-1, *codes.shape[1:]), first[order]
