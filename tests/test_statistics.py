import numpy as np
import pytest

from lamjax.statistics import mean_and_stderr


def test_by_hand():
    assert mean_and_stderr([1, 2, 6]) == pytest.approx((3, np.sqrt(7 / 3)))  # deviations -2, -1, 3: variance 7


def test_too_few_values_have_no_error():
    np.testing.assert_array_equal(mean_and_stderr([5.0]), (5, np.nan))
    np.testing.assert_array_equal(mean_and_stderr([]), (np.nan, np.nan))
