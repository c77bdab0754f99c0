"""The source of a run's trajectories where nothing was asked for."""

import dataclasses

import jax
import pytest

from lamjax import experts, pipeline
from lamjax.planners import VERSION, Planner
from lamjax.policies import PolicyError, save_policy
from lamjax.ppo import ActorCriticAgent
from lamjax.presets import PRESETS

SMOKE = PRESETS["smoke"]


def chosen(env, runs, **options):
    return pipeline.choose_source(env, SMOKE, preset="smoke", runs=runs, **options)


def test_a_shipped_expert_comes_first_then_a_planner_then_random_play(tmp_path):
    assert "coinrun" in experts.available()
    source, notice = chosen("coinrun", tmp_path)
    assert (source.kind, notice) == ("expert", None)
    source, notice = chosen("maze", tmp_path)
    assert (source.kind, source.policy, source.params, notice) == ("planner", Planner(), {}, None)
    assert (source.name, source.info) == (f"planner-v{VERSION}", {"planner": "maze", "version": VERSION})
    source, notice = chosen("plunder", tmp_path)
    assert source.kind == "random" and notice.startswith(
        "No expert is shipped for plunder: a random policy was recorded"
    )


def test_an_expert_that_was_trained_here_comes_before_the_planner(tmp_path):
    agent = ActorCriticAgent(SMOKE.expert.trunk, 15)
    folder = pipeline.expert_folder(tmp_path, "maze") / "policies" / "expert"
    save_policy(folder, agent, agent.init(jax.random.key(0), (64, 64, 3)), {"env": "maze"})
    assert chosen("maze", tmp_path)[0].kind == "expert"
    assert chosen("maze", tmp_path, policy="planner")[0].kind == "planner"


def test_a_planner_records_no_game_that_it_does_not_know(tmp_path):
    for env in ("coinrun", "cartpole"):
        games = "bigfish, bossfight, dodgeball, heist, leaper, maze, miner, starpilot"
        with pytest.raises(PolicyError, match=rf"^There is no planner for {env} \(there are: {games}\): use expert"):
            pipeline.find_source(env, "planner", tmp_path, 15)


def test_random_moves_are_part_of_the_settings():
    record = dataclasses.replace(SMOKE.record, random_share=0.1)
    assert record != SMOKE.record and SMOKE.record.random_share == 0
    with pytest.raises(ValueError, match=r"^record.random_share must lie in \[0, 1\], not -0\.1\.$"):
        dataclasses.replace(SMOKE.record, random_share=-0.1)
