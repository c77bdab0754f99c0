from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from lamjax.ppo.gae import gae

_gae = jax.jit(gae, static_argnames=("gamma", "gae_lambda"))


def column(*values):
    return jnp.array(values)[:, None]


def by_definition(reward, value, next_value, terminated, done, gamma, gae_lambda):
    """A_t as the sum of discounted errors until the episode's end, each computed on its own."""
    steps, n = reward.shape
    delta = reward + gamma * (1 - terminated) * next_value - value
    advantage = np.zeros((steps, n))
    for i in range(n):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                advantage[t, i] += weight * delta[k, i]
                if done[k, i]:
                    break
                weight *= gamma * gae_lambda
    return advantage


def test_three_steps_by_hand():
    no = column(False, False, False)
    reward, value, next_value = column(1.0, 2.0, 3.0), column(0.5, 1.0, 1.5), column(1.0, 1.5, 4.0)
    # delta = (1 + 0.5 - 0.5, 2 + 0.75 - 1, 3 + 2 - 1.5) = (1, 1.75, 3.5), decay 0.5 * 0.8 = 0.4
    advantage, returns = gae(reward, value, next_value, no, no, gamma=0.5, gae_lambda=0.8)
    np.testing.assert_allclose(advantage[:, 0], [1 + 0.4 * 3.15, 1.75 + 0.4 * 3.5, 3.5], rtol=1e-6)
    np.testing.assert_allclose(returns[:, 0], [2.76, 4.15, 5.0], rtol=1e-6)
    assert advantage.dtype == returns.dtype == jnp.float32


@pytest.mark.parametrize(("terminated", "middle"), [(True, 1.0), (False, 1.75)])
def test_an_end_cuts_the_trace_and_a_termination_the_bootstrap_too(terminated, middle):
    reward, value, next_value = column(1.0, 2.0, 3.0), column(0.5, 1.0, 1.5), column(1.0, 1.5, 4.0)
    ends, done = column(False, terminated, False), column(False, True, False)
    advantage, _ = gae(reward, value, next_value, ends, done, gamma=0.5, gae_lambda=0.8)
    # Terminated: 2 - 1; truncated: 2 + 0.5 * 1.5 - 1; the step before sees either through its trace.
    np.testing.assert_allclose(advantage[:, 0], [1 + 0.4 * middle, middle, 3.5], rtol=1e-6)


def test_lambda_zero_is_one_step_and_lambda_one_the_discounted_return():
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 6, 2)).astype(np.float32)
    next_value[:-1] = value[1:]
    no = np.zeros((6, 2), bool)
    advantage, _ = gae(reward, value, next_value, no, no, gamma=0.9, gae_lambda=0.0)
    np.testing.assert_allclose(advantage, reward + 0.9 * next_value - value, atol=1e-6)
    _, returns = gae(reward, value, next_value, no, no, gamma=0.9, gae_lambda=1.0)
    expected = next_value[-1]
    for t in reversed(range(6)):
        expected = reward[t] + 0.9 * expected
        np.testing.assert_allclose(returns[t], expected, atol=1e-5)


@hypothesis.given(seed=st.integers(0, 10**6))
@hypothesis.settings(deadline=None, max_examples=25)
def test_equals_its_definition_with_terminations_and_truncations(seed):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, 12, 4)).astype(np.float32)
    done = rng.random((12, 4)) < 0.3
    terminated = done & (rng.random((12, 4)) < 0.5)
    advantage, returns = _gae(reward, value, next_value, terminated, done, gamma=0.97, gae_lambda=0.9)
    expected = by_definition(reward, value, next_value, terminated, done, 0.97, 0.9)
    np.testing.assert_allclose(advantage, expected, atol=2e-5)
    np.testing.assert_allclose(returns, expected + value, atol=2e-5)


def test_equals_the_reference_on_its_own_rollout():
    path = Path(__file__).parents[1] / "golden" / "lapo_small.npz"
    with np.load(path, allow_pickle=False) as arrays:
        golden = {key.removeprefix("gae/"): arrays[key] for key in arrays if key.startswith("gae/")}
    # There `dones[t]` says that step t starts an episode: the step before it has ended one, for good.
    done = np.concatenate([golden["dones"][1:], golden["next_done"][None]]).astype(bool)
    next_value = np.concatenate([golden["values"][1:], golden["next_value"].reshape(1, -1)])
    assert done.any() and not done.all()
    advantage, returns = gae(
        golden["rewards"],
        golden["values"],
        next_value,
        done,
        done,
        gamma=0.999,
        gae_lambda=0.95,
    )
    np.testing.assert_allclose(advantage, golden["adv"], atol=1e-5)
    np.testing.assert_allclose(returns, golden["returns"], atol=1e-5)


def test_shapes_are_checked():
    ok, no = jnp.zeros((3, 2)), jnp.zeros((3, 2), bool)
    with pytest.raises(AssertionError):
        gae(ok, ok, ok[:2], no, no, gamma=0.9, gae_lambda=0.9)
    with pytest.raises(AssertionError):
        gae(ok[0], ok[0], ok[0], no[0], no[0], gamma=0.9, gae_lambda=0.9)
