"""The documentation's example is run as it stands, and is the one whole run on an environment that is JAX."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lamjax import envs, policies
from lamjax.data import open_store

PAGE = Path(__file__).parents[2] / "docs" / "custom_environment.md"


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the page's code leaves behind, run in an empty folder."""
    names = {"__name__": "example"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("example"))
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)):
            exec(compile(code, f"{PAGE.name}, block {number}", "exec"), names)
        names["folder"] = names["folder"].absolute()
        names["store"] = open_store(names["folder"].parents[2] / "data" / "Goal" / "random-2048-s0")
    return names


def test_a_whole_run_of_it(told):
    folder = told["folder"]
    assert folder.parts[-3:] == ("runs", "Goal", "smoke-s0")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["env"] == "Goal" and summary["total_seconds"] > 0
    stages = summary["stages"]
    assert set(stages) == {"record", "dynamics", "cloning", "decode_offline", "decode_online", "ppo_scratch"}
    assert 0 < stages["dynamics"]["fdm_ratio"] < 1  # the forward model beats copying, as little as it was trained
    assert stages["decode_online"]["frames"] == stages["ppo_scratch"]["frames"] == 4096
    assert (folder / "report.html").stat().st_size > 10_000
    assert {path.name for path in (folder / "figures").iterdir()} >= {"strips.png", "rollouts.png", "rollouts.gif"}


def test_its_frames_are_pixels(told):
    store = told["store"]
    assert (store.env, store.obs_shape, store.obs_dtype, store.num_actions) == ("Goal", (8, 8, 2), np.uint8, 5)
    frames = store.observations(0, 64)
    assert set(np.unique(frames)) == {0, 255}
    np.testing.assert_array_equal((frames == 255).sum((1, 2)), 1)  # one dot, one goal
    assert set(store.episodes.ending) <= {"truncated", "cut"}


def test_its_policies_play(told):
    env = envs.make("Goal", 3)
    obs, _ = env.reset(told["jax"].random.key(0))
    for name in ("decode_online", "ppo_scratch", "offline-64"):
        policy, params, _ = policies.load_policy(told["folder"] / "policies" / name)
        logits = np.asarray(policy(params, obs))
        assert logits.shape == (3, 5) and np.isfinite(logits).all()


def test_the_stages_over_seeds(told):
    ratios, returns = np.asarray(told["ratios"]), np.asarray(told["returns"])
    assert ratios.shape == returns.shape == (3,)
    assert len(set(ratios.tolist())) == 3 and (ratios < 1).all() and np.isfinite(returns).all()


def test_the_example_is_short():
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    lines = [line for line in example.splitlines() if line.strip() and "import" not in line]
    assert len(lines) <= 30
