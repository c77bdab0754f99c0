import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.ppo import losses


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.0),  # inside the region: -A r
        (1.5, 2.0, -2.4, 0.0),  # a gain beyond 1 + clip is not paid
        (0.5, 2.0, -1.0, -2.0),  # a good action that became rarer is pulled back in full
        (0.5, -2.0, 1.6, 0.0),  # a loss avoided beyond 1 - clip is not paid
        (1.5, -2.0, 3.0, 2.0),  # a bad action that became likelier is pushed back in full
    ],
)
def test_policy_loss_clips_what_is_gained_and_never_what_is_lost(ratio, advantage, loss, slope):
    def of_ratio(r):
        return losses.policy_loss(jnp.log(r), jnp.array([advantage]), 0.2)

    value, gradient = jax.value_and_grad(of_ratio)(jnp.array([ratio]))
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, [slope], rtol=1e-5)


def test_policy_loss_is_a_mean():
    log_ratio = jnp.log(jnp.array([1.1, 1.5, 0.5]))
    np.testing.assert_allclose(
        losses.policy_loss(log_ratio, jnp.array([2.0, 2.0, -2.0]), 0.2), (-2.2 - 2.4 + 1.6) / 3, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope"),
    [
        (1.1, 3.0, 0.5 * 1.9**2, -1.9),  # moved by less than the clip
        (2.0, 3.0, 0.5 * 1.8**2, 0.0),  # moved by 1 towards the target: counts as moved by 0.2
        (0.0, 3.0, 0.5 * 3.0**2, -3.0),  # moved away: counts in full
        (0.0, -1.0, 0.5 * 1.8**2, 0.0),  # the same below
        (2.0, -1.0, 0.5 * 3.0**2, 3.0),
    ],
)
def test_value_loss_clips_moves_towards_the_target(value, target, loss, slope):
    def of_value(v):
        return losses.value_loss(v, jnp.array([1.0]), jnp.array([target]), 0.2)

    got, gradient = jax.value_and_grad(of_value)(jnp.array([value]))
    np.testing.assert_allclose(got, loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, [slope], rtol=1e-6)


def test_value_loss_is_half_a_mean():
    ones = jnp.ones(2)
    np.testing.assert_allclose(losses.value_loss(ones, ones, jnp.array([1.0, 3.0]), 0.2), 0.5 * (0 + 4) / 2)


def test_shapes_are_checked():
    with pytest.raises(AssertionError):
        losses.policy_loss(jnp.zeros(3), jnp.zeros((3, 1)), 0.2)
    with pytest.raises(AssertionError):
        losses.value_loss(jnp.zeros(3), jnp.zeros(3), jnp.zeros(2), 0.2)
