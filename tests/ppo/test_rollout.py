import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import envs, ppo
from lamjax.envs import Gymnax
from lamjax.envs.procgen import Procgen
from lamjax.ppo.rollout import ActorState, EpisodeStats, RewardScale, init_actor, rollout, scale_reward
from lamjax.spaces import Discrete
from tests.envs.toys import Halves
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


def test_rollout_is_what_steps_one_by_one_give(telltale):
    """Rewards scaled and episodes summed up while acting, as a loop on the host does it."""
    key = jax.random.key(0)
    before, after, steps, stats = jax.device_get(telltale(key, limit=2.0))
    env = Gymnax(ProbeEnv(), N, params=TELLTALE.tables)
    env_step = jax.jit(env.step)
    obs, env_state, scale = jnp.asarray(before.obs), before.env, before.reward_scale
    running, length, ended = np.zeros(N, np.float32), np.zeros(N, np.int32), np.zeros(3)
    for t, step_key in enumerate(jax.random.split(jax.random.fold_in(key, 1), T)):
        key_action, key_env = jax.random.split(step_key)
        action = jax.random.categorical(key_action, jnp.broadcast_to(jnp.log(jnp.array([0.3, 0.7])), (N, 2)))
        np.testing.assert_array_equal(steps.features["seen"][t], obs)
        np.testing.assert_array_equal(steps.action[t], action)
        obs, env_state, reward, terminated, truncated, info = env_step(key_env, env_state, action)
        done = np.asarray(terminated | truncated)
        np.testing.assert_array_equal(steps.done[t], done)
        np.testing.assert_array_equal(steps.terminated[t], terminated)
        expected = np.where(truncated, value_of(info["final_observation"]), 0)
        np.testing.assert_array_equal(steps.final_value[t], expected)
        running, length = running + np.asarray(reward), length + 1
        ended += [done.sum(), running[done].sum(), length[done].sum()]
        scale, scaled = scale_reward(scale, reward, done, 0.99, 2.0)
        np.testing.assert_allclose(steps.reward[t], scaled, rtol=1e-6)
        running, length = np.where(done, 0, running), np.where(done, 0, length)
    np.testing.assert_array_equal(after.obs, obs)
    np.testing.assert_array_equal(after.episode_return, running)
    np.testing.assert_array_equal(after.episode_length, length)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), after.reward_scale, scale)
    np.testing.assert_allclose([stats.count, stats.return_sum, stats.length_sum], ended, rtol=1e-6)


# Two groups in turn


def equal(left, right):
    """Both trees, to the bit."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(left), jax.device_get(right))


@pytest.mark.parametrize("steps", [1, 25])
def test_groups_in_turn_draw_the_actions_of_one_batch(steps):
    """Continuous actions, whose samples leave the bounds; episodes end both ways."""

    def act(obs):
        outputs = jnp.stack([obs[:, 0], obs[:, 1], obs[:, 1], -obs[:, 0]], axis=1)
        return outputs, 10 * obs[:, 0] + obs[:, 1]

    @functools.partial(jax.jit, static_argnums=0)
    def run(env):
        obs, env_state = env.begin()
        zeros = jnp.zeros(N)
        state = ActorState(env_state, obs, zeros, zeros.astype(jnp.int32), RewardScale.init(N))
        settings = {"num_steps": steps, "gamma": 0.9, "reward_limit": 1.0, "bootstrap_truncation": True}
        return rollout(env, lambda obs: obs, act, state, jax.random.key(5), **settings)

    together, in_turn = run(Halves(N)), run(Halves(N, groups=2))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), in_turn, together)
    transitions = together[1]
    assert (np.abs(transitions.action) > 2).any() or steps == 1
    cut = transitions.done & ~transitions.terminated
    assert (cut.any() and transitions.terminated.any()) or steps == 1
    np.testing.assert_array_equal(transitions.final_value != 0, cut)


@dataclasses.dataclass(frozen=True)
class Hashing:
    """Acts on a checksum of the frame: in whole numbers, so that an environment's row depends on no other."""

    space: ClassVar[Discrete] = Discrete(15)

    def encode(self, frozen, obs):
        weights = (1 + jnp.arange(64) % 7)[None, :, None, None]
        return jnp.sum(obs.astype(jnp.int32) * weights, axis=(1, 2, 3)) % 9973

    def apply(self, params, features):
        mixed = features[:, None] * (3 + 2 * jnp.arange(self.space.n))[None] % 101
        right = jnp.zeros(self.space.n).at[7].set(3.0).at[8].set(3.5)  # so that episodes end
        return mixed / 64 + right[None], features / 64


CONFIG = ppo.PPOConfig(num_envs=4, num_steps=100, num_minibatches=1, bootstrap_truncation=True)


def rollouts_of(groups, config=CONFIG, devices=(), rollouts=2):
    """Some rollouts of deaths that count as truncations, with their frames; handles left out."""
    env = Procgen("coinrun", config.num_envs // max(len(devices), 1), time_limit=1, num_threads=1, groups=groups)
    state = ppo.init(jax.random.key(1), config, {}, env, devices)
    results = []
    for number in range(rollouts):
        result = ppo.Driver(Hashing(), env, devices, fuse=True).collect(state, keep_obs=True)
        state = state.replace(actor=result.actor, update=state.update + 1 if number == 0 else state.update)
        actor = result.actor.replace(env=result.actor.env.replace(handle=None))
        results.append(jax.device_get(result.replace(actor=actor)))
    env.close()
    return results


def test_procgen_in_turn_is_procgen_at_once():
    """Observations, actions, rewards, ends and values of two rollouts, the second where the first stopped."""
    together, in_turn = rollouts_of(1), rollouts_of(2)
    equal(in_turn, together)
    assert all(result.done.sum() >= 2 for result in together)
    np.testing.assert_array_equal(together[1].obs[0], together[0].actor.obs)
    assert (together[0].obs[0] != together[1].obs[0]).any()


def test_procgen_in_turn_on_two_devices():
    devices = jax.local_devices()[:2]
    config = dataclasses.replace(CONFIG, num_envs=8, num_steps=30)
    together, in_turn = (rollouts_of(groups, config, devices, rollouts=1) for groups in (1, 2))
    equal(in_turn, together)
    assert together[0].obs.shape == (2, 30, 4, 64, 64, 3)
    assert (together[0].obs[0] != together[0].obs[1]).any()


def test_a_distracted_environment_steps_its_groups_at_once():
    """Its frames are drawn for all N together; the games underneath may have any number of groups."""
    results = []
    for groups in (1, 2):
        env = envs.make("coinrun", 4, num_threads=1, groups=groups, distractor="overlay")
        state = ppo.init(jax.random.key(1), dataclasses.replace(CONFIG, num_steps=8), {}, env)
        results.append(ppo.Driver(Hashing(), env, fuse=True).collect(state, keep_obs=True).obs)
        env.close()
    equal(*results)
