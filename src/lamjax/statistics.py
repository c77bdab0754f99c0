"""Statistics that tables and reports share."""

from collections.abc import Sequence

import numpy as np


def mean_and_stderr(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and standard error of the mean, ``std(values, ddof=1) / sqrt(N)``.

    Args:
      values: numbers ``[N]``.

    Returns:
      Two floats: the mean, NaN without values, and the error, NaN for fewer than two values.
    """
    values = np.asarray(values)
    mean = float(np.mean(values)) if len(values) else float("nan")
    return mean, float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def stderr_over_groups(values: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of the mean of values that are correlated within groups, such as windows of an episode.

    The sums over the K groups count as independent, not the values (N in all):

        stderr = sqrt(K / (K - 1) * sum_k (sum_{e in k} (v_e - mean v))^2) / N.

    If there is only one group, its values count as independent.

    Args:
      values: float ``[N]``.
      groups: int ``[N]``.
    """
    residuals = values - values.mean()
    numbers = np.unique(groups, return_inverse=True)[1].reshape(-1)
    sums = np.bincount(numbers, residuals) if numbers.max() else residuals
    return float(np.sqrt(len(sums) / max(len(sums) - 1, 1) * np.square(sums).sum()) / len(values))
