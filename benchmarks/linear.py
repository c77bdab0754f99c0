"""The linear sweep: its speed against its points run one by one, and against the machine's matrix multiplication."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax.linear import Point, TrainConfig, WorldConfig
from lamjax.linear.train import prepare, run_round

POINTS, STEPS, D_Z = 48, 128, 8


def seconds(call: Callable[[], Any], samples: int) -> list[float]:
    """Seconds of each call, after one that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(samples):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return times


def point_steps(points: list[Point], samples: int) -> list[float]:
    """Seconds a round of `STEPS` steps, without the closed form."""
    config = TrainConfig(steps=STEPS, max_rounds=1)

    def call() -> Any:
        return run_round(*prepare(points, config), steps=STEPS, config=config)

    preparation = float(np.median(seconds(lambda: prepare(points, config), samples)))
    return [max(t - preparation, 1e-9) for t in seconds(call, samples)]


def matmul_rate(samples: int) -> float:
    """GFLOP/s of batched float32 products of the model's size, in one program."""
    size, batch, times = 128, 16, 50
    x = jnp.ones((batch, size, size)) / size
    product = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, y: jnp.einsum("bij,bjk->bik", y, x), x))
    return 2 * times * batch * size**3 / float(np.median(seconds(lambda: product(x), samples))) / 1e9


def row(samples: int) -> dict[str, Any]:
    """One row of the table: a point's steps a second at the paper's size, with augmentation and both kinds of noise."""
    world = WorldConfig(s_iid=0.3, s_exo=0.5)
    points = [Point(world, D_Z, kappa=0.1)] * POINTS
    n = d_o = 128
    flops = 2 * 2 * n * d_o**2 + 2 * n * d_o * (7 * D_Z + 16)  # of A; of B, C, D and of the world
    start = time.perf_counter()
    point_steps(points, 1)
    compile_s = time.perf_counter() - start
    sweep = point_steps(points, samples)
    alone = float(np.median(point_steps(points[:1], samples)))
    rate = POINTS * STEPS / float(np.median(sweep))
    p10, median, p90 = (1e3 * float(x) / STEPS for x in np.percentile(sweep, [10, 50, 90]))
    return {
        "name": "linear",
        "size": "paper",
        "batch": n,
        "dtype": "float32",
        "rate": rate,
        "unit": "steps/s",
        "step_ms": {"p10": p10, "median": median, "p90": p90},
        "compile_s": compile_s,
        "speedup_over_one_by_one": rate * alone / STEPS,
        "gflops": rate * flops / 1e9,
        "matmul_gflops": matmul_rate(samples),
    }
