"""Tracking services get the rows that a run writes; each is tested offline where it is installed, and by its calls."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import textwrap

import pytest

from lamjax.training.logging import MetricLog
from lamjax.training.run_folder import Run
from lamjax.training.trackers import SERVICES

# A package that writes down every call, in place of a service's.
RECORDER = """
import json, pathlib

def note(*call):
    with pathlib.Path({path!r}).open("a") as file:
        print(json.dumps(call), file=file)

class Run:
    def define_metric(self, name, step_metric):
        note("define_metric", name, step_metric)

    def log(self, row, **options):
        note("log", row, options)

    def finish(self):
        note("finish")

def init(**options):
    note("init", options)
    return Run()
"""


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Puts a recorder in a service's place; returns a function that reads its calls."""

    def install(service):
        calls = tmp_path / "calls"
        (tmp_path / f"{service}.py").write_text(RECORDER.format(path=str(calls)))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, service, raising=False)
        return lambda: [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    yield install
    for service in SERVICES:
        sys.modules.pop(service, None)


def write_rows(service, folder):
    """What a run does: two stages, which count their steps from 0."""
    log = MetricLog(folder, [SERVICES[service](folder, "maze/cpu-s0", {"seed": 0})])
    log.write("dynamics", 10, {"loss": 0.5})
    log.write("dynamics", 20, {"loss": 0.25})
    log.write("cloning", 10, {"loss": 3.0})
    log.close()


def test_wandb_gets_an_axis_for_each_stage_and_the_same_run_again(recorded, tmp_path):
    calls = recorded("wandb")
    write_rows("wandb", tmp_path / "run")
    first, *others = calls()
    assert others == [
        ["define_metric", "dynamics/*", "dynamics/step"],
        ["log", {"dynamics/step": 10, "dynamics/loss": 0.5}, {}],
        ["log", {"dynamics/step": 20, "dynamics/loss": 0.25}, {}],
        ["define_metric", "cloning/*", "cloning/step"],
        ["log", {"cloning/step": 10, "cloning/loss": 3.0}, {}],
        ["finish"],
    ]
    name, options = first
    assert name == "init" and options["name"] == "maze/cpu-s0" and options["config"] == {"seed": 0}
    assert options["resume"] == "allow" and options["dir"] == str(tmp_path / "run")
    write_rows("wandb", tmp_path / "run")
    assert calls()[7] == first  # the id too
    write_rows("wandb", tmp_path / "another")
    assert calls()[14][1]["id"] != options["id"]


def test_trackio_gets_the_steps_of_each_stage(recorded, tmp_path):
    calls = recorded("trackio")
    write_rows("trackio", tmp_path / "run")
    (_, options), *others = calls()
    assert options == {"project": "lamjax", "name": "maze/cpu-s0", "config": {"seed": 0}, "resume": "allow"}
    assert others == [
        ["log", {"dynamics/loss": 0.5}, {"step": 10}],
        ["log", {"dynamics/loss": 0.25}, {"step": 20}],
        ["log", {"cloning/loss": 3.0}, {"step": 10}],
        ["finish"],
    ]


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 3


def test_a_run_gives_its_name_and_settings(recorded, tmp_path):
    calls = recorded("trackio")
    with Run(tmp_path / "cpu-s3", "maze", Config(), {}, track="trackio") as run:
        run.log.write("dynamics", 10, {"loss": 0.5})
    (_, options), *others = calls()
    assert (options["name"], options["config"]) == ("maze/cpu-s3", {"seed": 3, "env": "maze"})
    assert others == [["log", {"dynamics/loss": 0.5}, {"step": 10}], ["finish"]]


@pytest.mark.parametrize("service", SERVICES)
def test_a_run_without_rows_starts_nothing(recorded, tmp_path, service):
    calls = recorded(service)
    MetricLog(tmp_path, [SERVICES[service](tmp_path, "maze/cpu-s0", {})]).close()
    assert calls() == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_is_not_installed_names_the_extra(monkeypatch, tmp_path, service):
    monkeypatch.setitem(sys.modules, service, None)
    sentence = rf'^--track {service} needs a package: pip install "lamjax\[{service}\]"\.$'
    with pytest.raises(ImportError, match=sentence):
        SERVICES[service](tmp_path, "maze/cpu-s0", {})


OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


@pytest.mark.parametrize("service", SERVICES)
def test_the_service_itself_keeps_the_rows_offline(tmp_path, service):
    if importlib.util.find_spec(service) is None:
        pytest.skip(f'needs pip install "lamjax[{service}]"')
    program = f"""
    import os, sys
    from pathlib import Path
    os.environ |= {OFFLINE} | {{"TRACKIO_DIR": sys.argv[1]}}
    from lamjax.training.logging import MetricLog
    from lamjax.training.trackers import SERVICES
    folder = Path(sys.argv[1]) / "run"
    log = MetricLog(folder, [SERVICES[{service!r}](folder, "maze/cpu-s0", {{"seed": 0}})])
    log.write("dynamics", 10, {{"loss": 0.5}})
    log.write("cloning", 5, {{"loss": 0.25}})
    log.close()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=True, timeout=120)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".wandb", ".db", ".db-wal"))
    assert b"dynamics/loss" in kept and b"cloning/loss" in kept
