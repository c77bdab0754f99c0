"""Recorded trajectories are what was played: checked by playing the recorded actions again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import data, envs, policies
from lamjax.data import evaluation_actions
from lamjax.data.reader import ArrayReader
from lamjax.data.record import CHUNK, record
from tests.envs.toys import Aim, Counter

GAME, NUM_ENVS, STEPS, ACTIONS = "fruitbot", 8, 4 * CHUNK, 15
KEY = jax.random.key(3)


def record_game(path, frames=NUM_ENVS * STEPS, **kwargs):
    env = envs.make(GAME, NUM_ENVS, num_levels=50, start_level=7)
    try:
        record(path, env, policies.UniformPolicy(ACTIONS), {}, frames, KEY, source={"kind": "random"}, **kwargs)
    finally:
        env.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("record") / "store"
    record_game(path)
    return data.open_store(path)


def all_actions(store):
    """The action at every frame."""
    return evaluation_actions(store, np.arange(store.num_frames), length=2)


def rewards(store):
    return ArrayReader(store.path, "rewards", store.manifest, True).take(np.arange(store.num_frames))


def episode(store, number):
    start = store.episodes.start[number]
    return slice(start, start + store.episodes.length[number])


@pytest.fixture(scope="module")
def replay(store):
    """The recorded actions in fresh environments with the recorder's key, until each one's third episode has begun.

    Environments are told apart by what they show first; which episodes are whose follows from level and first frame.
    Returns for each environment the numbers of its episodes in the store, in the order in which they were played.
    """
    env = envs.make(GAME, NUM_ENVS, num_levels=50, start_level=7)
    obs, state = env.reset(jax.random.split(KEY)[0])
    step = jax.jit(lambda state, action: env.step(jax.random.key(0), state, action))
    firsts = store.observations_at(store.episodes.start)
    actions, reward_of = all_actions(store), rewards(store)
    unplayed = set(range(len(store.episodes)))

    def find(n):
        """The first unplayed episode that begins with what environment n shows, on its level."""
        seed = int(state.level_seed[n])
        shown = np.asarray(obs[n])
        for number in sorted(unplayed):
            if store.episodes.level_seed[number] == seed and np.array_equal(firsts[number], shown):
                unplayed.discard(number)
                return number
        pytest.fail(f"no recorded episode begins as environment {n} does on level {seed}")

    played = [[find(n)] for n in range(NUM_ENVS)]
    at = np.zeros(NUM_ENVS, int)
    frames, ends = 0, []
    for _ in range(STEPS):
        rows = np.array([store.episodes.start[played[n][-1]] + at[n] for n in range(NUM_ENVS)])
        np.testing.assert_array_equal(store.observations_at(rows), obs)
        obs, state, reward, terminated, truncated, _ = step(state, jnp.asarray(actions[rows]))
        np.testing.assert_array_equal(reward_of[rows], reward)
        frames += NUM_ENVS
        at += 1
        done = np.asarray(terminated | truncated)
        for n in range(NUM_ENVS):
            over = at[n] == store.episodes.length[played[n][-1]]
            ending = store.episodes.ending[played[n][-1]]
            if ending == "cut":
                assert not done[n]
                continue
            assert done[n] == over
            if over:
                assert ending == ("terminated" if terminated[n] else "truncated")
                ends.append(played[n][-1])
                if frames < NUM_ENVS * STEPS:
                    played[n].append(find(n))
                    at[n] = 0
    env.close()
    return played, at, unplayed, ends


def test_the_recorded_actions_show_the_recorded_frames_again(store, replay):
    played, _, unplayed, _ = replay
    assert unplayed == set()  # every episode was found and played, frame by frame
    assert max(len(numbers) for numbers in played) >= 2  # beyond a reset, too
    assert sum(store.episodes.length[number] for numbers in played for number in numbers) == store.num_frames


def test_episodes_are_whole_and_in_order(store, replay):
    played, _, _, ends = replay
    # Those of one environment lie in the order in which they were played.
    assert all(numbers == sorted(numbers) for numbers in played)
    endings = store.episodes.ending
    first_cut = list(endings).index("cut")
    assert set(endings[first_cut:]) == {"cut"}  # what was still running was written last
    assert sorted(ends) == list(range(first_cut))
    np.testing.assert_array_equal(np.flatnonzero(store.is_first), store.episodes.start)
    assert store.num_frames == NUM_ENVS * STEPS == store.episodes.length.sum()


def test_running_episodes_are_kept_and_marked_as_cut(store, replay):
    played, at, _, _ = replay
    last = np.array([numbers[-1] for numbers in played])
    cut = store.episodes.ending[last] == "cut"
    assert cut.sum() >= NUM_ENVS - 1
    np.testing.assert_array_equal(at[cut], store.episodes.length[last[cut]])  # cut at the very last step
    assert (store.episodes.ending == "cut").sum() == cut.sum()


def test_levels_returns_and_manifest(store):
    assert np.count_nonzero(rewards(store)) >= 10
    assert set(store.episodes.level_seed) <= set(range(7, 57)) and len(set(store.episodes.level_seed)) >= 4
    for number in range(len(store.episodes)):
        assert store.episodes.returns[number] == pytest.approx(rewards(store)[episode(store, number)].sum())
        assert store.episodes.split[number] == data.split_of_level(store.episodes.level_seed[number])
    assert store.env == GAME and store.policy == {"kind": "random"} and store.num_actions == ACTIONS
    assert store.env_params == {"num_levels": 50, "start_level": 7, "distribution_mode": "easy"}
    counts = np.bincount(all_actions(store), minlength=ACTIONS)
    assert counts.min() > 0.5 * counts.mean()  # uniform


def test_the_same_key_records_the_same(store, tmp_path):
    calls = []
    record_game(tmp_path / "store", progress=calls.append)
    again = data.open_store(tmp_path / "store")
    assert again.manifest["files"] == store.manifest["files"]
    assert calls == [CHUNK * NUM_ENVS * n for n in (1, 2, 3, 4)]


def test_an_interrupted_recording_leaves_no_store(tmp_path):
    def stop(frames):
        if frames >= 2 * CHUNK * NUM_ENVS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_game(tmp_path / "store", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_at_least_the_frames_that_were_asked_for(tmp_path):
    record_game(tmp_path / "store", frames=CHUNK * NUM_ENVS + 1)
    assert data.open_store(tmp_path / "store").num_frames == 2 * CHUNK * NUM_ENVS


def test_environments_without_levels_are_split_by_episode(tmp_path):
    env = envs.make("cartpole", 4)
    record(tmp_path / "store", env, policies.UniformPolicy(2), {}, 2000, KEY, source={"kind": "random"})
    store = data.open_store(tmp_path / "store")
    assert store.episodes.level_seed.tolist() == list(range(len(store.episodes)))
    assert {"train", "test"} == set(store.episodes.split)
    assert store.obs_shape == (4,) and store.obs_dtype == np.float32
    complete = store.episodes.ending == "terminated"
    # A pole falls after 8 steps at the earliest, and each step until then is worth 1.
    assert store.episodes.length[complete].min() >= 8
    np.testing.assert_array_equal(store.episodes.returns[complete], store.episodes.length[complete])


class Broken(Counter):
    """`Counter` whose reward or observation is no number in the 40th step of each of its copies."""

    def __init__(self, what, value):
        super().__init__([1000])
        self.what, self.value = what, value

    def step(self, key, state, action, params):
        obs, after, reward, *ends, info = super().step(key, state, action, params)
        now = after.time == 40
        if self.what == "reward":
            reward = jnp.where(now, self.value, reward)
        else:
            obs = jnp.where(now, self.value, obs)
        return obs, after, reward, *ends, info


@pytest.mark.parametrize(("what", "step"), [("reward", 39), ("observation", 40)])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_an_environment_that_returns_no_number_is_refused_in_that_step(tmp_path, what, step, value):
    env = envs.Gymnax(Broken(what, value), 4)
    message = f"^counter returned {value} in the {what} of step {step} of its copy 0 \\(both counted from 0\\)"
    with pytest.raises(ValueError, match=message):
        record(tmp_path / "store", env, policies.UniformPolicy(2), {}, 10**9, KEY, source={"kind": "random"})
    assert not list(tmp_path.iterdir())


def test_the_policy_decides(tmp_path):
    """Actions follow the logits: a policy that strongly prefers one action by what it sees takes it."""

    def logits(policy, obs):
        # To the left where the pole leans to the left.
        return policy["scale"] * jnp.stack([-obs[:, 2], obs[:, 2]], axis=1)

    env = envs.make("cartpole", 4)
    record(tmp_path / "store", env, logits, {"scale": jnp.float32(1e6)}, 256, KEY, source={"kind": "lean"})
    store = data.open_store(tmp_path / "store")
    np.testing.assert_array_equal(all_actions(store)[:-1], store.observations()[:-1, 2] > 0)


def test_continuous_actions_are_stored_as_they_were_carried_out(tmp_path):
    env = envs.Gymnax(Aim([10], [True]), 4)

    def far_out(policy, obs):
        """Means at the upper bounds and deviations of one: half of the samples lie beyond them."""
        return jnp.concatenate([jnp.ones_like(obs), jnp.zeros_like(obs)], -1)

    record(tmp_path / "store", env, far_out, {}, 256, KEY, source={"kind": "test"})
    store = data.open_store(tmp_path / "store")
    assert store.action_space == env.action_space and store.num_actions is None
    taken, obs = all_actions(store), store.observations()
    assert taken.shape == (256, 2) and taken.dtype == np.float32
    assert (taken >= Aim.low).all() and (taken <= Aim.high).all()
    assert 0.3 < (taken == Aim.high).mean() < 0.7
    np.testing.assert_array_equal(np.isfinite(rewards(store)), True)
    inside = ~store.is_first[1:]
    np.testing.assert_allclose(obs[1:][inside], np.clip(obs[:-1] + taken[:-1] / 10, -1, 1)[inside], atol=1e-6)
