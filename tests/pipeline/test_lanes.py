"""Two lanes: stages beside others, and what stops both of them."""

import dataclasses
import os
import signal
import threading

import jax
import jax.numpy as jnp
import pytest

from lamjax.pipeline.lanes import side_lane
from lamjax.training import checkpoint
from lamjax.training.run_folder import InterruptedRunError, Run, RunError, Saver, train

STEPS, SOON = 20, 60.0  # seconds until a test that waits for another thread gives up


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    checkpoint_every: float = 1e9
    max_in_flight: int = 3


def open_run(folder):
    return Run(folder, "toy", Config(), {})


@pytest.fixture
def run(tmp_path):
    with open_run(tmp_path / "run") as opened:
        yield opened


@jax.jit
def draw(state, position):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), position), (3,))
    return 0.9 * state + noise, {"loss": noise.mean()}


def toy_stage(run, name, before_step=lambda position: None):
    """Trains a state that depends on all of its steps."""

    def advance(state, position, n):
        before_step(position)
        return draw(state, position)

    return train(run, name, jnp.zeros(3), advance, STEPS, saver=Saver(Config()), log_every=5)[0]


def saved_step(run, name):
    return checkpoint.restore_arrays(run.checkpoints(name))[0]


def test_in_sequence_a_stage_runs_when_it_is_waited_for(run):
    with side_lane(run, False) as begin:
        thread = begin(threading.current_thread)
        order = []
        other = begin(order.append, "side")
        order.append("main")
        assert thread() is threading.main_thread()
        other()
    assert order == ["main", "side"]


def test_beside_the_others_a_stage_runs_at_once_and_one_after_another(run):
    order, all_done = [], threading.Event()
    with side_lane(run, True) as begin:
        first = begin(lambda name: (order.append(name), threading.current_thread())[-1], "first")
        second = begin(order.append, "second")
        begin(all_done.set)
        assert all_done.wait(SOON)
        assert order == ["first", "second"]
        assert first() is not threading.main_thread() and second() is None
    assert order == ["first", "second"]


def test_a_stage_that_still_waits_for_others_runs_where_it_is_needed(run):
    began, may_end, threads = threading.Event(), threading.Event(), {}

    def stage(name):
        threads[name] = threading.current_thread()
        return name

    with side_lane(run, True) as begin:
        first = begin(lambda: (began.set(), may_end.wait(SOON), stage("first"))[-1])
        second, third = begin(stage, "second"), begin(stage, "third")
        assert began.wait(SOON)
        assert second() == "second" and threads == {"second": threading.main_thread()}
        may_end.set()
        assert first() == "first" and third() == "third"
    assert threads["first"] is not threading.main_thread() and len(threads) == 3


def test_an_error_beside_ends_the_run_also_if_a_stage_has_moved_to_the_main_lane(run):
    began, may_end = threading.Event(), threading.Event()

    def fail():
        began.set()
        assert may_end.wait(SOON)
        raise RunError("the side lane failed.")

    with pytest.raises(RunError, match=r"^the side lane failed\.$"), side_lane(run, True) as begin:
        begin(fail)
        moved = begin(may_end.set)
        assert began.wait(SOON)
        moved()
        toy_stage(run, "main", lambda position: [None for _ in iter(run.stopping, True)])


def test_an_error_beside_ends_the_run_which_resumes(tmp_path):
    started = threading.Event()

    def fail():
        assert started.wait(SOON)
        raise RunError("the side lane failed.")

    with (
        pytest.raises(RunError, match=r"^the side lane failed\.$"),
        open_run(tmp_path / "run") as run,
        side_lane(run, True) as begin,
    ):

        def until_stopped(position):
            if position == 7:
                started.set()
                while not run.stopping():
                    pass

        begin(fail)
        begin(toy_stage, run, "later")
        toy_stage(run, "main", until_stopped)
    with open_run(tmp_path / "run") as run, open_run(tmp_path / "whole") as whole:
        assert saved_step(run, "main") == 8 and not run.checkpoints("later").exists()
        assert toy_stage(run, "main").tolist() == toy_stage(whole, "main").tolist()


@pytest.mark.parametrize("where", ["main", "side"])
def test_a_signal_saves_both_lanes(run, where):
    both = threading.Barrier(2)

    def at(name, position):
        if position == 7:
            both.wait(SOON)
            if name == where:
                os.kill(os.getpid(), signal.SIGTERM)
            while not run.stopping():
                pass

    with pytest.raises(InterruptedRunError) as stopped, side_lane(run, True) as begin:
        side = begin(toy_stage, run, "side", lambda position: at("side", position))
        toy_stage(run, "main", lambda position: at("main", position))
        side()
    assert stopped.value.signum == signal.SIGTERM
    assert [saved_step(run, name) for name in ("main", "side")] == [8, 8]


def test_an_error_in_the_main_lane_stops_the_other_which_saves(run):
    began = threading.Event()

    def until_stopped(position):
        if position == 3:
            began.set()
            while not run.stopping():
                pass

    with pytest.raises(RunError, match="the main lane failed"), side_lane(run, True) as begin:
        begin(toy_stage, run, "side", until_stopped)
        assert began.wait(SOON)
        raise RunError("the main lane failed.")
    assert saved_step(run, "side") == 4


def test_lanes_write_the_same_summary_and_log(run):
    def write(lane):
        for number in range(100):
            run.log.write(lane, number, {"loss": 1.0})
            run.note(f"{lane}-{number}", number)

    with side_lane(run, True) as begin:
        side = begin(write, "side")
        write("main")
        side()
    assert {f"{lane}-{n}" for lane in ("main", "side") for n in range(100)} <= run.summary.keys()
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 200
