"""Measures the throughput of the stages, PPO and the loader, and writes a table and a JSON file.

Each row times dispatches that are awaited one by one, after a warm-up that is reported as compile seconds.
"""

import dataclasses
import functools
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import jax
import numpy as np
import tyro

import lamjax
from benchmarks import linear
from benchmarks import ppo as pure_ppo
from lamjax import cloning, dynamics, envs, loops
from lamjax.config import PRESETS
from lamjax.data.stream import Buffer, sample
from lamjax.data.windows import valid_starts
from lamjax.ppo import train as ppo
from lamjax.ppo.agent import ScratchAgent

Row = Literal["stage1", "stage2", "ppo", "loader", "ppo_cartpole", "ppo_breakout", "linear"]
PURE = {"ppo_cartpole": "cartpole", "ppo_breakout": "minatar/breakout"}


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measures throughput; the sizes are those of a preset.

    Attributes:
      size: cpu or paper, the preset whose networks are measured.
      only: rows to measure.
      batch: windows in a batch of stages 1 and 2; by default the preset's.
      samples: dispatches behind each figure.
      out: the JSON file.
    """

    size: Literal["cpu", "paper"] = "cpu"
    only: tuple[Row, ...] = get_args(Row)
    batch: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    samples: int = 30
    out: Path = Path(__file__).parent / "results" / "latest.json"


def measure(call: Callable[[], Any], samples: int) -> tuple[float, list[float]]:
    """Seconds of the first call, and milliseconds of each of the next ones."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    compile_s = time.perf_counter() - start
    jax.block_until_ready(call())
    times = []
    for _ in range(samples):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return compile_s, times


def frames_buffer(n: int) -> Buffer:
    """Random frames, episodes of 100."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (n, 64, 64, 3), np.uint8)
    return Buffer(jax.device_put(frames), jax.device_put(valid_starts(np.arange(n) % 100 == 0)))


class Stepper:
    """Calls ``step(state, ...) -> (state, metrics)`` again and again on its own state."""

    def __init__(self, step: Callable, state: Any):
        self._step, self._state = step, state

    def __call__(self) -> Any:
        self._state, metrics = self._step(self._state)
        return metrics


def run_row(name: Row, args: Bench) -> dict[str, Any]:
    """One row of the table."""
    if name == "linear":
        return linear.row(max(3, args.samples // 5))
    if name in PURE:
        return pure_ppo.row(name, PURE[name], max(3, args.samples // 3))
    preset = PRESETS[args.size]
    key = jax.random.key(0)
    if name in ("stage1", "stage2", "loader"):
        buffer = frames_buffer(8192)
        batch = args.batch or preset.dynamics.batch_size
        model = dynamics.init(key, preset.dynamics, (64, 64, 3))
        unit, count = "windows/s", batch
        if name == "loader":
            draw = jax.jit(functools.partial(sample, batch_size=batch))
            call = Stepper(lambda step: (step + 1, draw(buffer, key, step)), 0)
        elif name == "stage1":
            step = jax.jit(lambda s: dynamics.train_step(s, sample(buffer, key, s.step, batch)), donate_argnums=0)
            call = Stepper(step, model)
        else:

            def clone(state: cloning.CloningState):
                windows = sample(buffer, key, state.step, batch)
                return cloning.train_step(state, windows[:, -2], dynamics.infer_latents(model, windows).continuous)

            state = cloning.init(key, preset.cloning, (64, 64, 3), preset.dynamics.latent_dim)
            call = Stepper(jax.jit(clone, donate_argnums=0), state)
        compile_s, times = measure(call, args.samples)
    else:
        config = preset.scratch
        env = envs.make("coinrun", config.ppo.num_envs)
        agent = ScratchAgent(config.trunk, env.num_actions)
        state = ppo.init(key, config.ppo, agent.init(key, env.obs_shape), env)
        if loops.fuses_steps(config.trunk):
            update = jax.jit(lambda s: ppo.update(s, agent, env), donate_argnums=0)
        else:
            update = functools.partial(ppo.update, agent=agent, env=env, scan=loops.host_scan)
        unit, count = "frames/s", config.ppo.num_envs * config.ppo.num_steps
        batch = count // config.ppo.num_minibatches
        compile_s, times = measure(Stepper(update, state), max(3, args.samples // 5))
        env.close()
    p10, median, p90 = (float(x) for x in np.percentile(times, [10, 50, 90]))
    return {
        "name": name,
        "size": args.size,
        "batch": batch,
        "dtype": preset.dynamics.dtype,
        "rate": 1e3 * count / median,
        "unit": unit,
        "step_ms": {"p10": p10, "median": median, "p90": p90},
        "compile_s": compile_s,
    }


def main() -> None:
    """Parses the options, measures, prints the table."""
    args = tyro.cli(Bench, prog="python -m benchmarks")
    device = jax.devices()[0]
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    head = f"{'part':12s} {'size':6s} {'batch':>5s} {'rate':>12s} {'':10s} "
    print(head + f"{'p10 ms':>9s} {'median':>9s} {'p90':>9s} {'compile s':>10s}")
    rows = []
    for name in args.only:
        row = run_row(name, args)
        rows.append(row)
        ms = row["step_ms"]
        print(
            f"{name:12s} {row['size']:6s} {row['batch']:5d} {row['rate']:12.1f} {row['unit']:10s} "
            f"{ms['p10']:9.1f} {ms['median']:9.1f} {ms['p90']:9.1f} {row['compile_s']:10.1f}",
            flush=True,
        )
        if name in PURE:
            print(f"{'':12s} a plain one-function PPO, same networks and batches: {row['plain_rate']:.1f} frames/s")
        if name == "linear":
            print(
                f"{'':12s} {row['speedup_over_one_by_one']:.1f} times as fast as point by point; "
                f"{row['gflops']:.0f} GFLOP/s where matrix products reach {row['matmul_gflops']:.0f}"
            )
    result = {
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.local_device_count()},
        "cpus": os.cpu_count(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "lamjax": lamjax.__version__},
        "git": git.stdout.strip(),
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
