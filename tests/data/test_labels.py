"""Labels are counted, nested and right; nothing else opens the arrays of actions and distractors."""

import numpy as np
import pytest

from lamjax import data


def test_a_store_and_its_frames_have_no_actions(store):
    assert not {"actions", "rewards"} & {*dir(store), *dir(store.episodes)}


def test_all_but_labels_is_read_without_the_files_of_actions(store, stores):
    for file in (*store.path.glob("actions/*"), *store.path.glob("rewards/*")):
        file.unlink()
    np.testing.assert_array_equal(stores.numbers(store.observations()), np.arange(40))
    stream = data.ObservationStream(store, batch_size=2, split="all")
    assert stream.windows(0).shape == (2, 3, 4) and len(store.starts("all"))
    with pytest.raises(data.StoreError, match="metadata of actions"):
        data.evaluation_actions(store, [0])


def test_labels_are_counted_nested_and_right(stores):
    store = stores.make([30] * 10)
    few, many = (data.LabelledSubset(store, n, seed=3) for n in (16, 32))
    np.testing.assert_array_equal(few.starts, many.starts[:16])
    assert len(set(many.starts.tolist())) == 32
    assert set(many.starts) <= set(store.starts("train"))
    assert many.labels_used == 0
    windows = stores.numbers(many.windows())
    np.testing.assert_array_equal(windows, many.starts[:, None] + np.arange(3))
    assert many.labels_used == 0
    np.testing.assert_array_equal(many.actions, stores.actions(windows[:, 1]))
    assert many.labels_used == 32
    assert many.actions.dtype == np.int32
    other = data.LabelledSubset(store, 32, seed=4)
    assert set(other.starts) != set(many.starts)


def test_a_subset_can_take_every_window_but_no_more(stores):
    store = stores.make([6, 7], level_seeds=[1, 1])
    starts = data.LabelledSubset(store, 9, split="all").starts
    np.testing.assert_array_equal(np.sort(starts), store.starts("all"))
    for n in (0, 10):
        with pytest.raises(data.StoreError, match="cannot draw"):
            data.LabelledSubset(store, n, split="all")


# Distractors


def write_distracted(path, stores, lengths):
    """A store whose distractor state at frame i is (i, -i / 2)."""
    with stores.writer(path, frames_per_chunk=8, distractor_dim=2) as writer:
        for length in lengths:
            numbers = np.arange(writer.num_frames, writer.num_frames + length)
            shown = numbers[:, None] * [1.0, -0.5]
            zeros = np.zeros(length, np.int64)
            writer.append_episode(stores.frames(numbers), zeros, zeros, 0, "cut", distractor=shown)
    return data.open_store(path)


def test_the_state_of_a_distractor_is_kept_apart_and_read_at_the_last_two_frames(stores, tmp_path):
    store = write_distracted(tmp_path / "store", stores, [10, 7])
    assert (store.distractor_dim, store.manifest["version"]) == (2, 2)
    shown = data.evaluation_distractor(store, [3, 12])
    assert shown.dtype == np.float32
    np.testing.assert_array_equal(shown[..., 0], [[4, 5], [13, 14]])
    np.testing.assert_array_equal(shown[..., 1], [[-2, -2.5], [-6.5, -7]])
    np.testing.assert_array_equal(stores.numbers(store.windows([3]))[0, 1:], shown[0, :, 0])
    assert not [name for name in dir(data.ObservationStream(store, batch_size=2)) if "distractor" in name]


def test_a_store_without_a_distractor_is_as_before(store):
    assert (store.distractor_dim, store.manifest["version"]) == (0, 1)
    assert "distractor_dim" not in store.manifest and not (store.path / "distractor").exists()
    assert data.evaluation_distractor(store, [3, 12]).shape == (2, 2, 0)


def test_damage_to_a_distractor_is_found(stores, tmp_path):
    path = write_distracted(tmp_path / "store", stores, [10]).path
    chunk = path / "distractor" / "c.0.0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(data.StoreError, match="chunk 0 of distractor"):
        data.evaluation_distractor(data.open_store(path), [0])
    chunk.unlink()
    with pytest.raises(data.StoreError, match=r"chunk 0 of distractor .* is missing"):
        data.open_store(path)


def test_a_distractor_is_given_exactly_where_there_is_one(stores, tmp_path):
    episode = (stores.frames(range(3)), np.zeros(3, int), np.zeros(3), 0, "cut")
    with stores.writer(tmp_path / "with", distractor_dim=2) as writer:
        for shown, message in ((None, "exactly if"), (np.zeros((3, 1)), r"distractor must be float32 \(3, 2\)")):
            with pytest.raises(ValueError, match=message):
                writer.append_episode(*episode, distractor=shown)
        writer.append_episode(*episode, distractor=np.zeros((3, 2)))
    with stores.writer(tmp_path / "without") as writer:
        with pytest.raises(ValueError, match="exactly if"):
            writer.append_episode(*episode, distractor=np.zeros((3, 2)))
        writer.append_episode(*episode)
