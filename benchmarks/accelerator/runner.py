"""Runs the steps as child processes, reads their measurements, and ends each when its time is over."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.accelerator.plan import Step


def environment(variables: Mapping[str, str], dry: bool, has_nvidia: bool, cache: Path) -> dict[str, str]:
    """The environment variables of the steps.

    Procgen's callbacks run on JAX's CPU backend, so that must be there beside the device's.
    """
    platforms = variables.get("JAX_PLATFORMS") or ("cpu" if dry else "cuda" if has_nvidia else "")
    if platforms and "cpu" not in platforms.split(","):
        platforms += ",cpu"
    env = dict(variables) | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
    # The profiler and the libraries that XLA tunes among need memory of their own.
    env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if platforms:
        env["JAX_PLATFORMS"] = platforms
    if dry:  # compiling is most of the time, and its speed does not count
        env["XLA_FLAGS"] = f"{variables.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    return env


def merge(result: dict[str, Any], entries: Mapping[str, Any]) -> None:
    """Merges a step's entries into the result: rows are appended, other entries replace what was there."""
    for name, value in entries.items():
        if name == "row":
            result["rows"].append(value)
        else:
            result[name] = value


class Reader:
    """Reads the complete lines that a step has appended to its file since the last time."""

    def __init__(self, path: Path):
        self._path, self._position = path, 0

    def __call__(self) -> list[dict[str, Any]]:
        """The new entries; a line that is not complete waits for the next call, or for ever."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._position += len(complete)
        return [json.loads(line) for line in complete.splitlines()]


def run_step(
    command: list[str], step: Step, seconds: float, env: Mapping[str, str], log: Path, poll: Callable[[], None]
) -> str | None:
    """Runs a command, with everything it starts, for at most `seconds` seconds.

    Args:
      command: the program and its arguments.
      step: the step that it belongs to; near the end of its time it gets SIGTERM, at the end SIGKILL.
      seconds: the time limit.
      env: environment variables.
      log: the file to which its output is appended.
      poll: called several times a second while it runs.

    Returns:
      None if it succeeded, or the reason why it did not, in one sentence.
    """
    with log.open("ab") as file:
        begin = file.tell()
        process = subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True)
        end = time.monotonic() + seconds
        terminated = killed = False
        try:
            while process.poll() is None:
                time.sleep(0.1)
                poll()
                left = end - time.monotonic()
                if left <= 0 and not killed:
                    killed = True
                    _signal(process, signal.SIGKILL)
                elif left <= step.grace_s and not terminated:
                    terminated = True
                    _signal(process, signal.SIGTERM)
        finally:
            _signal(process, signal.SIGKILL)
            process.wait()
    poll()
    if process.returncode == 0:
        return None
    if terminated:
        return f"timed out after {seconds:.0f} s"
    with log.open("rb") as file:
        file.seek(begin)
        output = file.read().decode(errors="replace")
    return last_line(output) or f"ended with exit code {process.returncode}"


def _signal(process: subprocess.Popen, signum: int) -> None:
    """Signals a process and what it has started; all of it may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def last_line(output: str) -> str | None:
    """The last line of a program's output, at most 300 characters: of a traceback, the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else None


def say(text: str) -> None:
    """Prints at once."""
    print(text, flush=True)


def describe(entries: Mapping[str, Any]) -> None:
    """Prints a step's entries, one figure a line."""
    for name, value in entries.items():
        if name == "row":
            say(table.line(value))
        elif name == "gradients":
            stage = list(value)[-1]
            say("\n".join(gradient_lines(stage, value[stage])))
        elif name == "traces":
            stage = list(value)[-1]
            say("\n".join(trace_lines(stage, value[stage])))
        elif isinstance(value, dict):
            say(f"{name}: " + ", ".join(f"{key} {_short(item)}" for key, item in value.items() if item is not None))
        else:
            say(f"{name}: {value}")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_short(item)}" for key, item in value.items()) + ")"
    return str(value)


def gradient_lines(stage: str, errors: dict[str, Any]) -> list[str]:
    """A stage's gradients against float32 on the CPU."""
    if "error" in errors:
        return [f"gradients {stage} failed: {errors['error']}"]
    return [
        f"gradients {stage:8s} {dtype:8s} {module:12s} relative error {_short(error['relative_error']):>10s} "
        f"cosine {_short(error['cosine']):>10s}"
        for dtype, modules in errors.items()
        for module, error in modules.items()
    ]


def trace_lines(stage: str, summary: dict[str, Any]) -> list[str]:
    """The first operations of a trace."""
    if "top" not in summary:
        return [f"trace {stage} failed: {summary['error']}"]
    lines = [
        f"trace {stage}: {summary['operations']} operations, {summary['total_ms']:.1f} ms of work in "
        f"{summary['span_ms']:.1f} ms"
    ]
    if "error" in summary:
        lines.append(f"trace {stage}: {summary['error']}")
    return lines + [
        f"  {op['share']:6.1%} {op['ms']:9.2f} ms {op['count']:6d}x {op['name'][:80]}" for op in summary["top"][:8]
    ]


def python_module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module with this Python."""
    return [sys.executable, "-m", name, *arguments]
