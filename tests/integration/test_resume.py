"""Killed in any stage, the same command goes on and ends with the bit-identical state of an uninterrupted run."""

import json
import os
import signal
import threading
import time

import pytest

from lamjax.data import open_store
from lamjax.presets import PRESETS
from lamjax.training import checkpoint, run_folder

STAGES = ("dynamics", "cloning", "ppo_scratch", "decode_online")

# Every step is saved, and what is not training is cut short: it must not show in any state.
OPTIONS = [
    *("--checkpoint-every", "0", "--log-every", "1", "--eval-episodes", "2", "--analysis.probe-train", "64"),
    *("--offline.labels", "16", "--offline.steps", "2", "--offline.bc-steps", "1"),
    *("--offline.episodes", "2", "--offline.num-envs", "2"),
]
# In which stage, after which checkpoint of it, and how the run is stopped.
MOMENTS = [
    ("record", None, signal.SIGKILL),
    ("dynamics", 3, signal.SIGKILL),
    ("dynamics", 11, signal.SIGTERM),
    ("cloning", 4, signal.SIGTERM),
    ("cloning", 12, signal.SIGKILL),
    ("ppo_scratch", 1, signal.SIGKILL),
    ("ppo_scratch", 2, signal.SIGTERM),
    ("decode_online", 1, signal.SIGTERM),
    ("decode_online", 2, signal.SIGKILL),
]


class Chain(threading.Thread):
    """Starts one command again and again and stops it at each of `MOMENTS`; the last time it ends by itself.

    Attributes:
      folder: the run's.
      stopped: for each moment the exit code, the stages that had ended, and the output.
      last: exit code and output of the last process.
    """

    def __init__(self, start, root):
        super().__init__()
        self.root, self.folder = root, root / "runs" / "coinrun" / "smoke-s0"
        self.stopped, self.last = [], None
        self._command = lambda: start(
            *("train", "--env", "coinrun", "--preset", "smoke", "--policy", "random", "--in-sequence", *OPTIONS),
            *("--runs", str(root / "runs"), "--data", str(root / "data")),
        )

    def reached(self, stage, step):
        if stage == "record":
            return any((self.root / "data" / "coinrun").glob(".*.partial"))
        saved = (self.folder / "checkpoints" / stage).glob("*")
        return any(int(path.name) >= step for path in saved if path.name.isdigit())

    def run(self):
        for stage, step, signum in MOMENTS:
            with self._command() as child:
                output = []
                reader = threading.Thread(target=lambda child=child, output=output: output.append(child.stdout.read()))
                reader.start()
                while child.poll() is None and not self.reached(stage, step):
                    time.sleep(0.005)
                child.send_signal(signum)
                reader.join()
            summary = self.folder / "summary.json"
            ended = set(run_folder.read_json(summary)["stages"]) if summary.exists() else set()
            self.stopped.append((child.returncode, ended, output[0]))
        with self._command() as child:
            output, _ = child.communicate()
        self.last = (child.returncode, output)


@pytest.fixture(scope="module")
def chain(start, tmp_path_factory, request):
    """The stopped run; the whole one is made on another core meanwhile."""
    chain = Chain(start, tmp_path_factory.mktemp("chain"))
    chain.start()
    try:
        request.getfixturevalue("whole")
    finally:
        chain.join()
    return chain


@pytest.mark.parametrize("number", range(len(MOMENTS)), ids=lambda n: f"{MOMENTS[n][0]}-{MOMENTS[n][2].name}")
def test_the_run_was_stopped_inside_the_stage(chain, number):
    stage, _, signum = MOMENTS[number]
    code, ended, output = chain.stopped[number]
    assert stage not in ended, output
    if signum == signal.SIGTERM:
        assert code == 128 + signum, output
        assert output.splitlines()[-1] == "lamjax: stopped by SIGTERM; everything is saved, the same command continues"
    else:
        assert code == -signum, output
    assert "Traceback" not in output


def test_the_run_ended(chain):
    code, output = chain.last
    assert code == 0, output
    assert (chain.folder / "report.html").stat().st_size > 10_000


# On one core the convolutions of two processes differ by rounding (5e-7 in weights after four updates of PPO).
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core does not repeat convolutions to the bit")
@pytest.mark.parametrize("stage", STAGES)
def test_states_are_those_of_the_uninterrupted_run(chain, whole, stage):
    ours, theirs = (checkpoint.restore_arrays(folder / "checkpoints" / stage) for folder in (chain.folder, whole))
    assert ours[0] == theirs[0]
    digests, expected = ours[2]["digests"], theirs[2]["digests"]
    assert digests.keys() == expected.keys() and len(digests) > 20
    assert [name for name in digests if digests[name] != expected[name]] == []


def test_trajectories_are_those_of_the_uninterrupted_run(chain, whole):
    ours, theirs = (
        open_store(run_folder.read_json(folder / "summary.json")["stages"]["record"]["store"])
        for folder in (chain.folder, whole)
    )
    assert ours.path != theirs.path and ours.manifest["files"] == theirs.manifest["files"]


def test_no_row_of_metrics_is_lost_and_repeated_ones_are_equal(chain):
    rows = {}
    for line in (chain.folder / "metrics.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut by a kill
        row.pop("time")
        assert rows.setdefault((row["stage"], row["step"]), row) == row
    counts = {stage: sum(name == stage for name, _ in rows) for stage in STAGES}
    smoke = PRESETS["smoke"]
    assert counts == {
        "dynamics": smoke.dynamics.steps,
        "cloning": smoke.cloning.steps,
        "ppo_scratch": smoke.scratch.ppo.num_updates,
        "decode_online": smoke.online.ppo.num_updates,
    }
