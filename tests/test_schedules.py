import numpy as np
import pytest

from lamjax.schedules import piecewise, without_wait


def test_piecewise_is_linear_between_its_points_and_constant_beyond():
    points = ((0.0, 0.0), (0.2, 0.0), (0.4, 2.0), (1.0, 0.5))
    rates = [float(piecewise(points, fraction)) for fraction in (0.0, 0.1, 0.2, 0.3, 0.4, 0.7, 1.0, 1.5)]
    np.testing.assert_allclose(rates, [0, 0, 0, 1, 2, 1.25, 0.5, 0.5], rtol=1e-6, atol=1e-6)
    assert float(piecewise(((0.0, 3.0),), 0.5)) == 3.0


def test_without_its_wait_a_schedule_begins_where_it_first_rises():
    assert without_wait(((0.0, 0.0), (0.25, 0.0), (0.75, 2.0), (1.0, 0.0))) == ((0.0, 0.0), (0.5, 2.0), (1.0, 0.0))
    waits = ((0.0, 0.0), (0.00875, 0.0), (0.0125, 2.5e-3), (1.0, 0.0))
    assert without_wait(waits) == ((0.0, 0.0), (pytest.approx(0.00375), 2.5e-3), (1.0, 0.0))
    plain = ((0.0, 5e-4), (1.0, 0.0))
    assert without_wait(plain) == plain
