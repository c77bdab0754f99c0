"""Checks the values in a source's rows, for all importers.

Dimension keys: R rows of a block, A numbers of an action.
"""

import numpy as np

from lamjax.data.importers.errors import RowError


def as_flags(values: np.ndarray, column: str) -> np.ndarray:
    """Converts marks to bool ``[R]``; raises a `RowError` at the first that is neither 0 nor 1, such as NaN."""
    _refuse((values != 0) & (values != 1), values, f"column {column!r} must hold only 0 and 1")
    return values == 1


def as_rewards(values: np.ndarray, column: str) -> np.ndarray:
    """Converts rewards to float32 ``[R]``; raises a `RowError` at the first that is not finite in float32."""
    with np.errstate(over="ignore"):
        rewards = values.astype(np.float32)
    _refuse(~np.isfinite(rewards), values, f"column {column!r} must hold finite float32 numbers")
    return rewards


def as_actions(values: np.ndarray, column: str, num_actions: int) -> np.ndarray:
    """Converts actions to int32 ``[R]``; raises a `RowError` at the first that is not in ``[0, num_actions)``."""
    bad = (values < 0) | (values >= num_actions)
    if bad.any():
        low, high = values[bad].min(), values[bad].max()
        raise RowError(bad.argmax(), f"column {column!r}: actions must lie in [0, {num_actions}), got {low} to {high}")
    return values.astype(np.int32)


def as_vectors(values: np.ndarray, column: str) -> np.ndarray:
    """Converts actions to float32 ``[R, A]``; raises a `RowError` at the first that is not finite in float32."""
    with np.errstate(over="ignore"):
        actions = values.astype(np.float32)
    bad = ~np.isfinite(actions)
    if bad.any():
        row = int(bad.any(1).argmax())
        value = values[row][bad[row]][0]
        raise RowError(row, f"column {column!r} must hold finite float32 numbers, got {value}")
    return actions


def _refuse(bad: np.ndarray, values: np.ndarray, sentence: str) -> None:
    if bad.any():
        raise RowError(bad.argmax(), f"{sentence}, got {values[bad][0]}")
