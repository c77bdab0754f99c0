"""The user's process: whatever ends a command, the user reads a sentence, and results are printed on any terminal."""

import errno
import io
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from lamjax import cli
from lamjax.cli.play import Experts
from lamjax.training import checkpoint
from lamjax.training.disk import require_space
from lamjax.training.logging import MetricLog


def ends(monkeypatch, error):
    """The exit code of a command that ends so."""

    def run(_):
        raise error

    monkeypatch.setitem(cli.VERBS, "experts", (Experts, run))
    return cli.main(["experts"])


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left", "runs/x"),
            2,
            "The disk is full: free some space for runs/x, and start",
        ),
        (OSError(errno.EDQUOT, "Quota", "runs/x"), 2, "The disk is full: free some space for runs/x"),
        (OSError(errno.EACCES, "Permission denied", "runs/x"), 2, "Permission denied: runs/x"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"), 2, "The device has too little memory (RESOURCE_EX"),
        (KeyboardInterrupt(), 130, "stopped at once; the same command continues from the last checkpoint"),
        (KeyboardInterrupt(15), 143, "stopped at once"),
    ],
)
def test_a_sentence_and_an_exit_code(monkeypatch, capsys, error, code, sentence):
    assert ends(monkeypatch, error) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"lamjax: {sentence}")


def test_faults_are_no_mistakes_of_the_user(monkeypatch):
    for error in (RuntimeError("broken"), KeyError("x")):
        with pytest.raises(type(error)):
            ends(monkeypatch, error)


def test_a_platform_that_is_not_there_is_named():
    command = [sys.executable, "-m", "lamjax", "eval", "--env", "cartpole", "--checkpoint", "random"]
    ended = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "abacus"}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("lamjax: JAX finds no device of JAX_PLATFORMS=abacus")
    assert "unset it" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_results_are_printed_on_every_terminal(monkeypatch, encoding):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setitem(cli.VERBS, "experts", (Experts, lambda _: print("return 1.0 ± 0.5 in données → 漢字")))
    assert cli.main(["experts"]) == 0
    terminal.flush()
    assert terminal.buffer.getvalue().decode(encoding).startswith("return 1.0 ")


def test_a_reader_that_has_left_ends_a_command_without_a_word(monkeypatch, capfd):
    """``lamjax experts | head -1``: not a mistake of the user, and no complaint at Python's end."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setitem(cli.VERBS, "experts", (Experts, lambda _: print("the first line")))
        assert cli.main(["experts"]) == 128 + 13
        pipe.flush()  # as Python does at its end
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_process_without_a_stream_runs(monkeypatch, stream):
    monkeypatch.setattr(sys, stream, None)
    monkeypatch.setitem(cli.VERBS, "experts", (Experts, lambda _: print("the result")))
    assert cli.main(["experts"]) == 0
    getattr(sys, stream).close()


# Full disks


def test_a_full_disk_is_noticed_before_libraries_write(monkeypatch, tmp_path):
    log = MetricLog(tmp_path)
    require_space(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20 + 3))
    require_space(tmp_path, 3)
    for write in (
        lambda: require_space(tmp_path, 4),
        lambda: checkpoint.save(tmp_path / "stage", 1, {"x": jax.numpy.ones(1)}, config={}),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as error:
            write()
        assert error.value.errno == errno.ENOSPC and str(tmp_path) in error.value.filename
    assert checkpoint.restore_arrays(tmp_path / "stage") is None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        log.write("stage", 1, {"loss": 1.0})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""
