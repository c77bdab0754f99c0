"""The page on one's own video takes a folder of videos to labelled latents, command by command."""

import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lamjax import data
from lamjax.cli import main
from lamjax.data import latent_files
from tests.data.importers.videos import write_video

PAGE = (Path(__file__).parents[2] / "docs" / "own_video.md").read_text()
COMMANDS = re.findall(r"^lamjax (.*)$", "\n".join(re.findall(r"```\n(.*?)```", PAGE, re.S)), re.M)
FRAMES = 24


def clips(folder):
    """Three videos of a square that moves at random, and the actions that move it, one a frame."""
    rng = np.random.default_rng(0)
    moves = np.array([[0, 0], [0, 3], [3, 0]])
    actions = rng.integers(0, 3, (3, FRAMES))
    for number, row in enumerate(actions):
        place, frames = np.array([5, 5]), np.zeros((FRAMES, 72, 96, 3), np.uint8)
        for t, action in enumerate(row):
            frames[t, place[0] : place[0] + 12, place[1] : place[1] + 12] = (200, 120, 40)
            place = (place + moves[action]) % [60, 84]
        write_video(folder / f"{number}.mp4", frames, "libx264", "yuv420p", rate=10)
    return actions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which every command of the page has run, with the smallest networks."""
    folder = tmp_path_factory.mktemp("video")
    actions = clips(folder / "clips")
    episode, t = np.repeat(np.arange(3), FRAMES), np.tile(np.arange(FRAMES), 3)
    table = pyarrow.table({"episode": episode, "t": t, "action": actions.reshape(-1)})
    pyarrow.parquet.write_table(table, folder / "actions.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS:
            words = shlex.split(command.replace("cpu-s0", "smoke-s0"))
            assert main(words + (["--preset", "smoke"] if words[0] == "train" else [])) == 0, command
    return folder


def test_the_page_has_every_step():
    verbs = [shlex.split(command)[0] for command in COMMANDS]
    assert verbs == ["import-video", "train", "label", "probe", "probe", "label", "export", "label"]


def test_every_frame_is_labelled(folder):
    store = data.open_store(folder / "data" / "clips" / "video")
    assert store.obs_shape == (64, 64, 3) and sorted(store.episodes.split) == ["test", "train", "train"]
    rows, about = latent_files.read(folder / "latents.parquet")
    assert len(rows) == 3 * FRAMES and rows.mask.sum() == 3 * (FRAMES - 2)
    assert about["files"] == ["0.mp4", "1.mp4", "2.mp4"]
    np.testing.assert_allclose(rows.seconds, rows.t / 10, atol=1e-3)
    # The model that was shared labels as the run does.
    again, _ = latent_files.read(folder / "latents.npz")
    np.testing.assert_array_equal(again.z, rows.z)
    shipped, about = latent_files.read(folder / "coinrun.npz")
    assert shipped.z.shape == (FRAMES, 32) and shipped.action is not None and about["model"]["env"] == "coinrun"


def test_the_report_and_the_card_have_baselines_and_no_returns(folder):
    page = (folder / "runs" / "clips" / "smoke-s0" / "report.html").read_text()
    assert "copy last" in page and "Return" not in page.split('<section id="numbers">')[0]
    card = (folder / "model" / "README.md").read_text()
    assert "copy the last frame" in card and "from videos" in card


def test_the_pages_python_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {"frames": data.open_store(folder / "data" / "clips" / "video").observations(0, 8)}
    exec(code, names)
    assert names["following"].shape == (6, 64, 64, 3)
