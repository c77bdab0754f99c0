"""Preprocesses observations for the networks: standardises them, cleans them, and crops what moves.

In the linear theory, cleaning multiplies the exogenous noise by 1 - c. Once the remaining noise is smaller than the
change that actions cause, the latents switch from the noise to the action (c* = 1 - 1 / s_exo; docs/linear_lam.md). No
filter removes all noise from frames. There are two for specific kinds: noise that is independent for each pixel, and
light that changes over the whole frame. No filter can distinguish a moving overlay from an object of the game.

Dimension keys: B batch, T frames of a window, H, W, C frame, F side of a square.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

Cleaning = Literal["none", "median", "level"]
ObsStats = dict[str, jax.Array] | None


def obs_stats(obs: np.ndarray) -> ObsStats:
    """Computes the statistics that `normalise_obs` needs, from observations ``[E, *obs_shape]``.

    Returns:
      None for uint8, whose range is known. For any other type, ``{"mean", "scale"}``, float32 ``[*obs_shape]``; the
      scale of a number that never changes is 1.
    """
    if obs.dtype == np.uint8:
        return None
    scale = obs.std(0, dtype=np.float64)
    mean, scale = obs.mean(0, dtype=np.float64), np.where(scale > 1e-6, scale, 1.0)
    return {"mean": jnp.asarray(mean, jnp.float32), "scale": jnp.asarray(scale, jnp.float32)}


_NOT_PIXELS = (
    "Observations are {dtype}, and there are no statistics to standardise them with: convert pixels in [0, 255] to "
    "uint8, or pass obs_stats to `init` (see lamjax.preprocess)."
)


def check_images(obs: jax.Array, stats: ObsStats, rank: int) -> None:
    """Raises a `ValueError` if images, arrays of this rank, are not uint8 pixels and there are no statistics.

    Floats may be pixels in [0, 255] or in [0, 1], and inside ``jit`` one cannot see which.
    """
    if len(obs.shape) == rank and obs.dtype != jnp.uint8 and stats is None:
        raise ValueError(_NOT_PIXELS.format(dtype=obs.dtype))


def normalise_obs(obs: jax.Array, stats: ObsStats = None) -> jax.Array:
    """Scales uint8 pixels in [0, 255] to float32 in [-0.5, 0.5]; standardises other observations to float32 by `stats`.

    Without `stats`, floats are not changed: they are assumed to be standardised already.

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


_SCROLLING = 0.25  # the view moves where a larger share of the pixels changes
_SAMPLES = 16  # pixels along each axis to estimate the light: about the median of a whole frame, at 1 % of the cost

# Compare-exchange steps that put the median of nine at index 4 (Devillard, "Fast median search", after Paeth 1990).
_MEDIAN_OF_9 = (
    *((1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3)),
    *((5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2)),
)


def with_stats(params: dict[str, Any], stats: ObsStats) -> dict[str, Any]:
    """Adds statistics for standardising observations, if there are any, to a policy's parameters, as ``obs_stats``."""
    return params if stats is None else {**params, "obs_stats": stats}


def without_stats(params: dict[str, Any]) -> tuple[dict[str, Any], ObsStats]:
    """Undoes `with_stats`."""
    return {name: tree for name, tree in params.items() if name != "obs_stats"}, params.get("obs_stats")


def clean(windows: jax.Array, how: Cleaning, now: int = 1) -> jax.Array:
    """Cleans windows; runs inside jit.

    - "none" does nothing.
    - "median" replaces each pixel by the median of the 3 x 3 pixels around it, separately for each channel and frame;
      the edge is repeated. It leaves a sixth of the variance of noise that is independent between pixels. Edges stay
      in place, but details narrower than two pixels are lost.
    - "level" subtracts one number from each channel of each frame, by which the frame is lighter than o_t: the median
      over pixels of the difference. Moving objects that cover less than half of the frame do not change the median.

    Args:
      windows: uint8 ``[B, T, H, W, C]``.
      how: one of `Cleaning`.
      now: the index of o_t among the T frames: 1 in [o_{t-1}, o_t] and in [o_{t-1}, o_t, o_{t+1}].

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


def moving_squares(windows: jax.Array, size: int, rows: tuple[float, float] = (0.0, 1.0)) -> jax.Array:
    """Finds the square around what moves in each window.

    If the view is fixed, little changes, and the centre of the square is the mean position of the change,
    ``sum_p p e(p) / sum_p e(p)``, where e(p) sums the absolute differences of a pixel's channels between successive
    frames. If more than a quarter of the pixels change, the view itself moves, and follows something in the middle of
    the frame; the square is then in the middle. It is also in the middle if nothing changes.

    With `rows`, only the changes in these rows count, and the middle is theirs. The square may extend beyond them.

    Args:
      windows: float32 ``[B, T, H, W, C]``, T at least 2.
      size: F, at most H and W.
      rows: start and end of the rows that count, as shares of H from the top; a partly covered row counts.

    Returns:
      The upper left corners of the squares, int32 ``[B, 2]``, row and column. The squares lie within the frame.
    """
    chex.assert_rank(windows, 5)
    top, _ = _pixel_rows(rows, windows.shape[2])
    change = _changes(windows, rows)
    is_fixed = ~_mostly(change)[:, None, None]
    return _corners(change * is_fixed, top, windows.shape[2:4], size)


def view_moves(windows: jax.Array, rows: tuple[float, float] = (0.0, 1.0)) -> jax.Array:
    """Whether the view itself moves in each window, bool ``[B]``: more than a quarter of the pixels change.

    Arguments are as of `moving_squares`; here one frame is enough, and then nothing moves.
    """
    return _mostly(_changes(windows, rows))


def _mostly(change: jax.Array) -> jax.Array:
    return (change > 0).mean((1, 2)) > _SCROLLING


def _changes(windows: jax.Array, rows: tuple[float, float]) -> jax.Array:
    """How much each pixel of some rows R changes within each window: float32 ``[B, R, W]``."""
    top, bottom = _pixel_rows(rows, windows.shape[2])
    return jnp.abs(jnp.diff(windows[:, :, top:bottom], axis=1)).sum((1, 4))


def unsteady_squares(windows: jax.Array, size: int, rows: tuple[float, float] = (0.0, 1.0)) -> jax.Array:
    """Finds the square around what starts, stops or changes its pace most in each window.

    The agent does this at its next action, while other things mostly keep moving as before. So this suits frames with
    several moving things, whose view stands still or scrolls steadily. ``E_t(p)`` is the squared change from o_{t-1} to
    o_t within a box around p, with half the side of the square. The centre of the square is the mean position of the
    change around the p where ``|E_{t+1}(p) - E_t(p)|`` is largest. If nothing changes, the square is in the middle.

    Args:
      windows: float32 ``[B, T, H, W, C]``, T at least 3; the last three frames count.
      size: F, at most H and W.
      rows: see `moving_squares`.

    Returns:
      The same as `moving_squares`.
    """
    top, bottom = _pixel_rows(rows, windows.shape[2])
    shown = windows[:, :, top:bottom]
    unsteady, change = unsteadiness(shown, size // 2), _squared_changes(shown).sum(1)
    _, height, width = unsteady.shape
    place = unsteady.reshape(-1, height * width).argmax(1)
    y = jnp.abs(jnp.arange(height)[None] - (place // width)[:, None])
    x = jnp.abs(jnp.arange(width)[None] - (place % width)[:, None])
    reach = 3 * size // 8
    around = (y <= reach)[:, :, None] & (x <= reach)[:, None]
    return _corners(change * around, top, windows.shape[2:4], size)


def unsteadiness(windows: jax.Array, side: int) -> jax.Array:
    """How much what lies around each pixel starts, stops or changes its pace, float32 ``[B, H, W]``.

    ``|E_{t+1}(p) - E_t(p)|``, where ``E_t(p)`` is the squared change from o_{t-1} to o_t, summed over a box around p
    and averaged over channels.

    Args:
      windows: float32 ``[B, T, H, W, C]``, T at least 3; the last three frames count.
      side: side of the box in pixels; what lies beyond the edge does not change.
    """
    chex.assert_rank(windows, 5)
    change = _squared_changes(windows)
    return jnp.abs(_box_sums(change[:, 1], side) - _box_sums(change[:, 0], side))


def _squared_changes(windows: jax.Array) -> jax.Array:
    """The squared changes into o_t and into o_{t+1}, averaged over channels, ``[B, 2, H, W]``."""
    return jnp.square(jnp.diff(windows[:, -3:], axis=1)).mean(-1)


def squares_around(places: jax.Array, shape: Sequence[int], size: int) -> jax.Array:
    """Corners int32 ``[B, 2]`` of the squares, F = `size`, around places int32 ``[B, 2]`` in frames of shape (H, W).

    A place is a corner of pixels, counted from the upper left. The squares lie within the frame.
    """
    return jnp.clip(places - size // 2, 0, jnp.array(shape)[None] - size).astype(jnp.int32)


def _pixel_rows(rows: tuple[float, float], height: int) -> tuple[int, int]:
    return math.floor(rows[0] * height), math.ceil(rows[1] * height)


def _box_sums(values: jax.Array, side: int) -> jax.Array:
    """Sums ``[B, H, W]`` over boxes of `side` around each pixel; values beyond the edge are 0."""
    _, h, w = values.shape
    low, high = (side - 1) // 2, side // 2
    padded = jnp.pad(values, ((0, 0), (low, high), (low, high)))
    zero = jnp.zeros((), values.dtype)
    columns = sum((padded[:, :, x : x + w] for x in range(side)), zero)
    return sum((columns[:, y : y + h] for y in range(side)), zero)


def _corners(weights: jax.Array, top: int, shape: Sequence[int], size: int) -> jax.Array:
    """Corners of squares around the mean position of weights ``[B, R, W]``, whose first row is `top`.

    If all weights are 0, the position is the middle of these rows. See `moving_squares`.
    """
    total = weights.sum((1, 2))

    def corner(along: jax.Array, first: int, length: int) -> jax.Array:
        n = along.shape[1]
        mean = (along * jnp.arange(n)[None]).sum(1) / jnp.where(total > 0, total, 1)
        middle = first + jnp.where(total > 0, mean, (n - 1) / 2)
        # Halves are common: the offset of 0.001 keeps rounding errors in the sums from deciding.
        return jnp.clip(jnp.floor(middle - size / 2 + 1.001), 0, length - size)

    corners = corner(weights.sum(2), top, shape[0]), corner(weights.sum(1), 0, shape[1])
    return jnp.stack(corners, axis=1).astype(jnp.int32)


def cut_squares(windows: jax.Array, corners: jax.Array, size: int) -> jax.Array:
    """Cuts a square out of each window, at the same position in all its frames.

    Args:
      windows: ``[B, T, H, W, C]``.
      corners: int32 ``[B, 2]``, the upper left corners; a square beyond the edge is moved back into the frame.
      size: F.

    Returns:
      ``[B, T, F, F, C]``.
    """
    _, t, h, w, c = windows.shape
    corners = jnp.clip(corners, 0, jnp.array([[h - size, w - size]]))  # a negative start would count from the end

    def cut(window: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(window, (0, *corner, 0), (t, size, size, c))

    return jax.vmap(cut)(windows, corners)


def paste_squares(frames: jax.Array, squares: jax.Array, corners: jax.Array) -> jax.Array:
    """Puts squares ``[B, F, F, C]`` into frames ``[B, H, W, C]`` where `cut_squares` would cut them out."""
    (h, w), size = frames.shape[1:3], squares.shape[1]
    corners = jnp.clip(corners, 0, jnp.array([[h - size, w - size]]))

    def paste(frame: jax.Array, square: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(frame, square, (*corner, 0))

    return jax.vmap(paste)(frames, squares, corners)


def tiles(frames: jax.Array, size: int) -> jax.Array:
    """Covers frames with overlapping squares: ``[B, T, H, W, C] -> [B * N, T, F, F, C]``, N squares of each frame.

    Neighbouring squares are half a square apart, and the frame's edge is repeated outwards. So each pixel is in the
    inner half of exactly one square. `join_tiles` keeps these inner halves. `size` is F, a multiple of 4.
    """
    b, t, h, w, c = frames.shape
    rows, columns = _tile_corners(h, size), _tile_corners(w, size)
    margin = size // 4
    padding = [(margin, rows[-1] + size - h - margin), (margin, columns[-1] + size - w - margin)]
    padded = jnp.pad(frames, ((0, 0), (0, 0), *padding, (0, 0)), mode="edge")
    squares = [padded[:, :, y : y + size, x : x + size] for y in rows for x in columns]
    return jnp.stack(squares, axis=1).reshape(b * len(squares), t, size, size, c)


def join_tiles(squares: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Joins the inner halves of the squares of `tiles`: ``[B * N, F, F, C] -> [B, H, W, C]``; `shape` is ``(H, W)``."""
    size, c = squares.shape[-2:]
    rows, columns = (len(_tile_corners(n, size)) for n in shape)
    margin, inner = size // 4, size // 2
    kept = squares[:, margin : margin + inner, margin : margin + inner]
    kept = kept.reshape(-1, rows, columns, inner, inner, c).transpose(0, 1, 3, 2, 4, 5)
    return kept.reshape(-1, rows * inner, columns * inner, c)[:, : shape[0], : shape[1]]


def _tile_corners(length: int, size: int) -> list[int]:
    """Where the tiles start along an axis, in pixels of the padded frame."""
    return list(range(0, length, size // 2))
