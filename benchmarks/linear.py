"""The linear sweep: its speed against its points run one by one, and against the machine's matrix multiplication."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import milliseconds
from benchmarks.measure import row as measured_row
from benchmarks.settings import Settings
from lamjax.linear import Point, TrainConfig, WorldConfig
from lamjax.linear.train import prepare, run_round

POINTS, STEPS, D_Z = 48, 128, 8


def point_steps(points: list[Point], samples: int) -> np.ndarray:
    """Milliseconds of rounds of `STEPS` steps, without the closed form."""
    config = TrainConfig(steps=STEPS, max_rounds=1)

    def call() -> Any:
        return run_round(*prepare(points, config), steps=STEPS, config=config)

    preparation = np.median(milliseconds(lambda: prepare(points, config), samples))
    return np.maximum(milliseconds(call, samples) - preparation, 1e-6)


def matmul_rate(samples: int) -> float:
    """FLOP/s of batched float32 products of the model's size, in one program."""
    size, batch, times = 128, 16, 50
    x = jnp.ones((batch, size, size)) / size
    product = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, y: jnp.einsum("bij,bjk->bik", y, x), x))
    return 2 * times * batch * size**3 / (1e-3 * float(np.median(milliseconds(lambda: product(x), samples))))


def sweep_row(settings: Settings, torch_rate: float | None) -> dict[str, Any]:
    """A point's steps a second at the paper's size, with augmentation and both kinds of noise.

    The roofline is that of matrix products of the model's own size.
    """
    samples = max(5, settings.repeats // 5)
    world = WorldConfig(s_iid=0.3, s_exo=0.5)
    points = [Point(world, D_Z, kappa=0.1)] * POINTS
    n = d_o = 128
    flops = 2 * 2 * n * d_o**2 + 2 * n * d_o * (7 * D_Z + 16)  # of A; of B, C, D and of the world
    start = time.perf_counter()
    point_steps(points, 1)
    compile_s = time.perf_counter() - start
    sweep = point_steps(points, samples)
    alone = float(np.median(point_steps(points[:1], samples)))
    row = measured_row("linear", "paper", n, "steps/s", POINTS, [(1 / STEPS, sweep)])
    return row | {
        "compile_s": compile_s,
        "flops": POINTS * flops,
        "roofline_fraction": row["rate"] * flops / matmul_rate(samples),
        "details": {"of_one_by_one": row["rate"] * alone / (1e3 * STEPS)},
    }
