"""Windows from device memory: from a store that is resident there, and from a ring that is refilled from disk."""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.settings import OBS, Settings
from benchmarks.training import frames_buffer, init_dynamics, program
from lamjax import data, envs, parallel, policies
from lamjax.data import ring, sample
from lamjax.data.record import record
from lamjax.training.steps import dynamics_step, traced

FRAME_BYTES = int(np.prod(OBS))
TIMES = 5  # how many times larger the store is than the ring


def loader(settings: Settings, torch_rate: float | None) -> dict[str, Any]:
    """Only drawing windows, on one device."""
    batch, key = settings.batch_size, jax.random.key(0)
    buffer = frames_buffer(jax.local_devices()[:1])
    draw = measure.compiled(jax.jit(functools.partial(sample, batch_size=batch)), buffer, key, np.int32(0))
    stepper = measure.Stepper(lambda step: (step + np.int32(1), draw.call(buffer, key, step)), np.int32(0))
    times = measure.milliseconds(stepper, max(30, settings.repeats))
    row = measure.row("loader", settings.size, batch, "frames/s", 3 * batch, [(1, times)], [(1, draw)])
    gb_per_s = row["rate"] * FRAME_BYTES / 1e9
    # XLA counts all frames as read, not only the drawn ones.
    row |= {"dtype": "uint8", "flops": None, "bytes": 2 * 3 * batch * FRAME_BYTES}
    return row | {"roofline_fraction": 2e9 * gb_per_s / measure.copy_bytes(), "details": {"gb_per_s": gb_per_s}}


def random_play(path: Path, frames: int) -> data.Store:
    """A recording of coinrun under random actions."""
    env = envs.make("coinrun", 64)
    uniform = policies.UniformPolicy(env.num_actions)
    record(path, env, uniform, {}, frames, jax.random.key(0), source={"policy": "random"})
    env.close()
    return data.open_store(path)


def _phase(call: Callable[[int], Any], stream: data.ObservationStream, phase: int, stride: int = 1) -> float:
    """Milliseconds of a ring's phase, including the wait at its end."""
    start = time.perf_counter()
    for step in range(phase * stream.steps_per_phase, (phase + 1) * stream.steps_per_phase, stride):
        result = call(step)
    jax.block_until_ready(result)
    return 1e3 * (time.perf_counter() - start)


def refilled(settings: Settings, torch_rate: float | None) -> dict[str, Any]:
    """Stage 1 from a ring that holds a fifth of its store, compared with stage 1 on the whole store in device memory.

    A sample is a phase of the ring, after which a block that a thread has read in the meantime replaces another. The
    two take turns, so that other load slows both.
    """
    batch, devices, fused = settings.batch_size, jax.local_devices(), settings.fused
    # Random play always fits into device memory, so only the demonstrations are in the ring.
    config = dataclasses.replace(settings.preset.dynamics, batch_size=batch, play_share=0.0)
    block = batch * max(8, 2 * fused) // len(devices)
    phases = range(1 + max(2, settings.repeats // 3))  # the first does not count
    where = {"batch_size": batch, "split": "all", "devices": None if len(devices) == 1 else devices}
    refilling = {"mode": "ring", "ring_frames": ring.SLOTS * block, "align": fused}
    trains, times = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        store = random_play(Path(folder) / "store", TIMES * ring.SLOTS * block * len(devices))
        stream = data.ObservationStream(store, **where, **refilling)
        read_ms = np.median([_phase(stream.windows, stream, phase) for phase in range(11)][1:])
        for mode, options in (("resident", {}), ("ring", refilling)):
            source = data.ObservationStream(store, **where, **options)
            state = parallel.replicate(init_dynamics(jax.random.key(0), config, OBS), devices)
            rest = parallel.replicate((None, source.key, traced(config.lengths)), devices)
            step = program(dynamics_step, (state, source.buffer(0), *rest), fused)
            trains[mode] = measure.Stepper(lambda s, i, b=source, p=step, r=rest: p.call(s, b.buffer(i), *r), state)
        for phase in phases:
            for mode, train in trains.items():
                times[mode, phase] = _phase(train, stream, phase, fused)
    resident, refilled = (np.array([times[mode, phase] for phase in phases[1:]]) for mode in ("resident", "ring"))
    frames = block * len(devices)
    return measure.row(
        "ring",
        settings.size,
        batch,
        "windows/s",
        batch,
        [(1 / stream.steps_per_phase, refilled)],
        [(1, step)],
        config.dtype,
        of_resident=float(np.median(resident / refilled)),
        # The share of one core that reading takes; on a CPU a device lacks it, and all devices wait for that one.
        reading_share=float(read_ms / np.median(refilled)),
        read_frames_per_s=1e3 * frames / read_ms,
        read_gb_per_s=1e-6 * frames * FRAME_BYTES / read_ms,
        store_frames=store.num_frames,
        ring_frames=ring.SLOTS * frames,
    )
