"""The one unroll: what it does is what a loop on the host does, and a demonstrator sees clean frames everywhere."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import acting, data, envs, jitted, policies
from lamjax.data.labels import evaluation_actions
from lamjax.data.record import record
from lamjax.envs import Distracted, Gymnax
from tests.envs.toys import Aim, Counter, Halves, Painter
from tests.trees import x64

N, T = 4, 30
KEY = jax.random.key(7)


def equal(left, right):
    """Both trees, to the bit."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(left), jax.device_get(right))


def test_an_unroll_is_a_loop_of_steps():
    env = Gymnax(Counter([3, 8], [True, False]), N)
    logits = jnp.log(jnp.array([0.3, 0.7]))

    def act(draw, obs, env_state):
        action = draw(jnp.broadcast_to(logits, (N, 2)))
        return action, {"obs": obs, "episode": env_state.episode, "action": action}

    def keep(reward, terminated, truncated, info):
        return reward, terminated, truncated, info["final_observation"][:, 0]

    start = env.reset(KEY)
    after, extras, outcomes = jax.jit(lambda start: acting.unroll(env, act, start, KEY, T, keep))(start)
    step, (obs, env_state) = jax.jit(env.step), start
    for t, step_key in enumerate(jax.random.split(KEY, T)):
        key_action, key_env = jax.random.split(step_key)
        action = jax.random.categorical(key_action, jnp.broadcast_to(logits, (N, 2)))
        equal(jax.tree.map(lambda x: x[t], extras), {"obs": obs, "episode": env_state.episode, "action": action})  # noqa: B023
        obs, env_state, reward, terminated, truncated, info = step(key_env, env_state, action)
        expected = reward, terminated, truncated, info["final_observation"][:, 0]
        equal(jax.tree.map(lambda x: x[t], outcomes), expected)  # noqa: B023
    equal(after, (obs, env_state))
    assert np.any(outcomes[1]) and np.any(outcomes[2])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_discrete_actions_is_uniform(share):
    env = Gymnax(Counter([1000]), 64)
    always = lambda params, obs: env.action_space.certain(jnp.ones(64, jnp.int32))  # noqa: E731
    start = env.reset(KEY)
    _, (_, action, _), _ = acting.demonstrate(env, always, {}, start, KEY, 50, random_share=share)
    others = np.asarray(action) == 0  # of two actions, half of the uniform ones
    assert abs(others.mean() - share / 2) <= 5 * np.sqrt(share / 2 * (1 - share / 2) / others.size)
    if share:
        # Each environment and each step for itself.
        assert 0 < np.ptp(others.mean(axis=0)) < 1 and 0 < np.ptp(others.mean(axis=1)) < 1


def test_a_share_of_the_continuous_actions_is_uniform():
    env = Gymnax(Aim([1000], [True]), 64)
    still = lambda params, obs: jnp.concatenate([jnp.zeros((64, 2)), jnp.full((64, 2), -30.0)], -1)  # noqa: E731
    _, (_, action, _), _ = acting.demonstrate(env, still, {}, env.reset(KEY), KEY, 50, random_share=0.25)
    reach = (np.asarray(action) - Aim.low) / (np.subtract(Aim.high, Aim.low))  # of the box, from 0 to 1
    middle = np.abs(reach - 0.5) < 0.1
    assert abs((~middle.all(-1)).mean() - 0.25 * (1 - 0.2**2)) < 0.04
    assert abs((reach < 0.25).mean() - 0.25 * 0.25) < 0.02 and reach.min() >= 0 and reach.max() <= 1


def test_a_policy_may_read_the_environments_state():
    class Reader:
        reads_state = True

        def __call__(self, params, obs, env_state):
            return params + env_state

    assert acting.respond(Reader(), 2, None, 3) == 5
    assert acting.respond(lambda params, obs: params * obs, 2, 4, 3) == 8


def test_only_what_the_caller_keeps_is_stacked():
    env = Gymnax(Painter([5]), N)
    start = env.reset(KEY)
    act = lambda draw, obs, env_state: (jnp.zeros(N, jnp.int32), None)  # noqa: E731
    unroll = jax.jit(lambda start: acting.unroll(env, act, start, KEY, T))
    _, extras, outcomes = unroll(start)
    assert extras is None and [x.shape for x in outcomes] == [(T, N)] * 3
    assert f"u8[{T}," not in str(jax.make_jaxpr(unroll)(start))  # no frames of any step
    _, (frames, *_), _ = acting.demonstrate(env, lambda params, obs: jnp.zeros((N, 2)), {}, start, KEY, T)
    assert frames.dtype == np.uint8 and frames.shape == (T, N, 16, 16, 3)


@pytest.mark.parametrize("steps", [1, 9])
def test_two_groups_in_turn_act_as_one_batch(steps):
    def act(draw, obs, env_state):
        sample = draw(jnp.concatenate([obs, -obs], axis=1))
        return Halves.action_space.clip(sample), (obs, sample)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(unroll, env):
        (obs, _), extras, outcomes = unroll(env, act, env.begin(), KEY, steps)
        return obs, extras, outcomes

    together, in_turn = run(acting.unroll, Halves(N)), run(acting.unroll_in_turns, Halves(N, groups=2))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), in_turn, together)
    assert np.any(together[2][1] | together[2][2]) or steps == 1


def test_returns_and_lengths_count_from_each_start_by_hand():
    reward, done = jnp.array([[1.0, 5.0], [2.0, 6.0], [4.0, 7.0]]), jnp.array([[0, 1], [1, 0], [0, 0]], bool)
    running = jnp.array([10.0, 0.0]), jnp.array([3, 0])
    running, (returns, lengths) = jax.lax.scan(acting.count, running, (reward, done))
    equal((returns, lengths), (np.array([[11, 5], [13, 6], [4, 13]]), np.array([[4, 1], [5, 1], [1, 2]])))
    equal(running, (np.array([4, 13]), np.array([1, 2])))


# Demonstrators


def by_brightness(params, obs):
    """Logits that follow the frame's brightness closely: a distractor that is seen changes them."""
    bright = obs[:, 0, 0].astype(jnp.float32).sum(-1) - 240
    return jnp.stack([-bright, bright], axis=1) / 8


def stored(folder, env):
    """Observations and actions of all frames that `data.record` writes."""
    path = folder / type(env).__name__
    record(path, env, by_brightness, {}, 32 * N, KEY, source={})
    store = data.open_store(path)
    every = np.arange(store.num_frames)
    return store.observations_at(every), evaluation_actions(store, every, length=2)


def traced(folder, env):
    """Those that `jitted.record` gives."""
    trajectories = jax.jit(lambda: jitted.record(KEY, env, by_brightness, {}, 32))()
    return np.asarray(trajectories.obs), np.asarray(trajectories.action)


@pytest.mark.parametrize("recorded", [stored, traced])
def test_a_demonstrator_sees_clean_frames_wherever_it_is_recorded(recorded, tmp_path):
    plain = Gymnax(Painter([9, 14]), N)
    (clean, actions), (obs, under_distractor) = (
        recorded(tmp_path, env) for env in (plain, Distracted(plain, "jitter", 0.3))
    )
    np.testing.assert_array_equal(under_distractor, actions)
    assert 0.1 < actions.mean() < 0.9
    assert np.mean(obs != clean) > 0.8  # what is kept shows the distractor


def test_environments_without_levels_or_distractors_say_so():
    plain = Gymnax(Painter([9]), N)
    noisy, jittered = (Distracted(plain, kind, 0.1) for kind in ("noise", "jitter"))
    obs, state = plain.reset(KEY)
    equal(acting.level_and_distractor(plain, state)[0], np.full(N, -1, np.int32))
    assert acting.clean_obs(obs, state) is obs
    for env, dim in ((plain, 0), (noisy, 0), (jittered, 3)):
        obs, state = env.reset(KEY)
        assert acting.level_and_distractor(env, state)[1].shape == (N, acting.distractor_dim(env)) == (N, dim)
    equal(acting.clean_obs(obs, state), plain.reset(KEY)[0])
    equal(acting.level_and_distractor(jittered, state)[1], state.distractor.shift)


def test_levels_are_those_of_the_games():
    env = envs.make("coinrun", 2, num_threads=0, num_levels=3, start_level=5, distractor="overlay")
    _, state = env.reset(KEY)
    seeds = np.asarray(acting.level_and_distractor(env, state)[0])
    env.close()
    assert seeds.dtype == np.int32 and set(seeds.tolist()) <= {5, 6, 7}


def test_demonstrated_actions_lie_within_their_bounds():
    env = Gymnax(Aim([10], [True]), N)
    far_out = lambda params, obs: jnp.concatenate([jnp.ones_like(obs), jnp.zeros_like(obs)], -1)  # noqa: E731
    start = env.reset(KEY)
    _, (_, action, nothing), (reward, *_) = jax.jit(lambda: acting.demonstrate(env, far_out, {}, start, KEY, T))()
    assert nothing is None and np.isfinite(reward).all()  # the toy's reward is NaN beyond the bounds
    assert 0.3 < np.mean(np.asarray(action) == Aim.high) < 0.7


@pytest.mark.parametrize("name", ["cartpole", "pendulum", "minatar/breakout"])
def test_a_process_with_64_bits_acts_with_the_same_types(name):
    """What records, evaluates and trains PPO: a step whose carry changed its type would end the scan."""
    with x64():
        env = envs.make(name, N)
        policy = policies.UniformPolicy(env.action_space)

        def play(key):
            position = env.reset(key)
            after, (obs, action, _), (reward, terminated, truncated) = acting.demonstrate(
                env, policy, {}, position, key, T, random_share=0.5
            )
            running = jnp.zeros(N, jnp.float32), jnp.zeros(N, jnp.int32)
            running, _ = jax.lax.scan(acting.count, running, (reward, terminated | truncated))
            return position, after, running, (obs, action, reward)

        start, after, running, (obs, action, reward) = jax.eval_shape(play, jax.random.key(0))
        chex.assert_trees_all_equal_shapes_and_dtypes(start, after)
    assert (obs.dtype, action.dtype, reward.dtype) == (env.obs_dtype, env.action_space.dtype, jnp.float32)
    assert [leaf.dtype for leaf in running] == [jnp.float32, jnp.int32]
