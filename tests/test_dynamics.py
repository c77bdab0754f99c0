"""Stage 1: purity, one trace, devices that agree, and learning what moves a square."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import dynamics
from lamjax.analysis import latents, probes
from lamjax.dynamics import DynamicsConfig
from lamjax.loops import jit_once
from lamjax.models.impala import ImpalaConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.unet import UNetConfig
from lamjax.optim import warmup_linear

init_dynamics = jit_once(dynamics.init, static_argnums=(1, 2))


CONFIG = DynamicsConfig(
    steps=300,
    batch_size=32,
    learning_rate=3e-3,
    warmup_steps=10,
    idm=ImpalaConfig(channels=(16, 16), strides=(2, 2), blocks=0, features=64, stem=1, pool=False),
    fdm=UNetConfig(channels=(16, 24, 32), bottleneck=32, latent_input="bias", predict="change"),
    quantizer=QuantizerConfig(codebooks=2, latents=2, dim=4, codes=16, decay=0.95),
    loss_scale="copy_last",
)
infer = jax.jit(dynamics.infer_latents)
MOVES = np.array([(0, 0), (0, 2), (0, -2), (2, 0), (-2, 0)])


def moving_square(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows uint8 ``[n, 3, 16, 16, 3]`` of a square on noise-free ground; the action moves it by two pixels."""
    actions = rng.integers(len(MOVES), size=(n, 2))
    position = rng.integers(4, 9, size=(n, 2))
    frames = np.full((n, 3, 16, 16, 3), 30, np.uint8)
    for t in range(3):
        for i, (y, x) in enumerate(position):
            frames[i, t, y : y + 4, x : x + 4] = (200, 120, 40)
        if t < 2:
            position = position + MOVES[actions[:, t]]
    return frames, actions[:, 1]


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return moving_square(np.random.default_rng(0), 32)[0]


@pytest.fixture(scope="module")
def state() -> dynamics.DynamicsState:
    return init_dynamics(jax.random.key(0), CONFIG, (16, 16, 3))


def test_latents_tell_the_action_of_a_moving_square(state):
    rng = np.random.default_rng(1)
    train, _ = moving_square(rng, 2048)
    step = jax.jit(dynamics.train_step)
    trained = state
    for _ in range(CONFIG.steps):
        trained, metrics = step(trained, train[rng.integers(len(train), size=CONFIG.batch_size)])
    fit, fit_actions = moving_square(rng, 1024)
    test, test_actions = moving_square(rng, 512)
    errors = jax.jit(dynamics.evaluate)(trained, test)
    assert errors["fdm_mse"] < 0.2 * errors["copy_last_mse"]
    z, _ = latents.latents_of(trained, fit)
    test_z, _ = latents.latents_of(trained, test)
    raw, merged = probes.accuracies(jax.random.key(0), z, fit_actions, test_z, test_actions, range(len(MOVES)))
    assert raw > 0.95
    assert merged == raw
    assert metrics["used_codes_0"] > 1


def test_step_is_pure_and_traced_once(state, windows):
    step = jax.jit(chex.assert_max_traces(dynamics.train_step, n=1))
    first, first_metrics = step(state, windows)
    again, again_metrics = step(state, windows)
    chex.assert_trees_all_equal(first, again)
    chex.assert_trees_all_equal(first_metrics, again_metrics)
    step(first, windows)
    assert int(first.step) == 1
    assert int(state.step) == 0


def test_scan_computes_what_a_loop_computes(state, windows):
    fused, _ = jax.jit(lambda s: jax.lax.scan(lambda s, _: dynamics.train_step(s, windows), s, None, length=2))(state)
    step = jax.jit(dynamics.train_step)
    looped, _ = step(step(state, windows)[0], windows)
    chex.assert_trees_all_close(infer(fused, windows), infer(looped, windows), atol=1e-5)


def test_two_devices_compute_what_one_computes_on_the_joined_batch(state, windows):
    assert jax.local_device_count() >= 2
    step = jax.pmap(
        lambda s, w: dynamics.train_step(s, w, axis_name="devices"), "devices", in_axes=(None, 0), out_axes=None
    )
    one, two = state, state
    single = jax.jit(dynamics.train_step)
    for _ in range(2):
        two, two_metrics = jax.block_until_ready(step(two, windows.reshape(2, 16, *windows.shape[1:])))
        one, one_metrics = single(one, windows)
    chex.assert_trees_all_close(two_metrics, one_metrics, rtol=2e-3, atol=1e-6)
    two = jax.device_put(jax.device_get(two))
    chex.assert_trees_all_close(two.codebooks, one.codebooks, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(two.batch_stats, one.batch_stats, rtol=1e-3, atol=1e-5)
    ours, theirs = (infer(s, windows) for s in (two, one))
    chex.assert_trees_all_equal(ours.codes, theirs.codes)
    chex.assert_trees_all_close(ours.continuous, theirs.continuous, atol=1e-4)


def test_latents_are_what_the_forward_model_sees(state, windows):
    found = infer(state, windows)
    z = CONFIG.latent_dim
    chex.assert_shape([found.continuous, found.quantized], (32, z))
    chex.assert_shape(found.codes, (32, 2, 2))
    assert found.codes.dtype == jnp.int32
    prediction = jax.jit(dynamics.predict_next)(state, windows[:, :2], found.quantized)
    chex.assert_shape(prediction, (32, 16, 16, 3))
    # predict="change" starts as the last frame.
    np.testing.assert_allclose(prediction, windows[:, 1] / 255 - 0.5, atol=1e-6)


def test_without_the_quantiser_the_forward_model_sees_the_continuous_latent(windows):
    config = dataclasses.replace(CONFIG, quantizer=dataclasses.replace(CONFIG.quantizer, enabled=False))
    state = init_dynamics(jax.random.key(0), config, (16, 16, 3))
    found = infer(state, windows)
    np.testing.assert_array_equal(found.quantized, found.continuous)
    _, metrics = jax.jit(dynamics.train_step)(state, windows)
    np.testing.assert_allclose(metrics["loss"], metrics["fdm_mse"] / metrics["copy_last_mse"], rtol=1e-5)


def test_changes_are_what_the_inverse_model_sees(state, windows):
    """Frames whose own values are the changes of others give the same latents."""
    changes = state.replace(config=dataclasses.replace(CONFIG, idm_input="changes"))
    frames = np.array(windows[:2], np.float32) / 255 - 0.5
    by_hand = np.stack([frames[:, 1] - frames[:, 0], frames[:, 1], frames[:, 2] - frames[:, 1]], 1)
    np.testing.assert_allclose(
        infer(changes, windows[:2]).continuous, infer(state, jnp.asarray(by_hand)).continuous, rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(infer(changes, windows[:2]).continuous, infer(state, windows[:2]).continuous, atol=1e-3)


def test_copy_last_scale_divides_the_prediction_error(state, windows):
    _, metrics = jax.jit(dynamics.train_step)(state, windows)
    copy_last = np.mean(np.square((windows[:, 1].astype(np.float64) - windows[:, 2]) / 255))
    np.testing.assert_allclose(metrics["copy_last_mse"], copy_last, rtol=1e-5)
    # predict="change" starts as the last frame, so the scaled error starts at one.
    np.testing.assert_allclose(metrics["fdm_mse"], copy_last, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], 1 + metrics["commitment"], rtol=1e-4)


def test_learning_rate_follows_lapo():
    config = DynamicsConfig()
    schedule = warmup_linear(config.learning_rate, 0.1, 0.01, config.warmup_steps, config.steps)
    np.testing.assert_allclose([schedule(0), schedule(50), schedule(50_000)], [3e-5, 3e-4, 3e-6], rtol=1e-5)


def test_bfloat16_keeps_state_and_losses_in_float32(windows):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    state = init_dynamics(jax.random.key(0), config, (16, 16, 3))
    new, metrics = jax.jit(dynamics.train_step)(state, windows)
    floats = [x for x in jax.tree.leaves((new, metrics)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype("float32")}


def test_frames_of_a_wrong_shape_are_refused(state):
    with pytest.raises(AssertionError):
        dynamics.train_step(state, jnp.zeros((4, 2, 16, 16, 3), jnp.uint8))
