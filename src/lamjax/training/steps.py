"""Training steps of the supervised stages, which draw their windows from device memory.

They are pure. `driver.compile_steps` repeats and compiles them for a run, `lamjax.jitted` scans them, and benchmarks
time them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lamjax import cloning, dynamics, parallel
from lamjax.cloning import CloningState
from lamjax.data.stream import Buffer, Labels, gather, sample_labelled, sample_starts, sample_with_play
from lamjax.decoding import behaviour_cloning
from lamjax.decoding.behaviour_cloning import ActionState
from lamjax.dynamics import DynamicsState
from lamjax.models import locator
from lamjax.models.locator import LocatorState
from lamjax.preprocess import ObsStats, normalise_obs
from lamjax.schedules import Lengths

Metrics = dict[str, jax.Array]


def traced(lengths: tuple[int, int]) -> Lengths:
    """Makes warm-up and total steps arguments of a compiled program, which then serves runs of every length."""
    return tuple(jnp.int32(length) for length in lengths)


def dynamics_step(
    state: DynamicsState,
    buffer: Buffer,
    labels: Labels | None,
    key: jax.Array,
    lengths: Lengths | None = None,
    *,
    axis_name: str | None = None,
) -> tuple[DynamicsState, Metrics]:
    """A step of stage 1.

    Args:
      state: the training state.
      buffer: the training frames, and with `play_share` those of random play beside them.
      labels: the labelled windows that the step may use, with `action_weight`.
      key: the stream's key; step k draws from this key and k.
      lengths: see `dynamics.train_step`.
      axis_name: the axis of devices, each with its own buffer and labels.

    Raises:
      ValueError: if `play_share` asks for random play that the buffer does not hold.
    """
    config, place = state.config, parallel.place(axis_name)
    if config.play_share and buffer.play is None:
        raise ValueError("dynamics.play_share needs random play in Buffer.play: add it, or set play_share to 0.")
    windows = sample_with_play(
        buffer, key, state.step, config.batch_size, config.play_share, length=config.window, **place
    )
    labelled = None
    if labels is not None:
        labelled = sample_labelled(labels, key, state.step, config.labelled_batch, **place)
    return dynamics.train_step(state, windows, labelled, axis_name=axis_name, lengths=lengths)


def locator_step(
    state: LocatorState,
    frames: jax.Array,
    places: jax.Array,
    key: jax.Array,
    obs_stats: ObsStats,
    *,
    axis_name: str | None = None,
) -> tuple[LocatorState, Metrics]:
    """A step of the network that finds the agent.

    It draws from frames ``[F, H, W, C]``, in which tracks lead through `places` int32 ``[F, 2]``, with the key and the
    number of the step.
    """
    rows = jax.random.randint(jax.random.fold_in(key, state.step), (state.config.batch_size,), 0, len(frames))
    return locator.train_step(state, normalise_obs(frames[rows], obs_stats), places[rows], axis_name=axis_name)


def cloning_step(
    state: CloningState,
    buffer: Buffer,
    key: jax.Array,
    latents: jax.Array,
    lengths: Lengths | None,
    length: int,
    *,
    axis_name: str | None = None,
) -> tuple[CloningState, Metrics]:
    """A step of stage 2 on the latents that stage 1 inferred; see `dynamics_step`.

    `latents` float32 ``[F, Z]`` holds, for each of the F frames of a store, or of the buffer if it has no store, the
    latent of the window of `length` frames whose o_t it is.
    """
    obs, targets = _at_windows(state, buffer, key, latents, length, axis_name)
    return cloning.train_step(state, obs, targets, axis_name=axis_name, lengths=lengths)


def action_step(
    state: ActionState,
    buffer: Buffer,
    key: jax.Array,
    actions: jax.Array,
    length: int,
    *,
    axis_name: str | None = None,
) -> tuple[ActionState, Metrics]:
    """A step of behaviour cloning on an action for each frame, true or a pseudo-label; see `dynamics_step`.

    It draws the windows of `length` frames that stage 2 would draw with this key, and clones the actions at o_t.
    `actions` ``[F, *space.shape]`` are as the latents of `cloning_step`.
    """
    obs, targets = _at_windows(state, buffer, key, actions, length, axis_name)
    return behaviour_cloning.train_step(state, obs, targets, axis_name=axis_name)


def labelled_step(
    state: ActionState,
    obs: jax.Array,
    actions: jax.Array,
    rows: jax.Array,
    *,
    axis_name: str | None = None,
) -> tuple[ActionState, Metrics]:
    """A step of behaviour cloning on a few labelled observations in device memory.

    Observations are ``[L, *obs_shape]``, actions ``[L, *space.shape]``. `rows` int32 ``[S, B]`` holds the batches of S
    steps, as indices of labels.
    """
    batch = rows[state.step]
    return behaviour_cloning.train_step(state, obs[batch], actions[batch], axis_name=axis_name)


def latents_at(model: DynamicsState, frames: jax.Array, starts: jax.Array, batch_size: int) -> jax.Array:
    """The latents float32 ``[S, Z]`` that stage 1 infers in the windows of frames ``[F, *obs_shape]`` at int32 ``[S]``.

    It infers `batch_size` of them at a time, so that few windows are in memory.
    """
    padded = jnp.pad(starts, (0, -len(starts) % batch_size), mode="edge").reshape(-1, batch_size)
    infer = lambda batch: dynamics.infer_latents(model, gather(frames, batch, model.config.window))  # noqa: E731
    return jax.lax.map(infer, padded).continuous.reshape(padded.size, -1)[: len(starts)]


def _at_windows(
    state: Any, buffer: Buffer, key: jax.Array, values: jax.Array, length: int, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """The frames o_t of a step's windows, and the values there."""
    now = sample_starts(buffer, key, state.step, state.config.batch_size, **parallel.place(axis_name)) + length - 2
    rows = now if buffer.places is None else buffer.places[now]
    return gather(buffer.frames, now, 1)[:, 0], values[rows]
