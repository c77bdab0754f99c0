"""Measures the throughput of the stages, PPO, the loader and the linear sweep; writes a table and a JSON file.

The file is written after each row; a row that fails states its reason in both. Each figure comes from dispatches that
the host waits for one by one, after a warm-up. A row also has the rate of the same work in PyTorch, if that is
installed, and its share of the roofline of the device's matrix products and copies.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tyro

from benchmarks import acting, importing, linear, loading, measure, ppo, table, training
from benchmarks.settings import Settings
from lamjax.training.provenance import git_hash

MEASURED: dict[str, Callable[[Settings, float | None], dict[str, Any]]] = {
    "stage1": functools.partial(training.row, "stage1"),
    "stage2": functools.partial(training.row, "stage2"),
    "stage3": functools.partial(acting.row, "stage3"),
    "ppo": functools.partial(acting.row, "ppo"),
    "loader": loading.loader,
    "ring": loading.refilled,
    "ppo_cartpole": functools.partial(ppo.compare, "ppo_cartpole", "cartpole"),
    "ppo_breakout": functools.partial(ppo.compare, "ppo_breakout", "minatar/breakout"),
    "linear": linear.sweep_row,
    "import": importing.row,
}


def torch_rates(settings: Settings) -> tuple[Callable[[str, Settings], float | None], str | None]:
    """A function that returns PyTorch's rate of a row, and PyTorch's version; prints the reason if there is none."""
    nothing = lambda name, settings: None  # noqa: E731
    if not settings.torch:
        return nothing, None
    if settings.size != "paper":
        print("PyTorch's program has LAPO's networks: SIZE=paper compares with it.")
        return nothing, None
    if settings.preset.dynamics.dtype != "float32":
        print("PyTorch's program computes in float32: --dtype float32 compares with it.")
        return nothing, None
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed, so there is nothing to compare with: pip install torch.")
        return nothing, None
    from benchmarks import reference

    wrong = reference.disagreements()
    if wrong:
        print(f"PyTorch's program misses the golden file in {', '.join(wrong)}: no ratios.")
        return nothing, torch.__version__
    return reference.rate, torch.__version__


def measure_rows(settings: Settings, rate: Callable[[str, Settings], float | None]) -> Iterator[dict[str, Any]]:
    """Yields the rows; one that fails states its reason. PyTorch runs only at the first batch size."""
    for name in settings.only:
        for index, sized in enumerate(settings.scaled(name)):
            try:
                yield MEASURED[name](sized, None if index else rate(name, sized))
            except Exception as error:
                yield table.failed(name, settings.size, sized.batch_size, settings.dtype, error)


def main() -> int:
    """Parses the options, measures, prints the table; returns 1 if a row failed."""
    settings = tyro.cli(Settings, prog="python -m benchmarks")
    # This affects only CPUs, where a convolution hardly uses a second core, but a second device does.
    jax.config.update("jax_num_cpu_devices", settings.host_devices)

    rate, torch_version = torch_rates(settings)
    device = measure.device()
    print(
        f"{device['count']} {device['kind']}, {device['cpus']} cores: matrix products "
        f"{device['matmul_gflops']['float32']:.0f} GFLOP/s, copies {device['copy_gb_per_s']:.0f} GB/s"
    )
    print(table.HEADER, flush=True)
    versions = measure.versions() | {"torch": torch_version}
    result = {"device": device, "versions": versions, "git": git_hash(), "rows": []}
    for row in measure_rows(settings, rate):
        result["rows"].append(row)
        print(table.line(row), flush=True)
        table.write(settings.out, result)
    print(f"written to {settings.out}")
    return int(any("error" in row for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
