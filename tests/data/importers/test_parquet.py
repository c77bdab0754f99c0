"""Parquet files of transitions become stores that hold exactly what they held."""

import os
import struct
import sys
import zlib

import numpy as np
import pytest

from lamjax import data
from lamjax.cli import main
from lamjax.data.importers import common, parquet
from lamjax.spaces import Box
from tests.data.importers.sources import SHAPE, episodes, flip, marks, png


def test_pyarrow_absent_names_the_extra(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert main(["import-parquet", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "store")]) == 2
    assert capfd.readouterr().err == 'lamjax: Reading Parquet files needs pyarrow: pip install "lamjax[import]".\n'


@pytest.fixture
def pa():
    return pytest.importorskip("pyarrow")


LENGTHS = [5, 300, 3, 30, 12]
FORMS = ("nested", "fixed", "flat", "png", "struct")


def observation(pa, obs, form):
    match form:
        case "nested":
            return pa.array(obs.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
        case "fixed":
            array = pa.array(obs.ravel())
            for size in SHAPE[::-1]:
                array = pa.FixedSizeListArray.from_arrays(array, size)
            return array
        case "flat":
            return pa.array(obs.reshape(len(obs), -1).tolist(), pa.large_list(pa.uint8()))
        case "png":
            return pa.array([png(frame) for frame in obs], pa.binary())
        case "struct":
            return pa.array([{"bytes": png(frame), "path": None} for frame in obs])


def write(pa, path, lengths=LENGTHS, form="flat", meaning="last", seed=0, names=None, group=64, **changes):
    import pyarrow.parquet

    obs, action, reward = episodes(lengths, seed=seed)
    columns = {"observation": observation(pa, obs, form), "action": action, "reward": reward}
    columns |= {"done": marks(lengths, meaning, len(obs)), "truncated": np.zeros(len(obs), bool)} | changes
    columns = {(names or {}).get(n, n): column for n, column in columns.items() if column is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=group, write_page_checksum=True)
    return obs, action, reward


def run(path, out, **kwargs):
    parquet.import_parquet(path, out, env="maze", shape=SHAPE, **kwargs)
    return data.open_store(out)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("meaning", ["first", "last"])
def test_every_row_arrives(pa, tmp_path, form, meaning):
    obs, action, _ = write(pa, tmp_path / "a.parquet", form=form, meaning=meaning)
    said = []
    store = run(tmp_path / "a.parquet", tmp_path / "store", say=said.append)
    np.testing.assert_array_equal(store.observations(), obs)
    np.testing.assert_array_equal(data.evaluation_actions(store, np.arange(len(obs)), length=2), action)
    assert store.episodes.length.tolist() == LENGTHS
    assert said[0].startswith(f"done marks the {meaning} frame")
    # Without names that say it, the split is a hash of the episode's number.
    assert store.episodes.split.tolist() == [data.split_of_level(n) for n in range(len(LENGTHS))]
    assert "hash" in store.env_params["split"]


@pytest.mark.parametrize("meaning", ["first", "last"])
def test_truncations(pa, tmp_path, meaning):
    total = sum(LENGTHS)
    done = marks(LENGTHS, meaning, total)
    where = np.flatnonzero(done)
    truncated = np.zeros(total, bool)
    truncated[where[1]] = True
    for both in (True, False):  # done may be set there too, or not
        done[where[1]] = both
        write(pa, tmp_path / "a.parquet", meaning=meaning, done=done, truncated=truncated)
        store = run(tmp_path / "a.parquet", tmp_path / f"store{both}", done=meaning)
        assert store.episodes.length.tolist() == LENGTHS
        last = "cut" if meaning == "first" else "terminated"
        assert store.episodes.ending.tolist() == ["terminated", "truncated", "terminated", "terminated", last]


def test_names_of_columns_and_splits(pa, tmp_path, capfd):
    names = {"observation": "obs", "action": "act", "reward": "r", "done": "dones"}
    for file, lengths in (
        ("train-00000-of-00002", [9, 9]),
        ("train-00001-of-00002", [5]),
        ("test-00000-of-00001", [7]),
    ):
        write(pa, tmp_path / "maze" / f"{file}.parquet", lengths, names=names, truncated=None)
    options = [f"--columns.{field}={name}" for field, name in names.items()]
    command = ["import-parquet", str(tmp_path / "maze"), "--out", str(tmp_path / "store"), "--shape", "8", "8", "3"]
    assert main([*command, *options]) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'store'}\n"
    store = data.open_store(tmp_path / "store")
    assert store.env == "maze" and store.episodes.length.tolist() == [7, 9, 9, 5]
    assert store.episodes.split.tolist() == ["test", "train", "train", "train"]
    assert main([*command[:-5], str(tmp_path / "other")]) == 2
    assert "has no column 'observation', only obs, act, r, dones: choose one with --columns.observation NAME" in (
        capfd.readouterr().err
    )


def test_folders_say_the_split(pa, tmp_path):
    write(pa, tmp_path / "data" / "train" / "0.parquet", [9, 9])
    write(pa, tmp_path / "data" / "test" / "0.parquet", [7])
    assert run(tmp_path / "data", tmp_path / "store").episodes.split.tolist() == ["test", "train", "train"]
    write(pa, tmp_path / "data" / "trained.parquet", [7])
    with pytest.raises(common.ImportDataError, match=r"trained\.parquet belongs to neither train nor test"):
        run(tmp_path / "data", tmp_path / "other")


def test_an_import_goes_on(pa, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CHECKPOINT_FRAMES", 20)
    monkeypatch.setattr(parquet, "BLOCK", 16)
    for number in range(2):
        write(pa, tmp_path / "data" / f"{number}.parquet", seed=number)
    expected = run(tmp_path / "data", tmp_path / "whole", done="last")

    class StopError(Exception):
        pass

    for stop in (310, 349, 400, 600):

        def progress(position, total, stop=stop):
            if position >= stop:
                raise StopError

        with pytest.raises(StopError):
            run(tmp_path / "data", tmp_path / "store", done="last", progress=progress)
    calls = []
    store = run(tmp_path / "data", tmp_path / "store", done="last", progress=lambda *call: calls.append(call))
    assert 355 < calls[0][0] < 400  # the episode that was running is read again, and nothing before it
    assert store.manifest["files"] == expected.manifest["files"]
    assert store.manifest["episodes"] == expected.manifest["episodes"]


def test_what_does_not_fit_is_refused_by_name(pa, tmp_path):
    path = tmp_path / "a.parquet"
    n = sum(LENGTHS)
    flat = observation(pa, episodes(LENGTHS)[0], "flat")

    def fails():
        with pytest.raises(common.ImportDataError) as error:
            run(path, tmp_path / "store", done="last")
        assert not (tmp_path / "store").exists()
        return str(error.value)

    assert "There is no" in fails()
    for change, sentence in (
        ({"action": np.full(n, 15)}, "actions must lie in [0, 15)"),
        ({"action": np.zeros(n)}, "column 'action' holds double, not integers"),
        ({"reward": pa.array([None] * n, pa.float32())}, "column 'reward' has rows without a value"),
        ({"observation": pa.array([[0] * 191] * n, pa.list_(pa.uint8()))}, "has 191 numbers a frame, not [8, 8, 3]"),
        (
            {"observation": pa.array([[0] * 192, [0] * 191] + [[0] * 192] * (n - 2), pa.list_(pa.uint8()))},
            "different sizes",
        ),
        ({"observation": flat.cast(pa.large_list(pa.int32()))}, "holds int32 instead of lists of bytes"),
        ({"observation": pa.array([b"no picture"] * n)}, "an image that is damaged or not a PNG"),
        ({"observation": pa.array([png(np.zeros((9, 8, 3), np.uint8))] * n)}, "an image of 9 x 8"),
        ({"observation": pa.array([{"path": "x"}] * n)}, "a struct without a field 'bytes'"),
    ):
        write(pa, path, **change)
        found = fails()
        assert str(path) in found and sentence in found
    (tmp_path / "empty").mkdir()
    with pytest.raises(common.ImportDataError, match=r"holds no \.parquet files"):
        run(tmp_path / "empty", tmp_path / "store")


def test_a_name_that_arrow_cannot_open_is_no_damage(pa, tmp_path):
    write(pa, tmp_path / "toy" / "a.parquet")
    (tmp_path / "toy" / "a.parquet").rename(tmp_path / "toy" / os.fsdecode(b"\xff.parquet"))
    with pytest.raises(
        common.ImportDataError, match="has a name that is not UTF-8, which Arrow needs: rename it"
    ) as error:
        run(tmp_path / "toy", tmp_path / "store")
    assert "damaged" not in str(error.value)


def test_damaged_files_are_refused_by_name(pa, tmp_path):
    path = tmp_path / "a.parquet"
    write(pa, path)
    whole = path.read_bytes()

    def fails():
        with pytest.raises(common.ImportDataError, match="damaged") as error:
            run(path, tmp_path / "store", done="last")
        assert str(path) in str(error.value) and not (tmp_path / "store").exists()

    for damage in (whole[: len(whole) // 2], b"", b"not Parquet at all"):
        path.write_bytes(damage)
        fails()
    for where in (0.1, 0.4, 0.7):  # in the pages, whose checksums are compared
        path.write_bytes(whole)
        flip(path, where)
        fails()
    path.write_bytes(whole)
    run(path, tmp_path / "store")  # whole again


# What a column may hold


def forms(pa, obs):
    """Columns that hold these frames in other ways."""
    first, swapped = (np.ascontiguousarray(obs.transpose(order)) for order in ((0, 3, 1, 2), (0, 2, 1, 3)))
    deep = pa.list_(pa.list_(pa.list_(pa.uint8())))

    def tensor(frames, permutation=None):
        storage = pa.FixedSizeListArray.from_arrays(pa.array(frames.ravel()), frames[0].size)
        return pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.uint8(), list(frames.shape[1:]), permutation=permutation), storage
        )

    pngs = pa.array([png(frame) for frame in obs])
    return {
        "channels first": pa.array(first.tolist(), deep),
        "a stack of one": pa.array(obs[:, None].tolist(), pa.list_(deep)),
        "tensors": tensor(obs),
        "tensors, channels first": tensor(first),
        "tensors, permuted as the specification says": tensor(first, [1, 2, 0]),
        "tensors, permuted as pyarrow writes": tensor(first, [2, 0, 1]),
        "tensors, permuted in pairs": tensor(swapped, [1, 0, 2]),
        "a dictionary of pictures": pngs.dictionary_encode(),
        "many bytes": pngs.cast(pa.large_binary()),
    }


FORM_NAMES = (
    "channels first",
    "a stack of one",
    "tensors",
    "tensors, channels first",
    "tensors, permuted as the specification says",
    "tensors, permuted as pyarrow writes",
    "tensors, permuted in pairs",
    "a dictionary of pictures",
    "many bytes",
)


@pytest.mark.parametrize("form", FORM_NAMES)
def test_frames_arrive_whatever_holds_them(pa, tmp_path, form):
    obs = np.random.default_rng(0).integers(0, 256, (9, 8, 6, 3), np.uint8)
    changes = {"observation": forms(pa, obs)[form], "action": pa.array([3] * 9).dictionary_encode()}
    changes["done"] = np.arange(9) == 8
    write(pa, tmp_path / "a.parquet", [9], **changes)
    parquet.import_parquet(tmp_path / "a.parquet", tmp_path / "store", env="maze", shape=(8, 6, 3), done="last")
    store = data.open_store(tmp_path / "store")
    np.testing.assert_array_equal(store.observations(), obs)
    np.testing.assert_array_equal(data.evaluation_actions(store, np.arange(9), length=2), 3)


@pytest.mark.parametrize("form", FORM_NAMES)
def test_an_import_goes_on_at_any_row(pa, tmp_path, monkeypatch, form):
    """Blocks and row groups do not begin at the same rows, and arrays are slices of longer ones."""
    monkeypatch.setattr(parquet, "BLOCK", 16)
    obs = np.random.default_rng(0).integers(0, 256, (40, 8, 6, 3), np.uint8)
    path = tmp_path / "a.parquet"
    write(pa, path, [40], observation=forms(pa, obs)[form], group=7)
    source = []
    monkeypatch.setattr(parquet, "write_store", lambda out, files, **_: source.append(files))
    parquet.import_parquet(path, tmp_path / "store", env="maze", shape=(8, 6, 3))
    for start in (0, 1, 7, 13, 16, 39, 40):
        blocks = list(source[0].read(source[0].files[0], start))
        rows = np.concatenate([block.obs for block in blocks]) if blocks else obs[:0]
        np.testing.assert_array_equal(rows, obs[start:])


def test_frames_of_one_channel_need_no_dimension_for_it(pa, tmp_path):
    obs = np.random.default_rng(0).integers(0, 256, (9, 8, 6), np.uint8)
    column = pa.array(obs.tolist(), pa.list_(pa.list_(pa.uint8())))
    write(pa, tmp_path / "a.parquet", [9], observation=column)
    parquet.import_parquet(tmp_path / "a.parquet", tmp_path / "store", env="maze", shape=(8, 6, 1), done="last")
    np.testing.assert_array_equal(data.open_store(tmp_path / "store").observations()[..., 0], obs)


def claiming_more(picture):
    """A PNG whose header says that it has 10^9 pixels."""
    header = b"IHDR" + struct.pack(">II", 1, 10**9) + picture[24:29]
    return picture[:12] + header + struct.pack(">I", zlib.crc32(header)) + picture[33:]


def test_what_holds_no_frames_is_refused_by_what_it_holds(pa, tmp_path):
    path = tmp_path / "a.parquet"
    obs = np.random.default_rng(0).integers(0, 256, (9, 8, 6, 3), np.uint8)
    flat = obs.reshape(9, -1).tolist()
    deep, pngs = pa.list_(pa.list_(pa.list_(pa.uint8()))), [png(frame) for frame in obs]
    pictures = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cube = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.uint8(), [8, 8, 8], permutation=[1, 2, 0]),
        pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(9 * 512, np.uint8)), 512),
    )
    for column, sentence in (
        (
            pa.array(obs.transpose(0, 2, 1, 3).tolist(), deep),
            "row 0: column 'observation' has frames of 6 x 8 x 3",
        ),
        (pa.array([*flat[:4], None, *flat[5:]], pa.list_(pa.uint8())), "row 4: column 'observation' has rows without"),
        (pa.array(flat[:4] + [[None] * 144] * 5, pa.list_(pa.uint8())), "row 4: column 'observation' has rows without"),
        (pa.array(obs[:7].tolist() + obs[7:, :, :5].tolist(), deep), "row 7: column 'observation' has frames of diff"),
        (pa.array([*pngs[:8], None]), "row 8: column 'observation' has rows without a value"),
        (pa.array([{"bytes": each} for each in pngs[:8]] + [None], pictures), "row 8: column 'observation' has rows"),
        (pa.array([{"path": "/etc/passwd"}] * 9, pictures), "has only paths to images"),
        (pa.array(["a"] * 9), "column 'observation' holds string instead of lists of bytes"),
        (pa.array(pngs[:3] + [png(obs[3, ..., 0])[:40]] * 6), "damaged (row 3: column 'observation' has an image"),
        (
            pa.array(pngs[:3] + [claiming_more(pngs[3])] * 6),
            "row 3: column 'observation' has an image of 1000000000",
        ),
        (cube, "permuted by [1, 2, 0]: save them without"),
    ):
        write(pa, path, [9], observation=column)
        with pytest.raises(common.ImportDataError) as error:
            shape = (8, 8, 8) if column is cube else (8, 6, 3)
            parquet.import_parquet(path, tmp_path / "store", env="maze", shape=shape, done="last")
        assert sentence in str(error.value) and str(path) in str(error.value)
        assert ("damaged" in str(error.value)) == ("damaged" in sentence)


def test_values_are_refused_by_file_row_and_column(pa, tmp_path):
    n = sum(LENGTHS)

    def at(row, value, dtype=np.float64):
        values = np.zeros(n, dtype)
        values[row] = value
        return values

    nowhere = pa.array([None if row == 300 else 0 for row in range(n)])
    for field, values, row, sentence in (
        ("reward", at(300, np.nan), 300, "got nan"),
        ("reward", at(299, 1e39), 299, "got 1e+39"),
        ("done", at(301, np.nan), 301, "got nan"),
        ("truncated", at(5, 2, np.uint8), 5, "got 2"),
        ("action", at(257, -1, np.int64), 257, "got -1 to -1"),
        *((field, nowhere, 300, "has rows without a value") for field in ("reward", "done", "truncated", "action")),
    ):
        write(pa, tmp_path / "data" / "0.parquet")
        write(pa, tmp_path / "data" / "1.parquet", **{field: values})
        for done in ("auto", "last"):
            with pytest.raises(common.ImportDataError) as error:
                run(tmp_path / "data", tmp_path / "store", done=done)
            found = str(error.value)
            assert f"{tmp_path / 'data' / '1.parquet'} does not fit: row {row}: column {field!r}" in found
            assert sentence in found and not (tmp_path / "store").exists()


def test_names_and_sizes_that_cannot_be_are_refused(pa, tmp_path, capfd):
    import pyarrow.parquet

    write(pa, tmp_path / "a.parquet", truncated=None)
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    for twice in ("reward", "observation"):
        pyarrow.parquet.write_table(table.append_column(twice, table["reward"]), tmp_path / "b.parquet")
        with pytest.raises(common.ImportDataError, match=f"b.parquet has 2 columns '{twice}': rename all but one"):
            run(tmp_path / "b.parquet", tmp_path / "store")
    other = table.append_column("other", table["reward"]).append_column("other", table["reward"])
    pyarrow.parquet.write_table(other, tmp_path / "b.parquet")
    assert run(tmp_path / "b.parquet", tmp_path / "store").num_frames == sum(LENGTHS)
    command = ["import-parquet", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "other")]
    for options, sentence in (
        (["--shape", "0", "8", "3"], "integers of at least 1, got [0, 8, 3]: change --shape"),
        (["--shape", "8", "8", "-3"], "integers of at least 1, got [8, 8, -3]: change --shape"),
        (["--shape", "1000000", "1000000", "3"], "too large for a store"),
        (["--num-actions", "0"], "num_actions must be an integer from 1 to 2^31, got 0"),
        (["--columns.done", "reward"], "are the same: give each its own name"),
    ):
        assert main([*command, *options]) == 2
        err = capfd.readouterr().err
        assert sentence in err and err.count("\n") == 1


# Which files are read


def test_the_files_are_listed_first_and_hidden_ones_left_out(pa, tmp_path, capfd):
    write(pa, tmp_path / "elsewhere" / "0.parquet", [9])
    write(pa, tmp_path / "data" / "train" / "0.parquet", [9, 9], seed=1)
    (tmp_path / "data" / "test").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "train" / "._0.parquet").write_bytes(b"\0\5\x16\7")
    write(pa, tmp_path / "data" / ".ipynb_checkpoints" / "0.parquet", [50])
    announced = []
    store = run(tmp_path / "data", tmp_path / "store", announce=announced.append)
    assert store.num_frames == 27 and sorted(set(store.episodes.split)) == ["test", "train"]
    assert announced == [
        f"Importing 2 files of {tmp_path / 'data'} with 27 rows; test: test/0.parquet; train: train/0.parquet; "
        "left out as hidden: .ipynb_checkpoints, train/._0.parquet."
    ]
    (tmp_path / "maze").symlink_to(tmp_path / "data")  # the environment is called as the link is
    options = ["--shape", "8", "8", "3", "--data", str(tmp_path / "out")]
    assert main(["import-parquet", str(tmp_path / "maze"), *options]) == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / 'out' / 'maze' / 'parquet'}\n" and "test: test/0.parquet; train: train/0.parquet" in err


def test_damaged_files_are_left_out_on_request(pa, tmp_path):
    for number in range(4):
        write(pa, tmp_path / "data" / f"{number}.parquet", seed=number)
    cut, torn = tmp_path / "data" / "1.parquet", tmp_path / "data" / "2.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    flip(torn, 0.4)
    with pytest.raises(common.ImportDataError, match=r"1\.parquet is damaged .* or leave it out with --skip-damaged\."):
        run(tmp_path / "data", tmp_path / "store", done="last")
    announced = []
    store = run(tmp_path / "data", tmp_path / "store", done="last", skip_damaged=True, announce=announced.append)
    want = np.concatenate([episodes(LENGTHS, seed=seed)[0] for seed in (0, 3)])
    np.testing.assert_array_equal(store.observations(), want)
    assert store.policy["skipped_as_damaged"].keys() == {"1.parquet", "2.parquet"}
    assert all(store.policy["skipped_as_damaged"].values())
    assert "left out as damaged: 1.parquet, 2.parquet" in announced[0]
    # A file that is whole and holds what a store cannot keep is refused all the same.
    write(pa, tmp_path / "data" / "3.parquet", reward=np.full(sum(LENGTHS), np.nan))
    with pytest.raises(common.ImportDataError, match=r"3\.parquet does not fit: row 0: column 'reward'"):
        run(tmp_path / "data", tmp_path / "other", done="last", skip_damaged=True)
    for path in (tmp_path / "data").iterdir():
        path.write_bytes(b"PAR1")
    with pytest.raises(common.ImportDataError, match="All 4 files are damaged"):
        run(tmp_path / "data", tmp_path / "other", skip_damaged=True)


# Vectors as actions


@pytest.mark.parametrize("form", ["list", "fixed", "float16"])
def test_lists_become_vectors(pa, tmp_path, form):
    n = sum(LENGTHS)
    vectors = (np.arange(2 * n).reshape(n, 2) % 64 / 8).astype(np.float16 if form == "float16" else np.float64)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 2)
    obs, _, _ = write(pa, tmp_path / "a.parquet", action=fixed if form == "fixed" else pa.array(list(vectors)))
    store = run(tmp_path / "a.parquet", tmp_path / "store", done="last")
    np.testing.assert_array_equal(store.observations(), obs)
    assert store.action_space == Box(*(tuple(each.astype(float).tolist()) for each in (vectors.min(0), vectors.max(0))))
    actions = data.evaluation_actions(store, np.arange(n), length=2)
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, vectors)


def test_vectors_that_do_not_fit_are_refused_by_file_and_row(pa, tmp_path):
    n = sum(LENGTHS)
    vectors = [[0.5, 1.0]] * n
    write(pa, tmp_path / "data" / "0.parquet", action=pa.array(vectors))
    for action, sentence in (
        (pa.array([[0.5]] * n), "its actions are vectors of 1 numbers, and others are vectors of 2 numbers"),
        (pa.array(np.zeros(n, int)), "its actions are integers, and others are vectors of 2 numbers"),
        (pa.array([*vectors[:300], [0.5], *vectors[301:]]), "row 300: column 'action' has actions of different sizes"),
        (pa.array([*vectors[:300], None, *vectors[301:]]), "row 300: column 'action' has rows without a value"),
        (pa.array([*vectors[:300], [0.5, np.nan], *vectors[301:]]), "row 300: column 'action' must hold finite"),
        (pa.array([["left", "up"]] * n), "column 'action' holds string, not numbers"),
    ):
        write(pa, tmp_path / "data" / "1.parquet", action=action)
        with pytest.raises(common.ImportDataError) as error:
            run(tmp_path / "data", tmp_path / "store", done="last")
        assert str(tmp_path / "data" / "1.parquet") in str(error.value) and sentence in str(error.value)


# What may not happen


def test_memory_does_not_grow_with_rows_row_groups_and_episodes(pa, tmp_path, traced_memory):
    program = """
from pathlib import Path
import pyarrow as pa
from lamjax.data.importers.parquet import import_parquet
source, other, stores = map(Path, sys.argv[1:])
def run(path, name):
    import_parquet(path, stores / name, env="toy", shape=(32, 32, 3), done="last")
    return pa.default_memory_pool().max_memory()
few = run(source, "few")
tracemalloc.start()
many = run(other, "many")
assert many < few + 2e6, (few, many)
"""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{rows}.parquet" for rows in (600, 3000)]
    for path, rows in zip(paths, (600, 3000), strict=True):
        obs = rng.integers(0, 256, (rows, 3072), np.uint8)
        column = pa.FixedSizeListArray.from_arrays(pa.array(obs.ravel()), 3072)
        write(pa, path, [rows], observation=column, group=rows)  # 9 MB in one row group and one episode
    assert traced_memory(program, *paths, tmp_path / "stores") < 12e6


def test_no_code_of_a_file_runs(pa, tmp_path):
    import pickle
    import warnings

    import pyarrow.parquet

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    write(pa, tmp_path / "a.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    marked = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Evil())}
    field = table.schema.field("observation").with_metadata(marked)
    schema = table.schema.set(table.schema.get_field_index("observation"), field)
    pyarrow.parquet.write_table(table.cast(schema), tmp_path / "a.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyarrow says that it does not unpickle the type
        store = run(tmp_path / "a.parquet", tmp_path / "store", done="last")
    np.testing.assert_array_equal(store.observations(), episodes(LENGTHS)[0])
    assert not (tmp_path / "ran").exists()
