"""The latents of a whole recording: those of its windows, on any number of devices and in any number of blocks."""

import dataclasses

import jax
import numpy as np
import pytest

from lamjax import dynamics
from lamjax.data import StoreWriter, open_store
from lamjax.pipeline import latents
from lamjax.presets import VECTOR_PRESETS
from lamjax.training.driver import jit_once
from tests.trees import close

FRAMES, LENGTH = 300, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("walks") / "store"
    with StoreWriter(path, env="cartpole", obs_shape=(4,), obs_dtype="float32", num_actions=2) as writer:
        for level in range(FRAMES // 20):
            frames = rng.normal(size=(20, 4)).astype(np.float32)
            writer.append_episode(frames, np.zeros(20, int), np.zeros(20), level, "terminated")
    return open_store(path)


@pytest.fixture(scope="module")
def model():
    """With a context of two frames, so that windows have `LENGTH`."""
    config = dataclasses.replace(VECTOR_PRESETS["smoke"].dynamics, context=2)
    return jit_once(dynamics.init, static_argnums=(1, 2))(jax.random.key(0), config, (4,))


@pytest.fixture
def small_blocks(monkeypatch):
    """Two batches in a block, so that the store has several; programs are compiled for a block's size."""
    latents.block_inference.cache_clear()
    monkeypatch.setattr(latents, "BLOCK", 64)
    monkeypatch.setattr(latents, "BATCH", 32)
    yield
    latents.block_inference.cache_clear()


@pytest.mark.parametrize("count", [1, 2])
def test_a_row_is_the_latent_of_the_window_whose_middle_frame_it_is(store, model, small_blocks, count):
    rows = latents.infer_store(model, store, jax.local_devices()[:count])
    windows = store.windows(np.arange(FRAMES - LENGTH + 1), LENGTH)
    expected = jax.jit(dynamics.infer_latents)(model, windows).continuous
    assert rows.shape == (FRAMES, model.config.latent_dim) and rows.dtype == np.float32
    close(rows[2:-1], np.asarray(expected), rtol=1e-5, atol=1e-6)
    assert not rows[:2].any() and not rows[-1].any() and expected.any(-1).all()


def test_only_the_first(store, model, small_blocks):
    some, everything = (latents.infer_store(model, store, jax.local_devices()[:1], most=most) for most in (70, None))
    close(some[: 2 + 128], everything[: 2 + 128])  # 70 windows are two blocks
    assert not some[2 + 128 :].any()


def test_it_stops_between_blocks(store, model, small_blocks):
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latents.infer_store(model, store, jax.local_devices()[:1], check_stop=stop)
    assert len(calls) == 3
