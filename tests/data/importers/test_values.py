"""Values that a store cannot keep are refused with their row."""

import numpy as np
import pytest

from lamjax.data.importers.errors import DamagedFileError, RowError
from lamjax.data.importers.values import as_actions, as_flags, as_rewards, as_vectors

FLOATS = (np.float32, np.float64)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, *FLOATS])
def test_flags(dtype):
    marks = np.array([0, 1, 1, 0], dtype)
    result = as_flags(marks, "done")
    assert result.dtype == bool and result.tolist() == [False, True, True, False]
    for bad in [] if dtype is bool else [2, 255] + [np.nan, np.inf, 0.5, -1] * (dtype in FLOATS):
        with pytest.raises(RowError, match=f"column 'done' must hold only 0 and 1, got {bad}") as error:
            as_flags(np.array([0, 1, bad, bad], dtype), "done")
        assert error.value.row == 2


def test_rewards():
    result = as_rewards(np.array([1, -(2**40)]), "r")
    assert result.dtype == np.float32 and result.tolist() == [1, -(2**40)]
    assert as_rewards(np.array([3.4e38, 1e-300]), "r").tolist() == [np.float32(3.4e38), 0]
    for bad in (np.nan, np.inf, -np.inf, 1e39, -1e39):
        with pytest.raises(RowError, match="column 'r' must hold finite float32 numbers") as error:
            as_rewards(np.array([0, bad]), "r")
        assert error.value.row == 1


def test_actions():
    result = as_actions(np.array([0, 4], np.uint64), "a", 5)
    assert result.dtype == np.int32 and result.tolist() == [0, 4]
    for bad, dtype in ((5, np.int8), (-1, np.int64), (2**63 + 1, np.uint64), (2**32, np.int64)):
        with pytest.raises(RowError, match=rf"column 'a': actions must lie in \[0, 5\), got {bad} to {bad}") as error:
            as_actions(np.array([1, bad, 2], dtype), "a", 5)
        assert error.value.row == 1


def test_vectors():
    result = as_vectors(np.array([[0, 0.5], [1, -1]]), "a")
    assert result.dtype == np.float32 and result.tolist() == [[0, 0.5], [1, -1]]
    assert as_vectors(np.array([[3]]), "a").dtype == np.float32
    for bad in (np.nan, np.inf, 1e39):
        with pytest.raises(RowError, match="column 'a' must hold finite float32 numbers, got") as error:
            as_vectors(np.array([[0, 0], [0, bad], [bad, 0]]), "a")
        assert error.value.row == 1


def test_a_row_is_counted_from_the_beginning_of_the_file(tmp_path):
    error = RowError(3, "column 'a' is odd").located(tmp_path / "a.npz", 256)
    assert str(error) == f"{tmp_path / 'a.npz'} does not fit: row 259: column 'a' is odd."
    error = RowError(3, "column 'a' is torn", damaged=True).located(tmp_path / "a.npz", 256)
    assert isinstance(error, DamagedFileError) and error.reason == "row 259: column 'a' is torn"
