"""Windows of consecutive frames, and the order in which an epoch visits them.

A window of length L that starts at frame i holds the frames i .. i+L-1; LAPO's has L = 3, `[o_{t-1}, o_t, o_{t+1}]`.
Starts are computed once, on the host. An epoch's order is a permutation that the jitted step evaluates where it needs
it, and that is stored nowhere.
"""

import jax
import jax.numpy as jnp
import numpy as np

_ROUNDS = 8  # four suffice for large domains; tiny ones (n < 16) need more to look uniform


def valid_starts(
    is_first, segment_ids=None, in_split=None, *, length: int = 3, mask_boundaries: bool = True
) -> np.ndarray:
    """The frames at which a window may start.

    Args:
        is_first: bool [N], True at the first frame of each episode; episodes lie end to end.
        segment_ids: optional int [N], the source file of each frame. No window crosses from one file to another.
        in_split: optional bool [N]; only windows entirely in the split are kept.
        length: frames in a window, at least 1.
        mask_boundaries: False ignores episode ends and seams, as the LAPO reference does, and
            keeps the N - length + 1 windows of the whole array (still within `in_split`).

    Returns:
        int32 [S], ascending; S may be 0.
    """
    is_first = np.asarray(is_first)
    if is_first.ndim != 1 or is_first.dtype != bool:
        raise ValueError(f"is_first must be bool [N], got {is_first.dtype} with shape {is_first.shape}")
    if length < 1:
        raise ValueError(f"a window needs at least 1 frame, got length {length}")
    if is_first.size >= 2**31:
        raise ValueError(f"{is_first.size} frames do not fit int32 starts; split the array")
    num_starts = max(is_first.size - length + 1, 0)
    keep = np.ones(num_starts, bool)
    if mask_boundaries:
        cuts = is_first.copy()
        if segment_ids is not None:
            cuts[1:] |= np.diff(_per_frame("segment_ids", segment_ids, is_first)) != 0
        # Both ends of a window count the same number of cuts exactly if no cut lies between them.
        cuts_so_far = np.cumsum(cuts)
        keep &= cuts_so_far[:num_starts] == cuts_so_far[length - 1 :]
    if in_split is not None:
        outside = np.cumsum(~_per_frame("in_split", in_split, is_first).astype(bool))
        keep &= np.concatenate([[0], outside])[:num_starts] == outside[length - 1 :]
    return np.flatnonzero(keep).astype(np.int32)


def permute(index, n, key) -> jax.Array:
    """Evaluates a pseudo-random permutation of [0, n) at any indices, without storing it.

    A Feistel network permutes [0, 4^h), the smallest such domain that holds n; an output outside
    [0, n) is fed back until one falls inside ("cycle walking"), which restricts the bijection to
    [0, n). Fewer than four passes are expected. Black & Rogaway, "Ciphers with Arbitrary Finite
    Domains", 2002.

    Args:
        index: int32 [...], in [0, n).
        n: size of the permuted range, 1 <= n < 2^31; a Python int or a traced int32 scalar.
        key: JAX key that selects the permutation.

    Returns:
        int32 [...], in [0, n); distinct for distinct indices.
    """
    if isinstance(n, int) and not 1 <= n < 2**31:
        raise ValueError(f"n must lie in [1, 2^31), got {n}")
    n = jnp.asarray(n).astype(jnp.uint32)
    half = (33 - jax.lax.clz(n - 1)) // 2  # bits in each half: ceil(bits(n - 1) / 2)
    mask = (jnp.uint32(1) << half) - 1
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

    def feistel(x):
        left, right = x >> half, x & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ round_keys[i]) & mask)
        return (left << half) | right

    # An index out of range could follow a cycle that never meets [0, n): clip rather than hang.
    x = jnp.minimum(jnp.asarray(index).astype(jnp.uint32), n - 1)
    x = jax.lax.while_loop(lambda x: jnp.any(x >= n), lambda x: jnp.where(x >= n, feistel(x), x), feistel(x))
    return x.astype(jnp.int32)


def epoch_positions(step, batch_size: int, num_starts) -> tuple[jax.Array, jax.Array]:
    """The epoch that a step belongs to, and its batch's positions in that epoch's order.

    An epoch has `num_starts // batch_size` steps; the remainder is dropped, so that no batch mixes two permutations.
    The function never multiplies `step`, so it is exact for every step below 2^31.

    Args:
        step: int32 scalar, >= 0.
        batch_size: static int, at most `num_starts`.
        num_starts: a Python int or a traced int32 scalar.

    Returns:
        epoch, int32 scalar, and positions, int32 [batch_size], in [0, num_starts).
    """
    if isinstance(num_starts, int) and num_starts < batch_size:
        raise ValueError(f"a batch of {batch_size} windows needs as many starts, got {num_starts}")
    step = jnp.asarray(step, jnp.int32)
    steps_per_epoch = num_starts // batch_size
    first = step % steps_per_epoch * batch_size
    return step // steps_per_epoch, first + jnp.arange(batch_size, dtype=jnp.int32)


def _per_frame(name, values, is_first):
    values = np.asarray(values)
    if values.shape != is_first.shape:
        raise ValueError(f"{name} must have shape {is_first.shape}, got {values.shape}")
    return values


def _mix(x):
    """A 32-bit hash (murmur3's finaliser): each input bit flips about half the output bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
