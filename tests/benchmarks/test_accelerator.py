import gzip
import json
import os
import sys
import tarfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.accelerator import gradients, packing, plan, runner, steps, trace
from benchmarks.accelerator.__main__ import Options, Session
from benchmarks.settings import Settings


def test_a_step_gets_its_limit_or_what_is_left_or_nothing():
    step = plan.Step("stages", limit_s=150, least_s=20)
    assert plan.time_box(step, 400) == 150
    assert plan.time_box(step, 90) == 90
    assert plan.time_box(step, 19) is None


def test_every_step_has_a_function():
    names = {step.name for step in (*plan.STEPS, *plan.DRY_STEPS)}
    assert all(callable(getattr(steps, name)) for name in names)


def _run(code, tmp_path, seconds=20.0, grace=0.5):
    step = plan.Step("stages", 60, grace_s=grace)
    return runner.run_step([sys.executable, "-c", code], step, seconds, os.environ, tmp_path / "log", lambda: None)


def test_a_step_that_ends_well_has_no_reason(tmp_path):
    assert _run("print('done')", tmp_path) is None
    assert "done" in (tmp_path / "log").read_text()


def test_a_step_that_fails_gives_the_last_line_of_its_error(tmp_path):
    (tmp_path / "log").write_text("what the step before said\n")
    assert _run("raise ValueError('no such device')", tmp_path) == "ValueError: no such device"
    assert _run("import os; os._exit(3)", tmp_path) == "ended with exit code 3"


def test_a_step_over_its_time_is_killed_with_what_it_started(tmp_path):
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    assert _run(code, tmp_path, seconds=2.0) == "timed out after 2 s"
    child = int((tmp_path / "pid").read_text())
    # A killed process ends when it is scheduled next, which a busy machine delays.
    assert any(_has_ended(child) or time.sleep(0.05) for _ in range(600))


def _has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"  # a zombie waits for whoever adopted it
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_step_that_saves_when_it_is_asked_to_end_has_not_failed(tmp_path):
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(600)"
    assert _run(code, tmp_path, seconds=6.0, grace=4.0) is None


def test_half_a_line_is_not_read(tmp_path):
    path = tmp_path / "results.jsonl"
    read = runner.Reader(path)
    assert read() == []
    path.write_text('{"row": {"name": "stage1"}}\n{"device": {"ki')
    assert read() == [{"row": {"name": "stage1"}}]
    assert read() == []
    with path.open("a") as file:
        file.write('nd": "x"}}\n')
    assert read() == [{"device": {"kind": "x"}}]


def test_what_steps_tell_is_merged():
    result = {"rows": [1]}
    runner.merge(result, {"row": 2})
    runner.merge(result, {"gradients": {"stage1": 1}})
    runner.merge(result, {"gradients": {"stage1": 1, "stage2": 2}})
    assert result == {"rows": [1, 2], "gradients": {"stage1": 1, "stage2": 2}}


@pytest.mark.parametrize(
    ("given", "dry", "nvidia", "platforms"),
    [
        ({}, False, True, "cuda,cpu"),
        ({}, False, False, None),  # JAX then takes what there is, the CPU with it
        ({}, True, True, "cpu"),
        ({"JAX_PLATFORMS": "tpu"}, False, False, "tpu,cpu"),
        ({"JAX_PLATFORMS": "cuda,cpu"}, False, True, "cuda,cpu"),
    ],
)
def test_the_cpu_is_always_among_the_platforms(tmp_path, given, dry, nvidia, platforms):
    env = runner.environment(given, dry, nvidia, tmp_path)
    assert env.get("JAX_PLATFORMS") == platforms
    assert env["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)
    assert ("xla_backend_optimization_level" in env.get("XLA_FLAGS", "")) == dry


def test_the_result_is_on_disk_after_each_step(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    session = Session(Options(minutes=9, out=out, cache=tmp_path / "cache"), tmp_path)

    def crashes(command, step, seconds, env, log, poll):
        job = json.loads(command[-1])
        steps.Job(**job).tell(row={"name": "stage1", "size": "paper", "batch": 1, "dtype": None, "error": "too large"})
        poll()
        return "Segmentation fault"

    monkeypatch.setattr(runner, "run_step", crashes)
    session.step(plan.Step("stages", 60))
    session.step(plan.Step("expert", 60, least_s=1e6))
    written = json.loads((out / "results.json").read_text())
    assert [(step["name"], step["ok"], step["why"]) for step in written["steps"]] == [
        ("stages", False, "Segmentation fault"),
        ("expert", False, "no time left"),
    ]
    assert [row["error"] for row in written["rows"]] == ["too large"]
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "results.json"]


def _run_folder(path):
    for step in (5, 40, 120):
        (path / "checkpoints" / "expert" / str(step)).mkdir(parents=True)
        (path / "checkpoints" / "expert" / str(step) / "data").write_bytes(os.urandom(1000))
    (path / "config.json").write_text("{}")
    (path / "metrics.jsonl").write_text("{}\n")
    (path / "events.out.tfevents.1").write_bytes(os.urandom(10_000))


def test_a_run_is_packed_with_its_newest_checkpoint_and_unpacked(tmp_path):
    _run_folder(tmp_path / "run")
    path = packing.pack_run(tmp_path / "run", "expert", tmp_path / "expert.tar.xz")
    packing.unpack(path, tmp_path / "again")
    again = {str(file.relative_to(tmp_path / "again")) for file in (tmp_path / "again").rglob("*") if file.is_file()}
    assert again == {"config.json", "metrics.jsonl", "checkpoints/expert/120/data"}


def test_an_archive_above_the_limit_is_left_out(tmp_path):
    _run_folder(tmp_path / "run")
    with pytest.raises(packing.TooLargeError, match=r"expert.tar.xz has 0.0 MiB, more than 0, and is left out"):
        packing.pack_run(tmp_path / "run", "expert", tmp_path / "expert.tar.xz", limit=500)
    assert not list(tmp_path.glob("*expert*"))


def test_an_archive_above_the_limit_leaves_the_earlier_one(tmp_path):
    _run_folder(tmp_path / "run")
    (tmp_path / "expert.tar.xz").write_text("earlier")
    with pytest.raises(packing.TooLargeError):
        packing.pack_run(tmp_path / "run", "expert", tmp_path / "expert.tar.xz", limit=500)
    assert (tmp_path / "expert.tar.xz").read_text() == "earlier"


def test_a_run_without_a_checkpoint_is_not_packed(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint yet"):
        packing.pack_run(tmp_path, "expert", tmp_path / "expert.tar.xz")


def test_a_damaged_archive_says_so(tmp_path):
    (tmp_path / "expert.tar.xz").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        packing.unpack(tmp_path / "expert.tar.xz", tmp_path / "again")


def test_of_a_cache_autotuning_comes_first_and_then_the_largest_that_fit(tmp_path):
    folder = tmp_path / "cache"
    (folder / packing.AUTOTUNING).mkdir(parents=True)
    (folder / packing.AUTOTUNING / "fusion").write_bytes(b"x" * 10)
    for name, size in (("large", 60_000), ("middle", 30_000), ("small", 5_000)):
        (folder / name).write_bytes(b"x" * size)
    (folder / "large-atime").write_bytes(b"12345678")
    limit = 82_000
    assert packing.pack_cache(folder, tmp_path / "cache.tar", limit) == (3, 4)
    with tarfile.open(tmp_path / "cache.tar") as archive:
        assert archive.getnames() == [f"{packing.AUTOTUNING}/fusion", "large", "small"]
    assert (tmp_path / "cache.tar").stat().st_size <= limit


def test_an_archive_of_many_small_files_is_below_the_limit(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number}-{'n' * (number % 150)}").write_bytes(b"x" * 700)
    packing.pack_cache(folder, tmp_path / "cache.tar", limit=200_000)
    assert 150_000 < (tmp_path / "cache.tar").stat().st_size <= 200_000


def _thread(pid, tid, name):
    return {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}


def _work(tid, name, ts, dur, **args):
    return {"ph": "X", "pid": 1, "tid": tid, "name": name, "ts": ts, "dur": dur, "args": args}


def test_a_gpus_kernels_are_counted_once(tmp_path):
    events = [
        _thread(1, 10, "Stream #14(Compute)"),
        _thread(1, 11, "XLA Ops"),
        _work(10, "cudnn_conv", 100.0, 300.0, hlo_op="conv.1"),
        _work(10, "cudnn_conv", 500.0, 300.0, hlo_op="conv.1"),
        _work(10, "loop_add_fusion", 850.0, 200.0, hlo_op="add.1"),
        _work(11, "conv.1", 100.0, 300.0, hlo_op="conv.1"),  # the same kernels by operation
        _work(12, "python", 0.0, 9000.0),
        {"ph": "X", "pid": 1, "tid": 10, "name": "no duration", "ts": 0.0},
    ]
    path = tmp_path / "plugins" / "a.trace.json.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    summary = trace.summary(trace.read(trace.newest(tmp_path)), top=1)
    assert summary["operations"] == 3
    assert summary["total_ms"] == pytest.approx(0.8) and summary["span_ms"] == pytest.approx(0.95)
    (top,) = summary["top"]
    assert (top["name"], top["count"]) == ("cudnn_conv", 2)
    assert top["ms"] == pytest.approx(0.6) and top["share"] == pytest.approx(0.75)


def test_operations_of_a_tpu_and_of_a_cpu():
    tpu = [_thread(1, 3, "XLA Ops"), _work(3, "fusion", 0.0, 2.0), _work(4, "python", 0.0, 9.0)]
    cpu = [_work(5, "dot", 0.0, 2.0, hlo_op="dot"), _work(4, "python", 0.0, 9.0)]
    assert [event["name"] for event in trace.operations(tpu)] == ["fusion"]
    assert [event["name"] for event in trace.operations(cpu)] == ["dot"]


def test_a_trace_that_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="wrote no trace"):
        trace.newest(tmp_path)
    assert trace.summary([])["operations"] == 0


def test_gradient_errors_by_hand():
    reference = {"idm": {"a": np.array([3.0, 0.0])}, "fdm": {"b": np.array([[4.0]])}}
    other = {"idm": {"a": np.array([0.0, 3.0])}, "fdm": {"b": np.array([[4.0]])}}
    errors = gradients.gradient_errors(reference, other)
    assert errors["idm"] == pytest.approx({"relative_error": 2**0.5, "cosine": 0.0})
    assert errors["fdm"] == pytest.approx({"relative_error": 0.0, "cosine": 1.0})
    assert errors["all"] == pytest.approx({"relative_error": 18**0.5 / 5, "cosine": 16 / 25})


@pytest.mark.parametrize("stage", ["stage2", "stage3"])  # the others compile for longer; a dry run has them
def test_gradients_of_the_smallest_networks(stage):
    problem = gradients.Problem.at_start(Settings(size="smoke").preset, gradients.random_windows(2))
    device = jax.devices()[0]
    exact, rounded = (gradients.gradients(stage, problem, dtype, device) for dtype in ("float32", "bfloat16"))
    assert gradients.gradient_errors(exact, exact)["all"] == pytest.approx({"relative_error": 0.0, "cosine": 1.0})
    errors = gradients.gradient_errors(exact, rounded)
    assert set(errors) == {"all", *exact}
    assert all(error["relative_error"] > 1e-6 for error in errors.values())
