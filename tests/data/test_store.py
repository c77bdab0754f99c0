import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lamjax import data
from lamjax.data import store as store_module
from lamjax.spaces import Box

ONE_SENTENCE = r"^[^\n]+; [^\n.]+$"  # what is wrong; what to do


@pytest.fixture
def store(stores):
    """40 frames in 5 chunks of observations."""
    return stores.make([10, 3, 20, 1, 6])


# Round trips


@hypothesis.given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), chunk=st.sampled_from([1, 4, 7]))
@hypothesis.settings(deadline=None, max_examples=12)
def test_what_is_written_is_read(tmp_path_factory, lengths, chunk):
    path = tmp_path_factory.mktemp("round") / "store"
    rng = np.random.default_rng(0)
    episodes = [
        (
            rng.integers(0, 255, (n, 2, 3, 1), np.uint8),
            rng.integers(0, 6, n),
            rng.normal(size=n).astype(np.float32),
        )
        for n in lengths
    ]
    with data.StoreWriter(path, env="toy", obs_shape=(2, 3, 1), num_actions=6, frames_per_chunk=chunk) as writer:
        for seed, episode in enumerate(episodes):
            writer.append_episode(*episode, seed, "truncated")
    store = data.open_store(path)
    observations, actions, rewards = (np.concatenate(x) for x in zip(*episodes, strict=True))
    np.testing.assert_array_equal(store.observations(), observations)
    stop = len(observations)
    np.testing.assert_array_equal(store.observations(stop // 3, stop), observations[stop // 3 :])
    np.testing.assert_array_equal(store.observations(1, 1), observations[1:1])
    assert np.flatnonzero(store.is_first).tolist() == store.episodes.start.tolist()
    np.testing.assert_array_equal(data.evaluation_actions(store, np.arange(len(actions)), length=2), actions)
    np.testing.assert_array_equal(store.episodes.length, lengths)
    np.testing.assert_array_equal(store.episodes.start, np.cumsum([0, *lengths[:-1]]))
    np.testing.assert_allclose(store.episodes.returns, [e[2].sum(dtype=np.float64) for e in episodes])
    np.testing.assert_allclose(store.episodes.returns.sum(), rewards.sum(dtype=np.float64))


def test_manifest_says_what_the_store_is(tmp_path):
    path = tmp_path / "store"
    with data.StoreWriter(
        path,
        env="coinrun",
        obs_shape=(2, 2, 3),
        num_actions=15,
        env_params={"distribution_mode": "easy"},
        policy={"name": "random"},
    ) as writer:
        frames, zeros = np.zeros((3, 2, 2, 3), np.uint8), np.zeros(3, np.int64)
        writer.append_episode(frames, zeros, [0.0, 0.0, 10.0], 11, "terminated")
        writer.append_episode(frames, zeros, [1.0, 1.0, 0.0], None, "cut", split="test")
    store = data.open_store(path)
    assert (store.env, store.env_params) == ("coinrun", {"distribution_mode": "easy"})
    assert (store.policy, store.num_actions, store.action_dim) == ({"name": "random"}, 15, None)
    assert (store.num_frames, store.obs_shape, store.obs_dtype) == (6, (2, 2, 3), np.uint8)
    assert store.manifest["created_by"].startswith("lamjax")
    assert len(store.episodes) == 2
    assert store.episodes.level_seed.tolist() == [11, -1]
    assert store.episodes.returns.tolist() == [10.0, 2.0]
    assert store.episodes.ending.tolist() == ["terminated", "cut"]
    assert store.episodes.split.tolist() == [data.split_of_level(11), "test"]
    # Black frames are stored too: a chunk of zeros must not look like a missing one.
    np.testing.assert_array_equal(store.observations(), 0)


def test_float_vectors_and_continuous_actions(tmp_path):
    path = tmp_path / "store"
    observations = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    actions = observations[:, :2] * 3
    with data.StoreWriter(
        path, env="linear", obs_shape=(5,), obs_dtype="float32", action_dim=2, frames_per_chunk=4
    ) as writer:
        writer.append_episode(observations, actions, np.zeros(9), 1, "truncated")
    store = data.open_store(path)
    np.testing.assert_array_equal(store.observations(), observations)
    np.testing.assert_array_equal(data.evaluation_actions(store, [0, 4, 2]), actions[[1, 5, 3]])
    assert (store.num_actions, store.action_dim, store.action_space) == (None, 2, None)


def test_bounds_of_continuous_actions_are_in_the_manifest(tmp_path):
    box = Box((-1.0, 0.0), (1.0, 2.5))
    settings = {"env": "linear", "obs_shape": (1,), "action_dim": 2, "action_bounds": (box.low, box.high)}
    actions = np.array([[0.5, 2.5], [-1, 0]], np.float32)
    with data.StoreWriter(tmp_path / "store", **settings) as writer:
        with pytest.raises(ValueError, match="continuous actions must be finite"):
            writer.append_episode(np.zeros((2, 1), np.uint8), np.full_like(actions, np.nan), np.zeros(2), 1, "cut")
        writer.append_episode(np.zeros((2, 1), np.uint8), actions, np.zeros(2), 1, "cut")
    store = data.open_store(tmp_path / "store")
    assert store.action_space == box and store.manifest["action_bounds"] == [[-1.0, 0.0], [1.0, 2.5]]
    subset = data.LabelledSubset(store, 1, split="all", length=2)
    np.testing.assert_array_equal(subset.actions, actions[:1])
    for bounds in (((0.0,), (1.0,)), ((0.0, 0.0), (1.0, np.inf)), ((0.0, 0.0), (1.0, 0.0))):
        with pytest.raises(ValueError, match="bounds"):
            data.StoreWriter(tmp_path / "other", **{**settings, "action_bounds": bounds})


def test_frames_and_windows_at_any_indices(store, stores):
    indices = np.array([[39, 0], [7, 8], [8, 8]])
    np.testing.assert_array_equal(stores.numbers(store.observations_at(indices)), indices)
    np.testing.assert_array_equal(stores.numbers(store.windows([30, 6])), [[30, 31, 32], [6, 7, 8]])
    for outside in ([40], [-1]):
        with pytest.raises(IndexError, match="not in"):
            store.observations_at(outside)
    with pytest.raises(IndexError, match="not in"):
        store.observations(3, 41)


# Splits


def test_split_of_level_never_changes():
    test_levels = [seed for seed in range(100) if data.split_of_level(seed) == "test"]
    assert test_levels == [8, 26, 32, 39, 42, 49, 53, 57, 61, 66, 72, 79]
    assert data.split_of_level(2**31 - 1) in ("train", "test")


def test_a_tenth_of_the_levels_is_for_tests():
    share = np.mean([data.split_of_level(seed) == "test" for seed in range(20_000)])
    assert abs(share - 0.1) < 4 * np.sqrt(0.09 / 20_000)


def test_starts_of_the_splits_are_disjoint_and_complete(stores):
    store = stores.make([5] * 40)
    train, test, both = (store.starts(split) for split in ("train", "test", "all"))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), both)
    levels = np.repeat(store.episodes.level_seed, store.episodes.length)
    assert {data.split_of_level(level) for level in levels[test]} == {"test"}
    assert {data.split_of_level(level) for level in levels[train]} == {"train"}
    with pytest.raises(ValueError, match="split must be one of"):
        store.starts("valid")


# Labels


def test_a_store_and_its_frames_have_no_actions(store):
    assert not {"actions", "rewards"} & {*dir(store), *dir(store.episodes)}


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


# Writing


def test_bad_episodes_are_refused_and_leave_the_store_whole(stores, tmp_path):
    frames, actions, rewards = stores.frames(range(3)), np.zeros(3, int), np.zeros(3)
    bad = [
        ((frames.astype(int), actions, rewards, 0, "cut"), "observations must be uint8"),
        ((frames[:, :2], actions, rewards, 0, "cut"), "observations must be uint8"),
        ((frames, actions[:2], rewards, 0, "cut"), "actions must be int32"),
        ((frames, actions + 5, rewards, 0, "cut"), r"actions must lie in \[0, 5\)"),
        ((frames, actions - 1, rewards, 0, "cut"), r"actions must lie in \[0, 5\)"),
        ((frames, actions + 0.5, rewards, 0, "cut"), "must be integers"),
        ((frames, actions, rewards[:1], 0, "cut"), "rewards must be float32"),
        ((frames[:0], actions[:0], rewards[:0], 0, "cut"), "at least 1 frame"),
        ((frames, actions, rewards, 0, "done"), "ending must be one of"),
        ((frames, actions, rewards, None, "cut"), "needs a split"),
    ]
    with stores.writer(tmp_path / "store") as writer:
        for arguments, message in bad:
            with pytest.raises(ValueError, match=message):
                writer.append_episode(*arguments)
        with pytest.raises(ValueError, match="split must be one of"):
            writer.append_episode(frames, actions, rewards, 0, "cut", split="all")
        writer.append_episode(frames, actions, rewards, 0, "cut")
    np.testing.assert_array_equal(data.open_store(tmp_path / "store").observations(), frames)


def test_a_writer_needs_one_kind_of_action_a_with_statement_and_json(stores, tmp_path):
    path = tmp_path / "store"
    for kwargs in ({}, {"num_actions": 3, "action_dim": 2}):
        with pytest.raises(ValueError, match="num_actions for discrete or action_dim"):
            data.StoreWriter(path, env="toy", obs_shape=(4,), **kwargs)
    with pytest.raises(ValueError, match="with statement"):
        stores.append(stores.writer(path), 3)
    with pytest.raises(TypeError, match="JSON"):
        stores.writer(path, policy={"network": object()})
    with pytest.raises(data.StoreError, match="would hold no frames"), stores.writer(path):
        pass
    assert not list(tmp_path.iterdir())


def test_an_existing_target_is_kept(store, stores):
    manifest = (store.path / "manifest.json").read_bytes()
    with pytest.raises(data.StoreError, match="already exists"):
        stores.make([3])
    assert (store.path / "manifest.json").read_bytes() == manifest


def test_two_writers_to_one_path(stores, tmp_path):
    path = tmp_path / "store"
    with stores.writer(path) as writer:
        with pytest.raises(data.StoreError, match="another process is writing"):
            stores.writer(path).__enter__()
        stores.append(writer, 3)
    assert data.open_store(path).num_frames == 3


def test_a_target_that_appears_meanwhile_is_kept(stores, tmp_path):
    path = tmp_path / "store"
    with pytest.raises(data.StoreError, match="appeared"), stores.writer(path) as writer:
        stores.append(writer, 3)
        path.mkdir()
        (path / "precious").touch()
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]
    assert (path / "precious").exists()


def test_an_exception_leaves_nothing(stores, tmp_path):
    with pytest.raises(KeyboardInterrupt), stores.writer(tmp_path / "store") as writer:
        stores.append(writer, 600)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_an_exception_waits_for_what_is_being_written(stores, tmp_path):
    """Chunks are written in the background; whatever of them comes after the folder was removed makes it anew."""
    for attempt in range(20):
        with pytest.raises(KeyboardInterrupt), stores.writer(tmp_path / "store") as writer:
            stores.append(writer, 600 + attempt)
            pending = [write for array in writer._arrays.values() for _, write in array._in_flight]
            raise KeyboardInterrupt
        assert pending and all(write.done() for write in pending)
        assert not list(tmp_path.iterdir())


def test_an_episode_that_was_cut_off_is_not_committed(stores, tmp_path, monkeypatch):
    def interrupt(self, rows):
        raise KeyboardInterrupt

    with pytest.raises(data.StoreError, match="cut off"), stores.writer(tmp_path / "s") as writer:
        stores.append(writer, 3)
        monkeypatch.setattr(store_module._ArrayWriter, "append", interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            stores.append(writer, 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError(f"RESOURCE_EXHAUSTED: Error writing: {os.strerror(errno.ENOSPC)}"),
    ],
)
def test_a_full_disk_is_explained(stores, tmp_path, monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(store_module._ArrayWriter, "close", fail)
    with pytest.raises(data.StoreError, match="cannot be written: its disk is full") as raised:
        stores.make([3])
    assert raised.match(ONE_SENTENCE)
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_no_store_and_the_next_one_cleans_up(stores, tmp_path):
    path = tmp_path / "store"
    program = """
import sys, numpy as np
from lamjax.data.store import StoreWriter
with StoreWriter(sys.argv[1], env="toy", obs_shape=(4,), num_actions=5) as writer:
    while True:
        frames = np.zeros((600, 4), np.uint8)
        writer.append_episode(frames, np.zeros(600, int), np.zeros(600), 0, "cut")
        print(writer.num_frames, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        for _ in range(5):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert [entry.name for entry in tmp_path.iterdir()] == [".store.partial"]
    with pytest.raises(data.StoreError, match="no trajectory store"):
        data.open_store(path)
    np.testing.assert_array_equal(stores.numbers(stores.make([20]).observations()), range(20))
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_writing_takes_constant_memory(stores, tmp_path):
    with stores.writer(tmp_path / "store", frames_per_chunk=4) as writer:
        array = writer._arrays["observations"]
        for _ in range(40):
            stores.append(writer, 30)
            assert len(array._in_flight) <= 3 and array._buffer.shape == (4, 4)


# Damage


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def read_everything(path, verify=True):
    store = data.open_store(path, verify)
    store.is_first  # noqa: B018
    data.evaluation_actions(store, np.arange(store.num_frames - 2))
    return store.observations()


FILES = [
    ("observations/c.2.0", "chunk 2 of observations"),
    ("observations/zarr.json", "metadata of observations"),
    ("is_first/c.0", "chunk 0 of is_first"),
    ("actions/c.0", "chunk 0 of actions"),
    ("actions/zarr.json", "metadata of actions"),
]


@pytest.mark.parametrize(("file", "name"), FILES)
@pytest.mark.parametrize("verify", [True, False])
def test_damaged_files_are_named(store, file, name, verify):
    path = store.path / file
    content = path.read_bytes()
    damages = [truncate, os.remove, lambda path: path.write_bytes(b"")]
    # Without digests, the checksum inside each chunk still finds a flipped bit.
    damages += [lambda path, i=i: flip(path, i) for i in range(0, len(content), 5)]
    for damage in damages:
        damage(path)
        with pytest.raises(data.StoreError, match=name) as raised:
            read_everything(store.path, verify)
        assert raised.match(ONE_SENTENCE) and raised.match(file.replace(".", r"\."))
        path.write_bytes(content)
    assert len(read_everything(store.path, verify)) == 40


def test_swapped_and_foreign_chunks_are_named(store, stores):
    first, second = (store.path / f"observations/c.{i}.0" for i in (1, 2))
    foreign = stores.make([17, 23], name="foreign").path / "observations/c.4.0"
    swapped = first.read_bytes(), second.read_bytes()
    assert len(swapped[0]) == len(swapped[1])
    first.write_bytes(swapped[1])
    second.write_bytes(swapped[0])
    with pytest.raises(data.StoreError, match=r"chunk 1 of observations .* not what was written"):
        read_everything(store.path)
    first.write_bytes(swapped[0])
    shutil.copy(foreign, second)
    with pytest.raises(data.StoreError, match="chunk 2 of observations"):
        read_everything(store.path)
    second.write_bytes(swapped[1])
    shutil.copy(foreign, store.path / "observations/c.5.0")
    with pytest.raises(data.StoreError, match=r"c\.5\.0 does not belong to this store"):
        data.open_store(store.path)
    os.remove(store.path / "observations/c.5.0")
    (store.path / "observations/.DS_Store").touch()
    assert len(read_everything(store.path)) == 40


@pytest.mark.parametrize("verify", [True, False])
def test_a_chunk_deleted_after_opening_is_not_read_as_zeros(store, verify):
    store = data.open_store(store.path, verify)
    os.remove(store.path / "observations/c.3.0")
    assert len(store.observations(0, 24)) == 24
    with pytest.raises(data.StoreError, match="chunk 3 of observations"):
        store.observations()


def test_a_damaged_manifest_is_never_believed(store):
    file = store.path / "manifest.json"
    content, manifest = file.read_bytes(), store.manifest
    for position in range(0, len(content), 7):
        flip(file, position)
        try:
            assert data.open_store(store.path).manifest == manifest  # a flip between the values
        except data.StoreError as error:
            assert "manifest.json" in str(error) or "format version" in str(error)
        file.write_bytes(content)
    for damaged in (content[: len(content) // 2], b"", b"[]", b"\xff\xfe"):
        file.write_bytes(damaged)
        with pytest.raises(data.StoreError, match=r"manifest\.json"):
            data.open_store(store.path)


def test_other_folders_and_versions_are_refused(store, tmp_path):
    with pytest.raises(data.StoreError, match=r"no trajectory store at .*missing"):
        data.open_store(tmp_path / "missing")
    with pytest.raises(data.StoreError, match="not a trajectory store"):
        data.open_store(tmp_path)
    file = store.path / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"format": "other"}))
    with pytest.raises(data.StoreError, match="not of a lamjax trajectory store"):
        data.open_store(store.path)
    file.write_text(json.dumps(manifest | {"version": 3}))
    with pytest.raises(data.StoreError, match="format version 3 but this lamjax reads versions 1 and 2"):
        data.open_store(store.path)
    file.write_text(json.dumps(manifest | {"num_frames": 39}))
    with pytest.raises(data.StoreError, match="not what was written"):
        data.open_store(store.path)


# Going on after an interruption


class StopError(Exception):
    pass


def test_a_resumable_writer_goes_on_from_its_checkpoint(stores):
    lengths = [5, 11, 3, 8, 70000, 2, 9]
    expected = stores.make(lengths, "whole")
    path = stores.folder / "store"
    written = 0
    for stop in (2, 3, 6, 6):  # episodes until the writer is interrupted, some of them after its last checkpoint
        with pytest.raises(StopError), stores.writer(path, frames_per_chunk=8, resumable=True) as writer:
            assert writer.position == ([written] if written else None)
            assert writer.num_episodes == written and writer.num_frames == sum(lengths[:written])
            for number in range(written, len(lengths)):
                if number == stop:
                    writer.checkpoint([number])
                    written = number
                    stores.append(writer, lengths[number], number)  # written, and not kept
                    raise StopError
                stores.append(writer, lengths[number], number)
        assert not path.exists()
    with stores.writer(path, frames_per_chunk=8, resumable=True) as writer:
        stores.append(writer, lengths[6], 6)
    store = data.open_store(path)
    assert store.manifest["files"] == expected.manifest["files"]
    assert store.manifest["episodes"] == expected.manifest["episodes"]
    assert {p.name for p in stores.folder.iterdir()} == {"whole", "store"}
    assert "journal.json" not in {p.name for p in path.iterdir()}


@pytest.mark.parametrize("damage", ["journal", "chunk", "description"])
def test_what_cannot_be_gone_on_from_is_written_anew(stores, damage):
    path = stores.folder / "store"
    with pytest.raises(StopError), stores.writer(path, frames_per_chunk=8, resumable=True) as writer:
        stores.append(writer, 20)
        writer.checkpoint(1)
        raise StopError
    partial = stores.folder / ".store.partial"
    if damage == "journal":
        text = (partial / "journal.json").read_text()
        (partial / "journal.json").write_text(text.replace('"position": 1', '"position": 2'))
    if damage == "chunk":
        (partial / "observations" / "c.1.0").unlink()
    env_params = {"other": True} if damage == "description" else {}
    with stores.writer(path, frames_per_chunk=8, resumable=True, env_params=env_params) as writer:
        assert writer.position is None and writer.num_frames == 0
        stores.append(writer, 4)
    assert data.open_store(path).num_frames == 4


def test_only_a_resumable_writer_has_checkpoints(stores):
    with pytest.raises(ValueError, match="resumable"), stores.writer(stores.folder / "store") as writer:
        stores.append(writer, 4)
        writer.checkpoint(1)
    assert list(stores.folder.iterdir()) == []
