"""Crossings drawn by hand, and the model of traffic against the real game."""

import jax
import numpy as np
import pytest

from lamjax import envs
from lamjax.planners import leaper
from lamjax.planners.grid import LEFT, NOOP, RIGHT, UP
from lamjax.planners.leaper import Traffic
from tests.envs.scenes import scenes


def crossing(cars=(), logs=(), *, width=9):
    """A road in lane 1, a river in lane 2, the finish in lane 3; movers (place, speed)."""
    sides = {1: cars[0][1]} if cars else {}
    water = frozenset({2} if logs else ())
    return Traffic({1: list(cars)}, {2: list(logs)}, sides, water, 3, width)


def test_a_hop_takes_six_steps_and_a_wait_one():
    assert crossing().move(4.0, 0, 0, UP) == (4.0, 1, 6)
    assert crossing().move(4.0, 0, 2, NOOP) == (4.0, 0, 3)
    assert crossing().move(4.0, 0, 0, RIGHT) == pytest.approx((5.0, 0, 6))
    assert crossing().move(0.9, 0, 0, LEFT) is None  # beyond the side


def test_a_car_on_the_way_kills():
    # The agent's y reaches lane 1 with the first step, and the car is within 0.9 of its x.
    assert crossing([(4.5, 0.1)]).move(4.0, 0, 0, UP) is None
    assert crossing([(2.0, 0.1)]).move(4.0, 0, 0, UP) == (4.0, 1, 6)  # 2.6 after six steps
    assert crossing([(2.7, 0.1)]).move(4.0, 0, 0, UP) is None  # 3.3
    assert crossing([(9.0, 0.1)]).move(0.5, 0, 0, UP) is None  # where others could come in


def test_a_log_carries_and_water_kills():
    river = crossing(logs=[(4.0, 0.05)])
    assert river.move(2.0, 1, 0, UP) is None
    x, lane, time = river.move(4.2, 1, 0, UP)
    # From the second step on the agent is over the log, which takes it along: five times 0.05.
    assert (lane, time) == (2, 6) and x == pytest.approx(4.2 + 5 * 0.05)
    assert river.move(x, lane, time, NOOP) == pytest.approx((x + 0.05, 2, 7))


def test_the_first_move_is_that_of_the_quickest_way():
    assert leaper.first_move(crossing(), 4.0, 0)[0] == UP
    # A car will have passed in less time than a step aside takes: the agent waits, and no longer than it must.
    blocked = crossing([(4.5, 0.1)])
    action, waits = leaper.first_move(blocked, 4.0, 0)
    assert action == NOOP and waits > 0
    assert blocked.move(4.0, 0, waits, UP) and not blocked.move(4.0, 0, waits - 1, UP)


def test_the_model_predicts_the_real_game():
    env = envs.make("leaper", 8, num_threads=0)
    state, step = env.reset(jax.random.key(2))[1], jax.jit(env.step)
    before = scenes(env, state)
    moves = [leaper.see(each).move(float(each.player["x"]), 0, 0, UP) for each in before]
    done = np.zeros(8, bool)
    for number in range(leaper.LANDED):
        _, state, _, terminated, truncated, _ = step(
            jax.random.key(0), state, np.full(8, UP if number == 0 else NOOP, np.int32)
        )
        done |= np.asarray(terminated | truncated)
    after = scenes(env, state)
    env.close()
    landed = 0
    for move, dead, scene in zip(moves, done, after, strict=True):
        assert move is None or not dead  # it never expects to live and dies
        if move is not None:
            assert (scene.player["x"], scene.player["y"]) == pytest.approx((move[0], move[1] + leaper.REACH), abs=1e-3)
            assert scene.player["vy"] == 0
            landed += 1
    assert landed >= 4
