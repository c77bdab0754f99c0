"""A second lane: stages that no other stage waits for yet train beside the others, in a thread of the same process.

XLA's threads divide only large operations, so one stage alone leaves much of a CPU's second core idle. Each stage draws
from a key of its own, so lanes change no result, only the times of stages.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from lamjax.training.run_folder import InterruptedRunError, Run

Begin = Callable[..., Callable[[], Any]]


def gains_by_lanes(run: Run) -> bool:
    """Whether stages should train beside each other: on a single CPU device with two cores or more.

    An accelerator is busy with one stage. Stages on several devices would wait for each other's collectives.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return jax.default_backend() == "cpu" and len(run.devices) == 1 and jax.process_count() == 1 and cores > 1


@contextlib.contextmanager
def side_lane(run: Run, beside: bool) -> Iterator[Begin]:
    """Yields ``begin(stage, *args) -> result``; ``result()`` waits for ``stage(*args)`` and returns what it returns.

    With `beside`, a second thread runs the stages from ``begin`` on, one after another. ``result()`` itself runs a
    stage that has not begun by then: without `beside` every stage, with it one that still waits for others. Call it
    once for each stage.

    A signal or an error stops both lanes: each saves its state. The error that came first leaves the block.
    """
    if not beside:
        yield functools.partial
        return
    begun: list[Future[Any]] = []

    def run_stage(stage: Callable[..., Any], *args: Any) -> Any:
        run.check_stop()
        try:
            return stage(*args)
        except BaseException:
            run.stop()
            raise

    with ThreadPoolExecutor(1, "lamjax-side-lane") as thread:

        def begin(stage: Callable[..., Any], *args: Any) -> Callable[[], Any]:
            future = thread.submit(run_stage, stage, *args)
            begun.append(future)

            def result() -> Any:
                return run_stage(stage, *args) if future.cancel() else future.result()

            return result

        try:
            yield begin
        except BaseException as error:
            run.stop()
            failures = [stage.exception() for stage in begun if not stage.cancelled()]  # waits for them
            first = next((each for each in failures if each and not isinstance(each, InterruptedRunError)), None)
            if first and isinstance(error, InterruptedRunError):
                raise first from None  # it stopped this lane
            raise
