"""Offline decoding: a decoder of planted latents, also of very small ones, and what the protocol measures."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from lamjax.decoding import offline
from lamjax.decoding.offline import OfflineConfig
from lamjax.spaces import Box
from tests.trees import close

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


def test_a_decoder_fitted_with_noise_is_as_certain_as_noisy_latents_allow():
    z = np.array([-1.0, 1.0] * 64, np.float32)[:, None] * [[1.0, 1e-3]] + 3  # two numbers, each with deviation x
    actions = np.arange(128) % 2
    noisy = dataclasses.replace(CONFIG, noise=1.0, batch_size=512, steps=600)
    outputs = offline.decode(offline.fit(jax.random.key(0), z, actions, noisy, 2)[0], z[:2], noisy, 2)
    # Bayes: a number is n = x + e with x = +-d and a normal e of deviation d. The second is too small to be read beside
    # the first, so the log-odds at n = d are those of the first: 2 n x / d^2 = 2.
    np.testing.assert_allclose(outputs[:, 1] - outputs[:, 0], [-2, 2], atol=0.35)
    certain = offline.decode(offline.fit(jax.random.key(0), z, actions, CONFIG, 2)[0], z[:2], CONFIG, 2)
    assert np.abs(certain[:, 1] - certain[:, 0]).min() > 4


BOX = Box((-2.0, 0.0), (2.0, 1.0))


def turned(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents that hold actions of `BOX` as a rotated, shifted and shrunk copy."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(BOX.low, BOX.high, (n, 2)).astype(np.float32)
    z = (actions / [2, 0.5]) @ np.random.default_rng(99).normal(size=(2, 6)) * 1e-2 + 3
    return z.astype(np.float32), actions


def test_decodes_planted_continuous_actions_and_knows_how_well():
    params, _ = offline.fit(jax.random.key(0), *turned(256, 0), CONFIG, BOX)
    z, actions = turned(500, 1)
    outputs = offline.decode(params, z, CONFIG, BOX)
    error = np.asarray(BOX.score(BOX.mode(outputs), actions))
    assert error.mean() < 0.01  # a third would be that of the middle of the box
    # The deviation is fitted too: the likelihood is that of the errors that are made, not of a unit deviation.
    assert np.mean(BOX.loss(outputs, actions)) < 0 < np.mean(BOX.loss(outputs.at[:, 2:].set(0.0), actions))


def test_continuous_actions_that_latents_do_not_tell_keep_their_spread():
    _, actions = turned(512, 0)
    nothing = np.zeros((512, 6), np.float32)
    params, _ = offline.fit(jax.random.key(0), nothing, actions, CONFIG, BOX)
    drawn = BOX.sample(jax.random.key(1), offline.decode(params, np.zeros((4000, 6), np.float32), CONFIG, BOX))
    np.testing.assert_allclose(np.mean(drawn, 0), actions.mean(0), atol=0.2)
    np.testing.assert_allclose(np.std(drawn, 0), actions.std(0), rtol=0.2)


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


def test_a_balanced_fit_names_the_action_that_explains_latents_best():
    # Action 1 leaves a trace in half of its windows. The other half looks like action 0, which is rarer.
    actions = np.repeat(np.array([0, 1, 1], np.int32), [100, 150, 150])
    z = np.repeat(np.array([[0.0, 0.0], [0.0, 0.0], [1.0, -1.0]], np.float32), [100, 150, 150], axis=0)
    config = dataclasses.replace(CONFIG, balance=True, hidden=(), learning_rate=0.1)
    params, _ = offline.fit(jax.random.key(0), z, actions, config, 2)
    probabilities = jax.nn.softmax(offline.decode(params, np.array([[0.0, 0.0], [1.0, -1.0]], np.float32), config, 2))
    # All of action 0's weight against half of action 1's; their counts would give 0.4.
    np.testing.assert_allclose(probabilities[:, 0], [2 / 3, 0], atol=0.05)


def test_episodes_must_fill_the_environments():
    with pytest.raises(ValueError, match="multiple"):
        OfflineConfig(episodes=100, num_envs=64)


def test_padding_changes_nothing_and_compiles_once():
    """Rows beyond the count are never seen, whatever they hold, and one program fits every number of labels."""
    z, actions = planted(64, 1.0, 0)
    poisoned = np.where(np.arange(64)[:, None] < 24, z, np.nan), np.where(np.arange(64) < 24, actions, 4)
    fit = jax.jit(chex.assert_max_traces(offline.fit.__wrapped__, n=1), static_argnums=(3, 4))
    exact, loss = fit(jax.random.key(0), *poisoned, CONFIG, 5, 24)
    assert np.isfinite(loss)
    np.testing.assert_allclose(exact["mean"], z[:24].mean(0), rtol=1e-5)
    np.testing.assert_allclose(exact["scale"], z[:24].std() + 1e-6, rtol=1e-5)
    seen = np.argmax(offline.decode(exact, z[:24], CONFIG, 5), -1)
    assert np.mean(seen == actions[:24]) == 1.0
    again, _ = fit(jax.random.key(0), z, actions, CONFIG, 5, 24)
    chex.assert_trees_all_equal(exact, again)
    more, _ = fit(jax.random.key(0), z, actions, CONFIG, 5, 64)
    assert np.any(more["mean"] != exact["mean"])


def test_decoders_fitted_together_are_those_fitted_one_by_one():
    latents, actions = (np.stack(column) for column in zip(*(planted(64, 1.0, seed) for seed in range(3)), strict=True))
    keys, counts = jax.random.split(jax.random.key(0), 3), np.array([8, 64, 30], np.int32)
    config = OfflineConfig(steps=20, batch_size=16, learning_rate=3e-3, hidden=(16,), episodes=4, num_envs=4)
    params, losses = offline.fit_all(keys, latents, actions, config, 5, counts)
    for row in range(3):
        alone, loss = offline.fit(keys[row], latents[row], actions[row], config, 5, counts[row])
        close(jax.tree.map(lambda x, row=row: x[row], params), alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(losses[row], loss, rtol=1e-4)


def test_candidates_are_what_is_not_measured_yet_and_chunks_keep_what_belongs_together():
    config = OfflineConfig(methods=("policy", "bc", "idm"), seeds=2, compare_at=(64,))
    every = offline.candidates(config, [16, 64], {})
    both = ("sampled", "greedy")
    first = [(16, "policy", ("sampled",)), (64, "policy", both), (64, "idm", both)]
    first += [(16, "bc", ("sampled",)), (64, "bc", both)]
    assert [(one.draw, one.count, one.method, one.plays) for one in every] == [
        (draw, *rest) for draw in (0, 1) for rest in first
    ]
    measured = {"curve": [[16, 0, 1.0, 0.1]], "greedy_curve": [[64, 0, 1.0, 0.1]], "bc_curve": [[16, 1, 1.0, 0.1]]}
    left = offline.candidates(config, [16, 64], measured)
    assert len(left) == 8 and left[0] == offline.Candidate(0, 64, "policy", ("sampled",))

    assert [[len(one.plays) for one in chunk] for chunk in offline.chunks(every, 3)] == [[1, 2], [2], [1, 2]] * 2
    assert [len(chunk) for chunk in offline.chunks(every, 1)] == [1] * 10
    assert [len(chunk) for chunk in offline.chunks(every, 100)] == [3, 2, 3, 2]
    assert list(offline.chunks([], 4)) == []


def test_counts_are_labels_and_shares_that_the_data_holds():
    config = OfflineConfig(labels=(16, 4096, 100), label_shares=(0.01, 0.1))
    assert offline.label_counts(config, 10_000) == [16, 100, 1000, 4096]  # 1 % is among them already
    assert offline.label_counts(config, 50) == [5, 16]  # half a window rounds to none
    assert offline.label_counts(OfflineConfig(), 2_600_000)[-1] == 26_000


def test_curves_over_draws_by_hand():
    rows = [(64, 0, 5.0, 9.0), (16, 0, 1.0, 9.0), (16, 1, 2.0, 9.0), (16, 2, 6.0, 9.0)]
    few, one = offline.over_seeds(rows)
    assert few == [16, pytest.approx(3.0), pytest.approx(np.sqrt(7.0 / 3))]  # variance (4 + 1 + 9) / 2
    assert one == [64, 5.0, 9.0]  # a single draw has the error over its episodes


def test_pseudo_labels_may_have_a_decoder_of_their_own():
    assert CONFIG.pseudo_labels == CONFIG.program
    linear = dataclasses.replace(CONFIG, relabel_hidden=(), noise=1.0)
    assert linear.program == CONFIG.program
    assert linear.pseudo_labels == dataclasses.replace(CONFIG.program, hidden=(), noise=1.0)
    with pytest.raises(ValueError, match="relabel_hidden must be at least 1"):
        OfflineConfig(relabel_hidden=(0,))


def test_what_is_measured_where():
    config = OfflineConfig(methods=("policy", "bc", "idm", "relabel"), compare_at=(64,))
    assert offline.variants(config, 16) == {"policy": ("sampled",), "bc": ("sampled",)}
    assert offline.variants(config, 64) == dict.fromkeys(config.methods, ("sampled", "greedy"))
    everywhere = OfflineConfig(methods=("policy",), play=("sampled",))
    assert offline.variants(everywhere, 16) == {"policy": ("sampled",)}
    names = [offline.curve_name(method, play) for method in ("policy", "bc", "relabel") for play in config.play]
    assert names == ["curve", "greedy_curve", "bc_curve", "bc_greedy_curve", "relabel_curve", "relabel_greedy_curve"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, r"offline\.seeds must be at least 1"),
        ({"label_shares": (0.0,)}, r"offline\.label_shares must lie in"),
        ({"methods": ("idm",)}, 'must hold "policy"'),
        ({"play": ("greedy",)}, 'must hold "policy"'),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OfflineConfig(**settings)
