"""Files in the layout of LAPO's data set become stores that hold exactly what they held."""

import io
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from lamjax import data
from lamjax.cli import main
from lamjax.data.importers import common, lapo
from lamjax.data.reader import ArrayReader
from tests.data.importers.sources import SHAPE, flip, lapo_file

TRAIN = [[5, 9, 3, 30, 13], [20, 40], [7, 8, 9]]
TEST = [[6, 6, 6]]


def write(folder, meaning="last", **kwargs):
    """A game: three files of training data, out of alphabetical order, and one of test data; returns all rows."""
    parts = [
        lapo_file(folder / "train" / f"{n}.npz", p, meaning, n, **kwargs)
        for n, p in zip((2, 9, 10), TRAIN, strict=True)
    ]
    parts.append(lapo_file(folder / "test" / "0.npz", TEST[0], meaning, 99, **kwargs))
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def rows_of(store):
    rewards = ArrayReader(store.path, "rewards", store.manifest, True).take(np.arange(store.num_frames))
    return store.observations(), data.evaluation_actions(store, np.arange(store.num_frames), length=2), rewards


@pytest.mark.parametrize("meaning", ["first", "last"])
@pytest.mark.parametrize("compressed", [True, False])
def test_every_row_arrives(tmp_path, meaning, compressed):
    rows = write(tmp_path / "maze", meaning, compressed=compressed)
    said, calls = [], []
    lapo.import_lapo(tmp_path / "maze", tmp_path / "store", say=said.append, progress=lambda *call: calls.append(call))
    store = data.open_store(tmp_path / "store")
    for found, want in zip(rows_of(store), rows, strict=True):
        np.testing.assert_array_equal(found, want)
    assert store.episodes.length.tolist() == [n for file in (*TRAIN, *TEST) for n in file]
    assert store.episodes.split.tolist() == ["train"] * 10 + ["test"] * 3
    assert set(store.episodes.level_seed) == {-1}
    # Where the mark is an episode's first frame, nothing says whether the last one of a file is whole.
    cut = [4, 6, 9, 12] if meaning == "first" else []
    assert np.flatnonzero(store.episodes.ending == "cut").tolist() == cut
    assert set(np.delete(store.episodes.ending, cut)) == {"terminated"}
    assert store.env == "maze" and store.num_actions == 15
    assert store.policy["done"] == meaning and store.policy["files"] == {"train": 3, "test": 1}
    assert "may share levels" in store.env_params["split"]
    assert len(said) == 1 and said[0].startswith(f"done marks the {meaning} frame of an episode: at ")
    assert store.policy["done_because"] in said[0]
    assert calls[-1] == (len(rows[0]), len(rows[0]))


def test_the_reading_can_be_given(tmp_path):
    write(tmp_path / "maze", "last")
    said = []
    lapo.import_lapo(tmp_path / "maze", tmp_path / "store", env="heist", done="first", say=said.append)
    store = data.open_store(tmp_path / "store")
    assert store.env == "heist" and said == [] and store.policy["done_because"] == "the user said so"
    assert store.episodes.length.tolist()[:6] == [4, 9, 3, 30, 13, 1]  # each mark begins an episode


def test_windows_and_labels_of_an_import(tmp_path):
    rows = write(tmp_path / "maze")
    lapo.import_lapo(tmp_path / "maze", tmp_path / "store")
    store = data.open_store(tmp_path / "store")
    assert len(store.starts("train")) == sum(max(n - 2, 0) for file in TRAIN for n in file)
    assert len(store.starts("test")) == 12
    subset = data.LabelledSubset(store, 16)
    np.testing.assert_array_equal(subset.actions, rows[1][subset.starts + 1])


def test_an_episode_longer_than_a_block_and_a_file_that_ends_within_one(tmp_path):
    lengths = [700, 300, 5]
    obs, actions, _ = lapo_file(tmp_path / "maze" / "train" / "0.npz", lengths, ends=False)
    lapo_file(tmp_path / "maze" / "train" / "1.npz", [4, 4], seed=1)
    lapo.import_lapo(tmp_path / "maze", tmp_path / "store", done="last")
    store = data.open_store(tmp_path / "store")
    assert store.episodes.length.tolist() == [700, 300, 5, 4, 4]
    assert store.episodes.ending.tolist() == ["terminated", "terminated", "cut", "terminated", "terminated"]
    np.testing.assert_array_equal(store.observations(0, 1005), obs)
    np.testing.assert_array_equal(data.evaluation_actions(store, np.arange(1005), 2), actions)


def test_auto_does_not_guess(tmp_path):
    # Marks in the middle of episodes, where the picture changes alike on both sides or at random.
    path = tmp_path / "maze" / "train" / "0.npz"
    lapo_file(
        path,
        [400],
        obs=np.random.default_rng(0).integers(0, 256, (400, *SHAPE), np.uint8),
        done=np.arange(400) % 9 == 4,
    )
    with pytest.raises(common.ImportDataError, match=r"not show what done .* choose with --done first or --done last"):
        lapo.import_lapo(tmp_path / "maze", tmp_path / "store")
    assert not (tmp_path / "store").exists()
    lapo_file(path, [400], done=np.zeros(400, bool))
    said = []
    lapo.import_lapo(tmp_path / "maze", tmp_path / "store", say=said.append)
    assert "there is no mark" in said[0]
    assert data.open_store(tmp_path / "store").episodes.ending.tolist() == ["cut"]


def test_the_first_files_alone(tmp_path):
    write(tmp_path / "maze")
    lapo.import_lapo(tmp_path / "maze", tmp_path / "store", max_files=1)
    assert data.open_store(tmp_path / "store").episodes.length.tolist() == [*TRAIN[0], *TEST[0]]


def test_memory_does_not_grow_with_the_files(tmp_path, traced_memory):
    program = """
from pathlib import Path
from lamjax.data.importers.lapo import import_lapo
source, stores = map(Path, sys.argv[1:])
import_lapo(source, stores / "first", done="last")  # imports what is imported on first use
tracemalloc.start()
import_lapo(source, stores / "second", done="last")
"""

    def peak(files):
        folder, stores = tmp_path / f"game{files}", tmp_path / f"stores{files}"
        stores.mkdir()
        for number in range(files):
            lapo_file(folder / "train" / f"{number}.npz", [50] * 100, seed=number)
        return traced_memory(program, folder, stores)

    few, many = peak(2), peak(16)
    assert few < 4e6 and many - few < 2e6  # a file's frames are 0.96 MB: fourteen more have 13.4


# What is not such a data set


def fails(folder, **kwargs):
    with pytest.raises(common.ImportDataError) as error:
        lapo.import_lapo(folder, folder.parent / "store", **kwargs)
    assert not (folder.parent / "store").exists()
    return str(error.value)


def test_other_layouts_are_refused_by_name(tmp_path):
    game = tmp_path / "maze"
    assert "There is no folder" in fails(game)
    game.mkdir()
    assert "has no folder train" in fails(game)
    write(game)
    assert f"holds several games (maze): name one, {game}" in fails(tmp_path)
    odd = game / "train" / "last.npz"
    (game / "train" / "9.npz").rename(odd)
    assert f"{odd} is not named by a number" in fails(game)
    odd.unlink()
    path = game / "train" / "2.npz"
    n = sum(TRAIN[0])
    for change, sentence in (
        ({"obs": None}, "it has no array 'obs'"),
        ({"done": None}, "it has no array 'done'"),
        ({"obs": np.zeros((n, *SHAPE), np.float32)}, "obs is float32"),
        ({"ta": np.zeros(n - 1, int)}, f"ta is int64 [{n - 1}] for {n} frames"),
        ({"rewards": np.zeros((n, 1), np.float32)}, "rewards is float32"),
        ({"ta": np.array([{}] * n, object)}, "'ta' does not hold numbers"),
        ({"ta": np.full(n, 15)}, "actions must lie in [0, 15), got 15 to 15"),
    ):
        lapo_file(path, TRAIN[0], **change)
        sentence_found = fails(game)
        assert str(path) in sentence_found and sentence in sentence_found
    lapo_file(path, TRAIN[0], obs=np.zeros((n, 4, 4, 3), np.uint8))
    assert "has frames of" in fails(game)


def test_files_without_rows_are_passed_over_unless_all_are(tmp_path):
    empty = {"obs": np.zeros((0, *SHAPE), np.uint8), "ta": np.zeros(0, int), "rewards": np.zeros(0, np.float32)}
    path = tmp_path / "maze" / "train" / "0.npz"
    lapo_file(path, [3], **empty, done=np.zeros(0, bool))
    assert fails(tmp_path / "maze") == f"{path} holds no rows: check the path."
    lapo_file(path.with_name("1.npz"), [5, 9])
    lapo.import_lapo(tmp_path / "maze", tmp_path / "store")
    assert data.open_store(tmp_path / "store").num_frames == 14


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_files_are_refused_by_name(tmp_path, compressed):
    game = tmp_path / "maze"
    write(game, compressed=compressed)
    path = game / "train" / "9.npz"
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"PK not an archive"):
        path.write_bytes(damage)
        assert str(path) in fails(game) and "damaged" in fails(game)
    path.write_bytes(whole)
    flip(path, 0.2)  # within the frames
    assert str(path) in fails(game, done="last")
    path.write_bytes(whole)
    lapo.import_lapo(game, tmp_path / "store")  # whole again


# Interruptions


class StopError(Exception):
    pass


def test_an_import_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CHECKPOINT_FRAMES", 20)
    rows = write(tmp_path / "maze")
    whole = tmp_path / "whole"
    lapo.import_lapo(tmp_path / "maze", whole)
    for stop in (50, 100, 130):  # in the first file, in the second, in the third

        def progress(position, total, stop=stop):
            if position >= stop:
                raise StopError

        with pytest.raises(StopError):
            lapo.import_lapo(tmp_path / "maze", tmp_path / "store", done="last", progress=progress)
        assert not (tmp_path / "store").exists()
    # A whole import would refuse the damaged first file: only what comes after it is read.
    flip(tmp_path / "maze" / "train" / "2.npz", 0.2)
    # "auto" says the same thing as "last", but for another reason, so it would be another store.
    lapo.import_lapo(tmp_path / "maze", tmp_path / "store", done="last")
    store, expected = data.open_store(tmp_path / "store"), data.open_store(whole)
    assert store.manifest["files"] == expected.manifest["files"]
    assert store.manifest["episodes"] == expected.manifest["episodes"]
    np.testing.assert_array_equal(rows_of(store)[0], rows[0])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_another_source_is_not_mixed_in(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CHECKPOINT_FRAMES", 20)
    write(tmp_path / "maze")

    def progress(position, total):
        if position > 100:
            raise StopError

    with pytest.raises(StopError):
        lapo.import_lapo(tmp_path / "maze", tmp_path / "store", done="last", progress=progress)
    obs, _, _ = lapo_file(tmp_path / "maze" / "train" / "2.npz", [30, 30, 30], seed=7)
    lapo.import_lapo(tmp_path / "maze", tmp_path / "store", done="last")
    np.testing.assert_array_equal(data.open_store(tmp_path / "store").observations(0, 90), obs)


def test_the_command(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "maze")
    assert main(["import-lapo", "maze", "--max-files", "2"]) == 0
    out, err = capfd.readouterr()
    assert out == "data/maze/lapo\n" and "done marks the last frame" in err
    assert data.open_store(tmp_path / "data/maze/lapo").episodes.length.tolist() == [*TRAIN[0], *TRAIN[1], *TEST[0]]
    assert main(["import-lapo", "maze"]) == 2
    assert "already exists" in capfd.readouterr().err
    assert main(["import-lapo", "nowhere"]) == 2
    assert capfd.readouterr().err.startswith("lamjax: There is no folder nowhere")


def test_a_killed_command_goes_on(tmp_path):
    for number in range(40):
        lapo_file(tmp_path / "maze" / "train" / f"{number}.npz", [100] * 100, seed=number, compressed=False)
    command = [sys.executable, "-m", "lamjax", "import-lapo", "maze", "--out", "store"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / ".store.partial" / "journal.json"
    deadline = time.monotonic() + 120
    while not journal.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert journal.exists()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in err and not (tmp_path / "store").exists()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    store = data.open_store(tmp_path / "store")
    assert store.num_frames == 400_000 and len(store.episodes) == 4000
    last, _, _ = lapo_file(tmp_path / "again.npz", [100] * 100, seed=39)
    np.testing.assert_array_equal(store.observations(390_000), last)


# What a file or folder may hold


def test_values_are_refused_by_file_row_and_column(tmp_path):
    game = tmp_path / "maze"
    lapo_file(game / "train" / "0.npz", [300])
    path = game / "train" / "1.npz"

    def at(row, value, dtype):
        values = np.zeros(300, dtype)
        values[row] = value
        return values

    for change, sentence in (
        (
            {"rewards": at(270, np.nan, np.float32)},
            "row 270: column 'rewards' must hold finite float32 numbers, got nan",
        ),
        (
            {"rewards": at(3, -1e300, np.float64)},
            "row 3: column 'rewards' must hold finite float32 numbers, got -1e+300",
        ),
        ({"done": at(256, np.nan, np.float32)}, "row 256: column 'done' must hold only 0 and 1, got nan"),
        ({"done": at(299, 255, np.uint8)}, "row 299: column 'done' must hold only 0 and 1, got 255"),
        ({"ta": at(17, -1, np.int8)}, "row 17: column 'ta': actions must lie in [0, 15), got -1 to -1"),
        ({"obs": np.zeros((300, 0, 8, 3), np.uint8)}, "must be integers of at least 1, got [0, 8, 3]"),
    ):
        lapo_file(path, [300], **change)
        found = fails(game, done="last")
        assert str(path) in found and sentence in found and "damaged" not in found


def test_the_files_are_listed_first_and_hidden_ones_left_out(tmp_path):
    game = tmp_path / "maze"
    write(game)
    (game / "train").rename(tmp_path / "big")
    (game / "train").symlink_to(tmp_path / "big")
    (game / "train" / "._2.npz").write_bytes(b"\0\5\x16\7")
    announced = []
    lapo.import_lapo(game, tmp_path / "store", announce=announced.append)
    rows = sum(map(sum, TRAIN + TEST))
    listed = "train: train/2.npz, train/9.npz, train/10.npz; test: test/0.npz; left out as hidden: train/._2.npz"
    assert announced == [f"Importing 4 files of {game} with {rows} rows; {listed}."]
    (tmp_path / "heist").symlink_to(game)  # the environment is called as the link is
    lapo.import_lapo(tmp_path / "heist", tmp_path / "other")
    assert data.open_store(tmp_path / "other").env == "heist"
    (game / "test" / "1.npz").symlink_to(game / "train" / "2.npz")
    with pytest.raises(common.ImportDataError, match="are the same file"):
        lapo.import_lapo(game, tmp_path / "third")
    with pytest.raises(common.ImportDataError, match="--max-files must be 0, for all, or more, got -1"):
        lapo.import_lapo(game, tmp_path / "third", max_files=-1)


def test_damaged_files_are_left_out_on_request(tmp_path, capfd):
    game = tmp_path / "maze"
    rows = write(game)
    flip(game / "train" / "9.npz", 0.2)
    (game / "test" / "0.npz").write_bytes(b"PK")
    command = ["import-lapo", str(game), "--done", "last", "--out", str(tmp_path / "store")]
    assert main(command) == 2
    assert "0.npz is damaged" in capfd.readouterr().err
    assert main([*command, "--skip-damaged"]) == 0
    assert "left out as damaged: train/9.npz, test/0.npz" in capfd.readouterr().err
    store = data.open_store(tmp_path / "store")
    assert store.policy["skipped_as_damaged"].keys() == {"train/9.npz", "test/0.npz"}
    kept = np.r_[: sum(TRAIN[0]), sum(TRAIN[0]) + sum(TRAIN[1]) : sum(map(sum, TRAIN))]
    np.testing.assert_array_equal(store.observations(), rows[0][kept])


def test_whatever_a_damaged_file_says_is_refused_or_true(tmp_path):
    """Bits flip in headers, in the archive's list of members, and in the arrays."""
    path = tmp_path / "maze" / "train" / "0.npz"
    _, actions, _ = lapo_file(path, [20, 20], obs=np.zeros((40, 2, 2, 3), np.uint8))
    whole = path.read_bytes()
    for position in range(0, len(whole), 71):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            lapo.import_lapo(tmp_path / "maze", tmp_path / f"store{position}", done="last")
        except common.ImportDataError as error:
            assert str(path) in str(error) and len(str(error)) < 400 and str(error).isprintable()
            continue
        store = data.open_store(tmp_path / f"store{position}")
        assert not store.observations().any() and store.num_frames == 40
        np.testing.assert_array_equal(data.evaluation_actions(store, np.arange(40), length=2), actions)


def test_a_file_that_claims_terabytes_is_refused(tmp_path):
    path = tmp_path / "maze" / "train" / "0.npz"
    lapo_file(path, [20])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for shape in ((20, 10**6, 10**6, 3), (10**10, 8, 8, 3)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (members | {"obs.npy": header.getvalue() + bytes(100)}).items():
                archive.writestr(name, content)
        found = fails(tmp_path / "maze", done="last")
        assert f"{path} is damaged (its array 'obs' claims to have" in found and "bytes and has 100)" in found
