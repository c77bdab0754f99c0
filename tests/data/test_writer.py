"""What a writer refuses, survives and leaves on the disk."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from lamjax import data
from lamjax.data.writer import ArrayWriter

ONE_SENTENCE = r"^[^\n]+; [^\n.]+$"  # what is wrong; what to do


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


def test_an_exception_waits_for_what_is_being_written(stores, tmp_path, monkeypatch):
    """Chunks are written in the background; whatever of them comes after the folder was removed makes it anew."""
    pending, abandon = [], ArrayWriter.abandon

    def watched(array):
        pending.extend(write for _, write in array.in_flight)
        abandon(array)

    monkeypatch.setattr(ArrayWriter, "abandon", watched)
    for attempt in range(20):
        with pytest.raises(KeyboardInterrupt), stores.writer(tmp_path / "store") as writer:
            pending.clear()
            stores.append(writer, 600 + attempt)
            raise KeyboardInterrupt
        assert pending and all(write.done() for write in pending)
        assert not list(tmp_path.iterdir())


def test_an_episode_that_was_cut_off_is_not_committed(stores, tmp_path, monkeypatch):
    def interrupt(self, rows):
        raise KeyboardInterrupt

    with pytest.raises(data.StoreError, match="cut off"), stores.writer(tmp_path / "s") as writer:
        stores.append(writer, 3)
        monkeypatch.setattr(ArrayWriter, "append", interrupt)
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

    monkeypatch.setattr(ArrayWriter, "close", fail)
    with pytest.raises(data.StoreError, match="cannot be written: its disk is full") as raised:
        stores.make([3])
    assert raised.match(ONE_SENTENCE)
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_no_store_and_the_next_one_cleans_up(stores, tmp_path):
    path = tmp_path / "store"
    program = """
import sys, numpy as np
from lamjax.data.writer import StoreWriter
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


def test_writing_takes_constant_memory(tmp_path, traced_memory):
    program = """
from pathlib import Path
import numpy as np
from lamjax.data.writer import ArrayWriter
rows = np.zeros((1 << 12, 1 << 10), np.uint8)  # 4 MB
array = ArrayWriter(Path(sys.argv[1]), "observations", rows.shape[1:], np.uint8, rows_per_chunk=64)
array.append(rows)
tracemalloc.start()
for _ in range(8):
    array.append(rows)
    assert len(array.in_flight) <= 3
assert sum(size for size, _ in array.close().values()) > 0
"""
    assert traced_memory(program, tmp_path) < 1 << 20  # a few chunks of 64 KB out of 32 MB


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


# What is written can be read


def describe(**changes):
    return {"env": "toy", "obs_shape": (2,), "num_actions": 3} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_shape": (0,)}, "sizes of an observation must be integers of at least 1"),
        ({"obs_shape": (2, -1)}, "sizes of an observation must be integers of at least 1"),
        ({"obs_shape": (2.5,)}, "sizes of an observation must be integers of at least 1"),
        ({"obs_shape": (10**6, 10**6)}, "too large for a store"),
        ({"frames_per_chunk": 0}, "frames_per_chunk must be an integer of at least 1"),
        ({"frames_per_chunk": 2**40}, "too large for a store"),
        *(({"obs_dtype": dtype}, "observations must be one of bool") for dtype in ("U3", "O", "complex64", "M8[s]")),
        ({"obs_dtype": "float128"}, "observations must be one of bool"),
        ({"obs_dtype": "pixels"}, "'pixels' is not the name of a dtype"),
        ({"num_actions": 0}, r"num_actions must be an integer from 1 to 2\^31"),
        ({"num_actions": 2**31 + 1}, r"num_actions must be an integer from 1 to 2\^31"),
        ({"num_actions": None, "action_dim": 0}, "action_dim must be an integer of at least 1"),
        ({"num_actions": None, "action_dim": 1, "action_bounds": ((-1e39,), (1e39,))}, "numbers of float32"),
        ({"distractor_dim": -1}, "distractor_dim must be an integer of at least 1"),
        ({"policy": {"score": np.nan}}, "JSON cannot hold"),
        ({"policy": {"score": 10**5000}}, "JSON cannot hold"),
        ({"env": None}, "env must be a str"),
    ],
)
def test_a_store_that_could_not_be_read_is_not_begun(tmp_path, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        data.StoreWriter(tmp_path / "store", **describe(**changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "env_params",
    [
        {10: "a", 9: "b"},
        {1: 0, "a": 1},
        {"deep": {2: (1, 2), 10: None, None: 1.5}},
        {"name": "a\ud800", "n": -(10**30)},
    ],
)
def test_what_json_changes_is_read_as_json_has_it(tmp_path, env_params):
    with data.StoreWriter(tmp_path / "store", **describe(env_params=env_params)) as writer:
        writer.append_episode(np.zeros((3, 2), np.uint8), np.zeros(3, int), np.zeros(3), 0, "cut")
    assert data.open_store(tmp_path / "store").env_params == json.loads(json.dumps(env_params))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float16", "float64", "bfloat16"])
def test_every_type_of_observations_is_read(tmp_path, dtype):
    frames = np.arange(6).reshape(3, 2).astype(dtype)
    with data.StoreWriter(tmp_path / "store", **describe(obs_dtype=dtype)) as writer:
        writer.append_episode(frames, np.zeros(3, int), np.zeros(3), 2**63 - 1, "cut")
    store = data.open_store(tmp_path / "store")
    np.testing.assert_array_equal(store.observations(), frames, strict=True)
    assert store.episodes.level_seed.tolist() == [2**63 - 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"level_seed": seed}, r"level_seed must be an integer in \[0, 2\^63\)")
            for seed in (2**63, -1, 7.5, np.nan)
        ),
        *(({"rewards": [0.0, value, 0.0]}, "rewards must be finite numbers") for value in (np.nan, np.inf, 1e39)),
        ({"rewards": ["1", "2", "3"]}, "rewards must be numbers, got <U1"),
        ({"rewards": np.zeros(3, complex)}, "rewards must be numbers, got complex128"),
        *(({"actions": np.full((3, 1), value)}, "actions must be finite numbers") for value in (np.nan, -np.inf, 1e39)),
        ({"observations": np.full((3, 2), np.nan, np.float32)}, "observations must be finite numbers, got nan"),
        ({"distractor": np.full((3, 1), 1e39)}, "the distractor must be finite numbers of float32"),
    ],
)
def test_values_that_are_no_values_are_refused(tmp_path, changes, message):
    episode = {"observations": np.zeros((3, 2), np.float32), "actions": np.zeros((3, 1)), "rewards": np.zeros(3)}
    episode |= {"level_seed": 0, "ending": "cut", "distractor": np.zeros((3, 1))}
    settings = describe(num_actions=None, action_dim=1, obs_dtype="float32", distractor_dim=1)
    with data.StoreWriter(tmp_path / "store", **settings) as writer:
        with pytest.raises(ValueError, match=message):
            writer.append_episode(**episode | changes)
        writer.append_episode(**episode)
    assert data.open_store(tmp_path / "store").num_frames == 3


# Episodes in parts


def test_an_episode_in_parts_is_the_same_store(stores, tmp_path):
    whole = stores.make([5, 20, 3], "whole")
    with stores.writer(tmp_path / "store", frames_per_chunk=8, resumable=True) as writer:
        for level, (start, stop) in enumerate(((0, 5), (5, 25), (25, 28))):
            for piece in np.array_split(np.arange(start, stop), 3):
                writer.append_frames(stores.frames(piece), stores.actions(piece), np.ones(len(piece)))
                assert writer.num_frames == start and writer.num_episodes == level
                with pytest.raises(ValueError, match="an episode is running"):
                    writer.checkpoint(0)
                with pytest.raises(ValueError, match="an episode is running"):
                    stores.append(writer, 3)
            with pytest.raises(ValueError, match="ending must be one of"):
                writer.end_episode(level, "done")
            writer.end_episode(level, "terminated")
        with pytest.raises(ValueError, match="at least 1 frame"):
            writer.end_episode(7, "cut")
    store = data.open_store(tmp_path / "store")
    assert store.manifest["files"] == whole.manifest["files"]
    assert store.manifest["episodes"] == whole.manifest["episodes"]


def test_an_episode_that_never_ends_is_not_committed(stores, tmp_path):
    with pytest.raises(data.StoreError, match="cut off"), stores.writer(tmp_path / "store") as writer:
        stores.append(writer, 3)
        writer.append_frames(stores.frames(range(3)), np.zeros(3, int), np.zeros(3))
    assert not list(tmp_path.iterdir())
