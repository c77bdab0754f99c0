"""Run folders, and the training loop: whatever stops it, the same call goes on to the same result."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from lamjax.training import checkpoint, run_folder
from lamjax.training.logging import read_metrics
from lamjax.training.run_folder import InterruptedRunError, Run, RunError, Saver, train

ONE_SENTENCE = r"^[^\n]+[^.]\.$"
NEVER = 1e9  # seconds between checkpoints


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    inner: Inner = Inner()
    checkpoint_every: float = NEVER
    max_in_flight: int = 3


def open_run(folder, config=None, env="toy", **header):
    return Run(folder, env, config or Config(), {"seed": 0, **header})


# A toy stage: its state depends on every step, in order, and on nothing else.


@struct.dataclass
class State:
    x: jax.Array
    key: jax.Array
    step: jax.Array


def make_state():
    return State(jnp.zeros(3), jax.random.key(0), jnp.int32(0))


@jax.jit
def step(state, _):
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (3,))
    x = 0.9 * state.x + noise
    new = state.replace(x=x, step=state.step + 1)
    return new, {"loss": jnp.square(x).mean(), "index": state.step, "episode_return": jnp.float32(jnp.nan)}


class Toy:
    """An `advance` that remembers its calls and may do something at a position."""

    def __init__(self, at=None, action=lambda: None, nan=()):
        self.at, self.action, self.nan, self.calls = at, action, nan, []

    def __call__(self, state, position, n):
        self.calls.append((position, n))
        if position == self.at:
            self.action()
        rows = []
        for offset in range(n):
            assert int(state.step) == position + offset
            state, metrics = step(state, None)
            metrics = dict(metrics)
            if position + offset in self.nan:
                metrics["loss"] = jnp.float32(jnp.nan)
            rows.append(metrics)
        return state, jax.tree.map(lambda *xs: jnp.stack(xs).mean(), *rows)


def train_toy(folder, total=20, advance=None, config=None, **kwargs):
    with open_run(folder, config) as opened:
        kwargs = {"saver": Saver(Inner()), "log_every": 5} | kwargs
        return train(opened, "toy", make_state(), advance or Toy(), total, **kwargs)


def bits(state):
    return {name: array.tobytes() for name, array in checkpoint.flatten(state).items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    state, _ = train_toy(tmp_path_factory.mktemp("whole") / "run")
    return bits(state)


def rows_of(folder):
    return read_metrics(folder / "metrics.jsonl")["toy"]


def steps_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints" / "toy").iterdir())


# The folder


def test_a_new_folder_says_what_it_is(tmp_path):
    folder = tmp_path / "runs" / "toy" / "a"
    with open_run(folder, command="lamjax train") as opened:
        opened.finish("dynamics", {"mse": np.float32(0.5), "curve": [(1, float("nan"))], "codes": np.int64(3)})
        opened.note("total_seconds", 3.5)
        assert opened.done("dynamics")["mse"] == 0.5 and opened.done("cloning") is None
    assert json.loads((folder / "config.json").read_text()) == {
        "env": "toy",
        "seed": 0,
        "inner": {"rate": 0.1},
        "checkpoint_every": NEVER,
        "max_in_flight": 3,
    }
    text = (folder / "summary.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        "seed": 0,
        "command": "lamjax train",
        "stages": {"dynamics": {"mse": 0.5, "curve": [[1, None]], "codes": 3}},
        "nulls": {},
        "total_seconds": 3.5,
    }
    assert (folder / "metrics.jsonl").exists() and list((folder / "tensorboard").glob("events.out.tfevents.*"))


def test_a_second_start_goes_on(tmp_path):
    with open_run(tmp_path / "a", command="first") as opened:
        opened.finish("dynamics", {"mse": 0.5})
    with open_run(tmp_path / "a", command="second") as opened:
        assert opened.done("dynamics") == {"mse": 0.5}
        assert opened.summary["command"] == "second"


@pytest.mark.parametrize(
    ("config", "env", "field"),
    [
        (Config(inner=Inner(rate=0.2)), "toy", "inner.rate is 0.1 there and 0.2 here"),
        (Config(seed=3), "toy", "seed is 0 there and 3 here"),
        (Config(), "other", "env is 'toy' there and 'other' here"),
    ],
)
def test_another_configuration_names_the_field(tmp_path, config, env, field):
    with open_run(tmp_path / "a"):
        pass
    with pytest.raises(RunError, match=field) as caught:
        open_run(tmp_path / "a", config, env)
    assert str(tmp_path / "a") in str(caught.value) and "--name" in str(caught.value)
    with open_run(tmp_path / "a"):  # the refusal neither changed nor locked the folder
        pass


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", r"config\.json is damaged \(it holds no object\): delete the run folder, or"),
        ("summary.json", "[3]", r"summary\.json is damaged \(it holds no object\)"),
        ("summary.json", '{"stages": 3}', r"summary\.json is not of a run: stages must hold an object for each name"),
        ("summary.json", '{"nulls": {"random_return": 1.5}}', r"summary\.json is not of a run: nulls must hold"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, name, content, message):
    with open_run(tmp_path / "run"):
        pass
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(RunError, match=message):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_an_error_says_which_file_is_damaged(tmp_path, name):
    with open_run(tmp_path / "a") as opened:
        opened.write_summary()
    path = tmp_path / "a" / name
    path.write_text(path.read_text()[:-5])
    with pytest.raises(RunError, match=re.escape(str(path))) as caught:
        open_run(tmp_path / "a")
    assert re.match(ONE_SENTENCE, str(caught.value))


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "value.json"
    run_folder.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        run_folder.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


HOLDER = """
import dataclasses, sys
from pathlib import Path
from lamjax.training.run_folder import Run

@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0

with Run(Path(sys.argv[1]), "toy", Config(), {}) as run:
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_until_its_process_is_gone(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Config:
        seed: int = 0

    folder = tmp_path / "a"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], **pipes) as holder:
        try:
            assert holder.stdout.readline() == "open\n"
            with pytest.raises(RunError, match=rf"^{re.escape(str(folder))} is in use by another process") as caught:
                Run(folder, "toy", Config(), {})
            assert re.match(ONE_SENTENCE, str(caught.value))
            assert not (folder / "summary.json").exists()
        finally:
            holder.kill()  # the lock goes with the process, however it ends
    with Run(folder, "toy", Config(), {}):
        pass


def test_a_folder_is_in_use_within_one_process_too(tmp_path):
    with open_run(tmp_path / "a"), pytest.raises(RunError, match="in use"):
        open_run(tmp_path / "a")
    with open_run(tmp_path / "a"):
        pass


# The loop


def test_rows_checkpoints_and_dispatches(tmp_path):
    advance = Toy()
    state, seconds = train_toy(tmp_path / "run", 23, advance, fuse=3, log_every=5, unit=64)
    assert int(state.step) == 23 and seconds > 0
    # No dispatch crosses a row of metrics.
    assert advance.calls[:5] == [(0, 3), (3, 2), (5, 3), (8, 2), (10, 3)] and advance.calls[-1] == (20, 3)
    rows = rows_of(tmp_path / "run")
    assert list(rows) == [5 * 64, 10 * 64, 15 * 64, 20 * 64, 23 * 64]
    # Equal weight to each dispatch, not to each step: (mean(0, 1, 2) + mean(3, 4)) / 2.
    assert rows[5 * 64]["index"] == pytest.approx((1 + 3.5) / 2)
    assert "episode_return" not in rows[5 * 64]  # no episode ended
    assert steps_in(tmp_path / "run") == [23]


def test_dispatches_end_where_they_would_have_ended(tmp_path):
    """Wherever another number of fused steps left off: the blocks of a ring change between these dispatches alone."""
    train_toy(tmp_path / "run", 3, log_every=10)
    advance = Toy()
    train_toy(tmp_path / "run", 14, advance, fuse=4, log_every=10)
    assert advance.calls == [(3, 1), (4, 4), (8, 2), (10, 4)]


def test_evaluations_stand_in_the_rows(tmp_path):
    steps = []

    def evaluate(state):
        steps.append(int(state.step))
        return {"test_loss": float(state.step)}

    train_toy(tmp_path / "run", 18, evaluate=evaluate, eval_every=10)
    assert steps == [10, 18]
    rows = rows_of(tmp_path / "run")
    assert {position: row.get("test_loss") for position, row in rows.items()} == {5: None, 10: 10.0, 15: None, 18: 18.0}


def test_a_finished_stage_is_not_run_again(tmp_path, uninterrupted):
    train_toy(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    advance = Toy()
    state, seconds = train_toy(tmp_path / "run", advance=advance)
    assert advance.calls == [] and bits(state) == uninterrupted and seconds > 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("position", [0, 7, 9, 19])
def test_a_signal_saves_and_the_same_call_goes_on(tmp_path, uninterrupted, position, signum):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    advance = Toy(position, lambda: os.kill(os.getpid(), signum))
    with pytest.raises(InterruptedRunError, match="everything is saved") as caught:
        train_toy(tmp_path / "run", advance=advance)
    assert caught.value.signum == signum and signum.name in str(caught.value)
    assert advance.calls[-1][0] == position  # not a step more
    assert steps_in(tmp_path / "run") == [position + 1]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    advance = Toy()
    state, _ = train_toy(tmp_path / "run", advance=advance)
    assert bits(state) == uninterrupted
    assert [start for start, _ in advance.calls] == list(range(position + 1, 20))


def test_a_second_signal_does_not_wait(tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "run", advance=Toy(4, twice))
    with open_run(tmp_path / "run"):  # closed and unlocked all the same
        pass


def test_a_signal_between_stages_stops_at_the_next_check(tmp_path):
    with open_run(tmp_path / "run") as opened:
        opened.check_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(InterruptedRunError):
            opened.check_stop()


def test_killed_after_any_checkpoint_the_result_is_the_same(tmp_path, uninterrupted):
    """Every crash happens after the rows of a few more steps than the last checkpoint has."""

    class Crash(Exception):
        pass

    def crash():
        raise Crash

    for position in (3, 11, 12, 18):
        config = Config(checkpoint_every=0.0 if position != 12 else NEVER)
        with contextlib.suppress(Crash), open_run(tmp_path / "run", Config()) as opened:
            opened.config = config
            train(opened, "toy", make_state(), Toy(position, crash), 20, saver=Saver(Inner()), log_every=5)
            pytest.fail("it did not crash")
        assert steps_in(tmp_path / "run")[-1] == {3: 3, 11: 11, 12: 11, 18: 18}[position]
    state, _ = train_toy(tmp_path / "run")
    assert bits(state) == uninterrupted
    assert list(rows_of(tmp_path / "run"))[-1] == 20


def test_a_damaged_checkpoint_costs_steps_but_not_the_result(tmp_path, uninterrupted):
    with pytest.raises(InterruptedRunError):
        train_toy(tmp_path / "run", advance=Toy(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(InterruptedRunError):
        train_toy(tmp_path / "run", advance=Toy(9, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert steps_in(tmp_path / "run") == [5, 10]
    (tmp_path / "run" / "checkpoints" / "toy" / "10" / "note" / "metadata").write_text("{")
    # Stopped again before the damaged step: what was done since must not be lost.
    with pytest.raises(InterruptedRunError):
        train_toy(tmp_path / "run", advance=Toy(7, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    advance = Toy()
    state, _ = train_toy(tmp_path / "run", advance=advance)
    assert advance.calls[0] == (8, 1)
    assert bits(state) == uninterrupted


def test_nan_stops_with_the_steps_and_keeps_the_checkpoint_before(tmp_path, uninterrupted):
    train_toy(tmp_path / "run", 5)
    with pytest.raises(RunError) as caught:
        train_toy(tmp_path / "run", 20, Toy(nan=(12,)))
    message = str(caught.value)
    assert message.startswith("toy: loss is not finite somewhere in steps 11 to 15; the checkpoint of step 5 is kept.")
    # Every sink holds the row that stopped it.
    assert rows_of(tmp_path / "run")[15]["loss"] is None
    assert rows_of(tmp_path / "run")[10]["loss"] > 0
    events = b"".join(path.read_bytes() for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert events.count(b"toy/loss") >= 2
    assert steps_in(tmp_path / "run") == [5]
    with open_run(tmp_path / "run") as opened:
        position, state, _ = run_folder.restore(opened, "toy", make_state(), Saver(Inner()))
    assert position == 5 and np.isfinite(np.asarray(state.x)).all()
    state, _ = train_toy(tmp_path / "run")  # the cause is mended
    assert bits(state) == uninterrupted


def test_nan_in_the_last_row_is_not_saved_either(tmp_path):
    with pytest.raises(RunError, match="steps 16 to 20"):
        train_toy(tmp_path / "run", 20, Toy(nan=(19,)), config=Config(checkpoint_every=NEVER))
    assert not (tmp_path / "run" / "checkpoints" / "toy").exists()


def test_nan_in_an_evaluation_stops_too(tmp_path):
    with pytest.raises(RunError, match="test_loss is not finite"):
        train_toy(tmp_path / "run", evaluate=lambda state: {"test_loss": float("inf")}, eval_every=5)


def test_another_stage_configuration_is_refused(tmp_path):
    train_toy(tmp_path / "run", 5)
    with pytest.raises(checkpoint.CheckpointError, match=r"rate is 0\.1 there and 0\.2 here"):
        train_toy(tmp_path / "run", 20, saver=Saver(Inner(rate=0.2)))


def test_a_saver_packs_what_is_not_an_array(tmp_path):
    """A state with a handle that means nothing in another process, as native environments have."""
    handles = []

    def pack(state):
        return {"x": state["x"]}, {"native": np.full(3, state["handle"], np.uint8)}

    def unpack(fresh, tree, host):
        handles.append(fresh["handle"])
        return {"x": tree["x"], "handle": int(host["native"][0])}

    def advance(state, position, n):
        return {"x": state["x"] + 1, "handle": state["handle"] + 1}, {"loss": state["x"]}

    saver = Saver(Inner(), pack, unpack)
    for total, want in ((4, 11), (9, 16)):
        with open_run(tmp_path / "run") as opened:
            state, _ = train(
                opened, "toy", {"x": jnp.zeros(()), "handle": 7}, advance, total, saver=saver, log_every=100
            )
        assert (float(state["x"]), state["handle"]) == (total, want)
    assert handles == [7]


def test_flight_is_bounded(tmp_path, monkeypatch):
    """At most `max_in_flight` dispatches are un-awaited, however rare the rows are."""
    waits = []
    monkeypatch.setattr(run_folder.jax, "block_until_ready", lambda tree: waits.append(True))
    counts = []

    def advance(state, position, n):
        counts.append(len(waits))
        return state, {"loss": jnp.zeros(())}

    train_toy(tmp_path / "run", 40, advance, log_every=1000, config=Config(max_in_flight=4))
    gaps = np.flatnonzero(np.diff(counts)) + 1
    assert len(waits) >= 9 and np.diff(gaps).max() <= 4


def test_a_run_works_in_any_thread(tmp_path):
    def in_thread():
        with open_run(tmp_path / "run") as opened:
            return opened.folder

    before = signal.getsignal(signal.SIGINT)
    with futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_thread).result() == tmp_path / "run"
    assert signal.getsignal(signal.SIGINT) is before
    with open_run(tmp_path / "run"):  # its lock is free
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
