"""Files of latents come back, in any format, with nulls where there is no latent."""

import dataclasses

import numpy as np
import pyarrow.parquet
import pytest

from lamjax.data import latent_files
from lamjax.data.latent_files import LatentFileError, LatentRows


def rows(count=10, continuous=False):
    """Rows of two episodes; the first and the last of each have no latent."""
    rng = np.random.default_rng(0)
    episode, t = np.repeat([0, 1], count // 2).astype(np.int32), np.tile(np.arange(count // 2), 2).astype(np.int32)
    mask = (t > 0) & (t < count // 2 - 1)
    z = np.where(mask[:, None], rng.normal(size=(count, 3)), np.nan).astype(np.float32)
    codes = np.where(mask[:, None], rng.integers(0, 9, (count, 2)), -1).astype(np.int32)
    action = np.where(mask, rng.integers(0, 5, count), -1).astype(np.int32)
    return LatentRows(episode, t, np.where(episode, np.nan, t / 10), mask, z, codes, z[:, :2] if continuous else action)


@pytest.mark.parametrize("ending", latent_files.ENDINGS)
@pytest.mark.parametrize("continuous", [False, True])
def test_they_come_back(tmp_path, ending, continuous):
    path, want = tmp_path / f"latents{ending}", rows(continuous=continuous)
    parts = [
        LatentRows(**{name: column[part] for name, column in want.columns.items()}) for part in np.split(range(10), [3])
    ]
    latent_files.write(path, iter(parts), {"files": ["a", "b"]})
    got, about = latent_files.read(path)
    assert about == {"files": ["a", "b"]} and [each.name for each in tmp_path.iterdir()] == [path.name]
    for name, column in want.columns.items():
        assert got.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(got.columns[name], column, name)


def test_optional_columns_stay_away(tmp_path):
    want = dataclasses.replace(rows(), codes=None, action=None)
    for ending in latent_files.ENDINGS:
        latent_files.write(tmp_path / f"latents{ending}", [want], {})
        assert latent_files.read(tmp_path / f"latents{ending}")[0].columns.keys() == want.columns.keys()


def test_parquet_has_nulls(tmp_path):
    latent_files.write(tmp_path / "latents.parquet", [rows()], {})
    table = pyarrow.parquet.read_table(tmp_path / "latents.parquet")
    assert table.column_names == ["episode", "t", "seconds", "z", "codes", "action"]
    assert {name: table[name].null_count for name in table.column_names} == {
        "episode": 0, "t": 0, "seconds": 5, "z": 4, "codes": 4, "action": 4,
    }  # fmt: skip
    assert table["z"][0].as_py() is None and len(table["z"][1].as_py()) == 3


@pytest.mark.parametrize("ending", latent_files.ENDINGS)
def test_what_is_damaged_or_missing_is_named(tmp_path, ending):
    path = tmp_path / f"latents{ending}"
    with pytest.raises(FileNotFoundError):
        latent_files.read(path)
    latent_files.write(path, [rows()], {})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(LatentFileError, match=rf"latents{ending} cannot be read as latents \("):
        latent_files.read(path)


def test_columns_that_do_not_fit_are_named(tmp_path):
    columns = rows().columns
    for change, sentence in (({"z": None}, "has no column 'z'"), ({"t": columns["t"][:4]}, "has 4 rows of 't' and 10")):
        changed = {name: column for name, column in (columns | change).items() if column is not None}
        np.savez(tmp_path / "latents.npz", **changed)
        with pytest.raises(LatentFileError, match=sentence):
            latent_files.read(tmp_path / "latents.npz")


def test_names_that_cannot_be(tmp_path):
    with pytest.raises(LatentFileError, match=r"latents\.csv must end in \.parquet, \.npz or \.safetensors"):
        latent_files.check_name(tmp_path / "latents.csv")
    with pytest.raises(LatentFileError, match="There is no folder"):
        latent_files.check_name(tmp_path / "none" / "latents.npz")
