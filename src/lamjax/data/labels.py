"""The only access to the actions of a trajectory store: counted labels for training, all for probes and the oracle."""

import functools

import numpy as np

from lamjax.data.format import Split, StoreError
from lamjax.data.reader import ArrayReader, Store


class LabelledSubset:
    """The few transitions whose actions a decoder may see; counts the labels that it returns.

    Windows are drawn uniformly without replacement from the valid starts of a split. Draws are nested: with the same
    seed, n = 16 gives the first 16 of n = 32.

    Args:
        store: the source of the windows.
        n: number of labelled windows.
        seed: draws the windows.
        split: "train", "test" or "all".
        length: frames in a window; the label belongs to the second-to-last frame.

    Attributes:
        starts: int32 [n], first frames of the windows, in the order of the draw.
        labels_used: labels read so far, 0 or n.

    Raises:
        StoreError: the split has fewer than n windows.
    """

    def __init__(self, store: Store, n: int, seed: int = 0, split: Split = "train", length: int = 3):
        starts = store.starts(split, length)
        if not 1 <= n <= len(starts):
            raise StoreError(
                f"cannot draw {n} labelled windows: the {split} split of {store.path} has "
                f"{len(starts)}; ask for fewer or record more"
            )
        self.store = store
        self.length = length
        self.starts = np.random.default_rng(seed).permutation(starts)[:n]
        self.labels_used = 0

    @functools.cached_property
    def actions(self) -> np.ndarray:
        """The action a_t at the middle frame o_t of each window, int32 [n] or float32 [n, A]."""
        self.labels_used = len(self.starts)
        return evaluation_actions(self.store, self.starts, self.length)

    def windows(self) -> np.ndarray:
        """The windows' observations, [n, length, *obs_shape]."""
        return self.store.windows(self.starts, self.length)


def evaluation_actions(store: Store, starts: np.ndarray, length: int = 3) -> np.ndarray:
    """True actions of any windows, only for probes and metrics: nothing may be trained on them.

    Args:
        store: the source of the windows.
        starts: integers [B], first frames of windows.
        length: frames in a window.

    Returns:
        int32 [B] or float32 [B, A], the action a_t at the second-to-last frame of each window, which a latent inferred
        from `[o_{t-1}, o_t, o_{t+1}]` should describe.
    """
    reader = ArrayReader(store.path, "actions", store.manifest, store.verify)
    return reader.take(np.asarray(starts) + length - 2)


def oracle_actions(store: Store) -> np.ndarray:
    """True actions of all frames of a store, int32 [N] or float32 [N, A], only for the oracle, which is a reference."""
    return ArrayReader(store.path, "actions", store.manifest, store.verify).take(np.arange(store.num_frames))


def evaluation_distractor(store: Store, starts: np.ndarray, length: int = 3) -> np.ndarray:
    """A distractor's state in any windows, only for probes; D = 0 without a distractor.

    Args:
        store: the source of the windows.
        starts: integers [B], first frames of windows.
        length: frames in a window.

    Returns:
        float32 [B, 2, D], at the second-to-last and the last frame of each window.
    """
    last = np.asarray(starts)[:, None] + np.arange(length - 2, length)[None, :]
    if not store.distractor_dim:
        return np.zeros((*last.shape, 0), np.float32)
    return ArrayReader(store.path, "distractor", store.manifest, store.verify).take(last)
