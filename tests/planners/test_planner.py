"""Planners as policies: in recordings and evaluations of real games."""

import jax
import numpy as np
import pytest

from lamjax import data, envs, planners, policies
from lamjax.data import evaluation_actions
from lamjax.data.record import CHUNK, record
from lamjax.envs.evaluate import evaluate, evaluate_all
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
    """A recording of two dispatches by the planner, or by another policy."""
    policy, share = options.pop("policy", PLANNER), options.pop("random_share", 0.0)
    env = envs.make(game, N, num_threads=2, **{"groups": 1, **options})
    record(path, env, policy, {}, 2 * N * CHUNK, KEY, source={"kind": "test"}, random_share=share)
    env.close()
    return data.open_store(path)


def actions(store):
    return evaluation_actions(store, np.arange(store.num_frames), length=2)


def test_fish_are_eaten_and_avoided(tmp_path):
    ours = stored(tmp_path / "ours", "bigfish")
    random = stored(tmp_path / "random", "bigfish", policy=policies.UniformPolicy(15))
    assert ours.episodes.returns.sum() >= 3 * max(1, random.episodes.returns.sum())
    assert len(ours.episodes) == N  # nobody was eaten


@pytest.mark.parametrize("game", ["miner", "maze"])
def test_the_same_key_records_the_same_in_one_group_or_two(tmp_path, game):
    one = stored(tmp_path / "one", game)
    for name, groups in (("again", 1), ("two", 2)):
        assert stored(tmp_path / name, game, groups=groups).manifest["files"] == one.manifest["files"]


def test_a_planner_does_not_see_the_distractor(tmp_path):
    plain = stored(tmp_path / "plain", "maze")
    covered = stored(tmp_path / "covered", "maze", distractor="jitter", distractor_strength=0.5)
    np.testing.assert_array_equal(actions(plain), actions(covered))


def test_a_share_of_the_moves_is_random(tmp_path):
    store = stored(tmp_path / "store", "maze", random_share=0.3)
    again = stored(tmp_path / "again", "maze", random_share=0.3)
    assert again.manifest["files"] == store.manifest["files"]
    # The planner itself goes left, right, up and down alone: the other eleven actions are random moves.
    strange = ~np.isin(actions(store)[: 2 * N * CHUNK], [1, 3, 5, 7])
    assert abs(strange.mean() - 0.3 * 11 / 15) < 5 * np.sqrt(0.25 / strange.size)
    complete = store.episodes.ending != "cut"
    assert complete.sum() > N and (store.episodes.returns[complete] == 10).all()  # it finds the way again


def test_planners_side_by_side_play_what_each_plays_alone():
    env, wide = (envs.make("maze", count, num_threads=2, groups=1) for count in (N, 2 * N))
    alone = evaluate(PLANNER, {}, env, N, KEY)
    returns, lengths = evaluate_all(PLANNER, [{}, {}], env, N, KEY, greedy=[False, True], wide=wide)
    env.close()
    wide.close()
    np.testing.assert_array_equal(returns, [alone[0]] * 2)
    np.testing.assert_array_equal(lengths, [alone[1]] * 2)


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
