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
from lamjax.models import locator
from lamjax.models.impala import ImpalaConfig
from lamjax.models.locator import LocatorConfig
from lamjax.models.mlp import MLPConfig, MLPFDMConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.unet import UNetConfig
from lamjax.preprocess import clean, cut_squares, moving_squares, unsteady_squares
from lamjax.schedules import warmup_linear
from lamjax.spaces import Box
from lamjax.training.driver import jit_once
from tests.trees import close

init_dynamics = jit_once(dynamics.init, static_argnums=(1, 2, 4))


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
forward_squares = jax.jit(dynamics.forward_squares, static_argnums=0)
MOVES = np.array([(0, 0), (0, 2), (0, -2), (2, 0), (-2, 0)])


def moving_square(rng: np.random.Generator, n: int, starts: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Windows uint8 ``[n, 3, 16, 16, 3]`` of a square on noise-free ground; the action moves it by two pixels."""
    actions = rng.integers(len(MOVES), size=(n, 2))
    position = rng.integers(4, 4 + starts, size=(n, 2))
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
    test_z, codes = latents.latents_of(trained, test)
    raw, merged = probes.accuracies(jax.random.key(0), z, fit_actions, test_z, test_actions, range(len(MOVES)))
    assert raw > 0.9  # a fifth by chance; rounding alone moves it between 0.93 and 1
    assert merged == raw
    match = probes.agreement(codes, test_actions, range(len(MOVES)), seed=0)
    assert match["code_purity"] > 0.9 > 0.5 > match["code_purity_shuffled"]
    assert match["code_nmi"] > 0.5 > 0.2 > match["code_nmi_shuffled"]
    assert metrics["used_codes_0"] > 1
    # With each other's latents the model predicts other moves; of one code all latents are equal, and nothing changes.
    swapped = jax.jit(dynamics.evaluate_swapped)
    assert swapped(trained, test) > 2 * errors["fdm_mse"]
    one = dataclasses.replace(trained.config.quantizer, codes=1)
    books = jax.tree.map(lambda x: x[:, :1], trained.codebooks)
    deaf = trained.replace(config=dataclasses.replace(trained.config, quantizer=one), codebooks=books)
    np.testing.assert_allclose(swapped(deaf, test), dynamics.evaluate(deaf, test)["fdm_mse"], rtol=1e-5)


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
    close(infer(fused, windows), infer(looped, windows), atol=5e-5)


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
    close(two_metrics, one_metrics, rtol=1e-2, atol=1e-6)  # Adam's first steps amplify rounding
    two = jax.device_put(jax.device_get(two))
    close(two.codebooks, one.codebooks, rtol=1e-3, atol=1e-5)
    close(two.batch_stats, one.batch_stats, rtol=1e-3, atol=1e-5)
    ours, theirs = (infer(s, windows) for s in (two, one))
    chex.assert_trees_all_equal(ours.codes, theirs.codes)
    close(ours.continuous, theirs.continuous, atol=1e-4)


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
    state = state.replace(obs_stats={"mean": jnp.zeros(()), "scale": jnp.ones(())})  # the frames are standardised
    by_hand = np.stack([frames[:, 1] - frames[:, 0], frames[:, 1], frames[:, 2] - frames[:, 1]], 1)
    np.testing.assert_allclose(
        infer(changes, windows[:2]).continuous, infer(state, jnp.asarray(by_hand)).continuous, rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(infer(changes, windows[:2]).continuous, infer(state, windows[:2]).continuous, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.int8, bool])
def test_frames_of_another_type_do_not_pass_for_standardised_ones(tiny, windows, dtype):
    frames = np.asarray(windows[:2]).astype(dtype)
    for step in (dynamics.train_step, dynamics.infer_latents, dynamics.evaluate, dynamics.evaluate_swapped):
        with pytest.raises(ValueError, match="convert pixels in \\[0, 255\\] to uint8, or pass obs_stats to `init`"):
            jax.eval_shape(step, tiny, frames)


# Augmentation

SHIFTED = dataclasses.replace(CONFIG, augment="shift", augment_pixels=2)


def applied_shifts(before: np.ndarray, after: np.ndarray, pixels: int) -> list[tuple[int, int]]:
    """For each frame ``[n, H, W, C]`` the one translation with repeated edges that made it; fails if there is none."""
    found = []
    for frame, moved in zip(before, after, strict=True):
        padded = np.pad(frame, ((pixels, pixels), (pixels, pixels), (0, 0)), "edge")
        h, w, _ = frame.shape
        places = [(y, x) for y in range(2 * pixels + 1) for x in range(2 * pixels + 1)]
        [place] = [(y, x) for y, x in places if np.array_equal(padded[y : y + h, x : x + w], moved)]
        found.append(place)
    return found


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    """Windows in which no two frames are alike and no shift looks like another."""
    return np.random.default_rng(5).integers(0, 256, (32, 3, 16, 16, 3), np.uint8)


def test_a_window_is_shifted_as_one_and_windows_by_themselves(noisy):
    moved = np.asarray(dynamics.shift_windows(dynamics.augmentation_keys(0, 32), noisy, 2))
    assert moved.shape == noisy.shape and moved.dtype == np.uint8
    shifts = np.array([applied_shifts(before, after, 2) for before, after in zip(noisy, moved, strict=True)])
    np.testing.assert_array_equal(shifts, np.broadcast_to(shifts[:, :1], shifts.shape))
    # 32 draws of 25 places: each coordinate takes all five values, the middle one, which is no shift, among them.
    assert [sorted(set(axis)) for axis in shifts[:, 0].T] == [list(range(5))] * 2
    assert len({tuple(shift) for shift in shifts[:, 0]}) > 10


def test_shifts_follow_from_step_and_row_alone():
    draw = jax.jit(dynamics.augmentation_keys, static_argnums=1)
    first, again, later = (jax.random.key_data(draw(jnp.int32(step), 8)) for step in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert len({tuple(row) for row in np.concatenate([first, later]).tolist()}) == 16
    # A row's draw does not depend on how many follow it.
    np.testing.assert_array_equal(first[:5], jax.random.key_data(draw(jnp.int32(3), 5)))


def test_devices_draw_what_one_device_draws_for_the_joined_batch():
    each = jax.pmap(lambda step: jax.random.key_data(dynamics.augmentation_keys(step, 4, "devices")), "devices")
    rows = np.asarray(each(jnp.full(2, 7, jnp.int32))).reshape(8, -1)
    np.testing.assert_array_equal(rows, jax.random.key_data(dynamics.augmentation_keys(7, 8)))
    assert len({tuple(row) for row in rows.tolist()}) == 8


def test_only_the_inverse_model_sees_the_shift(state, noisy):
    """The loss is what hand-shifted windows and plain frames give, and so is the prediction's target."""
    shifted = state.replace(config=SHIFTED, step=jnp.int32(6))
    loss, (_, found, metrics) = jax.jit(dynamics.loss_fn)(shifted.params, shifted, noisy)
    moved = dynamics.shift_windows(dynamics.augmentation_keys(6, 32), noisy, 2)
    expected = infer(state, moved)
    close(found.continuous, expected.continuous, rtol=1e-6, atol=1e-5)
    assert not np.allclose(found.continuous, infer(state, noisy).continuous, atol=1e-3)
    plain_loss, (_, _, plain) = jax.jit(dynamics.loss_fn)(state.params, state, noisy)
    # predict="change" starts as the last frame, so these errors show which frames the forward model sees.
    for name in ("fdm_mse", "copy_last_mse"):
        np.testing.assert_allclose(metrics[name], plain[name], rtol=1e-6)
    assert abs(float(loss - plain_loss)) > 1e-7  # the commitment is that of other latents


def test_without_augmentation_nothing_is_drawn(state, windows):
    """Off, the program is the same whatever the size says, and asks no random numbers; on, it does."""

    def program(**changes):
        changed = state.replace(config=dataclasses.replace(CONFIG, **changes))
        return str(jax.make_jaxpr(lambda s, w: dynamics.loss_fn(s.params, s, w)[0])(changed, windows))

    assert DynamicsConfig().augment == "none"
    assert program() == program(augment_pixels=7)
    assert "random" not in program() and "random" in program(augment="shift")


def test_inference_is_not_augmented(state, windows):
    chex.assert_trees_all_equal(infer(state.replace(config=SHIFTED), windows), infer(state, windows))


def test_augmented_steps_resume_exactly_and_are_traced_once(state, noisy):
    """A state that went through the host goes on as the one that did not; another step draws other shifts."""
    step = jax.jit(chex.assert_max_traces(dynamics.train_step, n=1))
    start = state.replace(config=SHIFTED)
    after, _ = step(start, noisy)
    saved = jax.tree.map(jnp.asarray, jax.device_get(after))
    straight, metrics = step(after, noisy)
    resumed, resumed_metrics = step(saved, noisy)
    chex.assert_trees_all_equal(straight, resumed)
    chex.assert_trees_all_equal(metrics, resumed_metrics)
    _, elsewhere = step(after.replace(step=after.step + 1), noisy)
    assert float(elsewhere["commitment"]) != float(metrics["commitment"])


def test_a_shift_of_no_pixels_is_refused():
    with pytest.raises(ValueError, match=r"dynamics\.augment_pixels must be at least 1, not 0"):
        DynamicsConfig(augment="shift", augment_pixels=0)


# Action prediction

# Small enough to compile in a second; one book of four codes has no room for two things that move.
TINY = dataclasses.replace(
    CONFIG,
    steps=400,
    idm=MLPConfig((32,), 64),
    idm_input="changes",
    fdm=UNetConfig(channels=(8, 16), bottleneck=16, stem=2, latent_input="bias", predict="change"),
    quantizer=QuantizerConfig(codebooks=1, latents=1, dim=8, codes=4, decay=0.95),
)
SUPERVISED = dataclasses.replace(TINY, action_weight=0.5)
step = jax.jit(dynamics.train_step)


@pytest.fixture(scope="module")
def tiny() -> dynamics.DynamicsState:
    return init_dynamics(jax.random.key(0), TINY, (16, 16, 3), None, len(MOVES))


@pytest.fixture(scope="module")
def supervised() -> dynamics.DynamicsState:
    return init_dynamics(jax.random.key(0), SUPERVISED, (16, 16, 3), None, len(MOVES))


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Eight windows, of which four have a label; three of these lie in the first half."""
    frames, actions = moving_square(np.random.default_rng(2), 8)
    return frames, np.where([1, 0, 1, 1, 0, 0, 0, 1], actions, -1).astype(np.int32)


def unknown(labelled: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return labelled[0], np.full_like(labelled[1], -1)


def test_without_action_prediction_there_is_no_head(tiny, supervised):
    """Off, a state has the leaves it always had; on, both models start as they do without."""
    assert not DynamicsConfig().action_weight
    assert tiny.params.keys() == {"idm", "fdm"}
    assert supervised.params.keys() == {"idm", "fdm", "action_head"}
    chex.assert_trees_all_equal({name: supervised.params[name] for name in tiny.params}, tiny.params)


def test_the_action_loss_is_the_cross_entropy_of_the_labelled_windows(tiny, supervised, windows, labelled):
    frames, actions = labelled
    _, metrics = step(supervised, windows, labelled)
    head = jax.device_get(supervised.params["action_head"]["linear"])
    z = infer(supervised, frames).continuous
    logits = np.asarray(z) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(dynamics.predict_actions(supervised, z), logits, rtol=1e-4)
    known = actions >= 0
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    nats = -np.log(share[known, actions[known]]).mean()
    np.testing.assert_allclose(metrics["action_loss"], nats, rtol=1e-5)
    np.testing.assert_allclose(metrics["action_accuracy"], np.mean(logits.argmax(1)[known] == actions[known]))
    plain, (_, _, plain_metrics) = jax.jit(dynamics.loss_fn)(tiny.params, tiny, windows)
    assert "action_loss" not in plain_metrics
    np.testing.assert_allclose(metrics["loss"], plain + 0.5 * nats, rtol=1e-5)
    _, none = step(supervised, windows, unknown(labelled))
    assert float(none["action_loss"]) == float(none["action_accuracy"]) == 0
    np.testing.assert_allclose(none["loss"], plain, rtol=1e-5)


def test_of_continuous_actions_the_action_loss_is_their_squared_error_in_half_ranges(windows, labelled):
    box = Box((-2.0, 0.0), (2.0, 1.0))
    state = init_dynamics(jax.random.key(0), SUPERVISED, (16, 16, 3), None, box)
    frames, known = labelled[0], labelled[1] >= 0
    actions = np.random.default_rng(0).uniform(box.low, box.high, (8, 2)).astype(np.float32)
    given = np.where(known[:, None], actions, np.nan)
    after, metrics = step(state, windows, (frames, given))
    named = np.asarray(dynamics.predict_actions(state, infer(state, frames).continuous))
    assert named.shape == (8, 2)
    error = np.square(named - (actions - [0, 0.5]) / [2, 0.5])[known].mean()
    np.testing.assert_allclose([metrics["action_loss"], metrics["action_mse"]], error, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
    for _ in range(30):
        state, metrics = step(state, windows, (frames, given))
    assert metrics["action_mse"] < error / 2


def test_labels_train_the_inverse_model_and_the_head_alone(supervised, windows, labelled):
    given, _ = step(supervised, windows, labelled)
    without, _ = step(supervised, windows, unknown(labelled))
    for part in ("batch_stats", "codebooks"):
        chex.assert_trees_all_equal(getattr(given, part), getattr(without, part))
    # The first update follows the gradient's sign: what it did to the forward model does not depend on labels.
    gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), given.params, without.params)
    largest = {part: max(jax.tree.leaves(gaps)) for part, gaps in gap.items()}
    assert largest["fdm"] < 1e-6 < 1e-5 < min(largest["idm"], largest["action_head"])


def test_devices_with_unequal_labels_compute_what_one_computes(supervised, windows, labelled):
    """The mean is over all labels, not over the means of devices, one of which has three labels and the other one."""
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), (windows, labelled))

    def loss(windows, labelled, axis_name=None):
        return dynamics.loss_fn(supervised.params, supervised, windows, axis_name, labelled)[1][2]["action_loss"]

    each = jax.jit(jax.vmap(lambda w, x: loss(w, x, "devices"), axis_name="devices"))(*halves)
    one = jax.jit(loss)(windows, labelled)
    np.testing.assert_allclose(each.mean(), one, rtol=1e-5)
    assert abs(float(each[0]) - float(each[1])) > 0.1  # 3 of 4 labels against 1


def test_labels_teach_the_action_where_something_else_moves_more(supervised):
    """The action moves a square that is fainter, in one channel; in the others a bright one moves at random.

    The prediction error asks for the bright one alone, as exogenous noise above the signal does in the theory; with
    labels for a quarter of the windows the latent tells the other one's move.
    """
    rng = np.random.default_rng(3)

    def two_squares(n):
        frames, _ = moving_square(rng, n)
        own, actions = moving_square(rng, n, starts=1)
        frames[..., 2] = own[..., 0] // 2
        return frames, actions.astype(np.int32)

    (train, actions), (test, test_actions) = two_squares(4096), two_squares(512)
    found = {}
    for name in ("unknown", "known"):
        trained, rng = supervised, np.random.default_rng(4)
        for _ in range(SUPERVISED.steps):
            rows, few = rng.integers(len(train), size=32), rng.integers(1024, size=8)
            labels = (train[few], actions[few])
            trained, _ = step(trained, train[rows], labels if name == "known" else unknown(labels))
        (z, _), (test_z, _) = (latents.latents_of(trained, frames) for frames in (train, test))
        found[name], _ = probes.accuracies(jax.random.key(0), z, actions, test_z, test_actions, range(len(MOVES)))
    head = np.asarray(dynamics.predict_actions(trained, test_z)).argmax(1)
    assert found["known"] > 0.9 > 0.35 > found["unknown"]
    assert np.mean(head == test_actions) > 0.9


# Cleaning


def test_cleaned_frames_are_what_both_models_see(supervised, noisy, labelled):
    """Training, errors, latents and predictions are those of frames that were cleaned before."""
    cleaning = supervised.replace(config=dataclasses.replace(SUPERVISED, clean="median"))
    clean_noisy, clean_labelled = (np.asarray(clean(jnp.asarray(x), "median")) for x in (noisy, labelled[0]))
    assert (clean_noisy != noisy).mean() > 0.5
    loss = jax.jit(lambda state, *given: dynamics.loss_fn(state.params, state, given[0], None, given[1])[1][2])
    ours, theirs = loss(cleaning, noisy, labelled), loss(supervised, clean_noisy, (clean_labelled, labelled[1]))
    close(ours, theirs, rtol=1e-5)
    evaluate = jax.jit(dynamics.evaluate)
    close(evaluate(cleaning, noisy), evaluate(supervised, clean_noisy), rtol=1e-5)
    found = infer(cleaning, noisy)
    close(found, infer(supervised, clean_noisy), rtol=1e-5, atol=1e-6)
    predict = jax.jit(dynamics.predict_next)
    # Floats, such as imagined frames, are not cleaned again.
    floats = noisy[:, :2].astype(np.float32) / 255 - 0.5
    ours = predict(cleaning, floats, found.quantized)
    np.testing.assert_allclose(ours, predict(supervised, noisy[:, :2], found.quantized), atol=1e-6)


def test_labels_without_a_head_and_a_head_without_actions_are_refused(tiny, windows, labelled):
    with pytest.raises(ValueError, match=r"only if dynamics\.action_weight is above 0"):
        dynamics.train_step(tiny, windows, labelled)
    with pytest.raises(ValueError, match="give `space`"):
        dynamics.init(jax.random.key(0), SUPERVISED, (16, 16, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action_weight": -1.0}, "action_weight must not be negative or infinite, not -1.0"),
        ({"labelled": 0.0}, "labelled must be a share between 0 and 1, or a whole number of windows, not 0.0"),
        ({"labelled": 12.5}, "not 12.5"),
        ({"labelled_batch": 0}, "labelled_batch must be at least 1, not 0"),
    ],
)
def test_impossible_labels_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DynamicsConfig(**settings)


def test_labels_are_a_share_or_a_number():
    counts = [dataclasses.replace(SUPERVISED, labelled=n).num_labelled(1000) for n in (0.01, 0.0001, 1, 64.0)]
    assert counts == [10, 1, 1, 64]
    assert DynamicsConfig().num_labelled(1000) == 0


def test_copy_last_scale_divides_the_prediction_error(state, windows):
    _, metrics = jax.jit(dynamics.train_step)(state, windows)
    copy_last = np.mean(np.square((windows[:, 1].astype(np.float64) - windows[:, 2]) / 255))
    np.testing.assert_allclose(metrics["copy_last_mse"], copy_last, rtol=1e-5)
    # predict="change" starts as the last frame, so the scaled error starts at one.
    np.testing.assert_allclose(metrics["fdm_mse"], copy_last, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], 1 + metrics["commitment"], rtol=1e-4)


LOG_CHANNELS = DynamicsConfig(loss_scale="log_channels")


def test_the_log_of_channels_weighs_each_by_what_is_left_of_its_error():
    """Two channels: the first is predicted to a tenth of copying, the second is not predicted at all."""
    errors, copying = (jnp.broadcast_to(jnp.array(pair), (4, 3, 3, 2)) for pair in ([0.2, 5.0], [2.0, 5.0]))
    loss, gradient = jax.value_and_grad(dynamics.prediction_loss)(errors, copying, LOG_CHANNELS)
    np.testing.assert_allclose(loss, np.mean(np.log([0.2, 1.1])), atol=0.01)  # copying is offset by a hundredth
    weights = gradient.sum((0, 1, 2)) * jnp.array([2.0, 5.0])  # by each channel's error over that of copying
    np.testing.assert_allclose(weights, [0.5 / 0.2, 0.5 / 1.1], rtol=0.02)
    still = dynamics.prediction_loss(errors.at[..., 0].set(0), copying.at[..., 0].set(0), LOG_CHANNELS)
    np.testing.assert_allclose(still, np.mean(np.log([0.1, 1.1])), atol=0.01)


def test_devices_compute_the_log_of_the_joined_batchs_channels_and_its_gradient():
    errors, copying = jax.random.uniform(jax.random.key(0), (2, 8, 3, 2))
    value, gradient = jax.value_and_grad(dynamics.prediction_loss)(errors, copying, LOG_CHANNELS)
    one = lambda errors, copying: dynamics.prediction_loss(errors, copying, LOG_CHANNELS, "devices")  # noqa: E731
    each = jax.vmap(jax.value_and_grad(one), axis_name="devices")
    values, gradients = each(errors.reshape(2, 4, 3, 2), copying.reshape(2, 4, 3, 2))
    np.testing.assert_allclose(values.mean(), value, rtol=1e-5)
    np.testing.assert_allclose(gradients.reshape(8, 3, 2) / 2, gradient, rtol=1e-4)


@pytest.mark.parametrize("context", [0, 2])
def test_both_models_see_the_context_and_predict_what_follows(windows, context):
    """Windows of k + 2 frames; "changes" shows the inverse model the same frames as differences."""
    fdm = UNetConfig(channels=(4, 6, 8), bottleneck=8, latent_input="bias", predict="change", shift=1)
    config = dataclasses.replace(CONFIG, context=context, fdm=fdm, idm_input="changes")
    longer = np.concatenate([windows[:, ::-1], windows], axis=1)[:4, -(context + 2) :]
    state = init_dynamics(jax.random.key(0), config, (16, 16, 3))
    errors = jax.jit(dynamics.evaluate)(state, longer)
    copy_last = np.mean(np.square((longer[:, -2].astype(np.float64) - longer[:, -1]) / 255))
    # predict="change" starts as o_t, the last frame but one.
    np.testing.assert_allclose([errors["copy_last_mse"], errors["fdm_mse"]], [copy_last] * 2, rtol=1e-5)
    plain = dataclasses.replace(state, config=dataclasses.replace(config, idm_input="frames"))
    other = longer.copy()
    other[:, 0] = 255 - other[:, 0]  # z depends on the oldest frame too, however it is shown
    for seen in (state, plain):
        assert np.abs(infer(seen, longer).continuous - infer(seen, other).continuous).max() > 1e-4
    with pytest.raises(AssertionError):
        dynamics.train_step(state, windows)


# Focus

FOCUSED = dataclasses.replace(
    CONFIG,
    focus=8,
    focus_jitter=2,
    idm=dataclasses.replace(CONFIG.idm, channels=(8,), strides=(2,), features=16),
    fdm=UNetConfig(channels=(4, 6), bottleneck=8, latent_input="bias", predict="change"),
)


@pytest.fixture(scope="module")
def focused() -> dynamics.DynamicsState:
    return init_dynamics(jax.random.key(0), FOCUSED, (16, 16, 3))


def test_both_models_see_a_square_around_what_moves(focused, windows):
    frames = np.asarray(windows, np.float32) / 255 - 0.5
    around = jax.jit(lambda x: cut_squares(x, moving_squares(x, 8), 8))(frames)
    stats = {"mean": jnp.zeros(()), "scale": jnp.ones(())}  # the squares are standardised already
    whole = focused.replace(config=dataclasses.replace(FOCUSED, focus=0), obs_stats=stats)
    close(infer(focused, windows).continuous, infer(whole, around).continuous, atol=1e-5)
    # predict="change" starts as o_t, so the error shows which square the forward model sees.
    squares = np.asarray(forward_squares(FOCUSED, frames, 3))
    _, (_, _, metrics) = jax.jit(dynamics.loss_fn)(focused.params, focused.replace(step=jnp.int32(3)), windows)
    error = np.mean(np.square(squares[:, 2] - squares[:, 1]))
    np.testing.assert_allclose([metrics["fdm_mse"], metrics["copy_last_mse"]], [error, error], rtol=1e-5)
    assert error > 1.5 * np.mean(np.square(frames[:, 2] - frames[:, 1]))


def test_the_forward_models_square_lies_beside_the_inverse_models(noisy):
    """Of frames that change everywhere the middle is seen, at one of five places along each axis."""
    frames = np.asarray(noisy, np.float32)
    squares = np.asarray(forward_squares(FOCUSED, frames, 0))
    places = []
    for window, square in zip(frames, squares, strict=True):
        corners = [(y, x) for y in range(9) for x in range(9)]
        places += [(y, x) for y, x in corners if np.array_equal(window[:, y : y + 8, x : x + 8], square)]
    assert len(places) == len(frames)
    assert [sorted(set(axis)) for axis in zip(*places, strict=True)] == [[2, 3, 4, 5, 6]] * 2
    assert not np.array_equal(squares, forward_squares(FOCUSED, frames, 1))


def test_devices_cut_what_one_device_cuts_out_of_the_joined_batch(noisy):
    frames = np.asarray(noisy[:8], np.float32)
    each = jax.pmap(lambda windows: dynamics.forward_squares(FOCUSED, windows, 5, "devices"), "devices")
    joined = each(frames.reshape(2, 4, *frames.shape[1:])).reshape(8, 3, 8, 8, 3)
    np.testing.assert_array_equal(joined, forward_squares(FOCUSED, frames, 5))


def test_a_focused_model_predicts_whole_frames(focused, windows):
    latents = infer(focused, windows).quantized
    prediction = jax.jit(dynamics.predict_next)(focused, windows[:, :2], latents)
    # predict="change" starts as the last frame, wherever the squares are joined.
    np.testing.assert_allclose(prediction, windows[:, 1] / 255 - 0.5, atol=1e-6)
    errors = jax.jit(dynamics.evaluate)(focused, windows)
    np.testing.assert_allclose(errors["fdm_mse"], errors["copy_last_mse"], rtol=1e-5)
    swapped = jax.jit(dynamics.evaluate_swapped)(focused, windows)
    np.testing.assert_allclose(swapped, errors["fdm_mse"], rtol=1e-5)


def test_a_focused_model_predicts_what_moved_and_copies_the_rest_unless_the_view_moves(focused, noisy):
    # A trained model's prediction differs from o_t: here because every weight is moved.
    moved = focused.replace(params=jax.tree.map(lambda x: x + 0.1, focused.params))
    past = np.asarray(noisy[:2, :2], np.float32)
    past[0, 1] = past[0, 0]
    past[0, 1, 2:4, 3:5] += 0.1  # one thing moves in a view that stands still; in the other window everything changes
    latents = jnp.zeros((2, FOCUSED.latent_dim))
    prediction = np.asarray(jax.jit(dynamics.predict_next)(moved, past, latents))
    corners = moving_squares(past, 8)
    y, x = np.asarray(corners)[0]
    square = jax.jit(dynamics.predict_seen)(moved, cut_squares(past, corners, 8), latents)[0]
    expected = past[0, 1].copy()
    expected[y : y + 8, x : x + 8] = square
    np.testing.assert_allclose(prediction[0], expected, atol=1e-6)
    assert np.abs(square - past[0, 1, y : y + 8, x : x + 8]).max() > 1e-3
    assert (np.abs(prediction[1] - past[1, 1]).max((1, 2)) > 1e-4).all()  # every row is predicted


@pytest.mark.parametrize("shape", [(4,), (8, 4, 3)])
def test_a_square_needs_a_picture_that_holds_it(shape):
    with pytest.raises(ValueError, match=r"No 8 x 8 square fits into .* set --dynamics\.focus 0"):
        dynamics.init(jax.random.key(0), FOCUSED, shape)


def test_both_models_see_what_moves_in_some_rows(focused, windows):
    """What happens above these rows changes neither the latents nor the error."""
    state = focused.replace(config=dataclasses.replace(FOCUSED, focus_rows=(0.75, 1.0), focus_jitter=0))
    above = np.array(windows)
    above[:, -1, :4] = 255 - above[:, -1, :4]
    close(infer(state, windows).continuous, infer(state, above).continuous, atol=1e-6)
    errors = jax.jit(dynamics.evaluate)
    np.testing.assert_allclose(errors(state, windows)["fdm_mse"], errors(state, above)["fdm_mse"], rtol=1e-5)


def test_both_models_see_what_starts_or_stops(focused, windows):
    """The latents are those of the squares that `unsteady_squares` finds, and the forward model's lie there, too."""
    config = dataclasses.replace(FOCUSED, focus_at="unsteady", focus_jitter=0)
    frames = np.asarray(windows, np.float32) / 255 - 0.5
    around = jax.jit(lambda x: cut_squares(x, unsteady_squares(x, 8), 8))(frames)
    stats = {"mean": jnp.zeros(()), "scale": jnp.ones(())}  # the squares are standardised already
    whole = focused.replace(config=dataclasses.replace(FOCUSED, focus=0), obs_stats=stats)
    unsteady = focused.replace(config=config)
    close(infer(unsteady, windows).continuous, infer(whole, around).continuous, atol=1e-5)
    np.testing.assert_allclose(forward_squares(config, frames, 0), around, atol=1e-6)


FINDING = dataclasses.replace(FOCUSED, focus_at="agent", focus_jitter=0, locator=LocatorConfig(channels=4, layers=1))


@pytest.fixture(scope="module")
def finding() -> dynamics.DynamicsState:
    """Squares lie where a network with random weights finds an agent: at many places."""
    init = jit_once(locator.init, static_argnums=(1, 2))
    params = init(jax.random.key(3), FINDING.locator, (16, 16, 3)).params
    return init_dynamics(jax.random.key(0), FINDING, (16, 16, 3), None, None, params)


@jax.jit
def around_agent(params, frames):
    """The squares around what the network finds in o_t."""
    places = locator.find(params, FINDING.locator, frames[:, 1])
    return cut_squares(frames, jnp.clip(places - 4, 0, 8), 8)


def test_both_models_see_the_agent_that_a_network_finds_in_the_middle_frame(finding, focused, noisy):
    frames = np.asarray(noisy, np.float32) / 255 - 0.5
    around = around_agent(finding.locator, frames)
    places = jax.jit(locator.find, static_argnums=1)(finding.locator, FINDING.locator, frames[:, 1])
    assert len(np.unique(places, axis=0)) > 4
    whole = focused.replace(config=dataclasses.replace(FOCUSED, focus=0))
    stats = {"mean": jnp.zeros(()), "scale": jnp.ones(())}  # the frames are normalised already
    seen = infer(finding.replace(obs_stats=stats), frames).continuous
    close(seen, infer(whole.replace(obs_stats=stats), around).continuous, atol=1e-5)
    squares = jax.jit(dynamics.forward_squares, static_argnums=0)(FINDING, frames, 0, locator=finding.locator)
    np.testing.assert_array_equal(squares, around)


def test_training_leaves_the_network_that_finds_the_agent_alone(finding, windows):
    state, metrics = jax.jit(dynamics.train_step)(finding, windows)
    jax.tree.map(np.testing.assert_array_equal, state.locator, finding.locator)
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    assert not np.array_equal(*(jax.tree.leaves(each.params["idm"])[0] for each in (state, finding)))


def test_a_model_around_the_agent_predicts_its_square_and_copies_the_rest(finding, windows):
    """The view stands still: only the pixels of the square around the agent of the last frame change."""
    moved = finding.replace(params=jax.tree.map(lambda x: x + 0.1, finding.params))
    past = np.asarray(windows[:, :2], np.float32) / 255 - 0.5
    past[:, 0] = past[:, 1]  # nothing moves
    latents = jnp.zeros((len(past), FINDING.latent_dim))
    prediction = np.asarray(jax.jit(dynamics.predict_next)(moved, past, latents))
    places = np.asarray(jax.jit(locator.find, static_argnums=1)(finding.locator, FINDING.locator, past[:, 1]))
    corners = np.clip(places - 4, 0, 8)
    for predicted, last, (y, x) in zip(prediction, past[:, 1], corners, strict=True):
        changed = np.abs(predicted - last).max(-1) > 1e-6
        assert changed[y : y + 8, x : x + 8].mean() > 0.5
        changed[y : y + 8, x : x + 8] = False
        assert not changed.any()


@pytest.mark.parametrize("settings", [{}, {"clean": "median"}, {"focus_at": "unsteady"}], ids=str)
def test_what_the_inverse_model_sees_can_be_cut_out_beforehand(settings, finding, windows):
    config = dataclasses.replace(FINDING, **settings)
    state = finding.replace(config=config)
    seen = jax.jit(dynamics.idm_windows, static_argnums=0)(config, windows, None, finding.locator)
    assert seen.shape == (len(windows), 3, 8, 8, 3) and seen.dtype == jnp.uint8
    again = infer(state.replace(config=config.uncut, locator=None), seen)
    close(infer(state, windows).continuous, again.continuous, atol=1e-6)


def test_squares_around_the_agent_need_the_network_that_finds_it():
    with pytest.raises(ValueError, match=r"train one .* and give `locator` its parameters"):
        dynamics.init(jax.random.key(0), FINDING, (16, 16, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"focus": 6}, "not 6"),
        ({"focus_at": "agent", "context": 0}, "focus_at agent compares two changes: set dynamics.context to 1 or more"),
        ({"focus_at": "unsteady", "context": 0}, "set dynamics.context to 1 or more"),
        ({"focus_jitter": -1}, "not -1"),
        ({"focus_rows": (0.5, 0.5)}, r"such as 0.75 1, not \(0\.5, 0\.5\)"),
        ({"focus_rows": (0.5, 1.5)}, r"not \(0\.5, 1\.5\)"),
    ],
)
def test_impossible_squares_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DynamicsConfig(**settings)


# Decorrelation


def test_correlation_is_the_share_of_squares_beside_the_diagonal():
    """Three numbers: the first two mirror each other, r = -1; the third is at right angles to both; one is still."""
    a, b = np.array([1, 1, -1, -1.0]), np.array([1, -1, 1, -1.0])
    z = np.stack([3 * a, -0.5 * a + 7, b, np.full(4, 2.0)], axis=1).astype(np.float32)
    np.testing.assert_allclose(dynamics.correlation(z), 2 / 16, rtol=1e-4)
    np.testing.assert_allclose(dynamics.correlation(z[:, :2]), 1 - 1 / 2, rtol=1e-4)
    np.testing.assert_allclose(dynamics.correlation(z[:, 1:3]), 0, atol=1e-6)


def test_devices_compute_the_correlation_of_the_joined_batch_and_its_gradient():
    z = jax.random.normal(jax.random.key(0), (8, 3)) * 3 + 1
    value, gradient = jax.value_and_grad(dynamics.correlation)(z)
    each = jax.pmap(lambda z: jax.value_and_grad(dynamics.correlation)(z, "devices"), "devices")
    values, gradients = each(z.reshape(2, 4, 3))
    np.testing.assert_allclose(values, [value, value], rtol=1e-5)
    # The loss is a mean over devices, and so each device's gradient counts half.
    np.testing.assert_allclose(gradients.reshape(8, 3) / 2, gradient, rtol=1e-4, atol=1e-7)


def test_decorrelation_adds_the_latents_correlation_to_the_loss(focused, windows):
    state = focused.replace(config=dataclasses.replace(FOCUSED, decorrelation=3.0, dtype="bfloat16"))
    loss, (_, latents, metrics) = jax.jit(dynamics.loss_fn)(state.params, state, windows)
    plain = metrics["fdm_mse"] / metrics["copy_last_mse"] + metrics["commitment"]
    np.testing.assert_allclose(metrics["correlation"], dynamics.correlation(latents.continuous), rtol=1e-3)
    np.testing.assert_allclose(loss, plain + 3 * metrics["correlation"], rtol=1e-4)
    assert metrics["correlation"].dtype == loss.dtype == jnp.float32


def test_a_negative_decorrelation_is_refused():
    with pytest.raises(ValueError, match=r"decorrelation must not be negative or infinite, not -1\.0"):
        DynamicsConfig(decorrelation=-1.0)


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


def test_bfloat16_learns_as_float32_does():
    """Errors relative to copying, averaged over twenty steps: never further apart than 0.02 on the way from 1 to 0."""
    rng = np.random.default_rng(2)
    moves = np.eye(4)[rng.integers(4, size=(2048, 2))]
    train = jnp.asarray(np.concatenate([rng.normal(size=(2048, 1, 4)), moves], 1).cumsum(1), jnp.float32)
    rows = np.random.default_rng(3).integers(2048, size=(200, 64))
    models = {"idm": MLPConfig((64,), 64), "fdm": MLPFDMConfig((64, 64)), "idm_input": "changes"}

    def curve(dtype):
        state = init_dynamics(jax.random.key(0), dataclasses.replace(CONFIG, dtype=dtype, **models), (4,))
        step = lambda state, rows: dynamics.train_step(state, train[rows])  # noqa: E731
        _, metrics = jax.jit(lambda state: jax.lax.scan(step, state, rows))(state)
        return np.reshape(metrics["fdm_mse"] / metrics["copy_last_mse"], (-1, 20)).mean(1)

    exact, half = curve("float32"), curve("bfloat16")
    assert exact[0] > 0.8 and exact[-1] < 0.05
    np.testing.assert_allclose(half, exact, atol=0.02)
    assert (half != exact).all()


def test_frames_of_a_wrong_shape_are_refused(state):
    with pytest.raises(AssertionError):
        dynamics.train_step(state, jnp.zeros((4, 2, 16, 16, 3), jnp.uint8))
