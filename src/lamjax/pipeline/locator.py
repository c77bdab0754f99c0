"""Trains the network that finds the agent (`lamjax.models.locator`), once for each recording.

It learns from random play if there is any, as action information does, and otherwise from the demonstrations. It
depends only on that recording and on its own settings, so all runs and seeds share it: its parameters lie beside the
recording, in a file whose name is a digest of both.
"""

import contextlib
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import archives, parallel
from lamjax.analysis.latents import in_batches
from lamjax.data.reader import Store, split_mask
from lamjax.dynamics import DynamicsConfig
from lamjax.models import locator
from lamjax.preprocess import Cleaning, ObsStats, clean, normalise_obs
from lamjax.training import checkpoint, driver
from lamjax.training.disk import replace_file
from lamjax.training.logging import say
from lamjax.training.steps import locator_step

MAX_IN_FLIGHT = 16

_init = driver.jit_once(locator.init, static_argnums=(1, 2))


def untrained_locator(config: DynamicsConfig, obs_shape: tuple[int, ...]) -> Any:
    """The parameters with which the network starts, or None if `config` does not need it."""
    return _init(jax.random.key(0), config.locator, obs_shape).params if config.finds_agent else None


def agent_locator(
    config: DynamicsConfig, store: Store, stats: ObsStats, folder: Path, check_stop: Callable[[], None]
) -> Any:
    """The parameters of the network that finds the agent in a store's frames; trains it unless `folder` has them.

    Args:
      config: stage 1's settings.
      store: the recording to learn from; it reads no actions.
      stats: see `DynamicsState`.
      folder: where ``<digest>.npz`` is kept. A damaged file is written again.
      check_stop: called between dispatches; it stops the training by raising an error.

    Returns:
      The parameters, or None if `config` does not need them.
    """
    if not config.finds_agent:
        return None
    depends_on = {
        "store": store.manifest["sha256"],
        "locator": checkpoint.as_json(config.locator),
        "seen": [config.focus, config.clean],
    }
    path = folder / f"{checkpoint.note_digest(depends_on)[:16]}.npz"
    with contextlib.suppress(FileNotFoundError, archives.ArchiveError):
        return checkpoint.nest({name: jnp.asarray(array) for name, array in archives.read(path).items()})
    params = train_locator(config, store, stats, check_stop)
    if jax.process_index() == 0:
        file = io.BytesIO()
        np.savez(file, **checkpoint.flatten(params))  # type: ignore[arg-type]  # numpy's stub takes them for options
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, file.getvalue())
    return params


def train_locator(config: DynamicsConfig, store: Store, stats: ObsStats, check_stop: Callable[[], None]) -> Any:
    """Trains the network on a store's training episodes and returns its parameters."""
    settings, devices = config.locator, parallel.devices()[:1]
    rows = np.flatnonzero(np.repeat(split_mask(store.episodes, "train"), store.episodes.length))[: settings.frames]
    frames, is_first = store.observations_at(rows), store.is_first[rows]
    is_first[:1] = True
    say(f"learning to find the agent in {len(rows)} frames, once for all runs")
    evidence = _of_motion(config, frames, is_first, stats)
    if config.clean != "none" and frames.dtype == np.uint8:
        frames = in_batches(functools.partial(_cleaned, config.clean), frames)
    on_device, key = jax.device_put((frames, jax.random.key(0)))
    state = _init(key, settings, store.obs_shape)
    fuse = driver.steps_per_dispatch(settings)
    advance = driver.compile_steps(locator_step, devices, (None,) * 5)
    for number in range(settings.rounds):
        if number:
            evidence = in_batches(functools.partial(_of_network, state.params, stats, settings), frames)
        places = _track(evidence, is_first)
        state = locator.begin_round(state.params, settings)
        data = (on_device, places, jax.random.fold_in(key, number), stats)
        for count, first in enumerate(range(0, settings.steps, fuse)):
            state, metrics = advance(state, *data, min(fuse, settings.steps - first))
            if count % MAX_IN_FLIGHT == 0:
                jax.block_until_ready(state)
                check_stop()
        say(f"round {number + 1} of {settings.rounds}: loss {float(metrics['loss']):.3g}")
    return state.params


_track = jax.jit(locator.track)


def _of_motion(config: DynamicsConfig, frames: np.ndarray, is_first: np.ndarray, stats: ObsStats) -> np.ndarray:
    """`motion_evidence` of each frame, in cleaned windows; none in the first and the last frame of an episode."""
    index = np.arange(len(frames))
    is_last = np.append(is_first[1:], True)
    windows = np.clip(index[:, None] + np.arange(-1, 2), 0, len(frames) - 1)
    evidence = in_batches(lambda rows: _motion(config, stats, frames[rows]), windows)
    return np.where((is_first | is_last)[:, None, None], 0, evidence)


@functools.partial(jax.jit, static_argnums=0)
def _motion(config: DynamicsConfig, stats: ObsStats, windows: jax.Array) -> jax.Array:
    if windows.dtype == jnp.uint8:
        windows = clean(windows, config.clean)
    return locator.motion_evidence(normalise_obs(windows, stats), config.locator, config.focus // 2)


@functools.partial(jax.jit, static_argnums=0)
def _cleaned(how: Cleaning, frames: jax.Array) -> jax.Array:
    """Cleans single frames ``[B, H, W, C]``, as stage 1 cleans o_t."""
    return clean(frames[:, None], how, now=0)[:, 0]


@functools.partial(jax.jit, static_argnums=2)
def _of_network(params: Any, stats: ObsStats, settings: locator.LocatorConfig, frames: jax.Array) -> jax.Array:
    return locator.network_evidence(params, settings, normalise_obs(frames, stats))
