import functools
from types import SimpleNamespace

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import envs
from lamjax.envs import Gymnax
from lamjax.spaces import Box
from tests.envs.toys import Counter
from tests.trees import x64

N = 5
T = 80


@functools.partial(jax.jit, static_argnums=0)
def play(env, state, keys, action):
    def step(state, inputs):
        obs, state, reward, terminated, truncated, info = env.step(inputs[0], state, inputs[1])
        return state, (obs, reward, terminated, truncated, info)

    return jax.lax.scan(step, state, (keys, action))


@pytest.fixture(scope="module")
def env():
    return envs.make("cartpole", N)


@pytest.fixture(scope="module")
def inputs():
    actions = np.random.default_rng(0).integers(0, 2, (T, N)).astype(np.int32)
    return jax.random.split(jax.random.key(1), T), actions


def test_cartpole_is_a_batch_of_six_values(env, inputs):
    keys, actions = inputs
    assert (env.name, env.num_envs, env.num_actions, env.obs_shape) == ("cartpole", N, 2, (4,))
    assert env.obs_dtype == jnp.float32 and env.env_params == {}
    obs, state = env.reset(jax.random.key(0))
    assert obs.shape == (N, 4)
    assert len(np.unique(np.asarray(obs)[:, 0])) == N  # each environment starts elsewhere
    obs, _, reward, terminated, truncated, info = env.step(keys[0], state, actions[0])
    assert obs.shape == info["final_observation"].shape == (N, 4)
    assert reward.shape == terminated.shape == truncated.shape == (N,)
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (jnp.float32, jnp.bool_, jnp.bool_)
    assert set(info) == {"final_observation", "final_is_exact"} and bool(info["final_is_exact"])
    np.testing.assert_array_equal(reward, 1)


def test_batch_is_what_each_environment_does_alone(env, inputs):
    keys, actions = inputs
    key = jax.random.key(0)
    obs, state = env.reset(key)
    _, (obs_t, reward_t, terminated_t, truncated_t, info_t) = play(env, state, keys, actions)
    index = 3
    alone_obs, alone = env.env.reset(jax.random.split(key, N)[index], env.params)
    np.testing.assert_array_equal(obs[index], alone_obs)
    for t in range(T):
        out = env.env.step(jax.random.split(keys[t], N)[index], alone, actions[t, index], env.params)
        alone_obs, alone, reward, terminated, truncated, info = out
        np.testing.assert_allclose(obs_t[t, index], alone_obs, atol=1e-6)
        np.testing.assert_allclose(info_t["final_observation"][t, index], info["final_observation"], atol=1e-6)
        assert reward_t[t, index] == reward
        assert terminated_t[t, index] == terminated and truncated_t[t, index] == truncated
    assert np.asarray(terminated_t)[:, index].any()


def test_final_observation_is_the_true_last_one(env, inputs):
    _, state = env.reset(jax.random.key(0))
    obs, reward, terminated, _, info = jax.device_get(play(env, state, *inputs)[1])
    final = info["final_observation"]
    assert terminated.sum() >= 5
    np.testing.assert_array_equal(reward, 1)
    # The pole has fallen (12 degrees) or the cart has left (2.4); what is shown is a new start (0.05 at most).
    fallen = (np.abs(final[..., 2]) > 12 * np.pi / 180) | (np.abs(final[..., 0]) > 2.4)
    np.testing.assert_array_equal(fallen, terminated)
    assert (np.abs(obs[terminated]) <= 0.05).all()
    np.testing.assert_array_equal(final[~terminated], obs[~terminated])


def test_a_restored_state_continues_equally(env, inputs):
    keys, actions = inputs
    state, _ = play(env, env.reset(jax.random.key(0))[1], keys[:30], actions[:30])
    saved = env.get_state(state)
    assert all(isinstance(leaf, np.ndarray) for leaf in saved.values())
    other = envs.make("cartpole", N)
    restored = other.set_state(saved)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(
        np.testing.assert_array_equal,
        play(other, restored, keys[30:], actions[30:]),
        play(env, state, keys[30:], actions[30:]),
    )


def test_any_environment_of_the_same_form_will_do():
    toy = Gymnax(Counter([3, 2], [False, True]), 2)
    assert (toy.name, toy.num_actions, toy.obs_shape, toy.obs_dtype) == ("counter", 2, (3,), jnp.float32)
    state = jax.vmap(toy.env.begin, in_axes=(0, None))(jnp.array([0, 1]), toy.params)
    keys = jax.random.split(jax.random.key(0), 5)
    actions = np.array([[0, 1]] * 5, np.int32)
    _, (obs, reward, terminated, truncated, info) = jax.device_get(play(toy, state, keys, actions))
    assert reward.dtype == np.float32 and reward.tolist() == [[1, 10]] * 5
    # The first plays 3 steps, then 2; the second 2, then 3.
    assert terminated.astype(int).T.tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
    assert truncated.astype(int).T.tolist() == [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    assert obs[:, 0, 0].tolist() == [1, 2, 0, 1, 0]
    assert info["final_observation"][:, 0, 0].tolist() == [1, 2, 3, 1, 2]
    assert set(info) == {"final_observation", "final_is_exact"}  # nothing else is carried along


def test_parameters_can_be_given():
    params = Counter([9]).default_params
    toy = Gymnax(Counter([3]), 1, params=params, name="nine")
    assert toy.name == "nine"
    assert toy.reset(jax.random.key(0))[1].length.tolist() == [9]
    assert toy.reset(jax.random.key(0), Counter([4]).default_params)[1].length.tolist() == [4]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_envs must be at least 1, not 0"):
        envs.make("cartpole", 0)


def test_what_was_inspected_with_64_bits_does_not_count_without_them():
    env, params = gymnax.make("CartPole-v1")
    with x64():
        wide = Gymnax(env, N, params=params)
    assert wide.obs_dtype == Gymnax(env, N, params=params).obs_dtype == np.float32  # no warning of a type that is lost


def test_close_is_harmless(env):
    before = env.reset(jax.random.key(0))
    env.close()
    jax.tree.map(np.testing.assert_array_equal, env.reset(jax.random.key(0)), before)


# Continuous actions


def test_pendulum_takes_torques_and_is_cut_at_its_time_out():
    env = envs.make("pendulum", N)
    assert (env.name, env.obs_shape, env.action_space) == ("pendulum", (3,), Box((-2.0,), (2.0,)))
    assert not hasattr(env, "num_actions")
    torque = np.linspace(-2, 2, N, dtype=np.float32)[:, None]
    _, state = env.reset(jax.random.key(0))
    before = np.asarray(state.theta), np.asarray(state.theta_dot)
    obs, after, _, terminated, truncated, _ = env.step(jax.random.key(1), state, torque)
    # theta'' = 3 g / (2 l) sin(theta) + 3 u / (m l^2), g = 10, l = m = 1, in steps of 0.05
    np.testing.assert_allclose(
        after.theta_dot, before[1] + 0.05 * (15 * np.sin(before[0]) + 3 * torque[:, 0]), rtol=1e-4
    )
    np.testing.assert_allclose(obs[:, 2], after.theta_dot, rtol=1e-6)
    keys = jax.random.split(jax.random.key(1), 200)
    _, (_, _, terminated, truncated, _) = play(env, state, keys, np.broadcast_to(torque, (200, N, 1)))
    assert not np.any(terminated)
    np.testing.assert_array_equal(np.argmax(truncated, axis=0), np.full(N, 199))


# Observations


@pytest.mark.parametrize("name", ["minatar/asterix", "minatar/breakout"])
def test_minatar_is_shown_as_pixels(name):
    env = envs.make(name, N)
    assert env.obs_dtype == jnp.uint8 and env.obs_shape[:2] == (10, 10)
    key = jax.random.key(0)
    obs, state = env.reset(key)
    obs, _, _, _, _, info = jax.jit(env.step)(key, state, jnp.zeros(N, jnp.int32))
    assert obs.dtype == info["final_observation"].dtype == jnp.uint8
    alone, _ = env.env.reset(jax.random.split(key, N)[2], env.params)
    np.testing.assert_array_equal(env.reset(key)[0][2], 255 * np.asarray(alone, np.uint8))
    assert set(np.unique(obs)) == {0, 255}


class Shown:
    """Shows whatever it is given."""

    name = "shown"
    default_params = None

    def __init__(self, obs, low=None, high=None, actions=2):
        self.obs, self.space = obs, SimpleNamespace(shape=obs.shape, low=low, high=high)
        self.actions = SimpleNamespace(n=actions) if isinstance(actions, int) else actions

    def observation_space(self, params):
        return self.space

    def action_space(self, params):
        return self.actions

    def reset(self, key, params):
        return jnp.asarray(self.obs), jnp.zeros(())

    def step(self, key, state, action, params):
        obs, ends = jnp.asarray(self.obs), jnp.zeros((), bool)
        return obs, state, jnp.zeros(()), ends, ends, {"final_observation": obs}


@pytest.mark.parametrize(
    ("obs", "bounds", "expected"),
    [
        pytest.param(np.ones((2, 3, 1), bool), (None, None), np.uint8(255), id="booleans"),
        pytest.param(np.full((2, 3, 1), 0.5, np.float32), (0, 1), np.uint8(128), id="unit images"),
        pytest.param(np.full((2, 3, 1), 7, np.uint8), (0, 1), np.uint8(7), id="pixels"),
        pytest.param(np.full((2, 3, 1), 0.5, np.float32), (0, 2), np.float32(0.5), id="other images"),
        pytest.param(np.full((2, 3, 1), 7, np.int32), (0, 255), np.uint8(7), id="pixels as integers"),
        pytest.param(np.full((2, 3, 1), 254.6, np.float32), (0, 255), np.uint8(255), id="pixels as floats"),
        pytest.param(np.full((2, 3, 1), 1.2, np.float32), (0, 1), np.uint8(255), id="beyond their bounds"),
        pytest.param(np.full((4,), 0.5, np.float32), (0, 1), np.float32(0.5), id="vectors"),
        pytest.param(np.full((4,), 3, np.int32), (0, 9), np.float32(3), id="vectors of integers"),
    ],
)
def test_observations_become_pixels_or_floats(obs, bounds, expected):
    env = Gymnax(Shown(obs, *bounds), 2)
    converted, _ = env.reset(jax.random.key(0))
    assert converted.dtype == env.obs_dtype == expected.dtype and converted.shape == (2, *obs.shape)
    np.testing.assert_array_equal(converted, np.full((2, *obs.shape), expected))


def test_what_cannot_be_learned_from_is_refused():
    vector = np.zeros(3, np.float32)
    unbounded, image = SimpleNamespace(shape=(2,), low=-np.inf, high=1.0), SimpleNamespace(shape=(2, 2), low=0, high=1)
    with pytest.raises(ValueError, match=r"^shown takes actions without bounds: [^.]*\.$"):
        Gymnax(Shown(vector, actions=unbounded), 1)
    for actions in (image, SimpleNamespace()):
        with pytest.raises(ValueError, match=r"^shown takes actions of shape (\(2, 2\)|None): [^.]*\.$"):
            Gymnax(Shown(vector, actions=actions), 1)
    with pytest.raises(ValueError, match=r"^shown shows observations of shape \(3, 4\): reshape [^.]*\.$"):
        Gymnax(Shown(np.zeros((3, 4), np.float32)), 1)


def test_batches_of_one_environment_are_equal_and_compile_once():
    assert envs.make("cartpole", 3) == envs.make("cartpole", 3)
    assert hash(envs.make("cartpole", 3)) == hash(envs.make("cartpole", 3))
    toy = Counter([3])
    params = toy.default_params
    first = Gymnax(toy, 2, params=params)
    assert first == Gymnax(toy, 2, params=params)
    others = (Gymnax(toy, 3, params=params), Gymnax(Counter([3]), 2, params=params))
    others += (Gymnax(toy, 2, params=Counter([4]).default_params), Gymnax(toy, 2, params=params, name="another"))
    assert all(first != other for other in others)


# Interfaces


class Five(Counter):
    """`Counter` with the five values of older gymnax."""

    name = "five"

    def step(self, key, state, action, params):
        obs, state, reward, terminated, truncated, _ = super().step(key, state, action, params)
        return obs, state, reward, terminated | truncated, {"discount": jnp.ones(())}


def test_five_values_become_six():
    five, six = Gymnax(Five([3, 2], [False, True]), 2), Gymnax(Counter([3, 2], [False, True]), 2)
    key, steps = jax.random.key(0), (jax.random.split(jax.random.key(1), 6), np.ones((6, 2), np.int32))
    (obs, state), (first, begun) = five.reset(key), six.reset(key)
    np.testing.assert_array_equal(obs, first)
    _, (obs_t, reward, terminated, truncated, info) = jax.device_get(play(five, state, *steps))
    _, (same, same_reward, ended, cut, _) = jax.device_get(play(six, begun, *steps))
    np.testing.assert_array_equal(obs_t, same)
    np.testing.assert_array_equal(reward, same_reward)
    # A time-out is an end like any other, and the observation before it stands for the last one.
    np.testing.assert_array_equal(terminated, ended | cut)
    assert cut.any() and not truncated.any() and not info["final_is_exact"].any()
    np.testing.assert_array_equal(info["final_observation"], np.concatenate([np.asarray(obs)[None], obs_t[:-1]]))
    saved = five.get_state(state)
    jax.tree.map(np.testing.assert_array_equal, five.set_state(saved), state)


def altered(**changes):
    """A `Counter` with other methods."""
    toy = Counter([3])
    for name, change in changes.items():
        setattr(toy, name, change)
    return toy


def step_with(change):
    """A `Counter` whose step returns other values."""
    return altered(step=lambda *args: change(*Counter.step(Counter([3]), *args)))


def space(**fields):
    """A `Counter` with another action space."""
    return altered(action_space=lambda params: SimpleNamespace(**fields))


@pytest.mark.parametrize(
    ("toy", "message"),
    [
        (space(n=2, shape=(2,)), r"takes actions of shape \(2,\): make them discrete"),  # MultiBinary
        (space(shape=(2,), nvec=np.array([2, 3])), r"takes actions of shape \(2,\)"),  # MultiDiscrete
        (space(n=0), "has 0 actions"),
        (space(n=1), "has 1 actions: there is nothing to infer"),
        *((space(n=n), f"has {n} actions: make it a whole number") for n in (3.5, np.nan, np.inf, 2**31)),
        (
            space(shape=(1,), low=-1e39, high=1e39),
            "takes actions without bounds: give its action space finite ones of f",
        ),
        (space(shape=(1,), low=1, high=-1), "takes actions that cannot be: A box needs"),
        (space(n=3, start=1), "counts its actions from 1"),
        (altered(action_space=None), "has no action_space"),
        (altered(reset=lambda key, params: {"a": 0}), "reset must return an observation and a state"),
        (
            altered(reset=lambda key, params: ({"a": jnp.zeros(2), "b": 0}, 0)),
            "shows a dict of a, b as an observation: join",
        ),
        (altered(reset=lambda key, params: ((jnp.zeros(2), 0), 0)), "shows a tuple as an observation"),
        (altered(reset=lambda key, params: (jnp.zeros((3, 64, 64)), 0)), "which have the channels first"),
        (altered(reset=lambda key, params: (jnp.zeros((0,)), 0)), "make them numbers, at least one"),
        (altered(reset=lambda key, params: (key, 0)), "make them numbers"),
        (altered(reset=lambda key, params: (np.random.default_rng(key), 0)), "JAX cannot trace reset"),
        (step_with(lambda obs, state, *_: (obs, state)), "step must return six values"),
        (step_with(lambda o, s, r, a, b, info: (o, s, r, a, b, {})), 'has no "final_observation": add'),
        (step_with(lambda o, s, r, a, b, info: (o[:2], s, r, a, b, info)), "the observation that step returns is"),
        (step_with(lambda o, s, r, a, b, info: (o, (s, 0), r, a, b, info)), "the state that step returns has another"),
        (
            step_with(lambda o, s, r, a, b, info: (o, s.replace(time=1.0), r, a, b, info)),
            r"step returns \(.time\) is float",
        ),
        (
            step_with(lambda o, s, r, a, b, info: (o, s, jnp.ones(2), a, b, info)),
            "the reward of a step must be one number",
        ),
        (
            step_with(lambda o, s, r, a, b, info: (o, s, jnp.complex64(1), a, b, info)),
            r"the reward of a step must be one number, not complex64\[\]",
        ),
        (step_with(lambda o, s, r, a, b, info: (o, s, r, jnp.zeros(2), info)), "the done of a step must be one number"),
    ],
)
def test_environments_that_cannot_work_are_refused_with_a_remedy(toy, message):
    with pytest.raises(ValueError, match=message):
        envs.register(toy, name="odd")
    assert "odd" not in envs.env_names()
