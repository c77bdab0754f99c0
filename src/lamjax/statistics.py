"""Statistics that tables and reports share."""

from collections.abc import Sequence

import numpy as np


def mean_and_stderr(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and standard error of the mean, ``std(values, ddof=1) / sqrt(N)``.

    Args:
      values: numbers ``[N]``.

    Returns:
      Two floats: NaN for the mean of no value, and for the error of fewer than two.
    """
    values = np.asarray(values)
    mean = float(np.mean(values)) if len(values) else float("nan")
    return mean, float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
