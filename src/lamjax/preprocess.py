"""What happens to observations before a network sees them: standardising them, and cleaning noise out of frames.

In the linear theory cleaning multiplies the exogenous noise by 1 - c, and once what remains of it is below the action's
change the latents turn from the noise to the action (c* = 1 - 1 / s_exo; docs/linear_lam.md). On frames there is no
filter for all noise, but two for kinds that have a form: noise of each pixel by itself, and light that changes as one.
What moves like an object, as an overlay does, no filter tells from the game.

Dimension keys: B batch, T frames of a window, H, W, C frame.
"""

from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

Cleaning = Literal["none", "median", "level"]
ObsStats = dict[str, jax.Array] | None


def obs_stats(obs: np.ndarray) -> ObsStats:
    """What `normalise_obs` needs beside observations ``[E, *obs_shape]``: None for uint8, whose range is known.

    Returns:
      ``{"mean", "scale"}`` float32 ``[*obs_shape]`` for any other type; a number that never changes has scale 1.
    """
    if obs.dtype == np.uint8:
        return None
    scale = obs.std(0, dtype=np.float64)
    mean, scale = obs.mean(0, dtype=np.float64), np.where(scale > 1e-6, scale, 1.0)
    return {"mean": jnp.asarray(mean, jnp.float32), "scale": jnp.asarray(scale, jnp.float32)}


_NOT_PIXELS = (
    "Observations are {dtype} and nothing says how to standardise them: convert pixels in [0, 255] to uint8, or give "
    "`init` the obs_stats of lamjax.preprocess."
)


def check_images(obs: jax.Array, stats: ObsStats, rank: int) -> None:
    """Raises `ValueError` if images, arrays of this rank, are neither uint8 pixels nor can be standardised.

    Floats may be pixels in [0, 255] as well as in [0, 1], and inside ``jit`` nobody sees which.
    """
    if len(obs.shape) == rank and obs.dtype != jnp.uint8 and stats is None:
        raise ValueError(_NOT_PIXELS.format(dtype=obs.dtype))


def normalise_obs(obs: jax.Array, stats: ObsStats = None) -> jax.Array:
    """uint8 pixels in [0, 255] to float32 in [-0.5, 0.5]; other observations to float32, standardised by `stats`.

    Without `stats`, floats stay as they are: they are standardised already.

    Raises:
      ValueError: if observations are integers of another type and there are no `stats`.
    """
    if obs.dtype == jnp.uint8:
        return obs.astype(jnp.float32) / 255.0 - 0.5
    if stats is None and not jnp.issubdtype(obs.dtype, jnp.floating):
        raise ValueError(_NOT_PIXELS.format(dtype=obs.dtype))
    obs = obs.astype(jnp.float32)
    if stats is None:
        return obs
    lead = (None,) * (obs.ndim - stats["mean"].ndim)
    return (obs - stats["mean"][lead]) / stats["scale"][lead]


_SAMPLES = 16  # pixels along each axis that tell the light: their median is a whole frame's, at a hundredth of the cost

# Exchanges that leave the median of nine in place 4 (Devillard, "Fast median search", after Paeth 1990).
_MEDIAN_OF_9 = (
    *((1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3)),
    *((5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2)),
)


def with_stats(params: dict[str, Any], stats: ObsStats) -> dict[str, Any]:
    """A policy's parameters together with how it standardises observations: the key ``obs_stats``, if there is any."""
    return params if stats is None else {**params, "obs_stats": stats}


def without_stats(params: dict[str, Any]) -> tuple[dict[str, Any], ObsStats]:
    """Undoes `with_stats`."""
    return {name: tree for name, tree in params.items() if name != "obs_stats"}, params.get("obs_stats")


def clean(windows: jax.Array, how: Cleaning, now: int = 1) -> jax.Array:
    """Cleans windows; runs inside jit.

    - "none" leaves them as they are.
    - "median" puts in place of each pixel the median of the 3 x 3 around it, for each channel and frame by itself; the
      edge is repeated. Of noise that is independent between pixels a sixth of the variance remains; edges stay where
      they are, and what is narrower than two pixels is lost.
    - "level" takes from each frame and channel one number, by how much it is lighter than in o_t: the median over
      pixels of the difference, which a moving object that covers less than half of the picture does not change.

    Args:
      windows: uint8 ``[B, T, H, W, C]``.
      how: one of `Cleaning`.
      now: which of the T frames is o_t: the second, in [o_{t-1}, o_t] and in [o_{t-1}, o_t, o_{t+1}].

    Returns:
      uint8 of the same shape.

    Raises:
      ValueError: if `how` is none of these.
    """
    if how not in get_args(Cleaning):
        raise ValueError(f"The cleaning must be one of {', '.join(get_args(Cleaning))}, not {how!r}.")
    chex.assert_rank(windows, 5)
    chex.assert_type(windows, jnp.uint8)
    if how == "median":
        return _median(windows)
    return _level(windows, now) if how == "level" else windows


def _median(windows: jax.Array) -> jax.Array:
    h, w = windows.shape[2:4]
    padded = jnp.pad(windows, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    around = [padded[:, :, y : y + h, x : x + w] for y in range(3) for x in range(3)]
    for low, high in _MEDIAN_OF_9:
        around[low], around[high] = jnp.minimum(around[low], around[high]), jnp.maximum(around[low], around[high])
    return around[4]


def _level(windows: jax.Array, now: int) -> jax.Array:
    h, w = windows.shape[2:4]
    frames = windows.astype(jnp.float32)
    some = frames[:, :, :: max(1, h // _SAMPLES), :: max(1, w // _SAMPLES)]
    lighter = jnp.median(some - some[:, now, None], axis=(2, 3), keepdims=True)
    return jnp.clip(jnp.round(frames - lighter), 0, 255).astype(jnp.uint8)
