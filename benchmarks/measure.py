"""Measures the time of a call and the device's ceilings, and makes a row of the table from both."""

import functools
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lamjax


def milliseconds(call: Callable[[], Any], samples: int) -> np.ndarray:
    """Milliseconds of each call, which the host waits for, after one that does not count."""
    jax.block_until_ready(call())
    times = []
    for _ in range(samples):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return np.array(times)


def trace(call: Callable[[], Any], folder: Path) -> None:
    """Writes a trace of two calls, each operation with its time."""
    with jax.profiler.trace(folder):
        for _ in range(2):
            jax.block_until_ready(call())


class Stepper:
    """Calls ``step(state, ...) -> (state, result)`` again and again on its own state."""

    def __init__(self, step: Callable, state: Any):
        self._step, self.state = step, state

    def __call__(self, *args: Any) -> Any:
        self.state, result = self._step(self.state, *args)
        return result


@dataclass(frozen=True)
class Program:
    """A compiled function.

    Attributes:
      call: the executable, to be called without its static arguments.
      compile_s: seconds of tracing and compiling.
      flops: as XLA counts them, over all devices; a loop's body counts once.
      bytes: bytes read and written, counted in the same way.
      peak_bytes: bytes of arguments, results and temporaries, over all devices.
    """

    call: Callable
    compile_s: float
    flops: float
    bytes: float
    peak_bytes: int


def compiled(function: Any, *args: Any, devices: int = 1, **kwargs: Any) -> Program:
    """Compiles a jitted or pmapped function for these arguments."""
    start = time.perf_counter()
    executable = function.lower(*args, **kwargs).compile()
    seconds = time.perf_counter() - start
    cost, memory = executable.cost_analysis(), executable.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return Program(
        executable,
        seconds,
        devices * cost.get("flops", 0.0),
        devices * cost.get("bytes accessed", 0.0),
        devices * (peak - memory.alias_size_in_bytes),
    )


@functools.cache
def matmul_flops(dtype: str, precision: str | None = None) -> float:
    """FLOP/s of a large matrix product, at JAX's default precision (on a GPU TF32 for float32) or another."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (n, n), dtype)  # some devices multiply ones faster than real numbers
    product = jax.jit(functools.partial(jnp.matmul, precision=precision))
    return 2 * n**3 / (1e-3 * float(milliseconds(lambda: product(x, x), 10).min()))


def matmul_error() -> float:
    """The relative error of float32 products at the default precision: 1e-7 for true float32, 3e-4 for TF32."""
    x = jax.random.normal(jax.random.key(0), (512, 512))
    exact = np.asarray(x, np.float64) @ np.asarray(x, np.float64)
    return float(np.linalg.norm(np.asarray(jax.jit(jnp.matmul)(x, x)) - exact) / np.linalg.norm(exact))


@functools.cache
def copy_bytes() -> float:
    """Bytes per second that are read and written when large arrays are copied."""
    x = jax.random.normal(jax.random.key(0), (64 if jax.default_backend() == "cpu" else 512, 2**20), jnp.float32)
    # In place: on a CPU fresh memory costs more than the copy.
    negate = jax.jit(jnp.negative, donate_argnums=0)
    times = milliseconds(Stepper(lambda x: (negate(x),) * 2, x), 10)
    return 2 * x.nbytes / (1e-3 * float(times.min()))


def identity() -> dict[str, Any]:
    """The machine's devices and cores."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.local_device_count(),
        "cpus": os.cpu_count(),
    }


def device() -> dict[str, Any]:
    """The machine, with its measured ceilings."""
    types = ("float32",) if jax.default_backend() == "cpu" else ("float32", "bfloat16")
    return identity() | {
        "matmul_gflops": {dtype: matmul_flops(dtype) / 1e9 for dtype in types},
        "copy_gb_per_s": copy_bytes() / 1e9,
    }


def versions() -> dict[str, str]:
    """The versions that figures depend on."""
    return {"python": platform.python_version(), "jax": jax.__version__, "lamjax": lamjax.__version__}


def row(
    name: str,
    size: str,
    batch: int,
    unit: str,
    count: float,
    parts: Iterable[tuple[float, np.ndarray]],
    programs: Iterable[tuple[float, Program]] = (),
    dtype: str = "float32",
    torch_rate: float | None = None,
    **details: Any,
) -> dict[str, Any]:
    """One row of the table.

    Args:
      name: the part that was measured.
      size: the preset.
      batch: windows or frames in an optimizer step.
      unit: unit of the rate.
      count: units in a step.
      parts: the parts of a step: how often each occurs, and milliseconds of its samples. Their percentiles are added.
      programs: the compiled programs: how often a step runs what XLA counts once.
      dtype: type of the activations.
      torch_rate: the rate of the same work in PyTorch.
      **details: figures that only this row has.
    """
    parts, programs = list(parts), list(programs)
    p10, median, p90 = (sum(n * float(np.percentile(ms, q)) for n, ms in parts) for q in (10, 50, 90))
    flops, moved = (sum(n * getattr(program, field) for n, program in programs) for field in ("flops", "bytes"))
    least_s = max(flops / matmul_flops(dtype), moved / copy_bytes())
    rate = 1e3 * count / median
    # The programs' own figures: a device reports the peak over all earlier rows as well.
    peak = max((program.peak_bytes for _, program in programs), default=0)
    return {
        "name": name,
        "size": size,
        "batch": batch,
        "dtype": dtype,
        "rate": rate,
        "unit": unit,
        "torch_rate": torch_rate,
        "ratio": torch_rate and rate / torch_rate,
        "step_ms": {"p10": p10, "median": median, "p90": p90},
        "compile_s": sum(program.compile_s for _, program in programs),
        "flops": flops or None,
        "bytes": moved or None,
        "roofline_fraction": least_s / (1e-3 * median) or None,
        "peak_bytes": peak or None,
        "details": details,
    }
