"""Which frames of a video are kept, when each is shown, and that their pixels are those that were written."""

import dataclasses
import sys

import numpy as np
import pytest
from PIL import Image

from lamjax.data.importers.clips import ClipConfig, look_at, read_frames, shown_at
from lamjax.data.importers.errors import DamagedFileError, ImportDataError
from tests.data.importers.videos import noise, quarters, write_video

SMALL = ClipConfig(size=(16,))
COLOURS = np.array([252, 252, 255], np.uint8)  # which a palette of 256 holds, together with black


def frames_of(path, config=SMALL, start=0):
    clip = look_at(path, config)
    frames = np.concatenate(list(read_frames(clip, start)))
    assert len(frames) == clip.rows - start == len(clip.seconds) - start
    return frames


# Pixels


@pytest.mark.parametrize(
    ("name", "frames", "codec", "pixels"),
    [
        ("rgb.mkv", noise(), "ffv1", "bgr0"),
        ("grey.mkv", noise(channels=1)[..., 0], "ffv1", "gray"),
        ("palette.gif", noise() // 128 * COLOURS, "gif", "rgb8"),
    ],
)
def test_what_is_written_without_loss_comes_back(tmp_path, name, frames, codec, pixels):
    write_video(tmp_path / name, frames, codec, pixels)
    want = frames if frames.ndim == 4 else frames[..., None].repeat(3, -1)
    np.testing.assert_array_equal(frames_of(tmp_path / name), want)


def test_what_is_transparent_becomes_black(tmp_path):
    frames = noise(channels=4)
    frames[..., 3] = np.where(frames[..., 3] < 128, 0, 255)
    write_video(tmp_path / "alpha.mkv", frames, pixels="bgra")
    np.testing.assert_array_equal(frames_of(tmp_path / "alpha.mkv"), frames[..., :3] * (frames[..., 3:] > 0))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_rotated_video_is_upright(tmp_path, turns):
    frames = write_video(tmp_path / "phone.mp4", quarters(), "libx264", "yuv420p", rotation=90 * turns, crf=4)
    upright = np.rot90(frames, turns, axes=(1, 2))
    seen = frames_of(tmp_path / "phone.mp4", ClipConfig(size=upright.shape[1:3]))
    assert np.abs(seen.astype(int) - upright).mean() < 6  # colours are subsampled along edges


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("libvpx-vp9", "webm"), ("mpeg4", "avi")])
def test_a_video_of_odd_size_is_scaled_as_a_whole(tmp_path, codec, suffix):
    path = tmp_path / f"odd.{suffix}"
    write_video(path, quarters(height=45, width=63), codec, "yuv444p" if codec == "libx264" else "yuv420p")
    seen = frames_of(path).astype(int)
    for (y, x), colour in {(2, 2): (200, 40, 40), (12, 2): (40, 200, 40), (2, 12): (40, 40, 200)}.items():
        assert np.abs(seen[:, y, x] - colour).max() < 30


def test_one_field_of_an_interlaced_video_is_kept(tmp_path):
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    frames[:, 1::2] = 255  # what moved between the fields
    write_video(tmp_path / "tv.mkv", frames, "libx264", "yuv444p", crf=1, **{"x264-params": "tff=1"})
    assert frames_of(tmp_path / "tv.mkv").max() < 20


def test_parts_of_the_picture(tmp_path):
    frames = write_video(tmp_path / "a.mkv", noise(height=20, width=34))
    part = frames_of(tmp_path / "a.mkv", ClipConfig(size=(16, 12), crop=(3, 21, 16, 12)))
    np.testing.assert_array_equal(part, frames[:, 3:19, 21:33])
    middle = frames_of(tmp_path / "a.mkv", ClipConfig(size=(20,), square=True))
    np.testing.assert_array_equal(middle, frames[:, :, 7:27])
    with pytest.raises(ImportDataError, match=r"has frames of 20 x 34, but the region to keep ends at row 19 and col"):
        frames_of(tmp_path / "a.mkv", ClipConfig(crop=(3, 21, 16, 14)))


# Times


def test_what_a_player_shows():
    times = np.array([0.0, 0.1, 0.4, 0.45, 0.5])
    assert shown_at(times, 10).tolist() == [0, 1, 1, 1, 2, 4]
    assert shown_at(times, 5).tolist() == [0, 1, 2]
    assert shown_at(np.array([0.3]), 5).tolist() == [0]
    thirds = np.round(np.arange(30) / 30, 3)  # as some files round them
    assert shown_at(thirds, 10).tolist() == list(range(0, 30, 3))
    assert shown_at(thirds, 30).tolist() == list(range(30))


def test_frames_are_chosen_by_their_time_stamps(tmp_path):
    times = np.cumsum([0, 1, 3, 1, 1, 4, 1, 2, 1, 1, 5, 1])
    frames = write_video(tmp_path / "a.mkv", noise(), times=times)
    clip = look_at(tmp_path / "a.mkv", SMALL)
    np.testing.assert_allclose(clip.seconds, times / 10, atol=1e-3)
    at_5 = ClipConfig(size=(16,), fps=5)
    chosen = shown_at(times / 10, 5)
    np.testing.assert_array_equal(frames_of(tmp_path / "a.mkv", at_5), frames[chosen])
    np.testing.assert_allclose(look_at(tmp_path / "a.mkv", at_5).seconds, times[chosen] / 10, atol=1e-3)
    every_third = ClipConfig(size=(16,), fps=5, stride=3)
    np.testing.assert_array_equal(frames_of(tmp_path / "a.mkv", every_third), frames[chosen[::3]])


@pytest.mark.parametrize("start", [0, 5, 11, 12])
def test_a_clip_can_be_read_from_any_row(tmp_path, start):
    frames = write_video(tmp_path / "a.mkv", noise())
    clip = look_at(tmp_path / "a.mkv", SMALL)
    rest = list(read_frames(clip, start))
    np.testing.assert_array_equal(np.concatenate([frames[:0], *rest]), frames[start:])
    halves = dataclasses.replace(clip, held_out=8)
    assert [halves.split_at(row) for row in (0, 7, 8, 11)] == ["train", "train", "test", "test"]
    assert [np.flatnonzero(halves.begins(row, 4)).tolist() for row in (0, 4, 5, 8)] == [[], [], [3], [0]]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mp4", "libx264", {"g": 7, "bf": 3}), ("a.ts", "libx264", {"g": 7}), ("a.avi", "mpeg4", {"g": 7})],
)
def test_where_reading_begins_changes_no_pixel(tmp_path, name, codec, options):
    write_video(tmp_path / name, noise(40), codec, "yuv420p", **options)
    frames = frames_of(tmp_path / name)
    for start in (1, 7, 20, 39):
        np.testing.assert_array_equal(frames_of(tmp_path / name, start=start), frames[start:])


# Pictures


def test_a_folder_of_pictures_in_the_order_of_their_numbers(tmp_path):
    frames = noise(11)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    np.testing.assert_array_equal(frames_of(tmp_path), frames)
    assert np.isnan(look_at(tmp_path, SMALL).seconds).all()
    np.testing.assert_array_equal(look_at(tmp_path, ClipConfig(fps=4)).seconds, np.arange(11) / 4)
    path = tmp_path / "frame7.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DamagedFileError, match=r"frame7\.png is damaged \("):
        frames_of(tmp_path)


def test_pictures_of_all_kinds(tmp_path):
    frame = noise(1, channels=4)[0]
    frame[..., 3] = np.where(frame[..., 3] < 128, 0, 255)
    Image.fromarray(frame).save(tmp_path / "0.png")
    Image.fromarray(frame[..., 0]).save(tmp_path / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise
    Image.fromarray(frame[..., :3]).save(tmp_path / "2.png", exif=exif)
    transparent, grey, turned = frames_of(tmp_path)
    np.testing.assert_array_equal(transparent, frame[..., :3] * (frame[..., 3:] > 0))
    np.testing.assert_array_equal(grey, frame[..., :1].repeat(3, -1))
    np.testing.assert_array_equal(turned, np.rot90(frame[..., :3], -1))
    Image.fromarray(frame[..., 0].astype(np.uint16)).save(tmp_path / "3.png")
    with pytest.raises(ImportDataError, match=r"3\.png has more than 8 bits per channel: save it with 8"):
        frames_of(tmp_path)


# What is no video


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.mp4", "libx264", "yuv420p"), ("a.mkv", "libx264", "yuv420p"), ("a.avi", "mpeg4", "yuv420p")],
)
def test_damaged_files_are_named(tmp_path, name, codec, pixels):
    path = tmp_path / name
    write_video(path, noise(40, 48, 64), codec, pixels)
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 50], whole[: len(whole) // 2], whole[: len(whole) * 4 // 5], b"", b"no video"):
        path.write_bytes(damage)
        with pytest.raises(DamagedFileError) as error:
            frames_of(path)
        assert str(error.value).startswith(f"{path} is damaged (") and "\n" not in str(error.value)


def test_a_hole_in_the_middle_is_named(tmp_path):
    path = tmp_path / "a.webm"
    write_video(path, noise(40, 48, 64), "libvpx-vp9", "yuv420p")
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(1000) + whole[middle + 1000 :])
    with pytest.raises(DamagedFileError, match=r"a\.webm is damaged \("):
        frames_of(path)


def test_without_pyav_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'^Reading videos needs PyAV: pip install "lamjax\[video\]"\.$'):
        look_at(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fps": 0}, "fps must be above 0, not 0"),
        ({"stride": 0}, "stride must be at least 1, not 0"),
        ({"size": (64, 64, 3)}, "size must be a height and a width, or one number for both"),
        ({"crop": (0, 0, 0, 8)}, "crop must be top, left, height and width"),
        ({"crop": (0, 0, 8, 8), "square": True}, "crop and square exclude each other"),
    ],
)
def test_settings_that_cannot_be(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClipConfig(**settings)
