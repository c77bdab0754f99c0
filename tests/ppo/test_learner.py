import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lamjax import envs, jitted, ppo
from lamjax.envs import Gymnax
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig
from lamjax.ppo import ActorCriticAgent, PPOConfig, losses
from lamjax.presets import GRID_PRESETS, OWN_PRESETS
from lamjax.training import driver
from tests.envs.toys import Aim
from tests.ppo import probes
from tests.ppo.conftest import AGENT, CONFIG
from tests.ppo.probes import ProbeEnv


def allclose(left, right, rtol=1e-5, atol=1e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), left, right)


# Learning


AXES = np.eye(3)
X = AXES[0]


@pytest.mark.parametrize(
    ("probe", "obs", "value", "good_action"),
    [
        pytest.param(probes.CONSTANT, [X], [1.0], None, id="constant reward"),
        pytest.param(probes.SEEN, [X, -X], [1.0, -1.0], None, id="reward is what is seen"),
        pytest.param(probes.DELAYED, [0 * X, X], [0.5, 1.0], None, id="reward a step later"),
        pytest.param(probes.ACTION_PAYS, [X], [1.0], [1], id="reward depends on the action"),
        pytest.param(probes.ACTION_MUST_MATCH, [X, -X], [1.0, 1.0], [1, 0], id="on what is seen and the action"),
        pytest.param(probes.CLOCK, AXES, [1.75, 1.5, 1.0], None, id="an end ahead"),
        # 1 a step for ever is worth 1 / (1 - gamma), whatever the clock shows.
        pytest.param(probes.CUT_CLOCK, AXES, [2.0, 2.0, 2.0], None, id="a time-out that is no end"),
    ],
)
def test_learns_the_probes(bench, probe, obs, value, good_action):
    state, metrics = bench.learn(bench.start(probe))
    # Eight rows, so that one compiled function serves every probe.
    logits, values = (x[: len(obs)] for x in bench.apply(state.params, jnp.zeros((8, 3)).at[: len(obs)].set(obs)))
    np.testing.assert_allclose(values, value, atol=0.1)
    if good_action is not None:
        chosen = jax.nn.softmax(logits)[jnp.arange(len(obs)), jnp.array(good_action)]
        assert chosen.min() > 0.9
        assert metrics["entropy"][-1] < 0.2 < metrics["entropy"][0]
    assert int(state.update) == CONFIG.num_updates == 40


def test_learns_cartpole():
    """CartPole-v1 counts as solved at 475 of 500 (gym). About 40 in the first eighth of the frames."""
    env = envs.make("cartpole", 16)
    config = PPOConfig(
        total_frames=80 * 2048,
        num_envs=16,
        num_steps=128,
        num_epochs=4,
        num_minibatches=8,
        gamma=0.99,
        entropy_coef=0.001,
        bootstrap_truncation=True,
        learning_rates=(("", ((0.0, 3e-3), (1.0, 0.0))),),
    )
    agent = ActorCriticAgent(MLPConfig(hidden=(64,), features=64), env.num_actions)

    @jax.jit
    def learn(key):
        state = ppo.init(key, config, agent.init(key, env.obs_shape), env)
        return ppo.learn(state, agent, env)[1]

    metrics = jax.device_get(learn(jax.random.key(0)))
    last = slice(-20, None)
    episodes = metrics["episodes"][last]
    mean = (np.nan_to_num(metrics["episode_return"][last]) * episodes).sum() / episodes.sum()
    assert mean >= 475
    assert np.nanmean(metrics["episode_return"][:3]) < 60  # it had to be learned
    np.testing.assert_array_equal(metrics["episode_return"][last], metrics["episode_length"][last])


def test_learns_the_continuous_action_that_what_is_seen_asks_for():
    """A one-step probe: the best action is a function of the point that is shown (`Aim.aim`), a zero reward away."""
    env = Gymnax(Aim([1]), 16)
    agent = ActorCriticAgent(MLPConfig(hidden=(32,), features=32), env.action_space)
    config = dataclasses.replace(CONFIG, total_frames=60 * 256)

    @jax.jit
    def learn(key):
        state = ppo.init(key, config, agent.init(key, env.obs_shape), env)
        return ppo.learn(state, agent, env)

    state, metrics = learn(jax.random.key(0))
    points = jnp.array([[-0.8, 0.5], [0.0, 0.0], [0.6, -0.6]])
    found = agent.space.mode(agent.apply(state.params, points)[0])
    np.testing.assert_allclose(found, jax.vmap(Aim.aim)(points), atol=0.25)
    assert metrics["episode_return"][-1] > -0.05 > -0.2 > metrics["episode_return"][0]
    assert metrics["entropy"][-1] < metrics["entropy"][0] - 1


def test_learns_pendulum():
    """Tuned PPO has -150 to -200 (RL Baselines3 Zoo); uniform play has -1229."""
    config = OWN_PRESETS["pendulum"]["cpu"].expert
    env = envs.make("pendulum", config.ppo.num_envs)
    agent = ActorCriticAgent(config.trunk, env.action_space)
    params, metrics = jax.jit(lambda key: jitted.learn(key, env, config))(jax.random.key(0))
    returns = jitted.evaluate(jax.random.key(1), env, agent, params, 2)
    assert returns.mean() >= -250
    assert np.nanmin(metrics["episode_return"]) < -1000  # it had to be learned


@pytest.mark.skipif("LAMJAX_LONG" not in os.environ, reason="takes two minutes: LAMJAX_LONG=1 runs it")
def test_learns_minatar_breakout():
    """The preset's expert, against gymnax's own PPO agent, which has 28 (its README)."""
    config = GRID_PRESETS["cpu"].expert
    env = envs.make("minatar/breakout", config.ppo.num_envs)
    agent = ActorCriticAgent(config.trunk, env.num_actions)
    params, _ = jax.jit(lambda key: jitted.learn(key, env, config))(jax.random.key(0))
    returns = jitted.evaluate(jax.random.key(1), env, agent, params, 2)
    assert returns.mean() > 28


# One update


@pytest.fixture(scope="module")
def telltale(bench):
    """A state in episodes that are cut and that end, and the rollout from it."""
    state = bench.start(probes.TELLTALE, reward_limit=10.0)
    return state, bench.driver.collect(state, keep_obs=True)


def gym_scaled(reward, done, gamma, limit):
    """gym's ``NormalizeReward`` over ``[T, N]``; see test_rollout."""
    discounted, mean, var, count = np.zeros(reward.shape[1]), 0.0, 1.0, 1e-4
    scaled = []
    for t in range(len(reward)):
        discounted = discounted * gamma + reward[t]
        n, delta = len(discounted), discounted.mean() - mean
        m2 = var * count + discounted.var() * n + delta**2 * count * n / (count + n)
        mean, var, count = mean + delta * n / (count + n), m2 / (count + n), count + n
        scaled.append(np.clip(reward[t] / np.sqrt(var + 1e-8), -limit, limit))
        discounted[done[t]] = 0
    return np.array(scaled)


def test_collect_gives_flat_transitions_with_their_advantages(bench, telltale):
    state, rollout = telltale
    config, batch = state.config, jax.device_get(rollout.batch)
    steps, n = config.num_steps, config.num_envs
    assert rollout.obs.shape == (steps, n, 3)
    obs, action = np.asarray(rollout.obs), np.asarray(rollout.action)
    np.testing.assert_array_equal(batch.features, obs.reshape(-1, 3))
    np.testing.assert_array_equal(batch.action, action.ravel())
    logits, value = bench.apply(state.params, batch.features)
    allclose(batch.value, value)
    allclose(batch.log_prob, AGENT.space.log_prob(logits, batch.action))
    allclose(batch.target, batch.advantage + batch.value)

    # Rewards, ends and what is bootstrapped, put together from the probe's definition.
    time, sign = obs[..., 0], obs[..., 1]
    done, terminated = time == 2, (time == 2) & (sign > 0)
    assert terminated.any() and (done & ~terminated).any()
    np.testing.assert_array_equal(rollout.done, done)
    reward = gym_scaled(sign * (time + 1) + 10.0 * action, done, config.gamma, 10.0)
    value = np.asarray(value).reshape(steps, n)
    beyond = np.asarray(bench.apply(state.params, (obs + np.float32([1, 0, 0])).reshape(-1, 3))[1])
    after_last = np.asarray(bench.apply(state.params, rollout.actor.obs)[1])
    following = np.where(done, beyond.reshape(steps, n), np.concatenate([value[1:], after_last[None]]))
    delta = reward + config.gamma * ~terminated * following - value
    advantage, expected = np.zeros(n), np.zeros((steps, n))
    for t in reversed(range(steps)):
        advantage = delta[t] + config.gamma * config.gae_lambda * ~done[t] * advantage
        expected[t] = advantage
    allclose(batch.advantage.reshape(steps, n), expected, rtol=1e-3, atol=1e-4)


def test_collect_keeps_frames_only_when_asked(bench, telltale):
    state, rollout = telltale
    without = bench.driver.collect(state)
    assert without.obs is None
    jax.tree.map(np.testing.assert_array_equal, without.batch, rollout.batch)


def test_collect_draws_from_the_key_and_the_number_of_the_update(bench, telltale):
    state, rollout = telltale
    later = bench.driver.collect(state.replace(update=state.update + 1), keep_obs=True)
    assert (later.action != rollout.action).any()
    again = bench.driver.collect(bench.start(probes.TELLTALE, reward_limit=10.0), keep_obs=True)
    jax.tree.map(np.testing.assert_array_equal, again, rollout)


_loss = jax.jit(ppo.loss_fn, static_argnums=(1, 3))
_gradient = jax.jit(jax.grad(lambda *args: ppo.loss_fn(*args)[0]), static_argnums=(1, 3))


def test_loss_is_the_sum_of_its_parts(bench, telltale):
    state, rollout = telltale
    config = dataclasses.replace(state.config, entropy_coef=0.3, value_coef=0.7, clip=0.1)
    old = rollout.batch.log_prob + np.linspace(-0.3, 0.3, 256, dtype=np.float32)
    batch = rollout.batch.replace(log_prob=old)
    loss, metrics = _loss(state.params, AGENT, batch, config)
    logits, value = bench.apply(state.params, batch.features)
    log_ratio = AGENT.space.log_prob(logits, batch.action) - batch.log_prob
    ratio = np.exp(np.asarray(log_ratio, np.float64))
    policy = losses.policy_loss(log_ratio, batch.advantage, 0.1)
    value_error = losses.value_loss(value, batch.value, batch.target, 0.1)
    entropy = AGENT.space.entropy(logits).mean()
    allclose(loss, policy + 0.7 * value_error - 0.3 * entropy)
    allclose(metrics["policy_loss"], policy)
    allclose(metrics["value_loss"], value_error)
    allclose(metrics["entropy"], entropy)
    allclose(metrics["approx_kl"], np.mean(ratio - 1 - np.log(ratio)), rtol=1e-4)
    allclose(metrics["clip_fraction"], np.mean(np.abs(ratio - 1) > 0.1))
    assert 0 < metrics["clip_fraction"] < 1


_step = jax.jit(ppo.minibatch_step, static_argnums=(4, 5))


def copied(tree):
    """Buffers that a step may take."""
    return jax.tree.map(np.array, tree)


def minibatch(state, batch, rows, rates, **changes):
    config = dataclasses.replace(state.config, **changes)
    carry = copied((state.params, state.opt_state))
    return _step(carry, rows, batch, rates, AGENT, config)


@pytest.fixture(scope="module")
def rates(telltale):
    return {group: jnp.float32(1e-3 * (1 + i)) for i, group in enumerate(telltale[0].params)}


def test_minibatch_step_by_hand(telltale, rates):
    """Sample deviation, clip of the global norm, first step of Adam, a rate for each group."""
    state, rollout = telltale
    (params, _), metrics = minibatch(state, rollout.batch, jnp.arange(5, 69), rates)
    chosen = jax.tree.map(lambda x: np.asarray(x)[5:69], rollout.batch)
    advantage = np.float64(chosen.advantage)
    advantage = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
    grads = _gradient(state.params, AGENT, chosen.replace(advantage=np.float32(advantage)), state.config)
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    allclose(metrics["grad_norm"], norm, rtol=1e-4)
    limit = state.config.max_grad_norm
    assert norm > limit  # so that the clip acts
    # Adam's first direction is g / (|g| + eps): the clip shows in the moments alone.
    clip = jax.tree.map(lambda g: np.float64(g) * limit / norm, grads)
    for group in params:
        for new, old, grad in zip(
            *(jax.tree.leaves(tree[group]) for tree in (params, state.params, clip)), strict=True
        ):
            expected = -float(rates[group]) * grad / (np.abs(grad) + 1e-8)
            sure = np.abs(grad) > 1e-5
            np.testing.assert_allclose((np.asarray(new) - old)[sure], expected[sure], rtol=5e-3, atol=1e-7)


def test_the_clip_acts_on_the_global_norm_before_the_moments(telltale, rates):
    state, rollout = telltale
    (_, opt_state), metrics = minibatch(state, rollout.batch, jnp.arange(5, 69), rates)
    first_moment = optax.tree.get(opt_state, "mu")
    assert metrics["grad_norm"] > state.config.max_grad_norm
    np.testing.assert_allclose(optax.tree.norm(first_moment), 0.1 * state.config.max_grad_norm, rtol=1e-4)


def test_a_rate_of_zero_moves_nothing_but_the_moments(telltale):
    state, rollout = telltale
    rates = {group: jnp.float32(0.0) for group in state.params}
    (params, opt_state), _ = minibatch(state, rollout.batch, jnp.arange(64), rates)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(optax.tree.get(opt_state, "mu")))


def test_gradient_in_pieces_is_the_gradient(telltale, rates):
    state, rollout = telltale
    rows = jax.random.permutation(jax.random.key(0), 256)[:64]
    whole, whole_metrics = minibatch(state, rollout.batch, rows, rates)
    pieces, metrics = minibatch(state, rollout.batch, rows, rates, grad_chunks=4)
    allclose(whole_metrics, metrics, rtol=1e-4, atol=1e-6)
    allclose(whole, pieces, rtol=1e-3, atol=2e-5)


def test_two_devices_step_as_one_does_on_the_joined_batch(telltale, rates):
    state, rollout = telltale
    # The halves differ in mean and spread, so normalising each on its own would show.
    uneven = np.float32(np.asarray(rollout.batch.advantage) * np.linspace(0.1, 3, 256) + np.arange(256) / 8)
    batch = rollout.batch.replace(advantage=uneven)
    (joined, joined_opt), joined_metrics = minibatch(state, batch, jnp.arange(64), rates)
    halves = jax.tree.map(lambda x: np.asarray(x)[:64].reshape(2, 32, *x.shape[1:]), batch)

    @functools.partial(jax.pmap, axis_name="devices", in_axes=(None, 0))
    def on_each(carry, batch):
        return ppo.minibatch_step(carry, jnp.arange(32), batch, rates, AGENT, state.config, axis_name="devices")

    (params, opt_state), metrics = jax.device_get(on_each(copied((state.params, state.opt_state)), halves))
    for device in range(2):
        of_device = functools.partial(jax.tree.map, lambda x, device=device: x[device])
        allclose(of_device(metrics), joined_metrics, rtol=1e-4, atol=1e-6)
        allclose(of_device(opt_state), joined_opt, rtol=1e-3, atol=1e-6)
        allclose(of_device(params), joined, rtol=1e-3, atol=2e-5)


def test_an_update_on_two_devices_keeps_them_equal_and_reduces_every_metric(bench):
    @functools.partial(jax.pmap, axis_name="devices")
    def on_each(key):
        state = bench.start(probes.TELLTALE, reward_limit=10.0)
        state = state.replace(actor=bench.start(probes.TELLTALE, key=key).actor)
        return ppo.update(state, AGENT, bench.env, axis_name="devices")

    after, metrics = jax.device_get(on_each(jax.random.split(jax.random.key(0), 2)))
    assert {"explained_variance", "episodes", "episode_return", "grad_norm"} <= set(metrics)
    for name, value in metrics.items():
        assert value[0] == value[1], name
    jax.tree.map(lambda x: np.testing.assert_array_equal(x[0], x[1]), (after.params, after.opt_state))
    assert (after.actor.obs[0] != after.actor.obs[1]).any()  # each plays its own episodes
    scale = after.actor.reward_scale
    for value in (scale.mean, scale.var, scale.count):
        assert value[0] == value[1]
    assert scale.count[0] == pytest.approx(2 * 256)
    assert metrics["episodes"][0] == 2 * 16 * 5  # 16 steps are 5 episodes of 3


def test_devices_with_environments_of_their_own_make_one_update_in_a_loop_and_in_a_scan(bench):
    devices = jax.local_devices()[:2]
    start = bench.start(probes.TELLTALE, reward_limit=10.0)
    env = Gymnax(ProbeEnv(), CONFIG.num_envs // 2, params=probes.TELLTALE.tables)
    state = ppo.init(jax.random.key(1), start.config, copied(start.params), env, devices)
    fusing, looping = (ppo.Driver(AGENT, env, devices, fuse=fuse) for fuse in (True, False))
    rollout = looping.collect(state)
    assert rollout.action.shape == (2, 16, 8) and (rollout.actor.obs[0] != rollout.actor.obs[1]).any()
    fused, fused_metrics = fusing.improve(jax.tree.map(jnp.copy, state), rollout)
    looped, looped_metrics = looping.improve(state, rollout)
    allclose(looped_metrics, fused_metrics, rtol=1e-3, atol=1e-4)
    allclose((looped.params, looped.opt_state), (fused.params, fused.opt_state), rtol=1e-3, atol=1e-4)
    assert int(looped.update) == int(fused.update) == 1 and fused_metrics["episodes"] == 2 * 8 * 5
    assert state.params["value_head"]["kernel"].is_deleted()  # donated by the loop
    with pytest.raises(ValueError, match="asks for 16 environments, but env has 16 on each of 2 devices"):
        ppo.init(jax.random.key(1), start.config, {}, bench.env, devices)


def test_packed_minibatches_are_the_others(bench, monkeypatch):
    """On an accelerator parameters and moments lie end to end; what is computed here runs on the CPU all the same."""
    state = bench.start(probes.ACTION_MUST_MATCH)
    rollout = bench.driver.collect(state)

    def improved(packs):
        monkeypatch.setattr(driver, "packs", lambda: packs)
        traced = jax.jit(lambda state: ppo.improve(state, AGENT, rollout)).trace(state)
        return *traced.lower().compile()(state), str(traced.jaxpr).count("concatenate")

    plain, plain_metrics, joins = improved(False)
    packed, packed_metrics, more_joins = improved(True)
    assert more_joins >= joins + 3 * len(state.params)  # parameters and both moments of each group
    assert jax.tree.structure(packed.params) == jax.tree.structure(plain.params)
    allclose(
        (packed.params, packed.opt_state, packed_metrics), (plain.params, plain.opt_state, plain_metrics), 1e-3, 1e-5
    )


def test_host_loop_and_scan_make_the_same_update(bench, telltale):
    state, rollout = telltale

    def improve(state, rollout):
        return ppo.improve(state, AGENT, rollout)

    fused, fused_metrics = jax.jit(improve)(state, rollout)
    loose = state.replace(params=copied(state.params), opt_state=copied(state.opt_state))
    looped, looped_metrics = bench.looping.improve(loose, rollout)
    assert jax.tree.structure(looped) == jax.tree.structure(fused)
    allclose(looped_metrics, fused_metrics, rtol=1e-3, atol=1e-4)
    allclose(looped.params, fused.params, rtol=1e-3, atol=1e-4)
    allclose(looped.opt_state, fused.opt_state, rtol=1e-3, atol=1e-4)
    assert int(looped.update) == int(fused.update) == int(state.update) + 1
    np.testing.assert_array_equal(looped.actor.obs, rollout.actor.obs)


def test_host_loop_traces_its_parts_once(bench):
    state = bench.start(probes.TELLTALE, reward_limit=10.0)
    state, _ = bench.looping.update(state)
    traced = len(AGENT.traces)
    for _ in range(3):
        state, _ = bench.looping.update(state)
    assert len(AGENT.traces) == traced > 0
    assert int(state.update) == 4


# The agent


def test_an_actor_critic_normalises_pixels():
    agent = ActorCriticAgent(ImpalaConfig(channels=(4,), strides=(8,), blocks=1, features=8), 5)
    params = driver.jit_once(agent.init, static_argnums=1)(jax.random.key(0), (16, 16, 3))
    assert set(params) >= {"policy_head", "value_head"}
    frames = jax.random.randint(jax.random.key(1), (2, 16, 16, 3), 0, 256).astype(jnp.uint8)
    features = agent.encode(None, frames)
    assert features is frames  # what is stored is uint8
    apply = jax.jit(agent.apply)
    logits, value = apply(params, features)
    assert logits.shape == (2, 5) and value.shape == (2,)
    assert logits.dtype == value.dtype == jnp.float32
    allclose((logits, value), apply(params, np.float32(frames) / 255 - np.float32(0.5)))  # floats pass unchanged
    assert np.abs(jax.nn.softmax(logits) - 0.2).max() < 0.02  # a new policy is nearly uniform


# Config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_minibatches": 3}, r"num_envs \* num_steps = 4096 must divide into .* = 3 \* 1 pieces"),
        ({"grad_chunks": 5}, r"= 8 \* 5 pieces"),
        ({"num_envs": 1, "num_steps": 4}, r"= 4 must divide into"),
    ],
)
def test_config_must_divide(changes, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**changes)


def test_config_counts_whole_updates():
    assert PPOConfig().num_updates == 976  # LAPO: 3 997 696 of 4M frames
    assert PPOConfig(num_minibatches=8, grad_chunks=4).num_updates == 976
    assert hash(PPOConfig()) == hash(PPOConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        PPOConfig().gamma = 0.5


def test_config_and_environment_must_agree(bench):
    config = dataclasses.replace(CONFIG, num_envs=8)
    with pytest.raises(ValueError, match="asks for 8 environments, but env has 16"):
        ppo.init(jax.random.key(0), config, {}, bench.env)


def test_learning_rates_by_group():
    config = PPOConfig(
        total_frames=4_000_000,
        learning_rates=(
            ("policy_head", ((0.0, 0.0), (0.00875, 0.0), (0.0125, 2.5e-3), (1.0, 0.0))),
            ("", ((0.0, 1e-2), (0.5, 2e-3), (1.0, 0.0))),
        ),
    )
    params = {"policy_head": jnp.zeros(2), "fc": jnp.zeros(3), "value_head": jnp.zeros(1)}

    def at(update):
        return ppo.learning_rates(config, params, jnp.int32(update))

    assert set(at(0)) == set(params)
    np.testing.assert_allclose([at(0)[g] for g in ("policy_head", "fc", "value_head")], [0, 1e-2, 1e-2], rtol=1e-6)
    # Update 10 starts at 40 960 frames: 5960 of the 15 000 from 35 000 to 50 000.
    np.testing.assert_allclose(at(10)["policy_head"], 2.5e-3 * 5960 / 15000, rtol=1e-4)
    np.testing.assert_allclose(at(8)["policy_head"], 0)  # 32 768 frames
    fraction = 600 * 4096 / 4e6
    np.testing.assert_allclose(at(600)["fc"], 2e-3 * (1 - fraction) / 0.5, rtol=1e-4)
    np.testing.assert_allclose(at(100)["fc"], 1e-2 - 8e-3 * 0.1024 / 0.5, rtol=1e-4)
    np.testing.assert_allclose(at(2000)["fc"], 0)  # beyond the end


def test_a_group_without_a_schedule_is_refused():
    config = PPOConfig(learning_rates=(("policy_head", ((0.0, 1.0), (1.0, 0.0))),))
    with pytest.raises(ValueError, match="no schedule for the parameter group 'value_head'"):
        ppo.learning_rates(config, {"policy_head": jnp.zeros(1), "value_head": jnp.zeros(1)}, jnp.int32(0))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            ("", "polcy_head"),
            "^learning_rates has a schedule for 'polcy_head', and the parameter groups are head, tail: ",
        ),
        (
            ("head",),
            r"^learning_rates has no schedule for the parameter group 'tail' \(the parameter groups are head, ta",
        ),
        ((), "^learning_rates has no schedule for the parameter group 'head' "),
        (("head", "tail", "head"), "^learning_rates has 2 schedules for 'head': keep one.$"),
    ],
)
def test_rates_of_other_groups_than_there_are_end_training_before_it_begins(groups, message, bench):
    config = dataclasses.replace(CONFIG, learning_rates=tuple((group, ((0.0, 1e-3),)) for group in groups))
    with pytest.raises(ValueError, match=message):
        ppo.init(jax.random.key(0), config, {"head": jnp.zeros(1), "tail": jnp.zeros(1)}, bench.env)


def test_rates_of_all_groups_and_of_the_others():
    for groups in (("head", "tail"), ("",), ("tail", "")):
        config = PPOConfig(learning_rates=tuple((group, ((0.0, 1e-3),)) for group in groups))
        ppo.check_groups(config, ("head", "tail"))
        assert [group for group, _ in config.without_rates("tail").learning_rates] == [g for g in groups if g != "tail"]
