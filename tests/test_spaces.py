"""Spaces of actions: the numbers of a policy head as distributions, by hand and by many draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lamjax.spaces import MAX_LOG_STD, MIN_LOG_STD, Box, Discrete, as_space

LOG = np.log
BOX = Box((-2.0, 0.0), (2.0, 1.0))  # half-ranges of 2 and 0.5 around 0 and 0.5


def outputs_of(mean, std):
    """A policy head's numbers for means and deviations ``[B, D]`` in half-ranges: the bounds of deviations undone."""
    log_std = np.asarray(LOG(std), np.float64)
    raw = MAX_LOG_STD - LOG(np.expm1(MAX_LOG_STD - log_std))
    raw = MIN_LOG_STD + LOG(np.expm1(raw - MIN_LOG_STD))
    return jnp.asarray(np.concatenate([mean, raw], axis=-1), jnp.float32)


MEAN, STD = np.array([[0.5, -0.25], [-3.0, 0.0]]), np.array([[0.1, 1.0], [2.0, 0.5]])
OUTPUTS = outputs_of(MEAN, STD)


# Discrete


def test_log_prob_by_hand():
    logits = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.7, 0.1, 0.2]])) + jnp.array([[3.0], [-40.0]])
    np.testing.assert_allclose(Discrete(3).log_prob(logits, jnp.array([2, 0])), LOG([0.5, 0.7]), atol=1e-5)
    extreme = Discrete(2).log_prob(jnp.array([[1000.0, 0.0]] * 2), jnp.array([0, 1]))
    np.testing.assert_allclose(extreme, [0, -1000])


def test_a_policy_that_is_certain():
    outputs, action = Discrete(3).certain(jnp.array([2, 0])), [2, 0]
    assert outputs.shape == (2, 3) and Discrete(3).mode(outputs).tolist() == action
    draws = jax.vmap(lambda key: Discrete(3).sample(key, outputs))(jax.random.split(jax.random.key(0), 1000))
    assert (draws == jnp.array([action])).all()
    np.testing.assert_allclose(Discrete(3).log_prob(outputs, jnp.array(action)), [0, 0])


def test_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.25, 0.25, 0.5]])) + 7.0
    np.testing.assert_allclose(Discrete(3).entropy(logits), [1.5 * LOG(2)], atol=1e-6)
    np.testing.assert_allclose(Discrete(15).entropy(jnp.zeros((2, 15))), [LOG(15)] * 2, rtol=1e-6)
    np.testing.assert_allclose(Discrete(2).entropy(jnp.array([[500.0, 0.0]])), [0.0], atol=1e-6)


def test_smoothed_cross_entropy_by_hand():
    space, logits = Discrete(4), jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]]))
    np.testing.assert_allclose(space.loss(logits, jnp.array([3])), [-LOG(0.4)], rtol=1e-6)
    expected = -0.8 * LOG(0.4) - 0.2 * np.mean(LOG([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(space.loss(logits, jnp.array([3]), 0.2), [expected], rtol=1e-6)


# Continuous


def test_gaussians_are_those_of_scipy_per_half_range():
    action = jnp.array([[1.2, 0.1], [-7.0, 0.9]])
    scaled = np.array([[0.6, -0.8], [-3.5, 0.8]])
    np.testing.assert_allclose(BOX.log_prob(OUTPUTS, action), stats.norm(MEAN, STD).logpdf(scaled).sum(1), rtol=1e-4)
    np.testing.assert_allclose(BOX.entropy(OUTPUTS), stats.norm(MEAN, STD).entropy().sum(1), rtol=1e-4)
    np.testing.assert_allclose(BOX.loss(OUTPUTS, action), -BOX.log_prob(OUTPUTS, action))
    np.testing.assert_allclose(BOX.mode(OUTPUTS), [[1.0, 0.375], [-6.0, 0.5]], rtol=1e-6)


def test_samples_have_the_moments_and_leave_the_box_until_they_are_clipped():
    drawn = np.asarray(BOX.sample(jax.random.key(0), jnp.tile(OUTPUTS[1:], (20_000, 1))))
    np.testing.assert_allclose(drawn.mean(0), [-6.0, 0.5], atol=0.1)
    np.testing.assert_allclose(drawn.std(0), [4.0, 0.25], rtol=0.02)
    clipped = np.asarray(BOX.clip(drawn))
    np.testing.assert_array_equal(clipped.min(0), BOX.low)
    np.testing.assert_array_equal(clipped.max(0), BOX.high)
    inside = (np.abs(drawn[:, 0]) < 2) & (drawn[:, 1] > 0) & (drawn[:, 1] < 1)
    assert 0.05 < inside.mean() < 0.5
    np.testing.assert_array_equal(clipped[inside], drawn[inside])


def test_the_random_policy_is_uniform_over_the_box():
    drawn = np.asarray(BOX.sample(jax.random.key(0), BOX.uniform(20_000)))
    for column, low, high in zip(drawn.T, BOX.low, BOX.high, strict=True):
        assert stats.kstest(column, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_smoothing_deals_a_share_of_the_label_to_the_whole_box():
    action = jnp.array([[1.2, 0.1], [-1.0, 0.9]])
    anywhere = np.linspace(-1, 1, 20_001)[:, None, None]
    uniform = -stats.norm(MEAN, STD).logpdf(np.broadcast_to(anywhere, (20_001, 2, 2))).sum(-1).mean(0)
    expected = 0.9 * np.asarray(BOX.loss(OUTPUTS, action)) + 0.1 * uniform
    np.testing.assert_allclose(BOX.loss(OUTPUTS, action, 0.1), expected, rtol=1e-3)


@pytest.mark.parametrize("raw", [-100.0, 0.0, 100.0])
def test_deviations_are_bounded_and_never_without_a_gradient_that_leads_back(raw):
    box = Box((-1.0,), (1.0,))
    entropy, slope = jax.value_and_grad(lambda x: box.entropy(jnp.stack([0.0 * x, x])[None])[0])(jnp.float32(raw))
    log_std = float(entropy) - 0.5 * LOG(2 * np.pi * np.e)
    assert MIN_LOG_STD - 0.01 <= log_std <= MAX_LOG_STD + 0.01
    assert 0 <= slope <= 1 and (abs(raw) > 50 or slope > 0.5)


def test_a_zero_head_leaves_the_decoded_action_as_it_is():
    np.testing.assert_array_equal(BOX.blend(OUTPUTS, jnp.zeros_like(OUTPUTS)), OUTPUTS)
    np.testing.assert_array_equal(Discrete(2).blend(jnp.array([[2.0, -4.0]]), jnp.zeros((1, 2))), [[1.0, -2.0]])


def test_the_sum_of_two_heads_keeps_the_decoders_probabilities():
    decoded, head = jnp.array([[2.0, -4.0]]), jnp.array([[0.5, 1.0]])
    np.testing.assert_array_equal(Discrete(2).blend(decoded, jnp.zeros((1, 2)), "sum"), decoded)
    np.testing.assert_array_equal(Discrete(2).blend(decoded, head, "sum"), [[2.5, -3.0]])
    np.testing.assert_array_equal(BOX.blend(OUTPUTS, OUTPUTS, "sum"), BOX.blend(OUTPUTS, OUTPUTS, "mean"))


def test_scores_and_point_losses():
    action = jnp.array([[1.0, 0.75], [0.0, 0.5]])
    named = jnp.array([[0.5, 0.5], [1.0, 0.0]])  # half-ranges
    np.testing.assert_allclose(BOX.point_loss(named, action), [0.0, 0.5])
    np.testing.assert_allclose(BOX.score(BOX.mode(named), action), [0.0, 0.5])
    np.testing.assert_array_equal(BOX.known(jnp.array([[0.0, 1.0], [np.nan, 1.0]])), [True, False])
    np.testing.assert_array_equal(Discrete(3).score(jnp.array([1, 2]), jnp.array([1, 0])), [1.0, 0.0])
    np.testing.assert_array_equal(Discrete(3).known(jnp.array([0, -1])), [True, False])


def test_balanced_actions_have_the_same_total_weight():
    actions, counts = jnp.array([0, 0, 0, 2, 2, 1]), jnp.array([True] * 5 + [False])
    # Three of 0 and two of 2 among five labels; 1 does not count, and 3 never occurs.
    expected = [5 / 6, 5 / 6, 5 / 6, 5 / 4, 5 / 4, 0]
    np.testing.assert_allclose(Discrete(4).balance(actions, counts), expected, rtol=1e-6)
    np.testing.assert_array_equal(Box((-1.0,), (1.0,)).balance(jnp.zeros((3, 1)), jnp.ones(3, bool)), np.ones(3))


def test_spaces_are_values_and_a_number_is_a_space():
    assert as_space(3) == Discrete(3) == as_space(Discrete(3)) and as_space(BOX) is BOX
    assert hash(Box((-1.0,), (1.0,))) == hash(Box((-1.0,), (1.0,)))
    assert (BOX.shape, BOX.size, BOX.num_outputs) == ((2,), 2, 4)
    assert (Discrete(5).shape, Discrete(5).size, Discrete(5).num_outputs) == ((), 5, 5)
    for low, high in (((), ()), ((0.0,), (np.inf,)), ((1.0,), (1.0,)), ((0.0,), (1.0, 2.0))):
        with pytest.raises(ValueError, match="bounds"):
            Box(low, high)
