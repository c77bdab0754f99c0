import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.envs import Gymnax
from lamjax.ppo.rollout import EpisodeStats, RewardScale, init_actor, rollout, scale_reward
from tests.ppo.probes import TELLTALE, ProbeEnv

N, T = 6, 40


# Reward scale


class GymNormalizeReward:
    """What gym 0.23.1's ``NormalizeReward`` computes, in float64."""

    def __init__(self, n, gamma):
        self.returns, self.gamma = np.zeros(n), gamma
        self.mean, self.var, self.count = 0.0, 1.0, 1e-4

    def __call__(self, reward, done):
        self.returns = self.returns * self.gamma + reward
        batch_mean, batch_var, batch_count = np.mean(self.returns), np.var(self.returns), len(self.returns)
        delta, total = batch_mean - self.mean, self.count + batch_count
        m2 = self.var * self.count + batch_var * batch_count + delta**2 * self.count * batch_count / total
        self.mean, self.var, self.count = self.mean + delta * batch_count / total, m2 / total, total
        scaled = reward / np.sqrt(self.var + 1e-8)
        self.returns[done] = 0.0
        return scaled


def rewards_and_ends(seed, steps=200, n=8):
    rng = np.random.default_rng(seed)
    reward = np.where(rng.random((steps, n)) < 0.2, rng.normal(1, 3, (steps, n)), 0.0).astype(np.float32)
    return reward, rng.random((steps, n)) < 0.05


@functools.partial(jax.jit, static_argnames="limit")
def scale_all(reward, done, limit):
    def step(scale, inputs):
        scale, scaled = scale_reward(scale, *inputs, 0.99, limit)
        return scale, (scaled, scale)

    return jax.lax.scan(step, RewardScale.init(reward.shape[1]), (reward, done))[1]


@pytest.mark.parametrize("limit", [1e9, 0.5])
def test_reward_scale_is_gyms(limit):
    reward, done = rewards_and_ends(0)
    scaled, scales = scale_all(reward, done, limit)
    gym = GymNormalizeReward(reward.shape[1], 0.99)
    for t in range(len(reward)):
        expected = gym(reward[t], done[t])
        np.testing.assert_allclose(scaled[t], np.clip(expected, -limit, limit), rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(scales.discounted[t], gym.returns, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scales.mean[t], gym.mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(scales.var[t], gym.var, rtol=4e-4)
    np.testing.assert_allclose(scales.count[-1], 1600, rtol=1e-6)
    assert (np.abs(scaled) == limit).any() == (limit == 0.5)  # so that both sides of the clip are seen
    assert done.any()


def test_first_step_of_the_reward_scale_by_hand():
    """The mean is not taken off: equal rewards keep their sign and size, divided by the running deviation."""
    scale, scaled = scale_reward(RewardScale.init(2), jnp.array([1.0, 3.0]), jnp.array([True, False]), 0.9, 1e9)
    # Two returns 1 and 3: mean 2, variance 1, beside a start of weight 1e-4 with mean 0 and variance 1.
    var = (1e-4 + 2 + 4 * 1e-4 * 2 / 2.0001) / 2.0001
    np.testing.assert_allclose(scale.var, var, rtol=1e-6)
    np.testing.assert_allclose(scale.mean, 2 * 2 / 2.0001, rtol=1e-6)
    np.testing.assert_allclose(scaled, np.array([1, 3]) / np.sqrt(var), rtol=1e-6)
    np.testing.assert_array_equal(scale.discounted, [0, 3])


def test_reward_scale_on_two_devices_is_that_of_the_joined_batch():
    reward, done = rewards_and_ends(1, steps=30)
    joined, scales = scale_all(reward, done, 10.0)

    def on_each(reward, done):
        def step(scale, inputs):
            scale, scaled = scale_reward(scale, *inputs, 0.99, 10.0, "devices")
            return scale, (scaled, scale.var, scale.count)

        return jax.lax.scan(step, RewardScale.init(4), (reward, done))[1]

    halves = [np.stack([x[:, :4], x[:, 4:]]) for x in (reward, done)]
    scaled, var, count = jax.pmap(on_each, axis_name="devices")(*halves)
    np.testing.assert_allclose(np.concatenate(scaled, axis=1), joined, rtol=1e-5, atol=1e-6)
    for device in range(2):
        np.testing.assert_allclose(var[device], scales.var, rtol=1e-5)
        np.testing.assert_allclose(count[device], scales.count, rtol=1e-6)


# Rollout


def value_of(obs):
    """Any function that tells observations apart; obs is ``(time, sign, 1)``."""
    return 100 * obs[:, 0] + obs[:, 1]


@pytest.fixture(scope="module")
def telltale():
    env = Gymnax(ProbeEnv(), N, params=TELLTALE.tables)
    logits = jnp.log(jnp.array([0.3, 0.7]))

    def encode(obs):
        return {"seen": obs}

    def act(features):
        return jnp.broadcast_to(logits, (N, 2)), value_of(features["seen"])

    @functools.partial(jax.jit, static_argnames=("limit", "bootstrap"))
    def run(key, limit=0.0, bootstrap=True):
        state = init_actor(env, key)
        return (
            state,
            *rollout(
                env,
                encode,
                act,
                state,
                jax.random.fold_in(key, 1),
                num_steps=T,
                gamma=0.99,
                reward_limit=limit,
                bootstrap_truncation=bootstrap,
            ),
        )

    return run


def test_every_transition_is_what_the_environment_said(telltale):
    before, after, steps, stats = jax.device_get(telltale(jax.random.key(0)))
    obs = steps.features["seen"]
    time, sign = obs[..., 0], obs[..., 1]
    np.testing.assert_array_equal(obs[0], before.obs)
    np.testing.assert_array_equal(time, np.arange(T)[:, None] % 3 * np.ones(N))
    np.testing.assert_array_equal(steps.reward, sign * (time + 1) + 10 * steps.action)
    np.testing.assert_array_equal(steps.done, time == 2)
    np.testing.assert_array_equal(steps.terminated, (time == 2) & (sign > 0))
    assert steps.terminated.any() and (steps.done & ~steps.terminated).any()
    np.testing.assert_allclose(steps.value, value_of(obs.reshape(-1, 3)).reshape(T, N))
    np.testing.assert_allclose(steps.log_prob, np.log([0.3, 0.7])[steps.action], rtol=1e-5)
    assert steps.action.dtype == np.int32
    assert abs(steps.action.mean() - 0.7) < 5 * np.sqrt(0.21 / (T * N))
    # 40 steps are 13 episodes of 3 and one step more.
    np.testing.assert_array_equal(after.obs[:, 0], 1)
    np.testing.assert_array_equal(after.episode_length, 1)
    np.testing.assert_allclose(after.episode_return, steps.reward[-1])
    assert isinstance(stats, EpisodeStats)
    assert (stats.count, stats.length_sum) == (13 * N, 39 * N)
    np.testing.assert_allclose(stats.return_sum, steps.reward[:39].sum(), rtol=1e-5)


def test_truncated_episodes_bootstrap_from_their_last_observation(telltale):
    steps = jax.device_get(telltale(jax.random.key(0))[2])
    time, sign = steps.features["seen"][..., 0], steps.features["seen"][..., 1]
    truncated = steps.done & ~steps.terminated
    # The last observation shows time 3; the value of it is asked for where the rollout needs it.
    np.testing.assert_allclose(steps.final_value[truncated], 300 + sign[truncated])
    assert (time[truncated] == 2).all()


def test_without_bootstrapping_every_end_is_for_good(telltale):
    key = jax.random.key(0)
    with_it, without = (jax.device_get(telltale(key, bootstrap=b)[2]) for b in (True, False))
    np.testing.assert_array_equal(without.done, with_it.done)
    np.testing.assert_array_equal(without.terminated, with_it.done)
    np.testing.assert_array_equal(without.final_value, 0)
    np.testing.assert_array_equal(without.reward, with_it.reward)


def test_scaled_rewards_leave_the_reported_returns_raw(telltale):
    key = jax.random.key(0)
    _, _, raw, raw_stats = jax.device_get(telltale(key))
    _, after, scaled, stats = jax.device_get(telltale(key, limit=2.0))
    np.testing.assert_array_equal(scaled.action, raw.action)
    gym = GymNormalizeReward(N, 0.99)
    expected = np.stack([gym(raw.reward[t], raw.done[t]) for t in range(T)])
    assert (np.abs(expected) > 2).any()
    np.testing.assert_allclose(scaled.reward, np.clip(expected, -2, 2), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after.reward_scale.var, gym.var, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, stats, raw_stats)


def test_rollout_follows_from_the_key(telltale):
    first, again, other = (jax.device_get(telltale(jax.random.key(seed))) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first[2].action != other[2].action).any()
