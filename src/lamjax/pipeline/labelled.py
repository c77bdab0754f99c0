"""Behaviour cloning on labelled examples in device memory, one step per batch of row indices."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from lamjax.decoding.behaviour_cloning import ActionState
from lamjax.training import driver
from lamjax.training.steps import labelled_step


def train_on_labels(
    state: ActionState,
    obs: jax.Array | np.ndarray,
    actions: np.ndarray,
    rows: np.ndarray,
    devices: Sequence[jax.Device],
    *,
    max_in_flight: int,
    check_stop: Callable[[], None],
) -> ActionState:
    """Trains `state` on one device.

    Args:
      state: the state before its first step; it is donated.
      obs: ``[L, ...]``, what the state's agent sees.
      actions: ``[L, *space.shape]``.
      rows: int32 ``[S, B]``, the examples of S steps. Calls with the same shapes of examples and rows compile once.
      devices: the first one trains.
      max_in_flight: how many dispatches may be in flight.
      check_stop: called between dispatches; it stops the training by raising an error.
    """
    examples = jax.device_put((obs, actions, rows))
    fuse = driver.steps_per_dispatch(state.config.trunk)
    advance = driver.compile_steps(labelled_step, tuple(devices[:1]), (None,) * 4)
    for number, first in enumerate(range(0, len(rows), fuse)):
        state, _ = advance(state, *examples, min(fuse, len(rows) - first))
        if number % max_in_flight == 0:
            jax.block_until_ready(state)
            check_stop()
    return state
