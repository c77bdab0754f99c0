"""The page on one's own data: each import that it shows runs as it is written, on a source in that format."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from lamjax import data
from lamjax.cli import main
from tests.data.importers.lerobot_sets import write_lerobot
from tests.data.importers.sources import episodes, lapo_file, marks
from tests.data.importers.videos import noise

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text()
COMMANDS = re.findall(r"^lamjax (.*)$", "\n".join(re.findall(r"```\n(.*?)```", PAGE, re.S)), re.M)
IMPORTS = [words for words in map(shlex.split, COMMANDS) if words[0].startswith("import-")]
LENGTHS = [12, 9, 15]


def write_lapo(path):
    for split in ("train", "test"):
        lapo_file(path / split / "0.npz", LENGTHS)


def write_parquet(path):
    import pyarrow
    import pyarrow.parquet

    obs, _, reward = episodes(LENGTHS, shape=(64, 64, 3))
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(obs.ravel()), 64 * 64 * 3)
    table = {"observation": column, "action": list(np.ones((len(obs), 2))), "reward": reward}
    path.mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table | {"done": marks(LENGTHS, "last", len(obs))}), path / "0.parquet")


def write_robomimic(path):
    with pytest.importorskip("h5py").File(path, "w") as file:
        for number, length in enumerate(LENGTHS):
            group = file.create_group(f"data/demo_{number}")
            group["obs/agentview_image"], group["obs/wrist_image"] = noise(length), noise(length)
            group["actions"] = np.ones((length, 7))


SOURCES = {
    "import-lapo": write_lapo,
    "import-lerobot": lambda path: write_lerobot(path, "v3.0", cameras=("observation.images.top", "observation.wrist")),
    "import-hdf5": write_robomimic,
    "import-parquet": write_parquet,
}


def test_the_page_shows_every_import_and_trains_on_its_result():
    assert [words[0] for words in IMPORTS] == list(SOURCES)
    stores = [words[words.index("--store") + 1] for words in map(shlex.split, COMMANDS) if "--store" in words]
    assert len(stores) == len(IMPORTS)


@pytest.mark.parametrize("words", IMPORTS, ids=lambda words: words[0])
def test_an_import_of_the_page_runs(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    SOURCES[words[0]](tmp_path / words[1])
    assert main(words) == 0
    out = capsys.readouterr().out.strip()
    assert f"--store {out}\n" in PAGE  # the command below trains on it
    store = data.open_store(out)
    assert store.has_actions and store.num_frames >= sum(LENGTHS)
