"""Offline decoding: a decoder of planted latents, also of very small ones."""

import jax
import numpy as np
import pytest

from lamjax.decoding import offline
from lamjax.decoding.offline import OfflineConfig

CONFIG = OfflineConfig(steps=300, batch_size=64, learning_rate=3e-3, hidden=(32,), episodes=4, num_envs=4)


def planted(n: int, scale: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    actions = rng.integers(5, size=n).astype(np.int32)
    centres = np.random.default_rng(99).normal(size=(5, 8))
    z = (centres[actions] + 0.1 * rng.normal(size=(n, 8))) * scale + 3 * scale
    return z.astype(np.float32), actions


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_decodes_planted_latents_of_any_scale(scale):
    params, loss = offline.fit(jax.random.key(0), *planted(256, scale, 0), CONFIG, 5)
    z, actions = planted(500, scale, 1)
    logits = offline.decode(params, z, CONFIG, 5)
    assert np.mean(np.argmax(logits, -1) == actions) > 0.97
    assert loss < 0.2


def test_fewer_labels_than_a_batch():
    z, actions = planted(16, 1.0, 0)
    params, _ = offline.fit(jax.random.key(0), z, actions, CONFIG, 5)
    assert np.mean(np.argmax(offline.decode(params, z, CONFIG, 5), -1) == actions) == 1.0


def test_latents_without_information_give_the_frequencies():
    rng = np.random.default_rng(0)
    actions = rng.choice(3, size=512, p=[0.6, 0.3, 0.1]).astype(np.int32)
    params, _ = offline.fit(jax.random.key(0), np.zeros((512, 8), np.float32), actions, CONFIG, 3)
    probabilities = jax.nn.softmax(offline.decode(params, np.zeros((1, 8), np.float32), CONFIG, 3))[0]
    np.testing.assert_allclose(probabilities, np.bincount(actions) / 512, atol=0.05)


def test_episodes_must_fill_the_environments():
    with pytest.raises(ValueError, match="multiple"):
        OfflineConfig(episodes=100, num_envs=64)
