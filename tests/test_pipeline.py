"""Pieces of the pipeline that a whole run would not notice."""

import dataclasses

import jax
import numpy as np
import pytest

from lamjax import cloning, dynamics, loops, pipeline
from lamjax.config import PRESETS
from lamjax.data import Buffer, valid_starts
from lamjax.models.impala import ImpalaConfig


def test_still_windows_show_the_middle_frame_alone():
    windows = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8, 3), np.uint8)
    still = pipeline._still(windows)
    assert still.shape == windows.shape
    for frame in range(3):
        np.testing.assert_array_equal(still[:, frame], windows[:, 1])
    assert np.shares_memory(still, windows)
    longer = pipeline._still(np.concatenate([windows[:, :1], windows], axis=1))
    np.testing.assert_array_equal(longer, windows[:, 1:2].repeat(4, axis=1))  # o_t is the last frame but one


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("stage", ["dynamics", "cloning"])
def test_training_stays_on_the_device_and_is_traced_once(stage, steps):
    config, obs, key = PRESETS["smoke"], (64, 64, 3), jax.random.key(0)
    trunk = ImpalaConfig(channels=(8,), strides=(4,), blocks=0, features=8, stem=4, pool=False)
    unet = dataclasses.replace(config.dynamics.fdm, channels=(8,), bottleneck=8, stem=16)
    config = dataclasses.replace(
        config,
        dynamics=dataclasses.replace(config.dynamics, idm=trunk, fdm=unet),
        cloning=dataclasses.replace(config.cloning, trunk=trunk),
    )
    state = loops.jit_once(dynamics.init, static_argnums=(1, 2))(key, config.dynamics, obs)
    advance, rest = pipeline._advance_dynamics, (None,)  # no labels
    if stage == "cloning":
        rest = (state,)
        state = loops.jit_once(cloning.init, static_argnums=(1, 2, 3))(
            key, config.cloning, obs, config.dynamics.latent_dim
        )
        advance = pipeline._advance_cloning
    frames = np.random.default_rng(0).integers(0, 256, (100, *obs), np.uint8)
    buffer = jax.device_put(Buffer(frames, valid_starts(np.arange(100) % 25 == 0)))
    traced = advance._cache_size()
    with jax.transfer_guard("disallow"):
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            state.step + 1  # the guard is on, also on a CPU
        for _ in range(3):
            state, metrics = advance(state, buffer, key, *rest, steps)
        jax.block_until_ready(metrics)
    assert int(state.step) == 3 * steps
    assert np.isfinite(metrics["loss"])
    assert advance._cache_size() == traced + 1
