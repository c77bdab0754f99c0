"""The stages as pure functions: a row of what is vmapped over seeds is the run of that seed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import envs, jitted, policies
from lamjax.config import ScratchConfig
from lamjax.decoding import online
from lamjax.decoding.online import DecoderConfig
from lamjax.models.mlp import MLPConfig, MLPFDMConfig
from lamjax.ppo import ActorCriticAgent
from lamjax.presets import VECTOR_PRESETS
from lamjax.training import driver
from tests.envs.toys import Aim, Counter

N, STEPS = 8, 40
TRUNK = MLPConfig(hidden=(8,), features=8)
SMOKE = VECTOR_PRESETS["smoke"]
PPO = dataclasses.replace(
    SMOKE.scratch.ppo, total_frames=4 * N * 8, num_envs=N, num_steps=8, num_epochs=2, num_minibatches=2
)
DYNAMICS = dataclasses.replace(
    SMOKE.dynamics, steps=30, batch_size=16, idm=TRUNK, fdm=MLPFDMConfig(hidden=(8,)), learning_rate=3e-3
)
CLONING = dataclasses.replace(SMOKE.cloning, steps=20, batch_size=16, trunk=TRUNK)
OFFLINE = dataclasses.replace(SMOKE.offline, steps=20, hidden=(8,))
ONLINE = dataclasses.replace(
    SMOKE.online,
    ppo=dataclasses.replace(PPO, learning_rates=online.LEARNING_RATES),
    decoder=DecoderConfig(hidden=(8,), start=0.0, dense_until=0.3, stop=0.8, every=2, batch_size=16),
)


@pytest.fixture(scope="module")
def env():
    return envs.Gymnax(Counter([3, 5, 7], [False, True, False]), N)


@pytest.fixture(scope="module")
def trajectories(env):
    return jitted.record(jax.random.key(0), env, policies.UniformPolicy(2), {}, STEPS)


def whole(key, env):
    """Everything that a run does."""
    keys = jax.random.split(key, 6)
    params, ppo = jitted.learn(keys[0], env, ScratchConfig(TRUNK, PPO))
    expert = ActorCriticAgent(TRUNK, env.num_actions)
    train, held_out = jitted.split(jitted.record(keys[1], env, expert, params, STEPS))
    model, dynamics = jitted.train_dynamics(keys[2], DYNAMICS, train)
    policy, cloning = jitted.train_cloning(keys[3], CLONING, train, model)
    network, decoded = jitted.decode_offline(keys[4], OFFLINE, policy, *jitted.labelled(keys[4], train, 16), 2)
    _, _, hybrid = jitted.decode_online(keys[5], ONLINE, policy, model, env)
    return {
        "ppo": ppo["policy_loss"],
        "held_out": held_out,
        "dynamics": dynamics["loss"],
        "cloning": cloning["loss"],
        "returns": jitted.evaluate(keys[5], env, network, decoded, 2),
        "episodes": hybrid["episodes"],
        "decoder_accuracy": hybrid["decoder_accuracy"],
    }


def test_ppo_starts_from_given_parameters(env):
    config, key = ScratchConfig(TRUNK, PPO), jax.random.key(0)
    key_params, key_rest = jax.random.split(key)
    params = config.agent(env.action_space).init(key_params, env.obs_shape)
    learn = driver.jit_once(jitted.learn, static_argnames=("env", "config"))
    fresh, given = learn(key, env, config)[0], learn(key_rest, env, config, params)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), fresh, given)


def test_a_row_of_many_seeds_is_the_run_of_its_seed(env):
    # Compiled without optimisations, which would take a minute.
    keys = jax.random.split(jax.random.key(0), 3)
    rows = jax.device_get(driver.jit_once(jax.vmap(lambda key: whole(key, env)))(keys))
    alone = jax.device_get(driver.jit_once(lambda key: whole(key, env))(keys[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-4), rows, alone)
    assert not np.array_equal(rows["dynamics"][0], rows["dynamics"][1])
    assert np.isfinite(rows["dynamics"]).all() and rows["dynamics"][:, -1].max() < rows["dynamics"][:, 0].min()
    # The schedule of the decoder's fits: after 32 frames of 64, none from 0.8 of 256 on.
    expected = [online.refits(ONLINE, number) for number in range(1, 5)]
    np.testing.assert_array_equal(np.isfinite(alone["decoder_accuracy"]), expected)
    assert any(expected) and not all(expected)


def test_recorded_transitions_are_those_of_the_environment(trajectories):
    obs, action, reward, done = jax.device_get(
        (trajectories.obs, trajectories.action, trajectories.reward, trajectories.done)
    )
    assert obs.shape == (N, STEPS, 3) and done.shape == (N, STEPS)
    time, length = obs[..., 0], obs[..., 1]
    np.testing.assert_array_equal(done, time == length - 1)
    np.testing.assert_array_equal(time[:, 1:], np.where(done[:, :-1], 0, time[:, :-1] + 1))
    np.testing.assert_array_equal(reward, np.where(action == 1, 10, 1))


def test_windows_cross_no_end_and_carry_the_middle_action(trajectories):
    drawn, actions = jax.device_get(jitted.windows(jax.random.key(0), trajectories, 50))
    time, episode = drawn[..., 0], drawn[..., 2]
    np.testing.assert_array_equal(np.diff(time, axis=1), 1)
    assert (episode == episode[:, :1]).all()
    source = jitted.buffer(trajectories)
    done = np.asarray(trajectories.done)
    count = sum(not done[n, t : t + 2].any() for n in range(N) for t in range(STEPS - 2))
    assert int(source.num_starts) == count > 50
    starts = np.asarray(source.starts)[:count]
    assert len(set(starts.tolist())) == count
    # (time, episode, environment) tells a frame: the label is the action that was taken there.
    flat = np.asarray(trajectories.obs).reshape(-1, 3)
    for window, action in zip(drawn[:10], actions[:10], strict=True):
        rows = np.flatnonzero((flat == window[1]).all(1))
        assert action in np.asarray(trajectories.action).reshape(-1)[rows]


def test_split_keeps_environments_apart(trajectories):
    train, held_out = jitted.split(trajectories, 0.25)
    assert train.action.shape[0] == 6 and held_out.action.shape[0] == 2
    np.testing.assert_array_equal(jnp.concatenate([train.obs, held_out.obs]), trajectories.obs)
    assert jitted.split(trajectories, 0.0)[1].action.shape[0] == 1


def test_stats_are_those_of_the_host(trajectories):
    from lamjax.preprocess import obs_stats

    found = jitted.stats(trajectories)
    expected = obs_stats(np.asarray(trajectories.obs).reshape(-1, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)


def test_returns_are_those_of_whole_episodes(env):
    returns = jitted.evaluate(
        jax.random.key(0), env, lambda params, obs: jnp.zeros((len(obs), 2)).at[:, 1].set(50), {}, 3
    )
    # 3, 5 and 7 steps in turn at 10 each, whichever comes first.
    np.testing.assert_array_equal(np.sort(returns, axis=1), np.tile([30.0, 50.0, 70.0], (N, 1)))


def test_what_is_read_from_the_environments_is_kept_beside_the_observations():
    env = envs.Disobedient(envs.Gymnax(Counter([4, 6]), N), sticky=0.5)
    read = lambda state: state.executed  # noqa: E731
    trajectories = jitted.record(jax.random.key(0), env, policies.UniformPolicy(2), {}, STEPS, read)
    executed, done = np.asarray(trajectories.extra), np.asarray(trajectories.done)
    # At the start of an episode nothing has been executed; within one the reward tells what was.
    np.testing.assert_array_equal(executed[:, 1:] == -1, done[:, :-1])
    inside = ~done[:, :-1]
    np.testing.assert_array_equal(
        np.where(executed[:, 1:] == 1, 10, 1)[inside], np.asarray(trajectories.reward)[:, :-1][inside]
    )
    assert (executed[:, 1:] != np.asarray(trajectories.action)[:, :-1])[inside].any()
    starts = np.asarray(jitted.starts(jax.random.key(1), trajectories, 30))
    drawn, actions = jitted.windows(jax.random.key(1), trajectories, 30)
    np.testing.assert_array_equal(trajectories.action.reshape(-1)[starts + 1], actions)
    np.testing.assert_array_equal(trajectories.obs.reshape(-1, 3)[starts], drawn[:, 0])
    assert jax.tree.leaves(jitted.split(trajectories)[1].extra)[0].shape == (1, STEPS)


def test_stage_1_starts_from_the_untrained_model_and_may_be_given_labels(trajectories):
    config = dataclasses.replace(DYNAMICS, action_weight=1.0, steps=1, learning_rate=0.0, weight_decay=0.0)
    key = jax.random.key(3)
    labels = jitted.windows(key, trajectories, 8)
    state, metrics = jax.jit(lambda: jitted.train_dynamics(key, config, trajectories, labels, 2))()
    untrained = jitted.untrained_dynamics(key, config, trajectories, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.params, untrained.params)
    assert metrics["action_loss"].shape == (1,) and np.isfinite(metrics["action_loss"]).all()
    with pytest.raises(ValueError, match="give `space`, or the number of actions"):
        jitted.train_dynamics(key, config, trajectories, labels)


def test_a_share_of_random_play_needs_random_play(trajectories):
    config = dataclasses.replace(DYNAMICS, play_share=0.5, steps=1)
    with pytest.raises(ValueError, match="play_share needs random play"):
        jax.eval_shape(lambda key: jitted.train_dynamics(key, config, trajectories), jax.random.key(0))


def test_continuous_actions_go_through_all_stages():
    """Actions are vectors; the toy's reward is NaN for any that leaves its bounds."""
    env = envs.Gymnax(Aim([6, 9], [True, True]), N)
    space = env.action_space

    def experiment(key):
        keys = jax.random.split(key, 6)
        params, ppo = jitted.learn(keys[0], env, ScratchConfig(TRUNK, PPO))
        uniform = jitted.record(keys[1], env, policies.UniformPolicy(space), {}, STEPS)
        train, _ = jitted.split(uniform)
        config = dataclasses.replace(DYNAMICS, action_weight=0.1)
        model, stage_1 = jitted.train_dynamics(keys[2], config, train, jitted.windows(keys[2], train, 16), space)
        policy, _ = jitted.train_cloning(keys[3], CLONING, train, model)
        network, decoded = jitted.decode_offline(keys[4], OFFLINE, policy, *jitted.labelled(keys[4], train, 16), space)
        agent, hybrid, online_ = jitted.decode_online(keys[5], ONLINE, policy, model, env)
        players = ((ActorCriticAgent(TRUNK, space), params), (network, decoded), (agent, hybrid))
        returns = [jitted.evaluate(key, env, player, p, 2) for player, p in players]
        return uniform, stage_1, returns, ppo["policy_loss"], online_["decoder_mse"]

    # The networks are no JAX values: what plays stays inside.
    trajectories, stage_1, returns, policy_loss, decoder_mse = jax.device_get(
        driver.jit_once(experiment)(jax.random.key(0))
    )
    assert trajectories.action.shape == (N, STEPS, 2) and np.isfinite(trajectories.reward).all()
    np.testing.assert_allclose(trajectories.action.mean((0, 1)), [0, 0.5], atol=0.2)
    inside = ~trajectories.done[:, :-1]
    moved = np.clip(trajectories.obs[:, :-1] + trajectories.action[:, :-1] / 10, -1, 1)
    np.testing.assert_allclose(trajectories.obs[:, 1:][inside], moved[inside], atol=1e-6)
    assert stage_1["action_mse"][-1] < stage_1["action_mse"][0]
    assert np.isfinite(returns).all() and np.isfinite(policy_loss).all()
    expected = [online.refits(ONLINE, number) for number in range(1, 5)]
    np.testing.assert_array_equal(np.isfinite(decoder_mse), expected)
