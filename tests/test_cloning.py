"""Stage 2: regression on latents, with a value head that stays where it started."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import cloning
from lamjax.cloning import CloningConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig
from lamjax.training.driver import jit_once

init_cloning = jit_once(cloning.init, static_argnums=(1, 2, 3))


TRUNK = ImpalaConfig(channels=(8,), strides=(2,), blocks=0, features=32, stem=4, pool=False)
CONFIG = CloningConfig(steps=200, batch_size=32, learning_rate=3e-3, warmup_steps=10, trunk=TRUNK)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 256, (32, 16, 16, 3), np.uint8)
    return obs, obs[:, 0, :8, 0].astype(np.float32) / 255 - 0.5


@pytest.fixture(scope="module")
def state():
    return init_cloning(jax.random.key(0), CONFIG, (16, 16, 3), 8)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_learns_the_latents_and_leaves_the_value_head_alone(optimizer, batch):
    obs, latents = batch
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    state = init_cloning(jax.random.key(0), config, (16, 16, 3), 8)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(cloning.train_step, n=1))
    trained = state
    for _ in range(CONFIG.steps):
        trained, metrics = step(trained, obs, latents)
    assert metrics["loss"] < 0.1 * np.var(latents)
    np.testing.assert_allclose(
        np.mean(np.square(cloning.predict_latents(trained, obs) - latents)), metrics["loss"], rtol=0.2
    )
    chex.assert_trees_all_equal(trained.params["value_head"], state.params["value_head"])
    kernel = np.asarray(state.params["value_head"]["kernel"])
    assert np.linalg.norm(kernel) == pytest.approx(2**0.5, rel=1e-5)
    assert not np.any(state.params["value_head"]["bias"])


def test_no_gradient_flows_into_the_latents(state, batch):
    obs, latents = batch
    gradient = jax.jit(jax.grad(lambda z: cloning.train_step(state, obs, z)[1]["loss"]))(jnp.asarray(latents))
    assert not np.any(gradient)


def test_loss_of_the_first_step_is_the_mean_squared_error(state, batch):
    obs, latents = batch
    _, metrics = jax.jit(cloning.train_step)(state, obs, latents)
    expected = np.mean(np.square(np.asarray(cloning.predict_latents(state, obs)) - latents))
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_vector_observations_take_a_perceptron():
    config = CloningConfig(trunk=MLPConfig(hidden=(16,), features=8))
    state = init_cloning(jax.random.key(0), config, (4,), 3)
    assert cloning.predict_latents(state, jnp.zeros((5, 4))).shape == (5, 3)


def test_latents_of_a_wrong_size_are_refused(state, batch):
    with pytest.raises(AssertionError):
        cloning.train_step(state, batch[0], jnp.zeros((32, 9)))
