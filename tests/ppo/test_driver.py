"""Whole runs of PPO from one call; that its dispatches are the pure steps is held in test_learner."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import ppo
from lamjax.envs import Gymnax, UnknownEnvError
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig
from tests.ppo import probes
from tests.ppo.conftest import AGENT, CONFIG
from tests.ppo.probes import ProbeEnv

SMALL = ppo.PPOConfig(total_frames=3 * 64 - 1, num_envs=4, num_steps=16, num_epochs=1, num_minibatches=2)
METRICS = {"policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm", "explained_variance"}
METRICS |= {"episodes", "episode_return", "episode_length"}


def test_train_learns_a_probe_and_tells_how_far_it_is():
    env = Gymnax(ProbeEnv(), CONFIG.num_envs, params=probes.ACTION_MUST_MATCH.tables)
    calls = []
    agent, params, metrics = ppo.train(
        env, CONFIG, trunk=AGENT.trunk, progress=lambda frames, metrics: calls.append((frames, metrics["entropy"]))
    )
    logits, value = agent.apply(params, jnp.array([[1.0, 0, 0], [-1.0, 0, 0]]))
    chosen = jax.nn.softmax(logits)[jnp.arange(2), jnp.array([1, 0])]
    assert chosen.min() > 0.9
    np.testing.assert_allclose(value, 1, atol=0.1)
    assert metrics.keys() == METRICS
    assert all(type(values) is np.ndarray and values.shape == (40,) for values in metrics.values())
    assert calls == list(zip(range(256, 40 * 256 + 1, 256), metrics["entropy"], strict=True))


def test_train_is_learn_with_the_same_keys(bench):
    """Two updates: after more of them a rounding may decide an action."""
    config = dataclasses.replace(CONFIG, total_frames=2 * 256)
    key_params, key = jax.random.split(jax.random.key(3))
    state = ppo.init(key, config, AGENT.init(key_params, bench.env.obs_shape), bench.env)
    state, expected = bench.learn(state)
    _, params, metrics = ppo.train(bench.env, config, jax.random.key(3), trunk=AGENT.trunk)
    for ours, theirs in zip(
        *(jax.tree.leaves(tree) for tree in ((params, metrics), (state.params, expected))), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_train_takes_a_name_and_the_trunk_for_what_is_seen():
    agent, _, metrics = ppo.train("cartpole", SMALL)
    assert agent.trunk == MLPConfig() and agent.space.n == 2
    assert len(metrics["entropy"]) == 2  # whole updates


def test_train_in_real_coinrun():
    trunk = ImpalaConfig(channels=(4,), strides=(8,), blocks=1, features=8)
    agent, params, metrics = ppo.train("coinrun", SMALL, trunk=trunk)
    assert agent.trunk == trunk and agent.space.n == 15
    assert np.isfinite(metrics["policy_loss"]).all() and (metrics["grad_norm"] > 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_train_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"total_frames \(63\) must hold an update, .* = 64 frames"):
        ppo.train("cartpole", dataclasses.replace(SMALL, total_frames=63))
    with pytest.raises(UnknownEnvError, match="cartpole"):
        ppo.train("cartpol", SMALL)


def test_ppo_alone_imports_neither_stores_nor_checkpoints():
    code = "import sys, lamjax.ppo; print({name.split('.')[0] for name in sys.modules})"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'lamjax'" in names
    for name in ("tensorstore", "orbax", "procgen", "gymnax"):
        assert f"'{name}'" not in names
