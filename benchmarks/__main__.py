"""Measures the throughput of the stages, PPO, the loader and the linear sweep; writes a table and a JSON file.

Each figure is taken from dispatches that are awaited one by one, after a warm-up. Beside it stand the rate of the same
work in PyTorch, where that is installed, and how far it is from what the device's matrix products and copies reach.
"""

import functools
import json
import platform
import subprocess
from collections.abc import Callable
from typing import Any

import jax
import tyro

import lamjax
from benchmarks import acting, linear, loading, measure, ppo, training
from benchmarks.settings import Settings

MEASURED: dict[str, Callable[[Settings, float | None], dict[str, Any]]] = {
    "stage1": functools.partial(training.row, "stage1"),
    "stage2": functools.partial(training.row, "stage2"),
    "stage3": functools.partial(acting.row, "stage3"),
    "ppo": functools.partial(acting.row, "ppo"),
    "loader": loading.loader,
    "ring": loading.refilled,
    "ppo_cartpole": functools.partial(ppo.row, "ppo_cartpole", "cartpole"),
    "ppo_breakout": functools.partial(ppo.row, "ppo_breakout", "minatar/breakout"),
    "linear": linear.row,
}


def torch_rates(settings: Settings) -> tuple[Callable[[str, Settings], float | None], str | None]:
    """What gives PyTorch's rate of a row, and the version; says once why where there is none."""
    nothing = lambda name, settings: None  # noqa: E731
    if not settings.torch:
        return nothing, None
    if settings.size != "paper":
        print("PyTorch's program has LAPO's networks: SIZE=paper compares with it.")
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


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    ms, ratio, fraction = row["step_ms"], row["ratio"], row["roofline_fraction"]
    peak = row["peak_bytes"]
    return (
        f"{row['name']:12s} {row['size']:6s} {row['batch']:6d} {row['rate']:12.1f} {row['unit']:10s} "
        f"{f'{ratio:.2f}x' if ratio else '-':>7s} {ms['p10']:10.1f} {ms['median']:10.1f} {ms['p90']:10.1f} "
        f"{row['compile_s']:9.1f} {f'{fraction:.0%}' if fraction else '-':>8s} "
        f"{f'{peak / 2**20:.0f}' if peak else '-':>8s}"
    )


def main() -> None:
    """Parses the options, measures, prints the table."""
    settings = tyro.cli(Settings, prog="python -m benchmarks")
    # Has an effect on CPUs alone, where convolutions hardly use a second core and two devices do.
    jax.config.update("jax_num_cpu_devices", settings.host_devices)

    rate, torch_version = torch_rates(settings)
    device = measure.device()
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    print(
        f"{device['count']} {device['kind']}, {device['cpus']} cores: matrix products "
        f"{device['matmul_gflops']['float32']:.0f} GFLOP/s, copies {device['copy_gb_per_s']:.0f} GB/s"
    )
    print(
        f"{'part':12s} {'size':6s} {'batch':>6s} {'rate':>12s} {'':10s} {'/torch':>7s} {'p10 ms':>10s} {'median':>10s} "
        f"{'p90':>10s} {'compile s':>9s} {'roofline':>8s} {'peak MiB':>8s}"
    )
    rows = []
    for name in settings.only:
        for sized in settings.scaled(name):
            row = MEASURED[name](sized, rate(name, sized))
            rows.append(row)
            print(line(row), flush=True)
            if row["details"]:
                details = ", ".join(f"{name} {value:.4g}" for name, value in row["details"].items())
                print(f"{'':12s} {details}", flush=True)
    result = {
        "device": device,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "lamjax": lamjax.__version__,
            "torch": torch_version,
        },
        "git": git.stdout.strip(),
        "rows": rows,
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {settings.out}")


if __name__ == "__main__":
    main()
