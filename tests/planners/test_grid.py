"""Paths over small grids whose distances were counted by hand."""

import numpy as np

from lamjax.planners.grid import DOWN, FAR, LEFT, NOOP, RIGHT, UP, costs, descent, distances

# Row 0 is the lowest: the plan is drawn upside down.
#   row 2   . . .
#   row 1   # # .
#   row 0   . . .
FREE = np.array([[1, 1, 1], [0, 0, 1], [1, 1, 1]], bool)


def test_distances_go_around_walls():
    np.testing.assert_array_equal(distances(FREE, [(2, 0)]), [[6, 5, 4], [FAR, FAR, 3], [0, 1, 2]])
    np.testing.assert_array_equal(distances(FREE, [(2, 0), (0, 2)]), [[2, 1, 0], [FAR, FAR, 1], [0, 1, 2]])


def test_a_goal_in_a_wall_can_be_entered():
    np.testing.assert_array_equal(distances(FREE, [(1, 0)]), [[1, 2, 3], [0, FAR, 4], [1, 2, 3]])


def test_what_cannot_be_reached_is_far():
    walled = FREE & (np.arange(3) != 2)[None]
    np.testing.assert_array_equal(distances(walled, [(2, 0)]), [[FAR] * 3, [FAR] * 3, [0, 1, FAR]])
    assert (distances(FREE, []) == FAR).all()


def test_descent_takes_the_move_that_comes_nearer():
    far = distances(FREE, [(2, 0)])
    assert [descent(far, cell) for cell in ((0, 0), (0, 2), (1, 2), (2, 2))] == [RIGHT, UP, UP, LEFT]
    assert descent(far, (2, 0)) == NOOP
    assert descent(distances(FREE, [(0, 0)]), (1, 2)) == DOWN
    assert descent(distances(FREE, []), (0, 0)) == NOOP


def test_costs_are_those_of_the_cells_on_the_way():
    entering = np.where(FREE, 1, 5)
    # From the lower left: up through the wall for 5 and 1, or around it in 6 moves.
    np.testing.assert_array_equal(costs(entering, (2, 0)), [[6, 5, 4], [1, 2, 3], [0, 1, 2]])
