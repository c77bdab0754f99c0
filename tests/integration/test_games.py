"""Every Procgen game through the whole pipeline, in one process.

Games differ in what their environments do, not in what is compiled: a rollout is compiled for a batch of environments,
whatever game it plays (`envs.api.stepper`), so that only the first game pays for compilation.
"""

import json

import numpy as np
import pytest

from lamjax import envs
from lamjax.analysis import report
from lamjax.cli import main

# How many actions differ in effect (facts of the Procgen engine), and the paper's mean returns, random and expert.
GAMES = {
    "bigfish": (9, 0.8742888, 36.336166),
    "bossfight": (10, 0.04618272, 11.634365),
    "caveflyer": (10, 2.5970738, 9.183605),
    "chaser": (9, 0.6632482, 9.955711),
    "climber": (6, 2.2242901, 10.233627),
    "coinrun": (6, 2.704834, 9.93251),
    "dodgeball": (10, 0.612983, 13.486584),
    "fruitbot": (4, -2.5330205, 29.925259),
    "heist": (9, 3.0758767, 9.685265),
    "jumper": (6, 3.4105318, 8.460201),
    "leaper": (5, 2.5105245, 7.4082565),
    "maze": (5, 4.2726293, 9.969294),
    "miner": (5, 1.2513667, 11.892558),
    "ninja": (10, 2.5599792, 9.474582),
    "plunder": (4, 4.3207445, 11.460528),
    "starpilot": (11, 1.5251881, 66.98625),
}

# The preset's networks on smaller budgets.
SMALL = (
    *("--dynamics.steps", "4", "--cloning.steps", "4", "--log-every", "2", "--analysis.eval-every", "4"),
    *("--analysis.probe-train", "256", "--analysis.probe-test", "64"),
    *(
        "--offline.labels",
        "16",
        "--offline.steps",
        "10",
        "--offline.bc-steps",
        "2",
        "--offline.episodes",
        "2",
        "--offline.num-envs",
        "2",
    ),
    *("--online.ppo.total-frames", "2048", "--scratch.ppo.total-frames", "2048", "--eval-episodes", "2"),
    *("--checkpoint-every", "1000"),
)


@pytest.mark.parametrize("game", GAMES)
def test_a_game_runs_from_end_to_end(game, tmp_path, monkeypatch):
    # Drawing the figures takes longer than everything else; the whole run of coinrun does it (test_train.py).
    monkeypatch.setattr(report, "write", lambda folder: folder / "report.html")
    folders = ["--runs", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
    assert main(["train", "--env", game, "--preset", "smoke", "--policy", "random", *SMALL, *folders]) == 0
    run = tmp_path / "runs" / game / "smoke-s0"
    stages = json.loads((run / "summary.json").read_text())["stages"]
    assert len(stages) == 6 and all("ok" in stage for name, stage in stages.items() if name != "record")

    actions, random, expert = GAMES[game]
    merged = envs.merged_actions(game, 15)
    assert len(merged) == 15 and set(merged) == set(range(actions))
    with np.load(run / "analysis.npz") as arrays:
        assert len(arrays["merged_names"]) == actions
        np.testing.assert_array_equal(arrays["merged"], np.asarray(merged)[arrays["actions"]])

    def normalised(mean):
        return pytest.approx((mean - random) / (expert - random))

    for name in ("decode_online", "ppo_scratch"):
        assert stages[name]["normalised"] == normalised(stages[name]["return_mean"])
    ((labels, mean, _),), ((_, value),) = stages["decode_offline"]["curve"], stages["decode_offline"]["normalised"]
    assert labels == 16 and value == normalised(mean)
