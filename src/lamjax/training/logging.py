"""Logs metrics to JSON lines and trackers, and progress and notices to the terminal.

The level of the logger ``lamjax``, by default INFO, decides what the terminal shows: above INFO neither progress nor
notices (`--quiet`), and at DEBUG more (`--verbose`).
"""

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from lamjax.training.disk import require_space
from lamjax.training.trackers import TensorBoard, Tracker

LINE_SECONDS = 10.0  # the least time between lines of progress if the output is not a terminal


LOGGER = logging.getLogger("lamjax")


def shows(level: int) -> bool:
    """Whether notices of this level are printed."""
    return level >= (LOGGER.level or logging.INFO)


def say(text: str, level: int = logging.INFO) -> None:
    """Prints a notice on stderr if notices of its level are printed; results go to stdout."""
    if shows(level):
        with contextlib.suppress(OSError):  # a closed terminal or a full disk must not end the work
            tqdm.write(text, file=sys.stderr)  # above the bars
            sys.stderr.flush()


class NonFiniteError(ArithmeticError):
    """Raised if a metric is NaN or infinite, after its row was written."""


class MetricLog:
    """Appends metrics to ``metrics.jsonl`` and TensorBoard events in a run folder, and to other trackers.

    A resumed run may write a step again; readers keep the last row of each (stage, step).
    """

    def __init__(self, folder: Path, trackers: Iterable[Tracker] = ()):
        """Opens the sinks in `folder`; `close` also closes the trackers."""
        folder.mkdir(parents=True, exist_ok=True)
        require_space(folder)
        self._folder, self._lock = folder, threading.Lock()
        self._file = (folder / "metrics.jsonl").open("a+b")
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read() != b"\n":
                self._file.write(b"\n")  # a killed run left half a line
        self._trackers = (TensorBoard(folder / "tensorboard"), *trackers)

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one row; stages in several threads may write.

        Args:
          stage: the stage's name.
          step: optimizer steps or environment frames.
          metrics: finite numbers. The caller leaves out metrics of events that did not happen (NaN).

        Raises:
          NonFiniteError: if a value is not finite; the row is written and flushed first.
          ValueError: if a metric has the name of one of the row's own fields.
          OSError: if the disk is full.
        """
        require_space(self._folder)  # on a full disk the events' thread would die, and then block the run
        row = {"stage": stage, "step": step, "time": round(time.time(), 3)}
        if clashes := row.keys() & metrics.keys():
            raise ValueError(f"A metric may not be called {min(clashes)!r}: the row has a field of this name.")
        values = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._lock:
            self._file.write(json.dumps(row | finite).encode() + b"\n")
            self._file.flush()
            for tracker in self._trackers:
                tracker.write(stage, step, values)
        if bad := [name for name, value in finite.items() if value is None]:
            raise NonFiniteError(f"{bad[0]} is not finite")

    def close(self) -> None:
        """Closes the sinks."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


class Progress:
    """Shows progress on stderr: a bar on a terminal, otherwise a line now and then. Results go to stdout.

    If stderr can no longer be written, because its terminal was closed or its disk is full, work continues silently.
    """

    def __init__(self, label: str, total: int, initial: int = 0, unit: str = "step"):
        """Starts at `initial` of `total` units."""
        self._label, self._total, self._unit = label, total, unit
        self._position, self._first = initial, initial
        self._started = self._spoke = time.monotonic()
        self._note = ""
        self._terminal = sys.stderr.isatty()
        hidden = not self._terminal or not shows(logging.INFO)
        try:
            self._bar = tqdm(desc=label, total=total, initial=initial, unit=unit, disable=hidden)
        except OSError:
            self._bar = tqdm(disable=True)

    def to(self, position: int, note: str = "") -> None:
        """Moves to `position` and shows `note`, or the last note."""
        self._note = note or self._note
        with contextlib.suppress(OSError):
            self._bar.update(position - self._position)
            if note:
                self._bar.set_postfix_str(note)
        self._position = position
        now = time.monotonic()
        if not self._terminal and now - self._spoke >= LINE_SECONDS:
            self._spoke = now
            self._line()

    def _line(self) -> None:
        rate = (self._position - self._first) / max(time.monotonic() - self._started, 1e-9)
        percent = 100 * self._position / max(self._total, 1)
        text = f"{self._label}: {self._position}/{self._total} {self._unit}s ({percent:.0f} %), "
        text += f"{rate:.3g} {self._unit}s/s" + (f", {self._note}" if self._note else "")
        say(text)

    def close(self) -> None:
        """Ends the bar, or writes the last line if there was progress."""
        with contextlib.suppress(OSError):
            self._bar.close()
        if not self._terminal and self._position != self._first:
            self._line()


@contextlib.contextmanager
def shown_progress(label: str, unit: str, initial: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yields ``progress(position, total)``; a `Progress` begins with its first call, at `initial` or that position."""
    bars: list[Progress] = []

    def progress(position: int, total: int) -> None:
        if not bars:
            bars.append(Progress(label, total, position if initial is None else initial, unit))
        bars[0].to(position)

    try:
        yield progress
    finally:
        for bar in bars:
            bar.close()


def read_metrics(path: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Reads the rows of a ``metrics.jsonl`` by stage and step, in order of step.

    A resumed run writes some steps again, and the last row of a step counts. A killed run's half-written line is
    skipped.
    """
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            rows.setdefault(row["stage"], {})[int(row["step"])] = row
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return {stage: dict(sorted(steps.items())) for stage, steps in rows.items()}
