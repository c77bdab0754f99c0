import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.cloning import CloningConfig
from lamjax.dynamics import DynamicsConfig
from lamjax.optim import check_lengths, warmup_linear


def test_stage_one_of_lapo():
    """Step 0: 3e-5; step 50: 3e-4; step 50 001: 3e-6."""
    schedule = warmup_linear(peak=3e-4, start=0.1, end=0.01, warmup_steps=50, steps=50_001)
    for step, rate in [
        (0, 3e-5),
        (25, 1.65e-4),
        (50, 3e-4),
        (50 + 49_951 // 2, 3e-4 - 2.97e-4 * (49_951 // 2) / 49_951),
        (50_001, 3e-6),
        (60_000, 3e-6),
    ]:
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-4)


def test_stage_two_of_lapo():
    """Step 0: 2e-6; step 1000: 2e-4; step 60 001: 0."""
    schedule = jax.jit(warmup_linear(peak=2e-4, start=0.01, end=0.0, warmup_steps=1000, steps=60_001))
    np.testing.assert_allclose([schedule(0), schedule(1000)], [2e-6, 2e-4], rtol=1e-4)
    np.testing.assert_allclose(schedule(60_001), 0, atol=1e-10)
    np.testing.assert_allclose(schedule(500), 1.01e-4, rtol=1e-4)


def test_a_short_run_warms_up_for_half_of_it_at_most():
    schedule = warmup_linear(peak=1.0, start=0.0, end=0.0, warmup_steps=1000, steps=8)
    np.testing.assert_allclose([schedule(step) for step in range(9)], [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0])


def test_no_warmup_starts_at_the_peak():
    schedule = warmup_linear(peak=2.0, start=0.1, end=0.5, warmup_steps=0, steps=4)
    np.testing.assert_allclose([schedule(step) for step in range(6)], [2, 1.75, 1.5, 1.25, 1, 1])


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_the_shortest_runs_have_a_rate(steps):
    schedule = warmup_linear(peak=1.0, start=0.1, end=0.0, warmup_steps=50, steps=steps)
    rates = np.array([schedule(step) for step in range(steps + 1)])
    assert np.isfinite(rates).all() and rates.min() >= 0 and rates.max() == 1


def test_one_program_serves_every_length():
    rate = jax.jit(lambda step, warmup, steps: warmup_linear(3e-4, 0.1, 0.01, warmup, steps)(step))
    for warmup, steps in ((50, 1000), (7, 90), (50, 20)):
        schedule = warmup_linear(3e-4, 0.1, 0.01, warmup, steps)
        for step in (0, 3, 7, 20, 60, 1000):
            traced = rate(jnp.int32(step), jnp.int32(warmup), jnp.int32(steps))
            np.testing.assert_allclose(traced, schedule(step), rtol=1e-6)
    assert rate._cache_size() == 1


@pytest.mark.parametrize("config", [DynamicsConfig(), CloningConfig()], ids=["stage 1", "stage 2"])
def test_programs_have_no_lengths(config):
    assert dataclasses.replace(config, steps=7, warmup_steps=2).program == config.program != config
    assert config.lengths == (config.warmup_steps, config.steps)
    with pytest.raises(ValueError, match="These settings have no lengths"):
        check_lengths(config.program.steps, None)
    check_lengths(config.program.steps, config.lengths)
    check_lengths(config.steps, None)
