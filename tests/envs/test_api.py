"""What batches of environments save, joined and split."""

import numpy as np
import pytest

from lamjax.envs import join_states, split_state


def state(first: int, count: int) -> dict[str, np.ndarray]:
    """Environments number `first` and on; one keeps as many bytes as its number says."""
    numbers = np.arange(first, first + count)
    return {"time": numbers, "obs": np.tile(numbers[:, None], 3), "native": np.repeat(numbers, numbers)} | {
        "native_lengths": numbers
    }


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_joined_batches_split_again(parts):
    each = 6 // parts
    batches = [state(1 + part * each, each) for part in range(parts)]
    joined = join_states(batches)
    for name, array in state(1, 6).items():
        np.testing.assert_array_equal(joined[name], array)
    for ours, theirs in zip(split_state(joined, parts), batches, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
