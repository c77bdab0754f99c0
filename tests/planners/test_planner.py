"""Planners as policies: in recordings and evaluations of real games."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import data, envs, planners
from lamjax.data import evaluation_actions
from lamjax.data.record import CHUNK, record
from lamjax.envs.evaluate import evaluate
from lamjax.planners import PLANS, Planner

N = 8
KEY = jax.random.key(3)
PLANNER = Planner()


def play(game, episodes=N, **options):
    env = envs.make(game, N, num_threads=2, groups=1, **options)
    try:
        return evaluate(PLANNER, {}, env, episodes, KEY)
    finally:
        env.close()


@pytest.mark.parametrize(("game", "steps"), [("maze", 30), ("heist", 90)])
def test_every_episode_ends_at_the_goal(game, steps):
    returns, lengths = play(game, 2 * N)
    assert returns.tolist() == [10.0] * 2 * N and lengths.mean() < steps


@pytest.mark.parametrize("game", ["maze", "heist"])
def test_so_do_those_of_the_hard_levels(game):
    returns, _ = play(game, distribution_mode="hard")
    assert returns.tolist() == [10.0] * N


def test_mines_are_emptied_and_left():
    returns, lengths = play("miner")
    assert (returns == 13).sum() >= N - 1 and lengths.max() < 200  # three diamonds and the exit


def stored(path, game, **options):
    """A recording of two dispatches by the planner."""
    share = options.pop("random_share", 0.0)
    env = envs.make(game, N, num_threads=2, **{"groups": 1, **options})
    record(path, env, PLANNER, {}, 2 * N * CHUNK, KEY, source={"kind": "test"}, random_share=share)
    env.close()
    return data.open_store(path)


def actions(store):
    return evaluation_actions(store, np.arange(store.num_frames), length=2)


def test_fish_are_eaten_and_avoided(tmp_path):
    store = stored(tmp_path / "store", "bigfish")
    # Random play eats 0.8 fish in an episode of 117 steps: about 3.5 in so many frames.
    assert store.episodes.returns.sum() >= 14
    assert len(store.episodes) == N  # nobody was eaten


@pytest.mark.parametrize("game", ["dodgeball", "starpilot"])
def test_everyone_shoots_an_enemy_and_nobody_dies(tmp_path, game):
    episodes = stored(tmp_path / "store", game).episodes
    assert len(episodes) == N and (episodes.returns > 0).all()  # random play mostly shoots none in so few steps


def test_courses_are_flown_to_their_end():
    returns, lengths = play("fruitbot")
    # The presents are 420 steps away. Random play ends at a wall after 83, and returns -2.6.
    assert (lengths == 420).all() and returns.mean() > 25


@pytest.mark.parametrize("game", ["miner", "maze"])
def test_the_same_key_records_the_same_in_one_group_or_two(tmp_path, game):
    one = stored(tmp_path / "one", game)
    for name, groups in (("again", 1), ("two", 2)):
        assert stored(tmp_path / name, game, groups=groups).manifest["files"] == one.manifest["files"]


def planned(env, copies=None):
    """The first actions in N environments; as `copies` groups of them that share one native batch, if given."""
    _, state = env.reset(KEY)
    if copies is None:
        return PLANNER.space.mode(PLANNER({}, None, state)).tolist()
    groups = state.replace(
        handle=jnp.broadcast_to(state.handle, (copies,)), level_seed=state.level_seed.reshape(copies, -1)
    )
    axes = jax.tree.map(lambda leaf: None, state).replace(handle=0, level_seed=0)
    outputs = jax.vmap(lambda state: PLANNER({}, None, state), (axes,))(groups)
    return PLANNER.space.mode(outputs).tolist()


@pytest.fixture(scope="module")
def first_moves():
    """Environments of the maze, and the planned first moves there."""
    env = envs.make("maze", N, num_threads=2, groups=1)
    yield env, planned(env)
    env.close()


def test_a_planner_does_not_see_the_distractor(first_moves):
    env, moves = first_moves
    assert len(set(moves)) > 1 and set(moves) <= {1, 3, 5, 7}
    assert planned(envs.Distracted(env, "jitter", 0.5)) == moves


def test_planners_side_by_side_share_a_batch(first_moves):
    env, moves = first_moves
    assert planned(env, copies=2) == [moves[: N // 2], moves[N // 2 :]]


def test_a_share_of_the_moves_is_random(tmp_path):
    store = stored(tmp_path / "store", "maze", random_share=0.3)
    again = stored(tmp_path / "again", "maze", random_share=0.3)
    assert again.manifest["files"] == store.manifest["files"]
    # The planner itself goes left, right, up and down alone: the other eleven actions are random moves.
    strange = ~np.isin(actions(store)[: 2 * N * CHUNK], [1, 3, 5, 7])
    assert abs(strange.mean() - 0.3 * 11 / 15) < 5 * np.sqrt(0.25 / strange.size)
    complete = store.episodes.ending != "cut"
    assert complete.sum() > N and (store.episodes.returns[complete] == 10).all()  # it finds the way again


def test_every_planner_was_measured_and_beats_random_play():
    table = planners.returns()
    assert table.keys() == PLANS.keys()
    for game, info in table.items():
        facts = envs.PROCGEN_GAMES[game]
        assert info["version"] == planners.VERSION and info["episodes"] >= 500
        assert info["normalised"] == pytest.approx(envs.normalised_return(game, info["return_mean"]))
        assert info["return_mean"] > (facts.random_return + facts.expert_return) / 2
        random = info["random"]
        assert abs(random["return_mean"] - facts.random_return) < 1 + 5 * random["return_stderr"]
