"""Runs the steps one after another and packs their results; see `benchmarks.accelerator`."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks import table
from benchmarks.accelerator import packing, plan, runner
from benchmarks.accelerator.runner import say

ROOT = Path(__file__).parents[2]
EXPERT, CACHE = "expert.tar.xz", "cache.tar"


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures what this machine's GPU or TPU does with lamjax, the most valuable first, in a limited time.

    Attributes:
      minutes: the time for everything.
      out: the folder for the results: at most eight files of at most 16 MiB.
      earlier: the `out` of an earlier run, whose expert trains on and whose compiled programs are used; by default
        `out` itself.
      cache: JAX's compilation cache, with XLA's autotuning results.
      expert_env: the environment whose expert is trained in the remaining time.
      only: steps to run, by their names in `benchmarks.accelerator.plan`; by default all.
      dry: runs all of it on a CPU, with tiny networks, and two steps that must fail.
    """

    minutes: float = 9.0
    out: Path = ROOT / "benchmarks" / "results" / "accelerator"
    earlier: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    cache: Path = ROOT / ".jax_cache"
    expert_env: str = "coinrun"
    only: tuple[str, ...] = ()
    dry: bool = False


def has_nvidia() -> bool:
    """Whether there is an NVIDIA GPU; does not start JAX."""
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidiactl").exists()


class Session:
    """One run of the command: the result so far, and the time left.

    Attributes:
      result: the content of ``results.json``.
    """

    def __init__(self, options: Options, work: Path):
        self.options, self._work = options, work
        self._end = time.monotonic() + 60 * options.minutes
        self._runs = work / "runs" / options.expert_env / "expert"
        env = runner.environment(os.environ, options.dry, has_nvidia(), options.cache.absolute())
        self._env = env | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), env.get("PYTHONPATH", "")])}
        self.result: dict[str, Any] = {"minutes": options.minutes, "dry": options.dry, "steps": [], "rows": []}
        self.result["files"] = []

    def left(self) -> float:
        """Seconds until the end, less what packing takes."""
        return self._end - plan.RESERVE_S - time.monotonic()

    def write(self) -> None:
        """Writes the result as it is now."""
        table.write(self.options.out / "results.json", self.result)

    def step(self, step: plan.Step) -> None:
        """Runs a step if there is time for it."""
        left = self.left()
        seconds = plan.time_box(step, left)
        entry: dict[str, Any] = {"name": step.name, "ok": False, "seconds": 0.0, "why": "no time left"}
        self.result["steps"].append(entry)
        if seconds is None:
            say(f"-- {step.name}: no time left")
            return self.write()
        say(f"-- {step.name}: at most {seconds:.0f} s; {left:.0f} s left")
        results = self._work / f"{step.name}.jsonl"
        read = runner.Reader(results)

        def poll() -> None:
            for entries in read():
                runner.merge(self.result, entries)
                runner.describe(entries)

        o = self.options
        job = {"step": step.name, "dry": o.dry, "results": str(results), "expert_env": o.expert_env}
        job |= {"out": str(o.out.absolute()), "work": str(self._work)}
        command = runner.python_module("benchmarks.accelerator.steps", json.dumps(job))
        log, start = o.out / "log.txt", time.monotonic()
        with log.open("a") as file:
            file.write(f"==== {step.name}\n")
        why = runner.run_step(command, step, seconds, self._env, log, poll)
        entry |= {"ok": why is None, "seconds": time.monotonic() - start, "why": why}
        say(f"-- {step.name}: {f'failed: {why}' if why else 'done'} after {entry['seconds']:.0f} s")
        self.write()

    def pack(self, name: str, call: Any, *args: Any) -> None:
        """Packs a file, or records the reason why it did not."""
        path = self.options.out / name
        try:
            call(*args, path)
            entry = {"name": name, "bytes": path.stat().st_size, "why": None}
        except (OSError, ValueError) as error:
            entry = {"name": name, "bytes": None, "why": str(error)}
        self.result["files"] = [file for file in self.result["files"] if file["name"] != name] + [entry]
        say(f"-- {name}: {entry['why'] or '%.2f MiB' % (entry['bytes'] / 2**20)}")
        self.write()

    def unpack(self, path: Path, folder: Path) -> None:
        """Unpacks an archive of an earlier run, if there is one."""
        if not path.exists():
            return
        try:
            packing.unpack(path, folder)
            say(f"-- {path}: unpacked")
        except ValueError as error:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            say(f"-- {error}")

    def load(self) -> None:
        """Unpacks the archives of an earlier run."""
        earlier = self.options.earlier or self.options.out
        self.unpack(earlier / CACHE, self.options.cache)
        self.unpack(earlier / EXPERT, self._runs)

    def pack_expert(self) -> None:
        """Packs the expert, if there is one."""
        self.pack(EXPERT, packing.pack_run, self._runs, "expert")

    def run(self) -> int:
        """All steps; the exit code."""
        self.load()
        say(table.HEADER)
        steps = plan.DRY_STEPS if self.options.dry else plan.STEPS
        for step in [step for step in steps if step.name in (self.options.only or [step.name])]:
            if step.name == "expert_again":
                shutil.rmtree(self._runs, ignore_errors=True)
                self.unpack(self.options.out / EXPERT, self._runs)
            self.step(step)
            if step.name == "machine" and not self.options.dry and not self._accelerated():
                return 2
            if step.name.startswith("expert"):
                self.pack_expert()
        self.pack(CACHE, packing.pack_cache, self.options.cache)
        failed = [
            step["name"] for step in self.result["steps"] if not step["ok"] and step["name"] not in plan.MEANT_TO_FAIL
        ]
        say(f"-- written to {self.options.out}" + (f"; without {', '.join(failed)}" if failed else ""))
        return int(bool(failed))

    def _accelerated(self) -> bool:
        platform = self.result.get("device", {}).get("platform")
        if platform == "cpu":
            say("JAX sees no GPU or TPU here: `make bench` measures a CPU, and `--dry` tries this command on one.")
        return platform != "cpu"


def main() -> int:
    """Parses the options and runs."""
    options = tyro.cli(Options, prog="python -m benchmarks.accelerator")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "log.txt").write_text("")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running step ends, too
    with tempfile.TemporaryDirectory(prefix="lamjax-accelerator-") as work:
        return Session(options, Path(work)).run()


if __name__ == "__main__":
    sys.exit(main())
