"""The expert that accelerators train: in bfloat16 it learns, and a resumed training goes on bit-equally."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from lamjax import envs, parallel, ppo
from lamjax.pipeline.reinforcement import ppo_saver
from lamjax.presets import PRESETS
from lamjax.training import checkpoint, driver

PAPER = PRESETS["paper"].expert
# The preset's expert in small: fewer environments, steps and channels.
SMALL = dataclasses.replace(
    PAPER,
    trunk=dataclasses.replace(PAPER.trunk, channels=(4, 8, 8)),
    ppo=dataclasses.replace(PAPER.ppo, total_frames=256, num_envs=4, num_steps=16, num_epochs=1, num_minibatches=2),
)


@pytest.fixture(scope="module")
def trained():
    """The environments, an update function, and the states before and after one update."""
    env = envs.make("coinrun", SMALL.ppo.num_envs)
    agent = SMALL.agent(env.action_space)
    params = driver.jit_once(agent.init, static_argnums=1)(jax.random.key(0), env.obs_shape)
    before = jax.device_get(params)
    state = ppo.init(jax.random.key(1), SMALL.ppo, params, env)
    update = ppo.Driver(agent, env).update
    state, metrics = update(state)
    return env, update, before, state, metrics


def test_an_update_in_bfloat16_learns(trained):
    _, _, before, state, metrics = trained
    assert all(np.isfinite(metrics[name]) for name in ("policy_loss", "value_loss", "entropy", "grad_norm"))
    assert metrics["grad_norm"] > 0
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        assert leaf.dtype in (np.float32, np.int32)  # parameters and moments stay float32
    moved = [np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True)]
    assert np.mean(moved) > 0.9


def test_a_resumed_training_in_bfloat16_goes_on_bit_equally(trained, tmp_path):
    env, update, _, state, _ = trained
    run = types.SimpleNamespace(devices=parallel.devices())
    saver = ppo_saver(run, SMALL, env, lambda s: s, lambda s, inner: inner)
    tree, host = saver.pack(state)
    checkpoint.save(tmp_path, 1, tree, config=SMALL, host=host)
    # The uninterrupted update donates its state, so it goes second.
    found = checkpoint.restore(tmp_path, tree, config=SMALL)
    resumed, resumed_metrics = update(saver.unpack(state, found.tree, found.host))
    state, metrics = update(state)
    for name, value in metrics.items():
        np.testing.assert_array_equal(value, resumed_metrics[name], err_msg=name)
    for a, b in zip(*(jax.tree.leaves((s.params, s.opt_state)) for s in (state, resumed)), strict=True):
        np.testing.assert_array_equal(a, b)
