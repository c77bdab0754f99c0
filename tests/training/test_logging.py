"""Rows of metrics in JSON lines and TensorBoard events, and what the terminal shows."""

import errno
import io
import json
import struct

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from lamjax.training import logging
from lamjax.training.logging import MetricLog, NonFiniteError, Progress, read_metrics


def read_events(folder):
    """The scalars of the TensorBoard event files in a folder as {tag: [(step, value)]}; checks every checksum."""
    scalars = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
            body = data[12 : 12 + size]
            assert struct.unpack("<I", data[12 + size : 16 + size])[0] == masked_crc32c(body)
            event = event_pb2.Event.FromString(body)
            for value in event.summary.value:
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
            data = data[16 + size :]
    return scalars


@pytest.fixture
def log(tmp_path):
    log = MetricLog(tmp_path)
    yield log
    log.close()


def test_rows_go_to_both_sinks(log, tmp_path):
    log.write("dynamics", 5, {"loss": 0.5, "grad_norm": 2})
    log.write("dynamics", 10, {"loss": 0.25, "grad_norm": 1})
    log.write("cloning", 5, {"loss": 3.0})
    # Nothing is closed yet: a reader beside the run sees each row as it is written.
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert list(rows) == ["dynamics", "cloning"]
    assert [(step, row["loss"], row["grad_norm"]) for step, row in rows["dynamics"].items()] == [
        (5, 0.5, 2.0),
        (10, 0.25, 1.0),
    ]
    assert rows["cloning"][5]["loss"] == 3.0
    assert all(row["time"] > 1.7e9 for row in rows["dynamics"].values())
    log.close()
    assert read_events(tmp_path / "tensorboard") == {
        "dynamics/loss": [(5, 0.5), (10, 0.25)],
        "dynamics/grad_norm": [(5, 2.0), (10, 1.0)],
        "cloning/loss": [(5, 3.0)],
    }


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_written_and_then_raised(log, tmp_path, bad):
    with pytest.raises(NonFiniteError, match=r"^loss is not finite$"):
        log.write("dynamics", 5, {"grad_norm": 1.0, "loss": bad})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (row["loss"], row["grad_norm"]) == (None, 1.0)
    log.close()
    ((step, value),) = read_events(tmp_path / "tensorboard")["dynamics/loss"]
    assert step == 5 and (value == bad or value != value)


def test_the_last_row_of_a_step_counts(log, tmp_path):
    for step, loss in ((5, 1.0), (10, 2.0), (15, 3.0), (10, 4.0), (15, 5.0), (7, 6.0)):
        log.write("dynamics", step, {"loss": loss})
    rows = read_metrics(tmp_path / "metrics.jsonl")["dynamics"]
    assert [(step, row["loss"]) for step, row in rows.items()] == [(5, 1.0), (7, 6.0), (10, 4.0), (15, 5.0)]


def test_a_cut_last_line_is_skipped_and_the_next_row_is_not_lost(tmp_path):
    log = MetricLog(tmp_path)
    log.write("dynamics", 5, {"loss": 1.0})
    log.write("dynamics", 10, {"loss": 2.0})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # killed while writing
    assert list(read_metrics(path)["dynamics"]) == [5]
    log = MetricLog(tmp_path)
    log.write("dynamics", 10, {"loss": 3.0})
    log.close()
    assert {step: row["loss"] for step, row in read_metrics(path)["dynamics"].items()} == {5: 1.0, 10: 3.0}


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == {}


# Progress


@pytest.fixture
def lines(monkeypatch, capsys):
    """Lets every call of `to` write a line; returns a function that reads the lines on stderr."""
    monkeypatch.setattr(logging, "LINE_SECONDS", 0.0)

    def read():
        out, err = capsys.readouterr()
        assert out == ""  # stdout is for results
        return err.splitlines()

    return read


def test_lines_where_the_output_is_not_a_terminal(lines):
    progress = Progress("dynamics", 200, 50)
    progress.to(100, "loss 0.5")
    progress.to(150)
    progress.close()
    first, second, last = lines()
    assert first.startswith("dynamics: 100/200 steps (50 %), ") and first.endswith(" steps/s, loss 0.5")
    assert second.startswith("dynamics: 150/200 steps (75 %), ") and second.endswith(", loss 0.5")
    assert last.startswith("dynamics: 150/200 steps")


def test_lines_are_rare(monkeypatch, lines):
    monkeypatch.setattr(logging, "LINE_SECONDS", 1e9)
    progress = Progress("recording", 100, unit="frame")
    for frames in range(100):
        progress.to(frames)
    assert lines() == []
    progress.to(100)
    progress.close()
    (line,) = lines()
    assert line.startswith("recording: 100/100 frames (100 %)")


def test_the_rate_counts_what_this_session_did(monkeypatch, lines):
    now = [100.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: now[0])
    progress = Progress("dynamics", 1000, 900)
    now[0] = 110.0
    progress.to(950)
    assert "950/1000 steps (95 %), 5 steps/s" in lines()[0]
    progress.close()


def test_work_without_progress_writes_no_line(lines):
    Progress("recording", 100).close()
    assert lines() == []


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    progress = Progress("dynamics", 10)
    progress.to(10, "loss 0.5")
    progress.close()
    text = terminal.getvalue()
    assert "\r" in text and "10/10" in text and "loss 0.5" in text
    assert "steps/s" not in text  # the line of other outputs


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_that_was_closed_does_not_end_the_work(monkeypatch, is_terminal):
    class Closed(io.StringIO):
        def isatty(self):
            return is_terminal

        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(logging, "LINE_SECONDS", 0.0)
    progress = Progress("dynamics", 10)
    monkeypatch.setattr("sys.stderr", Closed())
    progress.to(5, "loss 0.5")
    progress.close()
    progress = Progress("dynamics", 10)
    progress.to(10)
    progress.close()


@pytest.mark.parametrize("name", ["stage", "step", "time"])
def test_a_metric_may_not_hide_a_field_of_its_row(tmp_path, name):
    log = MetricLog(tmp_path)
    with pytest.raises(ValueError, match=f"may not be called '{name}'"):
        log.write("dynamics", 1, {"loss": 1.0, name: 2.0})
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == {}


# Verbosity


@pytest.fixture
def level():
    """Sets the level of the logger ``lamjax`` for one test."""
    before = logging.LOGGER.level
    yield logging.LOGGER.setLevel
    logging.LOGGER.setLevel(before)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DEBUG", ["a detail", "a notice", "a warning"]),
        ("NOTSET", ["a notice", "a warning"]),
        ("WARNING", ["a warning"]),
        ("ERROR", []),
    ],
)
def test_the_logger_decides_which_notices_are_printed(level, lines, name, expected):
    level(name)
    logging.say("a detail", 10)
    logging.say("a notice")
    logging.say("a warning", 30)
    assert lines() == expected


def test_quiet_progress_writes_nothing(level, lines):
    level("WARNING")
    progress = Progress("dynamics", 10)
    progress.to(5, "loss 0.5")
    progress.close()
    assert lines() == []
