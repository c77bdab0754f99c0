"""Parquet files of transitions become stores that hold exactly what they held."""

import sys

import numpy as np
import pytest

from lamjax import data
from lamjax.cli import main
from lamjax.data.importers import common, parquet
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
    assert "has no column 'observation' but obs, act, r, dones: name it with --columns.observation NAME" in (
        capfd.readouterr().err
    )


def test_folders_say_the_split(pa, tmp_path):
    write(pa, tmp_path / "data" / "train" / "0.parquet", [9, 9])
    write(pa, tmp_path / "data" / "test" / "0.parquet", [7])
    assert run(tmp_path / "data", tmp_path / "store").episodes.split.tolist() == ["test", "train", "train"]
    write(pa, tmp_path / "data" / "trained.parquet", [7])
    with pytest.raises(common.ImportDataError, match=r"trained\.parquet belongs neither to train nor to test"):
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
        ({"observation": flat.cast(pa.large_list(pa.int32()))}, "holds int32 instead of bytes"),
        ({"observation": pa.array([b"no picture"] * n)}, "a picture that is damaged or no PNG"),
        ({"observation": pa.array([png(np.zeros((9, 8, 3), np.uint8))] * n)}, "a picture of 9 x 8"),
        ({"observation": pa.array([{"path": "x"}] * n)}, "a struct without a field 'bytes'"),
    ):
        write(pa, path, **change)
        found = fails()
        assert str(path) in found and sentence in found
    (tmp_path / "empty").mkdir()
    with pytest.raises(common.ImportDataError, match=r"holds no \.parquet files"):
        run(tmp_path / "empty", tmp_path / "store")


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
