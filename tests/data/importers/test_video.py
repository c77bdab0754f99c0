"""Videos become stores without actions: an episode a file, held out by file, with time stamps."""

import numpy as np
import pytest
from PIL import Image

from lamjax import data
from lamjax.cli import main
from lamjax.data import timestamps
from lamjax.data.importers import common
from lamjax.data.importers.clips import ClipConfig, look_at
from lamjax.data.importers.errors import ImportDataError
from lamjax.data.importers.video import import_video, read_rows
from lamjax.spaces import Discrete
from tests.data.importers.videos import noise, write_video

SMALL = ClipConfig(size=(16,))


def write_clips(folder, count=3, frames=12):
    """Writes ``0.mkv``, ``1.mkv``, ...; returns their frames."""
    return [write_video(folder / f"{n}.mkv", noise(frames + n, seed=n)) for n in range(count)]


def imported(folder, out, **options):
    import_video([folder], out, env="clips", **{"config": SMALL, **options})
    return data.open_store(out)


def test_every_frame_of_every_file_arrives(tmp_path):
    clips = write_clips(tmp_path / "clips")
    listed, calls = [], []
    tell = {"announce": listed.append, "progress": lambda *call: calls.append(call)}
    store = imported(tmp_path / "clips", tmp_path / "store", **tell)
    np.testing.assert_array_equal(store.observations(), np.concatenate(clips))
    assert store.episodes.length.tolist() == [12, 13, 14] and set(store.episodes.ending) == {"cut"}
    assert (store.env, store.action_space, store.obs_shape) == ("clips", Discrete(1), (16, 16, 3))
    assert timestamps.files_of(store) == ["0.mkv", "1.mkv", "2.mkv"]
    seconds = np.concatenate([np.arange(n) / 10 for n in (12, 13, 14)])
    np.testing.assert_allclose(timestamps.seconds_of(store), seconds, atol=1e-3)
    assert store.policy["video"] == {"fps": None, "stride": 1, "size": [16, 16], "crop": [], "square": False}
    assert len(listed) == 1 and "3 files of" in listed[0] and "with 39 frames" in listed[0] and "2.mkv" in listed[0]
    assert calls[-1] == (39, 39)


def test_a_store_that_was_written_as_lossless_video_comes_back_with_the_same_digests(tmp_path):
    clips = write_clips(tmp_path / "clips")
    options = {"obs_shape": (16, 16, 3), "num_actions": 1, "env": "clips"}
    with data.StoreWriter(tmp_path / "recorded", **options) as writer:
        for level, frames in enumerate(clips):
            writer.append_episode(frames, np.zeros(len(frames), int), np.zeros(len(frames)), level, "cut")
    recorded, store = data.open_store(tmp_path / "recorded"), imported(tmp_path / "clips", tmp_path / "store")
    digests = [
        {name: digest for name, digest in each.manifest["files"].items() if name.startswith("observations/c")}
        for each in (recorded, store)
    ]
    assert digests[0] and digests[0] == digests[1]


def test_whole_files_are_held_out(tmp_path):
    write_clips(tmp_path / "clips")
    store = imported(tmp_path / "clips", tmp_path / "store")
    assert sorted(store.episodes.split) == ["test", "train", "train"]
    # The same names are held out again, whatever lies beside them, unless none would be.
    write_video(tmp_path / "clips" / "z.mkv", noise())
    again = imported(tmp_path / "clips", tmp_path / "again")
    assert set(again.episodes.split) == {"train", "test"}


def test_names_say_the_split(tmp_path):
    write_video(tmp_path / "clips" / "train" / "a.mkv", noise())
    write_video(tmp_path / "clips" / "test" / "b.mkv", noise())
    store = imported(tmp_path / "clips", tmp_path / "store")
    assert store.episodes.split.tolist() == ["test", "train"]
    write_video(tmp_path / "clips" / "c.mkv", noise())
    with pytest.raises(ImportDataError, match=r"c\.mkv belongs to neither train nor test by its name"):
        imported(tmp_path / "clips", tmp_path / "other")


def test_of_a_single_file_the_end_is_held_out(tmp_path):
    frames = write_video(tmp_path / "a.mkv", noise(40))
    import_video([tmp_path / "a.mkv"], tmp_path / "store", env="a", config=SMALL)
    store = data.open_store(tmp_path / "store")
    np.testing.assert_array_equal(store.observations(), frames)
    assert store.episodes.split.tolist() == ["train", "test"] and store.episodes.length.tolist() == [36, 4]
    np.testing.assert_allclose(timestamps.seconds_of(store), np.arange(40) / 10, atol=1e-3)
    assert "the end of the only file is held out" in store.env_params["split"]


def test_videos_and_folders_of_pictures_together(tmp_path):
    frames = write_video(tmp_path / "clips" / "a.mkv", noise())
    Image.fromarray(frames[0]).save(tmp_path / "clips" / "thumbnail.png")
    pictures = noise(5, seed=1)
    for number, picture in enumerate(pictures):
        (tmp_path / "clips" / "walk").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "clips" / "walk" / f"{number}.png")
    store = imported(tmp_path / "clips", tmp_path / "store")
    np.testing.assert_array_equal(store.observations(), np.concatenate([frames, pictures]))
    assert timestamps.files_of(store) == ["a.mkv", "walk"]
    assert np.isnan(timestamps.seconds_of(store)).tolist() == [False] * 12 + [True] * 5


def test_a_damaged_file_is_named_or_left_out(tmp_path):
    clips = write_clips(tmp_path / "clips")
    path = tmp_path / "clips" / "1.mkv"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImportDataError, match=r"1\.mkv is damaged \("):
        imported(tmp_path / "clips", tmp_path / "store")
    assert not (tmp_path / "store").exists()
    store = imported(tmp_path / "clips", tmp_path / "store", skip_damaged=True)
    np.testing.assert_array_equal(store.observations(), np.concatenate([clips[0], clips[2]]))
    assert list(store.policy["skipped_as_damaged"]) == ["1.mkv"]


def shots(lengths, seed=0):
    """Frames ``[N, 16, 16, 3]`` of shots that move a little, each of another scene."""
    rng = np.random.default_rng(seed)
    scenes = [np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((8, 8, 1), int)).astype(np.uint8) for _ in lengths]
    return np.stack([np.roll(scene, t, 1) for scene, n in zip(scenes, lengths, strict=True) for t in range(n)])


def test_files_are_cut_where_the_scene_changes(tmp_path):
    frames = shots([12, 9, 15])
    write_video(tmp_path / "clips" / "a.mkv", frames)
    write_video(tmp_path / "clips" / "b.mkv", shots([8], seed=1))
    whole = imported(tmp_path / "clips", tmp_path / "whole")
    assert whole.episodes.length.tolist() == [36, 8] and whole.policy["scenes"] == 0
    store = imported(tmp_path / "clips", tmp_path / "store", scenes=10)
    np.testing.assert_array_equal(store.observations(), whole.observations())
    assert store.episodes.length.tolist() == [12, 9, 15, 8]
    assert store.episodes.ending.tolist() == ["truncated", "truncated", "cut", "cut"] and store.policy["scenes"] == 10
    assert len(set(store.episodes.split[:3])) == 1  # a file is held out as a whole
    assert timestamps.files_of(store) == ["a.mkv", "a.mkv", "a.mkv", "b.mkv"]
    seconds = np.concatenate([np.arange(36) / 10, np.arange(8) / 10])  # from the file's beginning, not the scene's
    np.testing.assert_allclose(timestamps.seconds_of(store), seconds, atol=1e-3)
    for scenes in (-1, 101):
        with pytest.raises(ImportDataError, match="--scenes must be a percentage"):
            imported(tmp_path / "clips", tmp_path / "other", scenes=scenes)


def test_scenes_are_the_same_wherever_reading_begins(tmp_path):
    write_video(tmp_path / "a.mkv", shots([7, 1, 9, 1, 1, 12]))
    clip = look_at(tmp_path / "a.mkv", SMALL)
    whole = np.concatenate([rows.done for rows in read_rows(clip, 0, 10.0)])
    assert whole.any()
    for start in range(clip.rows + 1):
        rest = [rows.done for rows in read_rows(clip, start, 10.0)]
        np.testing.assert_array_equal(np.concatenate([whole[:0], *rest]), whole[start:])


class StopError(Exception):
    pass


def test_an_interrupted_import_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CHECKPOINT_FRAMES", 40)
    clips = write_clips(tmp_path / "clips", count=5)
    seen = []

    def stop(rows, _):
        seen.append(rows)
        if rows > 40:
            raise StopError

    with pytest.raises(StopError):
        imported(tmp_path / "clips", tmp_path / "store", progress=stop)
    seen.clear()
    store = imported(tmp_path / "clips", tmp_path / "store", progress=lambda rows, _: seen.append(rows))
    assert seen[0] > 12  # the first file was not read again
    np.testing.assert_array_equal(store.observations(), np.concatenate(clips))
    whole = imported(tmp_path / "clips", tmp_path / "whole")
    digests = [each.manifest["files"] for each in (store, whole)]
    assert digests[0] == digests[1]


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    for path, sentence in (
        (tmp_path / "none", "There is no "),
        (tmp_path / "notes.txt", "is not a video by its name"),
        (tmp_path, "holds no videos and no images: check the path"),
    ):
        with pytest.raises(ImportDataError, match=sentence):
            import_video([path], tmp_path / "store", env="a")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / "clips")
    assert main(["import-video", "clips", "--size", "16", "12", "--fps", "5"]) == 0
    out, err = capsys.readouterr()
    assert out == "data/clips/video\n" and "Importing 3 files" in err
    store = data.open_store("data/clips/video")
    assert (store.obs_shape, store.env, store.episodes.length.tolist()) == ((16, 12, 3), "clips", [6, 7, 7])
    assert main(["import-video"]) == 2
    assert capsys.readouterr().err == "lamjax: Give videos, or folders of videos or images.\n"
