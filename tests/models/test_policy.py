import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig
from lamjax.models.policy import ActorCritic, LatentPolicy
from lamjax.preprocess import normalise_obs, obs_stats
from lamjax.training import driver

TRUNK = MLPConfig(hidden=(16,), features=32)


def test_parameter_count_at_the_papers_size():
    frames = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    init = LatentPolicy(ImpalaConfig(), 128).init_with_output
    (latents, values), variables = jax.eval_shape(init, jax.random.key(0), frames)
    assert latents.shape == (2, 128) and values.shape == (2,)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 3_682_177


def test_pixels_are_centred_and_other_observations_left_alone():
    np.testing.assert_allclose(normalise_obs(jnp.array([0, 51, 255], jnp.uint8)), [-0.5, -0.3, 0.5], atol=1e-7)
    for dtype in (jnp.float32, jnp.bfloat16):
        out = normalise_obs(jnp.array([0, 51, -255], dtype))
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, [0, 51, -255], rtol=5e-3)
    with pytest.raises(ValueError, match="no statistics to standardise them with"):
        normalise_obs(jnp.array([0, 51, 255], jnp.int32))  # pixels of another type would be off by orders of magnitude


def test_actor_critic_starts_nearly_uniform():
    module = ActorCritic(TRUNK, 15)
    obs = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    variables = driver.jit_once(module.init)(jax.random.key(0), obs)
    logits, value = jax.jit(module.apply)(variables, obs)
    assert logits.shape == (9, 15) and value.shape == (9,)
    assert np.abs(logits).max() < 0.1 < np.abs(value).max()
    heads = variables["params"]
    # Orthogonal with gains 0.01 and 1.
    kernel = np.asarray(heads["policy_head"]["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, 1e-4 * np.eye(15), atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(heads["value_head"]["kernel"]), 1, rtol=1e-5)


def test_latent_policy_names_the_parts_that_stage_three_takes_over():
    module = LatentPolicy(TRUNK, 6)
    obs = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    variables = driver.jit_once(module.init)(jax.random.key(0), obs)
    params = variables["params"]
    assert set(params) == {"trunk_net", "latent_head", "value_head"}
    assert set(params["trunk_net"]) == {"convs", "fc"}
    np.testing.assert_allclose(np.linalg.norm(params["value_head"]["kernel"]), 2**0.5, rtol=1e-5)
    np.testing.assert_array_equal(params["value_head"]["bias"], [0])
    assert np.abs(params["latent_head"]["linear"]["kernel"]).max() <= 32**-0.5
    latents, value = jax.jit(module.apply)(variables, obs)
    assert latents.shape == (9, 6) and value.shape == (9,)


def test_outputs_are_float32_under_bfloat16():
    obs = np.zeros((2, 4), np.float32)
    for module in (ActorCritic(TRUNK, 5, jnp.bfloat16), LatentPolicy(TRUNK, 6, jnp.bfloat16)):
        out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), obs)
        assert {leaf.dtype for leaf in jax.tree.leaves((out, variables))} == {jnp.dtype("float32")}


def test_observations_are_standardised_by_what_was_seen():
    obs = np.random.default_rng(0).normal(3, [[0.1, 2.0, 0.0]], (500, 3)).astype(np.float32)
    stats = obs_stats(obs)
    out = np.asarray(normalise_obs(jnp.asarray(obs), stats))
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(out.std(0), [1, 1, 0], atol=1e-4)  # what never changes is not blown up
    windows = jnp.asarray(obs[:12]).reshape(4, 3, 3)
    np.testing.assert_allclose(normalise_obs(windows, stats).reshape(12, 3), out[:12])
    assert obs_stats(np.zeros((5, 4, 4, 3), np.uint8)) is None
