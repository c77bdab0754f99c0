"""The demonstrators that come with the package."""

import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import envs, experts
from lamjax.experts import available, folder, load
from lamjax.models.mlp import MLPConfig
from lamjax.policies import PolicyError, save_policy
from lamjax.ppo import ActorCriticAgent

PROVENANCE = {"env", "frames", "seed", "command", "device", "return_mean", "return_stderr", "episodes", "normalised"}
SHIPPED = sorted(available())


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty place for experts instead of the package's."""
    monkeypatch.setattr(experts, "resources", types.SimpleNamespace(files=lambda name: tmp_path))
    return tmp_path


def test_without_an_expert_one_sentence_says_how_to_get_one(root):
    with pytest.raises(PolicyError) as caught:
        load("maze")
    message = str(caught.value)
    assert message == ("No expert is shipped for maze (there are: none): train one with `lamjax expert --env maze`.")
    assert available() == {}


def test_an_expert_is_found_by_its_environment(root):
    agent = ActorCriticAgent(MLPConfig((4,), 4), 3)
    params = agent.init(jax.random.key(0), (100,))
    for env in ("maze", "minatar/breakout"):
        save_policy(folder(env), agent, params, {"env": env, "return_mean": 5.0}, dtype=np.float16)
    assert available() == {env: {"env": env, "return_mean": 5.0} for env in ("maze", "minatar/breakout")}
    for env in available():
        policy, loaded, info = load(env)
        assert info["env"] == env
        assert policy(loaded, jnp.zeros((2, 100))).shape == (2, 3)
    with pytest.raises(PolicyError, match=r"^No expert is shipped for heist \(there are: maze, minatar/breakout\): "):
        load("heist")
    assert folder("minatar/breakout").parent == root


@pytest.mark.parametrize("env", SHIPPED)
def test_shipped_experts_say_where_they_come_from(env):
    info = available()[env]
    assert info.keys() >= PROVENANCE
    assert info["env"] == env and info["episodes"] >= 100
    assert env in info["command"] and info["command"].startswith("lamjax expert")
    assert info["normalised"] == pytest.approx(envs.normalised_return(env, info["return_mean"]))
    assert info["return_mean"] - 5 * info["return_stderr"] > envs.PROCGEN_GAMES[env].random_return
    text = json.dumps(info)
    assert not re.search(r"/(home|root|Users|work|tmp)/", text)


@pytest.mark.parametrize("env", SHIPPED)
def test_shipped_experts_are_small_and_play(env):
    files = {path.name: path.stat().st_size for path in folder(env).iterdir()}
    assert files.keys() == {"weights.npz", "policy.json"} and sum(files.values()) < 8e6
    policy, params, _ = load(env)
    obs = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    logits = np.asarray(jax.jit(policy)(params, obs))
    assert logits.shape == (4, 15) and np.isfinite(logits).all() and np.ptp(logits, axis=1).min() > 0.1
