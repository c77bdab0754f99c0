"""Stages 1 and 2: optimizer steps on windows drawn from device memory, over all devices."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.settings import OBS, Settings
from lamjax import cloning as stage2
from lamjax import dynamics as stage1
from lamjax import parallel
from lamjax.data.stream import Buffer
from lamjax.data.windows import valid_starts
from lamjax.pipeline.latents import BATCH, BLOCK, block_inference
from lamjax.training import driver
from lamjax.training.steps import cloning_step, dynamics_step, traced

_FRAMES = 8192  # of a device's buffer

init_dynamics = driver.jit_once(stage1.init, static_argnums=(1, 2))
init_cloning = driver.jit_once(stage2.init, static_argnums=(1, 2, 3))


def frames_buffer(devices: list[jax.Device], play: bool = False) -> Buffer:
    """A buffer of random frames in episodes of 100, equal on each device; with `play`, once more as random play."""
    frames = np.random.default_rng(0).integers(0, 256, (_FRAMES, *OBS), np.uint8)
    buffer = jax.tree.map(jax.numpy.asarray, Buffer(frames, valid_starts(np.arange(_FRAMES) % 100 == 0)))
    if play:
        buffer = dataclasses.replace(buffer, play=buffer)
    return parallel.deal([buffer] * len(devices), devices)


def program(step: Callable, args: tuple[Any, ...], fused: int, static: tuple[Any, ...] = ()) -> measure.Program:
    """`fused` steps in a dispatch on all devices, as a run compiles them.

    Args:
      step: one of `lamjax.training.steps`.
      args: its arguments: the state, a buffer for each device, and others that all devices share.
      fused: steps in a dispatch.
      static: its static arguments.
    """
    devices = tuple(jax.local_devices())
    compiled = driver.compile_steps(step, devices, (None, 0, *[None] * (len(args) - 2)), len(static))
    return measure.compiled(compiled, *args, *static, fused, devices=len(devices))


def inference(model: stage1.DynamicsState, devices: list[jax.Device]) -> tuple[measure.Program, Callable[[], Any]]:
    """The program that infers the latents of a block of frames on each device, and a call of it."""
    frames = np.random.default_rng(0).integers(0, 256, (BLOCK + model.config.window - 1, *OBS), np.uint8)
    args = (parallel.replicate(model.replace(opt_state=None), devices), parallel.deal([frames] * len(devices), devices))
    compiled = measure.compiled(block_inference(tuple(devices)), *args, devices=len(devices))
    return compiled, lambda: compiled.call(*args)


def row(name: str, settings: Settings, torch_rate: float | None) -> dict[str, Any]:
    """One row of the table."""
    devices, batch, fused = jax.local_devices(), settings.batch_size, settings.fused
    preset, key = settings.preset, jax.random.key(0)
    config = dataclasses.replace(preset.dynamics, batch_size=batch)
    state = model = init_dynamics(key, config.program, OBS)
    step, rest, static = dynamics_step, (None, key, traced(config.lengths)), ()  # no labels
    if name == "stage2":
        cloning = dataclasses.replace(preset.cloning, batch_size=batch)
        state = init_cloning(key, cloning.program, OBS, config.latent_dim)
        latents = jax.numpy.zeros((_FRAMES, config.latent_dim))
        step, rest, static = cloning_step, (key, latents, traced(cloning.lengths)), (config.window,)
    state, rest = parallel.replicate(state, devices), (frames_buffer(devices, config.play_share > 0), *rest)
    compiled = program(step, (state, *rest), fused, static)
    stepper = measure.Stepper(lambda state: compiled.call(state, *rest), state)
    times = measure.milliseconds(stepper, settings.repeats)
    if settings.profile:
        measure.trace(stepper, settings.profile / f"{name}-{batch}")
    parts, programs = [(1.0, times / fused)], [(1.0, compiled)]
    if name == "stage2":
        infer, call = inference(model, devices)
        # Stage 1 infers each recorded frame's latent once; this is a step's share of it, in blocks.
        drawn = preset.cloning.steps * preset.cloning.batch_size
        share = batch * preset.record.frames / drawn / (BLOCK * len(devices))
        parts.append((share, measure.milliseconds(call, settings.repeats)))
        programs.append((share * BLOCK / BATCH, infer))  # XLA counts the loop's body once
    return measure.row(
        name,
        settings.size,
        batch,
        "windows/s",
        batch,
        parts,
        programs,
        config.dtype,
        torch_rate,
        devices=len(devices),
        steps_per_dispatch=fused,
    )
