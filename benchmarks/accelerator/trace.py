"""Summarises a profiler trace by the operations that take the most time."""

import collections
import gzip
import json
from pathlib import Path
from typing import Any


def newest(folder: Path) -> Path:
    """The newest trace that `jax.profiler` wrote somewhere in a folder.

    Raises:
      FileNotFoundError: if there is none.
    """
    traces = sorted(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    if not traces:
        raise FileNotFoundError(f"The profiler wrote no trace into {folder}.")
    return traces[-1]


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a trace."""
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def operations(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events that are work of the device, each once.

    A GPU's trace has them by stream, and again by module and operation; the latter are left out. A TPU's trace has them
    on the line "XLA Ops", a CPU's on the threads that ran them, where an operation has ``hlo_op``.
    """
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event.get("name") == "thread_name"
    }
    work = [event for event in events if event.get("ph") == "X" and "dur" in event]
    for line in ("Stream", "XLA Ops"):
        on_line = [e for e in work if names.get((e.get("pid"), e.get("tid")), "").startswith(line)]
        if on_line:
            return on_line
    return [event for event in work if "hlo_op" in event.get("args", {})]


def summary(events: list[dict[str, Any]], top: int = 25) -> dict[str, Any]:
    """Summarises a trace.

    Args:
      events: of the trace, times in microseconds.
      top: how many operations are listed.

    Returns:
      ``operations`` and ``total_ms``, count and time of all work of the device; ``span_ms`` from its first beginning to
      its last end; ``top``, a list of ``{"name", "count", "ms", "share"}`` in order of time.
    """
    work = operations(events)
    if not work:
        return {"operations": 0, "total_ms": 0.0, "span_ms": 0.0, "top": []}
    count, time = collections.Counter(), collections.Counter()
    for event in work:
        count[event["name"]] += 1
        time[event["name"]] += event["dur"]
    total = sum(time.values())
    span = max(event["ts"] + event["dur"] for event in work) - min(event["ts"] for event in work)
    return {
        "operations": len(work),
        "total_ms": 1e-3 * total,
        "span_ms": 1e-3 * span,
        "top": [
            {"name": name, "count": count[name], "ms": 1e-3 * us, "share": us / total if total else 0.0}
            for name, us in time.most_common(top)
        ],
    }
