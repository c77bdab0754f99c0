"""Cloning of actions: what is planted is learned, under both schedules, and names are the decoder's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import dynamics
from lamjax.cloning import CloningConfig
from lamjax.decoding import behaviour_cloning, offline
from lamjax.decoding.offline import OfflineConfig
from lamjax.dynamics import DynamicsConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.unet import UNetConfig
from lamjax.spaces import Box
from lamjax.training.driver import jit_once

CONFIG = CloningConfig(steps=60, batch_size=64, learning_rate=1e-2, warmup_steps=5, trunk=MLPConfig((16,), 16))


@pytest.mark.parametrize("decays", [True, False])
def test_learns_planted_actions_and_then_stands_still_if_the_rate_decays(decays):
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(256, 4)).astype(np.float32)
    taken = np.argmax(obs[:, :3], -1).astype(np.int32)
    state = behaviour_cloning.init(jax.random.key(0), CONFIG, 3, (4,), decays)
    step = jax.jit(behaviour_cloning.train_step)
    for _ in range(CONFIG.steps):
        rows = rng.integers(256, size=CONFIG.batch_size)
        state, metrics = step(state, obs[rows], taken[rows])
    assert metrics["accuracy"] > 0.8 and metrics["loss"] < 0.5
    after, _ = step(state, obs, taken)
    leaves = map(jax.tree.leaves, (after.params, state.params))
    moved = max(float(jnp.abs(a - b).max()) for a, b in zip(*leaves, strict=True))
    assert (moved < 1e-6) == decays


def test_learns_planted_continuous_actions():
    box = Box((-2.0, -1.0), (2.0, 3.0))
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(256, 4)).astype(np.float32)
    taken = np.asarray(box.clip(obs[:, :2]))
    state = behaviour_cloning.init(jax.random.key(0), CONFIG, box, (4,))
    step = jax.jit(behaviour_cloning.train_step)
    scores = []
    for _ in range(CONFIG.steps):
        rows = rng.integers(256, size=CONFIG.batch_size)
        state, metrics = step(state, obs[rows], taken[rows])
        scores.append(float(metrics["mse"]))
    assert scores[-1] < 0.05 < 0.2 < scores[0] and metrics["loss"] < 0


def test_names_are_what_the_decoder_says_of_the_inverse_models_latents():
    trunk = ImpalaConfig(channels=(4,), strides=(2,), blocks=0, features=16, stem=4, pool=False)
    fdm = UNetConfig(channels=(4, 6), bottleneck=8, stem=2, latent_input="bias")
    config = DynamicsConfig(idm=trunk, fdm=fdm, quantizer=QuantizerConfig(codebooks=1, latents=2, dim=4, codes=8))
    model = jit_once(dynamics.init, static_argnums=(1, 2))(jax.random.key(0), config, (16, 16, 3))
    windows = np.random.default_rng(0).integers(0, 256, (12, 3, 16, 16, 3), np.uint8)
    z = dynamics.infer_latents(model, windows).continuous
    labels = np.arange(12, dtype=np.int32) % 4
    settings = OfflineConfig(steps=400, batch_size=32, learning_rate=1e-2, hidden=(32,))
    decoder, _ = offline.fit(jax.random.key(1), z, labels, settings, 4)
    named = behaviour_cloning.pseudo_labels(decoder, z, settings, 4)
    assert named.dtype == jnp.int32
    np.testing.assert_array_equal(named, np.argmax(offline.decode(decoder, z, settings, 4), -1))
    assert np.mean(named == labels) > 0.9
    # Continuous ones are the means, within the bounds: labels beyond them teach no action that there is not.
    box, beyond = Box((-1.0,), (1.0,)), np.where(labels[:, None] > 1, 5.0, 0.0).astype(np.float32)
    decoder, _ = offline.fit(jax.random.key(1), z, beyond, settings, box)
    named = behaviour_cloning.pseudo_labels(decoder, z, settings, box)
    assert named.shape == (12, 1)
    np.testing.assert_array_equal(named, box.clip(box.mode(offline.decode(decoder, z, settings, box))))
    np.testing.assert_array_equal(named[labels > 1], 1.0)
