"""What is written is read; what is damaged is refused by name."""

import json
import os
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lamjax import data
from lamjax.data import format
from lamjax.spaces import Box

ONE_SENTENCE = r"^[^\n]+; [^\n.]+$"  # what is wrong; what to do


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
    np.testing.assert_array_equal(store.episodes.holding(np.arange(stop)), np.repeat(np.arange(len(lengths)), lengths))
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
    with pytest.raises(data.StoreError, match="does not belong to a lamjax trajectory store"):
        data.open_store(store.path)
    file.write_text(json.dumps(manifest | {"version": 3}))
    with pytest.raises(data.StoreError, match="format version 3 but this lamjax reads versions 1 and 2"):
        data.open_store(store.path)
    file.write_text(json.dumps(manifest | {"num_frames": 39}))
    with pytest.raises(data.StoreError, match="not what was written"):
        data.open_store(store.path)


def test_a_path_that_is_no_text_is_refused_before_anything_is_written(store, stores):
    path = store.path.parent / os.fsdecode(b"\xff")
    message = "is not UTF-8, as a store's path must be; choose another path"
    with pytest.raises(data.StoreError, match=message):
        stores.writer(path)
    store.path.rename(path)
    with pytest.raises(data.StoreError, match=message):
        data.open_store(path)


# What a store says of itself


def forge(store, **changes):
    """Writes a manifest that says something else, with the digest that belongs to it."""
    manifest = json.loads(json.dumps(store.manifest | changes))
    manifest["sha256"] = format.manifest_digest(manifest)
    (store.path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_frames": 10**15},
        {"num_frames": 39},
        {"num_frames": "40"},
        {"obs_shape": [10**9, 10**9]},
        {"obs_shape": [0]},
        {"obs_shape": "4"},
        {"obs_dtype": "object"},
        {"num_actions": None},
        {"num_actions": -5},
        {"env": ["toy"]},
        {"policy": []},
        {"files": []},
        {"files": {"observations/zarr.json": "0"}},
        {"episodes": {}},
        {"episodes": []},
        {"episodes": {"length": [10**15, 3, 20, 1, 6]}},
        {"episodes": {"length": [2**63, 3, 20, 1, 6]}},
        {"episodes": {"length": [10.0, 3, 20, 1, 6]}},
        {"episodes": {"length": [14, 0, 20, 0, 6]}},
        {"episodes": {"start": [0, 10, 13, 33, 35]}},
        {"episodes": {"start": [0, 10, 13]}},
        {"episodes": {"level_seed": [2**63, 1, 2, 3, 4]}},
        {"episodes": {"ending": ["done"] * 5}},
        {"episodes": {"split": ["valid"] * 5}},
        {"episodes": {"returns": ["a"] * 5}},
    ],
)
def test_a_manifest_of_a_store_that_cannot_be_is_refused(store, changes):
    if changes.get("episodes"):
        changes = {"episodes": store.manifest["episodes"] | changes["episodes"]}
    forge(store, **changes)
    with pytest.raises(data.StoreError, match=r"manifest\.json describes no store that can be") as raised:
        data.open_store(store.path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format": "lamjax-trajectories", "version": 1, "a": NaN}'])
def test_a_manifest_that_json_readers_stumble_over_is_refused(store, content):
    (store.path / "manifest.json").write_bytes(content)
    with pytest.raises(data.StoreError, match=r"manifest\.json"):
        data.open_store(store.path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "observations/../../outside", "observations", "a/c.0/b"])
def test_a_manifest_names_no_file_outside_of_the_store(store, name):
    (store.path.parent / "outside").write_bytes(b"x")
    forge(store, files=store.manifest["files"] | {name: [1, format.digest(b"x")]})
    with pytest.raises(data.StoreError, match="lists a file that no store has"):
        data.open_store(store.path)


def forge_array(store, array, **metadata):
    """Writes an array's metadata that say something else, and the manifest that belongs to them."""
    path = store.path / array / "zarr.json"
    content = json.dumps(json.loads(path.read_text()) | metadata).encode()
    path.write_bytes(content)
    return {"files": store.manifest["files"] | {f"{array}/zarr.json": [len(content), format.digest(content)]}}


def forged(store):
    """What the manifest says now."""
    return json.loads((store.path / "manifest.json").read_text())


def grid(*shape):
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}}}


def test_metadata_that_claim_more_than_memory_holds_are_refused(store):
    episodes = store.manifest["episodes"]
    more = 2**31 - 1
    longer = episodes | {"length": [*episodes["length"][:-1], more - episodes["start"][-1]]}
    for further, metadata in (
        ({"episodes": longer, "num_frames": more}, {"shape": [more, 4]}),
        ({}, {"shape": [40, 4], **grid(2**40, 4)}),
        ({}, {"shape": [40, 4], **grid(8, 2)}),
    ):
        forge(store, **further, **forge_array(store, "observations", **metadata))
        with pytest.raises(data.StoreError, match="has other chunks than the manifest says"):
            data.open_store(store.path)


def test_a_chunk_of_few_bytes_claims_no_memory_that_it_cannot_fill(store):
    forge(store, **forge_array(store, "observations", shape=[40, 4], **grid(2**30, 4)))  # 4 GiB a chunk
    for file in list(store.manifest["files"]):
        if file.startswith("observations/c.") and file != "observations/c.0.0":
            (store.path / file).unlink()
    kept = {name: value for name, value in forged(store)["files"].items() if (store.path / name).exists()}
    forge(store, **forged(store) | {"files": kept})
    with pytest.raises(
        data.StoreError, match=r"^chunk 0 of observations .* bytes, which cannot hold the 4294967296 that"
    ):
        data.open_store(store.path)


def test_chunks_are_compressed_in_the_one_way_whose_sizes_are_known(store):
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip", "configuration": {"level": 9}}]
    forge(store, **forge_array(store, "observations", codecs=codecs))
    with pytest.raises(data.StoreError, match="has other chunks than the manifest says"):
        data.open_store(store.path)


def test_frames_that_compress_best_are_read(tmp_path):
    """512 black frames in one chunk: 6 MB in a few hundred bytes."""
    with data.StoreWriter(tmp_path / "black", env="toy", obs_shape=(64, 64, 3), num_actions=2) as writer:
        writer.append_episode(np.zeros((512, 64, 64, 3), np.uint8), np.zeros(512, int), np.zeros(512), 0, "terminated")
    black = data.open_store(tmp_path / "black")
    assert black.manifest["files"]["observations/c.0.0.0.0"][0] < 1000
    assert not black.observations(510).any()


def test_a_file_that_the_manifest_forgets_is_missed(store):
    for file in ("observations/zarr.json", "observations/c.1.0"):
        (store.path / file).rename(store.path.parent / "away")
        forge(store, files={name: value for name, value in store.manifest["files"].items() if name != file})
        with pytest.raises(data.StoreError, match=r"observations.*record the store again"):
            data.open_store(store.path)
        (store.path.parent / "away").rename(store.path / file)


def test_a_pipe_is_not_waited_for(store):
    path = store.path / "observations/c.1.0"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(data.StoreError, match=r"chunk 1 of observations .* is missing"):
        data.open_store(store.path)


@pytest.mark.parametrize(
    ("actions", "says"),
    [
        ({"num_actions": 2}, True),
        ({"num_actions": 1}, False),
        ({"action_dim": 1, "action_bounds": ([-1], [1])}, True),
        ({"action_dim": 1}, False),
    ],
)
def test_whether_actions_can_say_anything(tmp_path, actions, says):
    with data.StoreWriter(tmp_path / "store", env="toy", obs_shape=(4,), **actions) as writer:
        frames = np.zeros((3, 4), np.uint8)
        writer.append_episode(frames, np.zeros((3, 1) if "action_dim" in actions else 3, int), np.zeros(3), 0, "cut")
    assert data.open_store(tmp_path / "store").has_actions == says
