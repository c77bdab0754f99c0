import numpy as np
import pytest

from lamjax.statistics import mean_and_stderr, stderr_over_groups


def test_by_hand():
    assert mean_and_stderr([1, 2, 6]) == pytest.approx((3, np.sqrt(7 / 3)))  # deviations -2, -1, 3: variance 7


def test_too_few_values_have_no_error():
    np.testing.assert_array_equal(mean_and_stderr([5.0]), (5, np.nan))
    np.testing.assert_array_equal(mean_and_stderr([]), (np.nan, np.nan))


def test_values_of_a_group_count_together():
    # Residuals -2, -1, 1, 2 about 3; sums of the groups -3 and 3: sqrt(2 / 1 * (9 + 9)) / 4.
    assert stderr_over_groups(np.array([1.0, 2, 4, 5]), np.array([7, 7, 9, 9])) == pytest.approx(6 / 4)
    # Groups of one value, and one group of all, are independent values.
    for groups in (np.arange(3), np.zeros(3, int)):
        assert stderr_over_groups(np.array([1.0, 2, 6]), groups) == pytest.approx(np.sqrt(7 / 3))
