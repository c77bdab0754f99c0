"""The latents of a whole recording, which stages 2 and 3 imitate: stage 1 infers each of them once."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import parallel
from lamjax.data.reader import Store
from lamjax.dynamics import DynamicsState
from lamjax.training.logging import shown_progress
from lamjax.training.steps import latents_at

BLOCK = 2048  # windows for which a device infers latents in a dispatch
BATCH = 64  # of them at a time


def infer_store(
    model: DynamicsState,
    store: Store,
    devices: Sequence[jax.Device],
    *,
    most: int | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Infers the latents of a recording.

    Args:
      model: stage 1.
      store: the recording; its actions are not read.
      devices: the devices to use, of which each host takes its own.
      most: infers only the first latents, this many or a few more.
      check_stop: called between dispatches; it stops by raising an error.

    Returns:
      float32 ``[F, Z]``, for each frame the latent of the window whose o_t it is (`dynamics.Latents.continuous`). It
      means nothing where the window leaves its episode, and is 0 where it leaves the recording.
    """
    length, devices = model.config.window, parallel.local(devices)
    windows, size = store.num_frames - length + 1, BLOCK * len(devices)
    latents = np.zeros((store.num_frames, model.config.latent_dim), np.float32)
    infer = block_inference(tuple(devices))
    model = parallel.replicate(model.replace(opt_state=None), devices)

    def keep(first: int, inferred: jax.Array) -> None:
        count, start = min(size, windows - first), first + model.config.context
        latents[start : start + count] = np.asarray(inferred).reshape(size, -1)[:count]

    pending: tuple[int, jax.Array] | None = None  # the device infers one block while the host reads the next
    with shown_progress("inferring latents", "frame") as show:
        for first in range(0, windows if most is None else min(most, windows), size):
            check_stop()
            frames = store.observations(first, min(first + size + length - 1, store.num_frames))
            frames = np.concatenate([frames, frames[-1:].repeat(size + length - 1 - len(frames), 0)])
            blocks = [frames[start : start + BLOCK + length - 1] for start in range(0, size, BLOCK)]
            inferred = infer(model, parallel.deal(blocks, devices))
            if pending:
                keep(*pending)
            pending = first, inferred
            show(min(first + size, windows), windows)
        if pending:
            keep(*pending)
    return latents


@functools.cache
def block_inference(devices: tuple[jax.Device, ...]) -> Callable[[DynamicsState, jax.Array], jax.Array]:
    """Compiles ``(model, frames) -> latents`` for some devices, once for all runs.

    Frames are ``[BLOCK + L - 1, *obs_shape]``, consecutive ones; the latents of their windows are ``[BLOCK, Z]``. On
    several devices both have a leading axis of devices.
    """
    return parallel.map_step(_infer_block, devices, in_axes=(None, 0), out_axes=0)


def _infer_block(model: DynamicsState, frames: jax.Array, axis_name: str | None) -> jax.Array:
    return latents_at(model, frames, jnp.arange(BLOCK, dtype=jnp.int32), BATCH)
