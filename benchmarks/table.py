"""Prints rows and writes the result file."""

import json
from pathlib import Path
from typing import Any

from lamjax.training.disk import replace_file

HEADER = (
    f"{'part':16s} {'size':6s} {'type':8s} {'batch':>6s} {'rate':>12s} {'':10s} {'/torch':>7s} {'p10 ms':>10s} "
    f"{'median':>10s} {'p90':>10s} {'compile s':>9s} {'roofline':>8s} {'peak MiB':>8s}"
)


def failed(name: str, size: str, batch: int | None, dtype: str | None, error: BaseException | str) -> dict[str, Any]:
    """The row of a measurement that failed, with the reason."""
    return {"name": name, "size": size, "batch": batch, "dtype": dtype, "error": sentence(error)}


def sentence(error: BaseException | str) -> str:
    """An error as one line, without its traceback."""
    if isinstance(error, str):
        return error
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def line(row: dict[str, Any]) -> str:
    """A row of the printed table; a second line has the figures that only this row has."""
    start = f"{row['name']:16s} {row['size']:6s} {row['dtype'] or '':8s} {row['batch'] or '':>6}"
    if "error" in row:
        return f"{start} failed: {row['error']}"
    ms, ratio, fraction, peak = row["step_ms"], row["ratio"], row["roofline_fraction"], row["peak_bytes"]
    text = (
        f"{start} {row['rate']:12.1f} {row['unit']:10s} {f'{ratio:.2f}x' if ratio else '-':>7s} "
        f"{ms['p10']:10.2f} {ms['median']:10.2f} {ms['p90']:10.2f} {row['compile_s']:9.1f} "
        f"{f'{fraction:.0%}' if fraction else '-':>8s} {f'{peak / 2**20:.0f}' if peak else '-':>8s}"
    )
    details = ", ".join(f"{name} {value:.4g}" for name, value in row["details"].items())
    return f"{text}\n{'':16s} {details}" if details else text


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes the result file. It is replaced as a whole, so that a crash leaves the last complete one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(result, indent=1) + "\n")
