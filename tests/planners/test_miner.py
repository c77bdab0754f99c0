"""Small mines drawn by hand, and the model of falling against the real game."""

import jax
import numpy as np
import pytest

from lamjax import envs
from lamjax.planners import miner
from lamjax.planners.grid import DOWN, LEFT, NOOP, RIGHT, UP
from tests.envs.scenes import scenes

IDS = {" ": 100, ".": 9, "O": 1, "d": 2, "o": 3, "v": 4, "A": 100, "E": 100}


def world(*rows):
    """A mine from its rows, the highest first: A the agent, E the exit, O boulders, d diamonds (o, v: falling)."""
    text = "".join(reversed(rows))
    cells = bytes(IDS[each] for each in text)
    return miner.World(cells, len(rows[0]), text.index("A"), text.index("E"), text.count("d") + text.count("v"))


def drawn(mine):
    """The rows of a mine, as `world` takes them."""
    names = {cell: name for name, cell in reversed(IDS.items()) if name.strip() in "Odov."}
    text = [names[cell] for cell in mine.cells]
    text[mine.exit], text[mine.agent] = "E", "A"
    rows = ["".join(text[start : start + mine.width]) for start in range(0, len(text), mine.width)]
    return rows[::-1]


def test_a_boulder_falls_where_the_agent_dug():
    down = world("O..", "A..", "...", "..E").step(DOWN)
    assert drawn(down) == [" ..", "o..", "A..", "..E"] and not down.over
    # It does not reach the agent as long as the agent goes on, and kills it where it stays.
    further = down.step(DOWN)
    assert drawn(further) == [" ..", " ..", "o..", "A.E"] and not further.over
    assert down.step(NOOP).over and not down.step(NOOP).left
    aside = down.step(RIGHT)
    assert drawn(aside) == [" ..", " ..", "oA.", "..E"] and not aside.over
    assert drawn(aside.step(NOOP)) == [" ..", " ..", "OA.", "..E"]


def test_a_boulder_at_rest_above_the_agent_stays():
    after = world("O..", "A..", "..E").step(NOOP)
    assert drawn(after) == ["O..", "A..", "..E"] and not after.over


def test_boulders_roll_off_boulders_to_the_left_first():
    left = world(" O .", " O .", "....", "A..E").step(NOOP)
    assert drawn(left) == ["O  .", " O .", "....", "A..E"]
    assert drawn(left.step(NOOP)) == ["   .", "oO .", "....", "A..E"]
    right = world(".O .", ".O .", "....", "A..E").step(NOOP)
    assert drawn(right) == [".  .", ".Oo.", "....", "A..E"]  # the game comes to it twice in one step


def test_the_agent_pushes_a_boulder_into_free_space_alone():
    assert drawn(world("AO .", "...E").step(RIGHT)) == [" AO.", "...E"]
    assert drawn(world("AO..", "...E").step(RIGHT)) == ["AO..", "...E"]
    assert drawn(world("AO ", "E..").step(RIGHT)) == [" AO", "E.."]
    assert drawn(world(".OA", "E..").step(LEFT)) == [".OA", "E.."]


def test_the_exit_waits_for_the_diamonds():
    mine = world("AEd", "...")
    assert not mine.step(RIGHT).over
    taken = mine.step(RIGHT).step(RIGHT)
    assert taken.remaining == 0 and not taken.over
    assert taken.step(LEFT).left and taken.step(LEFT).over


def test_a_course_collects_and_leaves_by_the_shortest_way():
    course = miner.course(world("d...", "....", "A..E"))
    assert course.actions == (UP, UP, RIGHT, RIGHT, RIGHT, DOWN, DOWN)
    assert course.worlds[-1].left and course.worlds[1].remaining == 0


def test_a_course_keeps_clear_of_what_falls():
    # The way back from the diamond at the bottom of the shaft leads under the boulder.
    mine = world(".O..", ".A..", ".O..", "dO.E")
    course = miner.course(mine)
    assert course.worlds[-1].left and not any(each.over for each in course.worlds[:-1])


def test_the_best_is_done_where_a_diamond_is_out_of_reach():
    course = miner.course(world("....OO", "....Od", "dA..OO", "....E."))
    assert course.worlds[-1].remaining == 1 and not course.worlds[-1].over


@pytest.fixture(scope="module")
def played():
    """Three real mines for 40 steps of random play that digs a lot: scenes before each step, and the actions."""
    env = envs.make("miner", 8, num_threads=0)
    state, rng = env.reset(jax.random.key(1))[1], np.random.default_rng(0)
    steps, step = [], jax.jit(env.step)
    for _ in range(40):
        action = rng.choice([LEFT, RIGHT, UP, DOWN, NOOP], 8).astype(np.int32)
        before = scenes(env, state)
        _, state, _, terminated, truncated, _ = step(jax.random.key(0), state, action)
        steps.append((before, action, scenes(env, state), np.asarray(terminated | truncated)))
    env.close()
    return steps


def test_the_model_predicts_the_real_game(played):
    compared = deaths = moved = 0
    for before, actions, after, done in played:
        for scene, action, later, over in zip(before, actions, after, done, strict=True):
            predicted = miner.see(scene).step(int(action))
            assert predicted.over == over
            deaths += over
            if not over:
                seen = miner.see(later)
                assert (predicted.cells, predicted.agent) == (seen.cells, seen.agent)
                assert predicted.remaining == seen.remaining
                compared += 1
                moved += np.count_nonzero(np.frombuffer(seen.cells, np.uint8) == miner.FALLING_BOULDER)
    assert compared > 250 and moved > 10 and deaths > 0
