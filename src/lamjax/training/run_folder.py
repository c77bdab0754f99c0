"""The run folder, and the loop that all training stages share: log, checkpoint, stop, resume.

runs/<env>/<name>/  config.json  metrics.jsonl  summary.json  tensorboard/  checkpoints/<stage>/  policies/
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lamjax import parallel
from lamjax.checks import check_path_name, is_utf8
from lamjax.training import checkpoint
from lamjax.training.disk import replace_file
from lamjax.training.logging import MetricLog, NonFiniteError, Progress, say
from lamjax.training.signals import handled_by
from lamjax.training.trackers import SERVICES, Service

# Metrics of events that may not happen in an interval; there NaN is not a failure.
OCCASIONAL = ("episode_return", "episode_length", "decoder_accuracy", "decoder_mse")


class RunError(ValueError):
    """A user's mistake or a failed run: one sentence that says what to do."""


def another_configuration(folder: Path, field: str) -> RunError:
    """The error for a run folder whose settings differ in `field` from the requested ones."""
    return RunError(
        f"{folder} was started with another configuration: {field}. Use the same settings, or choose another --name."
    )


class InterruptedRunError(Exception):
    """Raised after a signal, once everything is saved; holds the signal's number."""

    def __init__(self, signum: int):
        """Remembers the signal for the exit code."""
        super().__init__(f"stopped by {signal.Signals(signum).name}; everything is saved, the same command continues")
        self.signum = signum


def run_path(runs: Path, env: str, name: str) -> Path:
    """The folder of a run, ``runs/<env>/<name>``.

    Raises:
      ValueError: if the name is not that of a folder in `runs`, or the path is not UTF-8.
    """
    folder = runs / env / check_path_name("--name", name)
    if not is_utf8(folder.absolute()):
        raise RunError(f"{folder} is not UTF-8, as checkpoints need: choose another --runs.")
    return folder


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON; no reader sees half a file."""
    replace_file(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Reads a file of `write_json`; raises a `RunError` that names a damaged file."""
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, reason: Any) -> RunError:
    return RunError(f"{path} is damaged ({reason}): delete the run folder, or choose another --name.")


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no object")
    return content


def check_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Raises `RunError` unless a summary, read from `path`, holds an object for each stage and each baseline."""
    for field in ("stages", "nulls"):
        entries = summary.get(field) or {}
        if not isinstance(entries, dict) or not all(isinstance(entry, dict | None) for entry in entries.values()):
            raise RunError(f"{path} is not of a run: {field} must hold an object for each name.")


class Run:
    """An open run folder. One process at a time may open it, always with the same configuration.

    If several hosts run one program, all of them do the same work, and the first one keeps the results. The others have
    temporary folders, and read only what the first one sends them.

    Attributes:
      folder: its path.
      env: the environment's name.
      config: the settings.
      summary: the contents of ``summary.json``; change it through `finish`, `note` and `changing`.
      log: the metric sinks.
      devices: the devices that stages train on (see `parallel.devices`).
      rehearse: None, or a function that replaces `train` and takes its arguments; `lamjax.budget` times stages with it.
      signum: the number of the signal that asked to stop, or None.
    """

    def __init__(
        self,
        folder: Path,
        env: str,
        config: Any,
        header: Mapping[str, Any],
        source: str | None = None,
        track: Service | None = None,
    ):
        """Opens or creates the folder; use it as a context manager.

        Args:
          folder: its path.
          env: the environment's name.
          config: a frozen dataclass.
          header: entries of ``summary.json`` that describe the run as a whole.
          source: the name of the trajectories' source, which belongs to the configuration.
          track: a tracking service that also gets the metrics.

        Raises:
          RunError: if another process has the folder open, or if it belongs to another configuration, whose field it
            names.
        """
        self.env, self.config, self.devices = env, config, parallel.devices()
        self.signum: int | None = None
        self.rehearse: Callable[..., Any] | None = None
        self._stopped = False
        self._lock = threading.RLock()
        self._resources = contextlib.ExitStack()
        try:
            if jax.process_index():
                folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="lamjax-")))
            self.folder = folder
            summary = parallel.from_first(lambda: self._claim(source))
            self.summary: dict[str, Any] = {"stages": {}, "nulls": {}, **summary, **header}
            trackers = []
            if track and jax.process_index() == 0:
                trackers = [SERVICES[track](folder, f"{env}/{folder.name}", checkpoint.as_json(config) | {"env": env})]
            self.log = self._resources.enter_context(contextlib.closing(MetricLog(folder, trackers)))
        except BaseException:
            self._resources.close()
            raise

    def _claim(self, source: str | None) -> dict[str, Any]:
        """Locks the folder, compares its configuration, and returns its summary."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self._resources.enter_context((self.folder / ".lock").open("a"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{self.folder} is in use by another process: wait for it, or choose another --name."
            ) from None
        settings = {"env": self.env, **checkpoint.as_json(self.config)} | ({"source": source} if source else {})
        path = self.folder / "config.json"
        if not path.exists():
            write_json(path, settings)
        elif field := checkpoint.differing_field(settings, checkpoint.completed(self.config, _read_object(path))):
            raise another_configuration(self.folder, field)
        path = self.folder / "summary.json"
        summary = _read_object(path) if path.exists() else {}
        check_summary(path, summary)
        return summary

    def __enter__(self) -> "Run":
        """Handles SIGTERM and SIGINT from now on: loops save and end after the current step (in the main thread)."""
        self._resources.enter_context(handled_by(self._on_signal))
        return self

    def __exit__(self, *_: object) -> None:
        """Restores the signal handlers and closes everything."""
        self._resources.close()

    def _on_signal(self, signum: int, _: Any) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt(signum)  # the second signal does not wait for the step
        self.signum = signum

    def stop(self) -> None:
        """Stops stages in other threads, as a signal does."""
        self._stopped = True

    def stopping(self) -> bool:
        """Whether any host got a signal, or `stop` was called; all hosts must call this together."""
        return parallel.anywhere(self._stopped or self.signum is not None)

    def check_stop(self) -> None:
        """Raises `InterruptedRunError` if the run is `stopping`; call it when nothing needs saving."""
        if self.stopping():
            raise InterruptedRunError(self.signum or signal.SIGTERM)

    def done(self, stage: str) -> dict[str, Any] | None:
        """The results of a finished stage, or None."""
        return self.summary["stages"].get(stage)

    def finish(self, stage: str, results: Mapping[str, Any]) -> None:
        """Writes a stage's results, which marks it as done."""
        with self.changing() as summary:
            summary["stages"][stage] = dict(results)

    def key(self, purpose: str) -> jax.Array:
        """A typed PRNG key for a stage or another purpose, from the run's seed."""
        return stage_key(self.config.seed, purpose)

    def note(self, key: str, value: Any) -> None:
        """Writes one entry of the summary."""
        with self.changing() as summary:
            summary[key] = value

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """Yields the summary for changes and then writes it; other threads wait with their changes."""
        with self._lock:
            yield self.summary
            self.write_summary()

    def write_summary(self) -> None:
        """Writes ``summary.json``; numbers that are not finite become JSON's null."""
        with self._lock:
            write_json(self.folder / "summary.json", finite(self.summary))

    def checkpoints(self, stage: str) -> Path:
        """The folder of a stage's checkpoints."""
        return self.folder / "checkpoints" / stage


def stage_key(seed: int, purpose: str) -> jax.Array:
    """A typed PRNG key, different for each purpose."""
    tag = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "big") >> 1
    return jax.random.fold_in(jax.random.key(seed), tag)


def finite(value: Any) -> Any:
    """Converts a value for JSON: numbers that are not finite become None, and numpy's become Python's."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


@dataclasses.dataclass(frozen=True)
class Saver:
    """How a training state becomes a checkpoint and back.

    Attributes:
      config: the dataclass that belongs to the state; `restore` checks that it is the same.
      pack: state to ``(pytree of arrays, host arrays)``.
      unpack: ``(state as initialised, pytree, host arrays)`` to state.
    """

    config: Any
    pack: Callable[[Any], tuple[Any, dict[str, np.ndarray]]] = lambda state: (state, {})
    unpack: Callable[[Any, Any, dict[str, np.ndarray]], Any] = lambda state, tree, host: tree


def restore(run: Run, stage: str, state: Any, saver: Saver) -> tuple[int, Any, float]:
    """Restores a stage's newest checkpoint as ``(position, state, seconds trained)``; else the initial state."""
    template, _ = saver.pack(state)
    newest = checkpoint.restore(run.checkpoints(stage), template, config=saver.config)
    if newest is None:
        return 0, state, 0.0
    say(f"{stage}: restored the checkpoint of step {newest.step}", logging.DEBUG)
    return newest.step, saver.unpack(state, newest.tree, newest.host), float(newest.meta["seconds"])


def train(
    run: Run,
    stage: str,
    state: Any,
    advance: Callable[[Any, int, int], tuple[Any, dict[str, jax.Array]]],
    total: int,
    *,
    saver: Saver,
    unit: int = 1,
    unit_name: str = "step",
    log_every: int = 1,
    fuse: int = 1,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    eval_every: int = 0,
    show: tuple[str, ...] = (),
) -> tuple[Any, float]:
    """Advances a state to `total`, from its newest checkpoint if there is one.

    Args:
      run: the open run.
      stage: its name in metrics and checkpoints.
      state: the initial state.
      advance: ``(state, position, n) -> (state, metrics)``, n steps from `position` in one dispatch.
      total: the number of steps.
      saver: how to save the state.
      unit: how many units a step counts in rows of metrics (such as the environment frames of an update).
      unit_name: the unit's name.
      log_every: steps between rows.
      fuse: steps in a dispatch.
      evaluate: returns additional metrics of a state.
      eval_every: steps between evaluations.
      show: the metrics that the progress line shows.

    Returns:
      The state after `total` steps, and the seconds that steps took in all sessions, without the first dispatches.

    Raises:
      RunError: if a metric is not finite; the message says in which steps. The checkpoint before them stays.
      InterruptedRunError: after a signal.
    """
    if run.rehearse is not None:
        return run.rehearse(stage, state, advance, fuse=fuse, evaluate=evaluate)
    config = run.config
    position, state, seconds = restore(run, stage, state, saver)
    if position >= total:
        return state, seconds
    progress = Progress(stage, total * unit, position * unit, unit_name)
    pending: list[dict[str, jax.Array]] = []
    logged = saved = position
    saved_at = started = time.monotonic()
    warm = False
    try:
        while position < total:
            # Dispatches end at multiples of `fuse` after each row, wherever a run resumes, because a ring swaps blocks
            # there.
            n = min(fuse - position % log_every % fuse, total - position, log_every - position % log_every)
            state, metrics = advance(state, position, n)
            position += n
            pending.append(metrics)
            if not warm:  # compilation is not training time
                jax.block_until_ready(metrics)
                say(f"{stage}: compiled and ran the first steps in {time.monotonic() - started:.1f} s", logging.DEBUG)
                started, warm, saved_at = time.monotonic(), True, time.monotonic()
            elif len(pending) % config.max_in_flight == 0:
                jax.block_until_ready(metrics)
            # Several hosts agree only at rows, because `stopping` blocks until the slowest host is there.
            stop = (jax.process_count() == 1 or position % log_every == 0) and run.stopping()
            end = position == total or stop
            save = end or time.monotonic() - saved_at > config.checkpoint_every
            if save or position % log_every == 0:
                row = _reduce(pending)
                pending = []
                seconds += time.monotonic() - started
                if evaluate and (position % eval_every == 0 or position == total):
                    row |= evaluate(state)
                try:
                    run.log.write(stage, position * unit, row)
                except NonFiniteError as error:
                    # With this switch, the NaN of an event that did not happen would stop a healthy run.
                    switch = (
                        "" if set(OCCASIONAL) & metrics.keys() else ", or look at these steps with JAX_DEBUG_NANS=1"
                    )
                    raise RunError(
                        f"{stage}: {error} somewhere in steps {logged + 1} to {position}; the checkpoint of step "
                        f"{saved} is kept. Lower the learning rate{switch}."
                    ) from None
                logged = position
                progress.to(position * unit, ", ".join(f"{k} {row[k]:.3g}" for k in show if k in row))
                if save:
                    if jax.process_index() == 0:
                        tree, host = saver.pack(state)
                        arguments = {"config": saver.config, "host": host, "meta": {"seconds": seconds}}
                        checkpoint.save(run.checkpoints(stage), position, tree, **arguments)
                        say(f"{stage}: saved the checkpoint of step {position}", logging.DEBUG)
                    saved, saved_at = position, time.monotonic()
                started = time.monotonic()
                if stop:
                    raise InterruptedRunError(run.signum or signal.SIGTERM)
    finally:
        progress.close()
    return state, seconds


def _reduce(pending: list[dict[str, jax.Array]]) -> dict[str, float]:
    """Means over an interval; events that happened in none of its steps are left out."""
    rows = jax.device_get(pending)
    means = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows], np.float64)
        if name in OCCASIONAL:
            values = values[np.isfinite(values)]
        if len(values):
            means[name] = float(values.mean())
    return means


@contextlib.contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Yields a function that returns the seconds since the block began."""
    started = time.monotonic()
    yield lambda: time.monotonic() - started
