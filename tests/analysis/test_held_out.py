"""Errors on held-out windows: one dispatch gives what batch after batch gives."""

import jax
import numpy as np
import pytest

from lamjax import cloning, dynamics
from lamjax.analysis import held_out, latents
from lamjax.presets import PRESETS
from tests.trees import close

SHAPE, CONFIG = (64, 64, 3), PRESETS["smoke"]


@pytest.fixture(scope="module")
def batches():
    return jax.device_put(np.random.default_rng(0).integers(0, 256, (3, 8, 3, *SHAPE), np.uint8))


def moved(state):
    """Every weight moved: predictions and latents that differ from window to window."""
    rng = np.random.default_rng(1)
    return state.replace(params=jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f"), state.params))


@pytest.fixture(scope="module")
def model():
    return moved(dynamics.init(jax.random.key(0), CONFIG.dynamics, SHAPE))


def test_errors_are_means_over_batches_and_codes_are_counted(model, batches):
    evaluate, swapped = jax.jit(dynamics.evaluate), jax.jit(dynamics.evaluate_swapped)
    rows = [jax.device_get(evaluate(model, batch)) for batch in batches]
    errors = held_out.held_out_errors(model, batches)
    for name in ("fdm_mse", "copy_last_mse"):
        assert errors[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-5)
    assert errors["fdm_ratio"] == errors["fdm_mse"] / errors["copy_last_mse"]
    np.testing.assert_array_equal(errors["code_counts"], np.sum([row["code_counts"] for row in rows], 0))
    assert errors["code_counts"].sum() == 24 * np.prod(latents.latents_of_batches(model, batches)[1].shape[1:])
    want = np.mean([swapped(model, batch) for batch in batches])
    assert held_out.swapped_error(model, batches) == pytest.approx(want, rel=1e-5)
    assert want != pytest.approx(errors["fdm_mse"], rel=1e-5)


def test_latents_of_batches_are_those_of_the_windows(model, batches):
    z, codes = latents.latents_of(model, np.concatenate(np.asarray(batches)))
    close(latents.latents_of_batches(model, batches), (z, codes), rtol=1e-4, atol=1e-6)


def test_cloning_error_by_hand(batches):
    state = moved(cloning.init(jax.random.key(0), CONFIG.cloning, SHAPE, 5))
    targets = np.random.default_rng(2).normal(size=(24, 5)).astype(np.float32)
    predicted = cloning.predict_latents(state, np.concatenate(np.asarray(batches))[:, -2])
    want = np.mean(np.square(predicted - targets))
    assert held_out.cloning_error(state, batches, targets) == pytest.approx(float(want), rel=1e-5)


def test_all_batches_are_one_compiled_program_without_an_upload(model, batches, caplog):
    batches = jax.block_until_ready(batches[:2])
    with jax.log_compiles():
        held_out.held_out_errors(model, batches)
        assert sum(record.getMessage().startswith("Compiling") for record in caplog.records) == 1
        caplog.clear()
        with jax.transfer_guard_host_to_device("disallow"):
            held_out.held_out_errors(model, batches)
    assert not caplog.records
