"""Stages 1 and 2: optimizer steps on windows that are drawn from device memory, over all devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.settings import OBS, Settings
from lamjax import cloning, dynamics, parallel
from lamjax.data.stream import Buffer, sample
from lamjax.data.windows import valid_starts
from lamjax.training import driver

_FRAMES = 8192  # of a device's buffer

init_dynamics = driver.jit_once(dynamics.init, static_argnums=(1, 2))
init_cloning = driver.jit_once(cloning.init, static_argnums=(1, 2, 3))


def frames_buffer(devices: list[jax.Device]) -> Buffer:
    """The same random frames in episodes of 100 on each device."""
    frames = np.random.default_rng(0).integers(0, 256, (_FRAMES, *OBS), np.uint8)
    buffer = jax.tree.map(jax.numpy.asarray, Buffer(frames, valid_starts(np.arange(_FRAMES) % 100 == 0)))
    return parallel.deal([buffer] * len(devices), devices)


def dynamics_steps(
    state: Any, buffer: Buffer, key: jax.Array, *, batch: int, steps: int, axis_name: str | None
) -> tuple[Any, Any]:
    """Steps of stage 1 in one dispatch."""

    def step(state: Any) -> tuple[Any, Any]:
        windows = sample(buffer, key, state.step, batch, length=state.config.window, **parallel.place(axis_name))
        return dynamics.train_step(state, windows, axis_name=axis_name)

    return driver.repeat(step, state, steps)


def cloning_steps(
    state: Any, buffer: Buffer, key: jax.Array, model: Any, *, batch: int, steps: int, axis_name: str | None
) -> tuple[Any, Any]:
    """Steps of stage 2 in one dispatch."""

    def step(state: Any) -> tuple[Any, Any]:
        windows = sample(buffer, key, state.step, batch, length=model.config.window, **parallel.place(axis_name))
        latents = dynamics.infer_latents(model, windows).continuous
        return cloning.train_step(state, windows[:, -2], latents, axis_name=axis_name)

    return driver.repeat(step, state, steps)


def program(steps: Callable, args: tuple[Any, ...], batch: int, fused: int) -> measure.Program:
    """`steps` compiled for all devices; of its arguments the first is donated and the second a buffer."""
    devices = jax.local_devices()
    mapped = parallel.map_step(
        functools.partial(steps, batch=batch, steps=fused),
        devices,
        in_axes=(None, 0, *[None] * (len(args) - 2)),
        donate_argnums=(0,),
    )
    return measure.compiled(mapped, *args, devices=len(devices))


def row(name: str, settings: Settings, torch_rate: float | None) -> dict[str, Any]:
    """One row of the table."""
    devices, batch, fused = jax.local_devices(), settings.batch_size, settings.fused
    config, key = settings.preset.dynamics, jax.random.key(0)
    buffer = frames_buffer(devices)
    model = init_dynamics(key, config, OBS)
    state, rest = model, (buffer, key)
    if name == "stage2":
        state = init_cloning(key, settings.preset.cloning, OBS, config.latent_dim)
        rest = (buffer, key, parallel.replicate(model, devices))
    state = parallel.replicate(state, devices)
    steps = {"stage1": dynamics_steps, "stage2": cloning_steps}[name]
    step = program(steps, (state, *rest), batch, fused)
    stepper = measure.Stepper(lambda state: step.call(state, *rest), state)
    times = measure.milliseconds(stepper, settings.repeats)
    if settings.profile:
        measure.trace(stepper, settings.profile / f"{name}-{batch}")
    return measure.row(
        name,
        settings.size,
        batch,
        "windows/s",
        batch,
        [(1, times / fused)],
        [(1, step)],
        config.dtype,
        torch_rate,
        devices=len(devices),
        steps_per_dispatch=fused,
    )
