import contextlib
import functools
import io
import itertools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import envs
from lamjax.envs import procgen
from lamjax.envs.api import stepper
from lamjax.envs.procgen import Procgen

N = 4
NOOP = 4


@functools.partial(jax.jit, static_argnums=0)
def play(env, state, action):
    """Steps int32 ``[T, N]`` of one dispatch; everything that ``step`` returns, stacked over time."""

    def step(state, action):
        obs, state, reward, terminated, truncated, info = env.step(jax.random.key(0), state, action)
        return state, {
            "obs": obs,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "time": state.time,
            "seed_in_state": state.level_seed,
            **info,
        }

    return jax.lax.scan(step, state, action)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def endings(env, state, action, steps):
    """Which steps ended an episode when one action is repeated; ``[T, N]`` twice, without frames."""

    def step(state, _):
        _, state, _, terminated, truncated, _ = env.step(
            jax.random.key(0), state, jnp.full(env.num_envs, action, jnp.int32)
        )
        return state, (terminated, truncated)

    return jax.lax.scan(step, state, length=steps)[1]


@pytest.fixture(scope="module")
def env():
    env = envs.make("coinrun", N, num_threads=1)
    yield env
    env.close()


@pytest.fixture(scope="module")
def actions():
    return np.random.default_rng(1).choice([1, 4, 5, 7, 8], (150, N), p=[0.1, 0.1, 0.1, 0.3, 0.4]).astype(np.int32)


@pytest.fixture(scope="module")
def played(env, actions):
    """``(first obs, first state, everything after)`` of 150 steps in which episodes end."""
    obs, state = env.reset(jax.random.key(3))
    _, steps = play(env, state, actions)
    return np.asarray(obs), state, jax.device_get(steps)


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


# Reset and step


def test_reset_follows_from_the_key(env):
    (obs, state), (again, state_again), (other, _) = (env.reset(jax.random.key(seed)) for seed in (7, 7, 8))
    assert obs.shape == (N, 64, 64, 3) and obs.dtype == jnp.uint8
    np.testing.assert_array_equal(obs, again)
    np.testing.assert_array_equal(state.level_seed, state_again.level_seed)
    assert int(state.handle) != int(state_again.handle)
    assert (np.asarray(obs) != np.asarray(other)).any((1, 2, 3)).all()
    np.testing.assert_array_equal(state.obs, obs)
    np.testing.assert_array_equal(state.time, 0)
    jitted = jax.jit(env.reset)(jax.random.key(7))
    np.testing.assert_array_equal(jitted[0], obs)


def test_scan_is_what_the_native_environment_does_by_hand(played, actions):
    first_obs, state, steps = played
    with contextlib.redirect_stderr(io.StringIO()):
        from procgen import ProcgenGym3Env
    rand_seed = int(jax.random.randint(jax.random.key(3), (), 0, 2**31 - 1, jnp.int32))
    native = ProcgenGym3Env(
        num=N, env_name="coinrun", rand_seed=rand_seed, num_levels=0, start_level=0, distribution_mode="easy"
    )
    _, obs, _ = native.observe()
    np.testing.assert_array_equal(first_obs, obs["rgb"])
    assert state.level_seed.tolist() == [info["level_seed"] for info in native.get_info()]
    time = np.zeros(N, int)
    for t, action in enumerate(actions):
        native.act(action)
        reward, obs, first = native.observe()
        info = native.get_info()
        complete = np.array([i["prev_level_complete"] for i in info], bool) & first
        time = np.where(first, 0, time + 1)
        np.testing.assert_array_equal(steps["obs"][t], obs["rgb"])
        np.testing.assert_array_equal(steps["reward"][t], reward)
        np.testing.assert_array_equal(steps["terminated"][t] | steps["truncated"][t], first)
        np.testing.assert_array_equal(steps["level_complete"][t], complete)
        np.testing.assert_array_equal(steps["level_seed"][t], [i["level_seed"] for i in info])
        np.testing.assert_array_equal(steps["time"][t], time)
    native.close()
    ended = steps["terminated"]
    assert ended.sum() >= 4  # so that the comparison has seen resets
    assert steps["level_complete"].any() and not steps["level_complete"].all()
    np.testing.assert_array_equal(steps["reward"] > 0, steps["level_complete"])  # coinrun pays the coin alone
    assert not steps["truncated"].any()
    np.testing.assert_array_equal(steps["seed_in_state"], steps["level_seed"])


def test_final_observation_is_the_last_frame_that_was_seen(played):
    first_obs, _, steps = played
    before = np.concatenate([first_obs[None], steps["obs"][:-1]])
    np.testing.assert_array_equal(steps["final_observation"], before)
    assert not steps["final_is_exact"].any()
    # Where an episode ends it is not what `obs` shows: that is the next level.
    ended = steps["terminated"]
    assert (steps["obs"] != steps["final_observation"])[ended].any((1, 2, 3)).all()


def test_one_step_at_a_time_equals_one_scan(env, played, actions):
    first_obs, _, steps = played
    obs, state = env.reset(jax.random.key(3))
    np.testing.assert_array_equal(obs, first_obs)
    for t in range(3):
        state, step = play(env, state, actions[t : t + 1])
        equal(jax.tree.map(lambda x: x[0], step), jax.tree.map(lambda x, t=t: x[t], steps))


def test_frames_are_kept_when_the_games_go_on(env, played, actions):
    """Nothing is compiled around these steps, and the native memory behind each frame is written again by the next."""
    obs, state = env.reset(jax.random.key(3))
    kept = [obs]
    for action in actions[:6]:
        obs, state, *_ = env.step(jax.random.key(0), state, jnp.asarray(action))
        kept.append(obs)
    first_obs, _, steps = played
    np.testing.assert_array_equal(np.stack(kept), [first_obs, *steps["obs"][:6]])
    assert all((before != after).any() for before, after in itertools.pairwise(map(np.asarray, kept)))


# Two groups


@pytest.fixture(scope="module")
def halves():
    env = envs.make("coinrun", N, num_threads=2, groups=2)
    yield env
    env.close()


def test_two_groups_play_what_one_does(env, halves, played, actions):
    first_obs, first, steps = played
    obs, state = halves.reset(jax.random.key(3))
    assert len(procgen.BATCHES[int(state.handle)]) == 2
    np.testing.assert_array_equal(obs, first_obs)
    np.testing.assert_array_equal(state.level_seed, first.level_seed)
    equal(play(halves, state, actions)[1], steps)
    assert halves.env_params == env.env_params  # the number of groups is no property of the games


def test_groups_in_turn_play_what_one_batch_does(halves, played, actions):
    first_obs, _, steps = played
    _, state = halves.reset(jax.random.key(3))

    def turn(state, inputs):
        action, group = inputs
        *received, info = halves.stepper.exchange(state, action, group)
        obs, state, reward, terminated, truncated = received
        return state, {"obs": obs, "reward": reward, "terminated": terminated, "truncated": truncated, **info}

    state, received = jax.lax.scan(turn, state, (actions.reshape(300, 2), np.tile([0, 1], 150).astype(np.int32)))
    obs, state, *_ = halves.stepper.receive(state, jnp.int32(1))
    np.testing.assert_array_equal(received["obs"][0], first_obs[2:])  # group 1 has not been sent anything
    np.testing.assert_array_equal(obs, steps["obs"][-1][2:])
    for group, rows in enumerate((slice(0, 2), slice(2, 4))):
        ours = jax.tree.map(lambda x, group=group: x[1 + group :: 2], received)
        for name in ("obs", "reward", "terminated", "truncated", "level_complete", "level_seed", "final_observation"):
            np.testing.assert_array_equal(ours[name], steps[name][: len(ours[name]), rows], name)
    np.testing.assert_array_equal(state.obs, steps["obs"][-1])
    np.testing.assert_array_equal(state.time, steps["time"][-1])
    np.testing.assert_array_equal(state.level_seed, steps["level_seed"][-1])


@pytest.mark.parametrize("order", [("env", "halves"), ("halves", "env")], ids=["one to two", "two to one"])
def test_a_saved_state_goes_on_with_another_number_of_groups(request, played, actions, order):
    before, after = (request.getfixturevalue(name) for name in order)
    state, _ = play(before, before.reset(jax.random.key(3))[1], actions[:50])
    _, steps = play(after, after.set_state(before.get_state(state)), actions[50:])
    equal(steps, jax.tree.map(lambda x: x[50:], played[2]))


def test_how_many_groups_there_are_by_default():
    assert [procgen.default_groups(64, backend) for backend in ("cpu", "gpu", "tpu")] == [1, 2, 2]
    assert procgen.default_groups(63, "gpu") == 1
    assert envs.make("maze", 4).groups == envs.make("maze", 3).groups == 1  # on this CPU
    assert stepper(envs.make("maze", 4, groups=2)) != stepper(envs.make("maze", 4))


# Saving and restoring


@pytest.mark.parametrize("fresh", [False, True], ids=["same object", "new object of another seed"])
def test_a_restored_state_continues_equally(env, actions, fresh):
    _, state = env.reset(jax.random.key(3))
    state, before = play(env, state, actions[:50])
    saved = env.get_state(state)
    assert all(isinstance(leaf, np.ndarray) for leaf in saved.values())
    saved = {name: leaf.copy() for name, leaf in saved.items()}
    _, expected = play(env, state, actions[50:])
    assert expected["terminated"].any()
    other = envs.make("coinrun", N, num_threads=2) if fresh else env
    if fresh:
        other.reset(jax.random.key(99))
    restored = other.set_state(saved)
    assert int(restored.handle) != int(state.handle)
    np.testing.assert_array_equal(restored.obs, before["obs"][-1])
    _, steps = play(other, restored, actions[50:])
    equal(steps, expected)
    if fresh:
        other.close()


def test_a_state_can_be_saved_before_the_first_step(env, played, actions):
    first_obs, _, steps = played
    restored = env.set_state(env.get_state(env.reset(jax.random.key(3))[1]))
    np.testing.assert_array_equal(restored.obs, first_obs)
    np.testing.assert_array_equal(play(env, restored, actions[:9])[1]["obs"], steps["obs"][:9])


# How episodes end


@pytest.mark.parametrize(("game", "limit"), [("maze", 500), ("leaper", 500), ("heist", 1000), ("ninja", 1000)])
def test_standing_still_is_truncated_at_the_time_limit(game, limit):
    env = envs.make(game, 2, num_threads=0)
    assert env.time_limit == limit
    _, state = env.reset(jax.random.key(0))
    terminated, truncated = (np.asarray(x) for x in endings(env, state, NOOP, limit + 20))
    env.close()
    assert not terminated.any()
    np.testing.assert_array_equal(np.argwhere(truncated), [[limit - 1, 0], [limit - 1, 1]])


def test_death_and_completion_are_terminations_and_exclude_truncation(played):
    steps = played[2]
    assert not (steps["terminated"] & steps["truncated"]).any()
    assert steps["terminated"][steps["level_complete"]].all()
    # In starpilot standing still dies long before the time-out.
    env = envs.make("starpilot", 2, num_threads=0)
    terminated, truncated = (np.asarray(x) for x in endings(env, env.reset(jax.random.key(0))[1], NOOP, 400))
    env.close()
    assert terminated.sum() >= 4 and not truncated.any()


def test_a_level_completed_at_the_last_moment_is_terminated(monkeypatch):
    """Three invented environments where the time-out falls: completed, timed out, and going on (its flag is stale)."""

    class Native:
        def __init__(self, num, **_):
            self._ob = {"rgb": np.zeros((num, 64, 64, 3), np.uint8)}
            self._rew, self._first = np.ones(num, np.float32), np.array([True, True, False])
            self._info = {
                "prev_level_complete": np.array([1, 0, 1], np.uint8),
                "level_seed": np.full(num, 5, np.int32),
            }

        def act(self, action):
            assert action.dtype == np.int32

        def call_c_func(self, name):
            assert name == "libenv_observe"

        def close(self):
            pass

    monkeypatch.setattr(procgen, "native_class", lambda: Native)
    env = Procgen("maze", 3, time_limit=2)
    _, state = env.reset(jax.random.key(0))
    _, steps = play(env, state, np.zeros((2, 3), np.int32))
    env.close()
    # In the first step the time-out has not come: what ends there was a death.
    np.testing.assert_array_equal(steps["terminated"], [[True, True, False], [True, True, False]])
    assert not steps["truncated"].any()
    np.testing.assert_array_equal(steps["level_complete"], [[True, False, False]] * 2)
    _, state = env.reset(jax.random.key(0))
    _, steps = play(env, state.replace(time=jnp.array([1, 1, 1], jnp.int32)), np.zeros((1, 3), np.int32))
    env.close()
    np.testing.assert_array_equal(steps["terminated"], [[True, False, False]])
    np.testing.assert_array_equal(steps["truncated"], [[False, True, False]])
    np.testing.assert_array_equal(steps["time"], [[0, 0, 2]])


# Levels


def test_num_levels_bounds_the_levels_that_are_played(actions):
    env = envs.make("coinrun", N, num_levels=2, start_level=40, num_threads=1)
    _, state = env.reset(jax.random.key(0))
    _, steps = play(env, state, actions)
    env.close()
    seeds = {*state.level_seed.tolist(), *np.unique(steps["level_seed"]).tolist()}
    assert seeds == {40, 41}


def test_distribution_mode_reaches_the_engine():
    seeds = {"num_levels": 1, "start_level": 3, "num_threads": 0}
    frames = []
    for mode in ("easy", "hard"):
        env = envs.make("maze", 1, distribution_mode=mode, **seeds)
        frames.append(np.asarray(env.reset(jax.random.key(0))[0]))
        env.close()
    assert (frames[0] != frames[1]).any()


# What is held


def test_close_frees_every_native_batch_and_only_its_own(env):
    _, kept = env.reset(jax.random.key(0))
    other = envs.make("maze", 2, num_threads=0)
    states = [other.reset(jax.random.key(seed))[1] for seed in range(2)]
    states.append(other.set_state(other.get_state(states[0])))
    handles = {int(state.handle) for state in states}
    assert len(handles) == 3 and handles <= set(procgen.BATCHES)
    other.close()
    assert not handles & set(procgen.BATCHES)
    assert int(kept.handle) in procgen.BATCHES
    other.close()  # once more does nothing
    assert int(kept.handle) in procgen.BATCHES


def test_equal_settings_compile_once(actions):
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def step(env, state, action):
        traces.append(1)
        return env.step(jax.random.key(0), state, action)[0]

    kinds = [{}, {}, {"start_level": 5, "num_levels": 1}]
    for kwargs in kinds:
        env = envs.make("maze", N, num_threads=0, **kwargs)
        step(env, env.reset(jax.random.key(0))[1], actions[0])
        env.close()
    assert len(traces) == 2


def test_describing_a_batch_makes_none():
    before = set(procgen.BATCHES)
    envs.make("maze", 1000)
    assert set(procgen.BATCHES) == before


# Errors


def test_without_procgen_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "procgen", None)
    with pytest.raises(envs.ProcgenNotInstalledError, match=r'^[^\n]*pip install "lamjax\[procgen\]"[^\n]*$') as error:
        envs.make("coinrun", 2)
    assert isinstance(error.value, ImportError)
    assert envs.make("cartpole", 2).num_envs == 2  # the others do not need it


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, not 0"),
        ({"num_envs": 2, "num_levels": -1}, "must not be negative, not -1 and 0"),
        ({"num_envs": 2, "start_level": -3}, "must not be negative, not 0 and -3"),
        ({"num_envs": 2, "groups": 3}, "groups must be 1 or 2, not 3"),
        ({"num_envs": 5, "groups": 2}, "5 environments do not split into two groups: make their number even"),
        ({"num_envs": 2, "distribution_mode": "medium"}, "distribution_mode must be one of .* not 'medium'"),
        ({"num_envs": 2, "distribution_mode": "memory"}, "no distribution_mode 'memory': .* easy, hard, exploration"),
        ({"num_envs": 2, "start_level": 2**31}, r"must be at most 2\*\*31"),
        ({"num_envs": 2, "num_levels": 2**31}, r"must be at most 2\*\*31"),
        ({"num_envs": 2, "start_level": 2**31 - 9, "num_levels": 10}, r"must be at most 2\*\*31"),
        ({"num_envs": 2, "num_threads": -1}, "num_threads must not be negative"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        envs.make("coinrun", **kwargs)


@pytest.mark.parametrize("levels", [(2**31 - 8, 8), (0, 2**31 - 1), (2**31 - 1, 1)])
def test_the_last_levels_can_be_played(levels):
    with contextlib.closing(envs.make("coinrun", 4, start_level=levels[0], num_levels=levels[1])) as env:
        seeds = np.asarray(env.reset(jax.random.key(0))[1].level_seed, np.int64)
    assert (seeds >= levels[0]).all() and (seeds < sum(levels)).all()


def test_a_gym3_without_the_buffers_is_refused(monkeypatch):
    class Native:
        def __init__(self, **_):
            self._ob = self._rew = self._first = None

    monkeypatch.setattr(procgen, "native_class", lambda: Native)
    with pytest.raises(envs.ProcgenNotInstalledError, match=r'keeps no _info.*pip install "gym3==0.3.3"'):
        Procgen("maze", 2, time_limit=2).make_batch(2, 0)


# Devices


def test_one_batch_for_each_device_under_pmap(env, actions):
    keys = jax.random.split(jax.random.key(11), 2)
    actions = actions[:20]
    obs, states = jax.pmap(env.reset)(keys)
    assert len(set(np.asarray(states.handle).tolist())) == 2

    @functools.partial(jax.pmap, in_axes=(0, 0))
    def on_each(state, action):
        return play(env, state, action)[1]

    both = jax.device_get(on_each(states, np.stack([actions, actions[::-1]])))
    for device, order in enumerate((actions, actions[::-1])):
        alone_obs, state = env.reset(keys[device])
        np.testing.assert_array_equal(obs[device], alone_obs)
        _, alone = play(env, state, order)
        equal(jax.tree.map(lambda x, device=device: x[device], both), jax.device_get(alone))


def test_games_share_a_compiled_rollout():
    """A stepper knows how many environments there are; which game, and when it times out, the state says."""
    maze, bigfish = (Procgen(game, 2, time_limit=limit, num_threads=0) for game, limit in (("maze", 3), ("bigfish", 9)))
    assert maze != bigfish and stepper(maze) == stepper(bigfish) != stepper(Procgen("maze", 3, time_limit=3))
    assert hash(stepper(maze)) == hash(stepper(bigfish))
    step = jax.jit(chex.assert_max_traces(lambda env, *args: env.step(*args), n=1), static_argnums=0)
    for env in (maze, bigfish):
        _, state = env.reset(jax.random.key(0))
        _, twin = env.reset(jax.random.key(0))
        action = jnp.array([7, 3], jnp.int32)
        shared, own = step(stepper(env), jax.random.key(1), state, action), env.step(jax.random.key(1), twin, action)
        np.testing.assert_array_equal(shared[0], own[0])
        np.testing.assert_array_equal(shared[1].time_limit, env.time_limit)
        env.close()


def test_distracted_games_share_a_compiled_rollout():
    pair = [envs.make(game, 2, num_threads=0, distractor="overlay") for game in ("maze", "bigfish")]
    assert pair[0] != pair[1] and stepper(pair[0]) == stepper(pair[1])
    assert stepper(pair[0]) != stepper(envs.make("maze", 2, num_threads=0, distractor="jitter"))
    assert pair[0].env.name == "maze"  # the environment itself is left as it is
    assert isinstance(stepper(envs.make("cartpole", 2)), envs.Gymnax)
