import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from lamjax.data import epoch_positions, permute, valid_starts


def firsts(lengths):
    return np.concatenate([np.arange(n) == 0 for n in lengths]) if lengths else np.zeros(0, bool)


def test_hand_computed_starts():
    is_first = firsts([4, 2, 3])  # frames 0-3, 4-5, 6-8
    np.testing.assert_array_equal(valid_starts(is_first), [0, 1, 6])
    np.testing.assert_array_equal(valid_starts(is_first, length=2), [0, 1, 2, 4, 6, 7])
    np.testing.assert_array_equal(valid_starts(is_first, length=1), np.arange(9))
    np.testing.assert_array_equal(valid_starts(is_first, length=5), [])
    np.testing.assert_array_equal(valid_starts(is_first, length=10), [])
    np.testing.assert_array_equal(valid_starts(is_first, mask_boundaries=False), np.arange(7))
    assert valid_starts(is_first).dtype == np.int32
    assert valid_starts(firsts([])).shape == (0,)


def test_windows_stop_at_seams_and_split_borders():
    is_first = firsts([8])
    seam = [0, 0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(valid_starts(is_first, seam), [0, 1, 4, 5])
    np.testing.assert_array_equal(valid_starts(is_first, seam, mask_boundaries=False), range(6))
    in_split = np.array([1, 1, 1, 1, 0, 1, 1, 1], bool)
    np.testing.assert_array_equal(valid_starts(is_first, in_split=in_split), [0, 1, 5])
    np.testing.assert_array_equal(valid_starts(is_first, in_split=in_split, mask_boundaries=False), [0, 1, 5])


@hypothesis.given(
    lengths=st.lists(st.integers(1, 9), max_size=12),
    length=st.integers(1, 5),
    seed=st.integers(0, 9),
)
@hypothesis.settings(deadline=None)
def test_starts_match_their_definition(lengths, length, seed):
    rng = np.random.default_rng(seed)
    is_first = firsts(lengths)
    episode = np.cumsum(is_first)
    segment_ids = np.sort(rng.integers(0, 3, is_first.size))
    in_split = rng.random(is_first.size) < 0.8
    expected = [
        i
        for i in range(is_first.size - length + 1)
        if len(set(episode[i : i + length])) == 1
        and len(set(segment_ids[i : i + length])) == 1
        and in_split[i : i + length].all()
    ]
    starts = valid_starts(is_first, segment_ids, in_split, length=length)
    np.testing.assert_array_equal(starts, expected)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="is_first must be bool"):
        valid_starts(np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="segment_ids must have shape"):
        valid_starts(np.zeros(3, bool), [0, 1])
    with pytest.raises(ValueError, match="at least 1 frame"):
        valid_starts(np.zeros(3, bool), length=0)
    with pytest.raises(ValueError, match="n must lie"):
        permute(0, 0, jax.random.key(0))
    with pytest.raises(ValueError, match="as many starts"):
        epoch_positions(0, 8, 7)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 65536, 65537])
def test_permute_is_a_bijection(n):
    order = np.asarray(jax.jit(permute, static_argnums=1)(jnp.arange(n), n, jax.random.key(n)))
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


_permute_4096 = jax.jit(lambda n, key: permute(jnp.minimum(jnp.arange(4096), n - 1), n, key))


@hypothesis.given(n=st.integers(1, 4096), seed=st.integers(0, 2**31 - 1))
@hypothesis.settings(deadline=None)
def test_permute_is_a_bijection_for_a_traced_n(n, seed):
    order = np.asarray(_permute_4096(n, jax.random.key(seed)))[:n]
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_permute_reaches_the_largest_range_and_survives_bad_indices():
    n = 2**31 - 1
    index = jnp.array([0, 1, n - 1], jnp.int32)
    out = np.asarray(permute(index, n, jax.random.key(0)))
    assert len(set(out.tolist())) == 3 and out.min() >= 0
    clipped = permute(jnp.array([-1, 9, 4]), 5, jax.random.key(0))
    np.testing.assert_array_equal(clipped, np.repeat(clipped[2], 3))


@pytest.mark.parametrize("n", [3, 20])
def test_permute_is_uniform_over_keys(n):
    num_keys = 10_000
    keys = jax.random.split(jax.random.key(n), num_keys)
    order = np.asarray(jax.vmap(lambda key: permute(jnp.arange(n), n, key))(keys))
    counts = np.stack([np.bincount(column, minlength=n) for column in order.T])
    expected = num_keys / n
    dof = (n - 1) ** 2
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - dof) < 5 * np.sqrt(2 * dof)
    # Neighbouring indices fall independently of each other.
    pairs = np.bincount(order[:, 0] * n + order[:, 1], minlength=n * n)
    pairs = pairs.reshape(n, n)[~np.eye(n, dtype=bool)]
    expected = num_keys / pairs.size
    chi2 = ((pairs - expected) ** 2 / expected).sum()
    assert abs(chi2 - pairs.size) < 5 * np.sqrt(2 * pairs.size)


def test_permute_moves_indices_as_far_as_a_random_order_does():
    n = 50_000
    order = np.asarray(permute(jnp.arange(n), n, jax.random.key(3))).astype(np.int64)
    # |i - j| of two uniform indices has mean n / 3 and standard deviation n / sqrt(18).
    assert abs(np.abs(order - np.arange(n)).mean() / n - 1 / 3) < 5 / np.sqrt(18 * n)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 / np.sqrt(n)
    # The ranks of a batch taken in order are spread evenly.
    counts = np.bincount(order[: n // 2] * 50 // n, minlength=50)
    assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 100


def test_permutations_of_different_keys_are_unrelated():
    n = 10_000
    first, second = (permute(jnp.arange(n), n, jax.random.key(seed)) for seed in (0, 1))
    assert int((first == second).sum()) < 10


def test_epoch_positions_drop_the_remainder_and_survive_large_steps():
    epochs, positions = zip(*(epoch_positions(step, 3, 10) for step in range(6)), strict=True)
    assert [int(epoch) for epoch in epochs] == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(np.stack(positions[:3]), np.arange(9).reshape(3, 3))
    np.testing.assert_array_equal(np.stack(positions[3:]), np.arange(9).reshape(3, 3))

    step, batch_size, num_starts = 2**31 - 2, 128, 2_620_000
    epoch, positions = jax.jit(epoch_positions, static_argnums=1)(step, batch_size, num_starts)
    steps_per_epoch = num_starts // batch_size
    assert int(epoch) == step // steps_per_epoch
    first = step % steps_per_epoch * batch_size
    np.testing.assert_array_equal(positions, np.arange(first, first + batch_size))


def test_permute_is_traced_once():
    chex.clear_trace_counter()
    order = jax.jit(chex.assert_max_traces(permute, n=1))
    for n in (5, 500):
        for seed in range(3):
            order(jnp.arange(4), jnp.int32(n), jax.random.key(seed))
