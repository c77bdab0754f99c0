"""LeRobot data sets become stores that hold exactly the frames, actions and rewards of one camera."""

import json
import sys

import numpy as np
import pytest

from lamjax import data
from lamjax.cli import main
from lamjax.data import timestamps
from lamjax.data.importers import common
from lamjax.data.importers.clips import ClipConfig
from lamjax.data.importers.errors import ImportDataError
from lamjax.data.importers.lerobot import import_lerobot
from tests.data.importers.lerobot_sets import CAMERAS, FPS, write_lerobot, write_table

LENGTHS = (12, 20, 15, 9)
SMALL = ClipConfig(size=(16,))


@pytest.fixture(scope="module", params=["v2.1", "v3.0"])
def source(request, tmp_path_factory):
    """A data set, its version, and what it holds; tests do not change it."""
    root = tmp_path_factory.mktemp(request.param) / "push"
    frames, columns = write_lerobot(root, request.param)
    return root, request.param, frames, columns


@pytest.fixture(params=["v2.1", "v3.0"])
def own(request, tmp_path):
    """The same to change."""
    frames, columns = write_lerobot(tmp_path / "push", request.param, cameras=CAMERAS)
    return tmp_path / "push", request.param, frames, columns


def imported(root, out, **options):
    import_lerobot(root, out, env="push", **{"config": SMALL, **options})
    return data.open_store(out)


def actions_of(store):
    return data.evaluation_actions(store, np.arange(store.num_frames), length=2)


def change_info(root, **changes):
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_frame_and_every_action_arrives(source, tmp_path):
    root, version, frames, columns = source
    listed, calls = [], []
    tell = {"announce": listed.append, "progress": lambda *call: calls.append(call)}
    store = imported(root, tmp_path / "store", **tell)
    np.testing.assert_array_equal(store.observations(), frames)
    np.testing.assert_array_equal(actions_of(store), columns["action"])
    assert store.has_actions and store.action_space.low == tuple(columns["action"].min(0).tolist())
    assert tuple(store.episodes.length) == LENGTHS and set(store.episodes.ending) == {"terminated"}
    assert set(store.episodes.split) == {"train", "test"}  # though the data set holds out none
    ends = np.cumsum(LENGTHS)
    returns = [columns["next.reward"][end - n : end].sum() for n, end in zip(LENGTHS, ends, strict=True)]
    assert store.episodes.returns.tolist() == returns
    np.testing.assert_allclose(timestamps.seconds_of(store), columns["timestamp"], atol=1e-6)
    names = timestamps.files_of(store)
    assert [name.rpartition(" ")[2] for name in names] == ["0", "1", "2", "3"] and names[0].startswith("videos/")
    about = {name: store.policy[name] for name in ("format", "version", "camera", "action", "fps")}
    want = {"format": "lerobot", "version": version, "camera": CAMERAS[0], "action": "action", "fps": FPS}
    assert about == want and store.policy["video"]["size"] == [16, 16]
    count = 4 if version == "v2.1" else 2
    assert len(listed) == 1 and f"Importing {count} files of {root} with 56 frames in 4 episodes" in listed[0]
    assert calls[-1] == (56, 56)


def test_with_a_stride_rewards_are_added_up(source, tmp_path):
    root, _, frames, columns = source
    store = imported(root, tmp_path / "store", config=ClipConfig(size=(16,), stride=3))
    ends = np.cumsum(LENGTHS)
    kept = np.concatenate([np.arange(end - n, end, 3) for n, end in zip(LENGTHS, ends, strict=True)])
    np.testing.assert_array_equal(store.observations(), frames[kept])
    np.testing.assert_array_equal(actions_of(store), columns["action"][kept])
    assert sum(store.episodes.returns) == columns["next.reward"].sum()
    slower = imported(root, tmp_path / "slower", config=ClipConfig(size=(16,), fps=5))
    every_other = np.concatenate([np.arange(end - n, end, 2) for n, end in zip(LENGTHS, ends, strict=True)])
    np.testing.assert_array_equal(slower.observations(), frames[every_other])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_pictures_in_the_parquet_files(version, tmp_path):
    frames, columns = write_lerobot(tmp_path / "push", version, pictures=True)
    store = imported(tmp_path / "push", tmp_path / "store")
    np.testing.assert_array_equal(store.observations(), frames)
    np.testing.assert_array_equal(actions_of(store), columns["action"])
    assert tuple(store.episodes.length) == LENGTHS
    every_third = ClipConfig(size=(16,), stride=3)
    kept = np.concatenate([np.arange(end - n, end, 3) for n, end in zip(LENGTHS, np.cumsum(LENGTHS), strict=True)])
    strided = imported(tmp_path / "push", tmp_path / "strided", config=every_third)
    np.testing.assert_array_equal(strided.observations(), frames[kept])
    path = sorted((tmp_path / "push" / "data").rglob("*.parquet"))[0]
    rows = slice(LENGTHS[0] if version == "v2.1" else sum(LENGTHS[:3]))
    whole = [each["bytes"] for each in columns[CAMERAS[0]]]
    for content, sentence in ((whole[7][:90], "row 7: column .* has an image that is damaged"), (None, "no image")):
        spoilt = [{"bytes": content if row == 7 else each, "path": "frame.png"} for row, each in enumerate(whole)]
        write_table(path, {name: each[rows] for name, each in (columns | {CAMERAS[0]: spoilt}).items()})
        with pytest.raises(ImportDataError, match=sentence):
            imported(tmp_path / "push", tmp_path / "other")


class StopError(Exception):
    pass


def test_an_interrupted_import_goes_on(source, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CHECKPOINT_FRAMES", 40)
    root = source[0]

    def stop(rows, _):
        if rows > 40:
            raise StopError

    with pytest.raises(StopError):
        imported(root, tmp_path / "store", progress=stop)
    seen = []
    store = imported(root, tmp_path / "store", progress=lambda rows, _: seen.append(rows))
    assert seen[0] > 12  # the first episode was not read again
    whole = imported(root, tmp_path / "whole")
    assert store.manifest["files"] == whole.manifest["files"]
    assert store.manifest["episodes"] == whole.manifest["episodes"]


def test_one_camera_is_chosen_by_its_name(own, tmp_path):
    root, _, frames, _ = own
    with pytest.raises(ImportDataError, match=r"has several cameras: choose one with --camera .*top \| .*wrist"):
        imported(root, tmp_path / "store")
    with pytest.raises(ImportDataError, match=r"has no camera 'front', only .*\.top, .*\.wrist: choose with --camera"):
        imported(root, tmp_path / "store", camera="front")
    for camera in ("top", CAMERAS[0]):
        store = imported(root, tmp_path / f"store{len(camera)}", camera=camera)
        np.testing.assert_array_equal(store.observations(), frames)
    wrist = imported(root, tmp_path / "wrist", camera="wrist").observations()
    assert wrist.shape == frames.shape and (wrist != frames).any()


def test_the_data_sets_own_splits(own, tmp_path):
    root, *_ = own
    change_info(root, splits={"train": "0:2", "test": "2:4"})
    store = imported(root, tmp_path / "store", camera="top")
    assert store.episodes.split.tolist() == ["train", "train", "test", "test"]
    change_info(root, splits={"test": "the last"})
    with pytest.raises(ImportDataError, match=r"info\.json is damaged \(the split 'the last' is not a range"):
        imported(root, tmp_path / "other", camera="top")


def test_damaged_and_missing_files_are_named_or_left_out(own, tmp_path):
    root, version, frames, _ = own
    pattern = "videos/*/*top/episode_000001.mp4" if version == "v2.1" else "videos/*top/*/file-001.mp4"
    (video,) = root.glob(pattern)
    kept = [0, 2, 3] if version == "v2.1" else [0, 1, 2]
    ends = np.cumsum(LENGTHS)
    rows = np.concatenate([np.arange(ends[i] - LENGTHS[i], ends[i]) for i in kept])
    whole = video.read_bytes()
    for number, (content, sentence) in enumerate(
        (
            (whole[: len(whole) * 4 // 5], "is damaged"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run git lfs pull"),
            (None, "is damaged (it is missing)"),
        )
    ):
        video.unlink() if content is None else video.write_bytes(content)
        with pytest.raises(ImportDataError) as error:
            imported(root, tmp_path / "store", camera="top")
        assert str(video) in str(error.value) and sentence in str(error.value)
        store = imported(root, tmp_path / str(number), camera="top", skip_damaged=True)
        np.testing.assert_array_equal(store.observations(), frames[rows])
        assert len(store.policy["skipped_as_damaged"]) == 1
        assert "episode" in next(iter(store.policy["skipped_as_damaged"]))


def test_a_video_that_is_shorter_than_its_episode_is_named(tmp_path):
    root = tmp_path / "push"
    write_lerobot(root, "v2.1")
    videos = root / "videos/chunk-000" / CAMERAS[0]
    (videos / "episode_000003.mp4").rename(videos / "episode_000001.mp4")
    with pytest.raises(ImportDataError, match=r"000001\.mp4 is damaged \(episode 1 needs a frame at 0\.900 s"):
        imported(root, tmp_path / "store")


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_values_that_do_not_fit_are_named(version, tmp_path):
    root, total = tmp_path / "push", sum(LENGTHS)
    _, columns = write_lerobot(root, version)
    path = sorted((root / "data").rglob("*.parquet"))[0]
    rows = slice(LENGTHS[0] if version == "v2.1" else total - LENGTHS[-1])
    spoilt = columns["action"].copy()
    spoilt[5, 2] = np.nan
    timestamp = columns["timestamp"].copy()
    timestamp[4] = 0
    for changes, sentence in (
        ({"action": spoilt}, "row 5: column 'action' must hold finite float32 numbers, got nan"),
        ({"next.reward": np.full(total, np.inf)}, "episode 0, row 0: column 'next.reward' must hold finite"),
        ({"episode_index": columns["episode_index"] + 1}, "it has 0 rows of episode 0 instead of 12"),
        ({"timestamp": timestamp}, "the time stamps of episode 0 do not ascend"),
        ({"timestamp": columns["action"]}, "column 'timestamp' has 3 numbers per row instead of one"),
        ({"action": None}, "has no column 'action', only observation.state"),
    ):
        table = {name: each[rows] for name, each in (columns | changes).items() if each is not None}
        write_table(path, table)
        with pytest.raises(ImportDataError) as error:
            imported(root, tmp_path / "store")
        assert sentence in str(error.value)
        assert str(root) in str(error.value) and not (tmp_path / "store").exists()


def test_damaged_descriptions_are_named(own, tmp_path):
    root, version, _, _ = own

    def fails(sentence):
        with pytest.raises(ImportDataError) as error:
            imported(root, tmp_path / "store", camera="top")
        assert sentence in str(error.value) and str(root) in str(error.value)

    info = json.loads((root / "meta" / "info.json").read_text())
    features = {name: each for name, each in info["features"].items() if name not in CAMERAS}
    for changes, sentence in (
        ({"codebase_version": "v1.6"}, "has version v1.6, but only versions 2 and 3"),
        ({"fps": None}, "lacks features or fps"),
        ({"features": features}, "has no camera: none of its features is a video or an image"),
        ({"data_path": "data/{nothing}.parquet"}, "is not a valid pattern"),
        ({"video_path": "../videos/{video_key}.mp4"}, "points outside the data set"),
        ({"features": {n: f for n, f in info["features"].items() if n != "action"}}, "has no feature 'action', only"),
    ):
        change_info(root, **(info | changes))
        fails(sentence)
    change_info(root, **info)
    (path,) = (root / "meta").rglob("episodes.jsonl" if version == "v2.1" else "file-000.parquet")
    path.write_bytes(path.read_bytes()[:-30])
    fails("is damaged")
    path.unlink()
    fails("it is missing" if version == "v2.1" else "holds no .parquet files")
    (root / "meta" / "info.json").write_text("{")
    fails("info.json is damaged (it is not JSON")
    (root / "meta" / "info.json").unlink()
    fails("is not a LeRobot data set: it has no meta/info.json")


def test_the_command(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["import-lerobot", str(source[0]), "--camera", "top", "--size", "16", "--stride", "2"]) == 0
    out, err = capsys.readouterr()
    assert out == "data/push/lerobot\n" and "in 4 episodes" in err
    assert data.open_store("data/push/lerobot").obs_shape == (16, 16, 3)


@pytest.mark.parametrize(("package", "extra"), [("pyarrow", "import"), ("av", "video")])
def test_without_a_package_it_says_what_to_install(source, tmp_path, monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.parquet", None)
    with pytest.raises(ImportError, match=rf'pip install "lamjax\[{extra}\]"\.$'):
        imported(source[0], tmp_path / "store")
