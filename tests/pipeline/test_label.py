"""A file of labels holds what stage 1 infers, to the bit, in the rows of the frames that it belongs to."""

import jax
import numpy as np
import pytest

import lamjax
from lamjax import data, dynamics
from lamjax.cli import main
from lamjax.data import latent_files
from lamjax.data.importers.clips import ClipConfig
from lamjax.pipeline.label import clip_config, footage_of, label
from lamjax.sharing import ModelError
from tests.data.importers.videos import noise, write_video
from tests.small_runs import IMAGE, VECTOR, clip, windows_of, write_run

infer = jax.jit(dynamics.infer_latents)
LENGTHS = (150, 2, 3, 160)  # across a batch; too short for a window; of one window


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on images with a decoder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder)
    return lamjax.load(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The path of a store, and its episodes."""
    path = tmp_path_factory.mktemp("stores") / "store"
    episodes = [clip(frames=length, seed=length) for length in LENGTHS]
    with data.StoreWriter(path, env="clips", obs_shape=IMAGE, num_actions=1) as writer:
        for level, frames in enumerate(episodes):
            writer.append_episode(frames, np.zeros(len(frames), int), np.zeros(len(frames)), level, "cut")
    return path, episodes


@pytest.fixture(scope="module")
def labels(run, store, tmp_path_factory):
    """The labels of the store as each format gives them back."""
    folder = tmp_path_factory.mktemp("labels")
    paths = [folder / f"latents{ending}" for ending in latent_files.ENDINGS]
    for path in paths:
        label(run, footage_of(run, [store[0]]), path)
    return [latent_files.read(path) for path in paths]


def test_latents_are_those_of_stage_1_to_the_bit(run, store, labels):
    rows, about = labels[0]
    windows = np.concatenate([windows_of(frames) for frames in store[1] if len(frames) >= 3])
    latents = infer(run.dynamics, windows)  # one batch: the bits of a matrix product depend on a batch of one alone
    np.testing.assert_array_equal(rows.z[rows.mask], latents.continuous)
    np.testing.assert_array_equal(rows.codes[rows.mask], latents.codes.reshape(len(windows), -1))
    np.testing.assert_array_equal(rows.action[rows.mask], run.decode(latents))
    for number, frames in enumerate(store[1]):
        mine = rows.episode == number
        assert rows.t[mine].tolist() == list(range(len(frames)))
        assert rows.t[mine & rows.mask].tolist() == list(range(1, len(frames) - 1))
    assert about["decoder"] == "offline-64" and about["files"] == [""] * 4 and about["codes"] == [2, 1]


def test_frames_without_a_latent_hold_none(labels):
    for rows, _ in labels:
        assert np.isnan(rows.z[~rows.mask]).all() and np.isfinite(rows.z[rows.mask]).all()
        assert (rows.codes[~rows.mask] == -1).all() and (rows.action[~rows.mask] == -1).all()
        assert (~rows.mask).sum() == 2 + 2 + 2 + 2 and np.isnan(rows.seconds).all()


def test_every_format_holds_the_same(labels):
    (first, about), *others = labels
    for rows, about_too in others:
        assert rows.columns.keys() == first.columns.keys() and about_too == about
        for name, column in rows.columns.items():
            assert column.dtype == first.columns[name].dtype, name
            np.testing.assert_array_equal(column, first.columns[name], name)


def test_clips_are_read_as_the_model_learned_and_timed(run, tmp_path):
    frames = write_video(tmp_path / "a" / "b.mkv", noise(9, 16, 12), rate=8)
    run.summary["source"] = {"video": {"fps": 4.0, "stride": 1, "size": [16, 12], "crop": [], "square": False}}
    try:
        assert clip_config(run) == ClipConfig(fps=4, size=(16, 12))
        assert clip_config(run, stride=2, fps=None, square=True) == ClipConfig(
            fps=4, stride=2, size=(16, 12), square=True
        )
        label(run, footage_of(run, [tmp_path / "a"]), tmp_path / "latents.npz")
    finally:
        del run.summary["source"]
    rows, about = latent_files.read(tmp_path / "latents.npz")
    np.testing.assert_allclose(rows.seconds, np.arange(5) / 4, atol=1e-3)
    np.testing.assert_array_equal(rows.z[1:-1], run.infer(frames[::2]).continuous)
    assert about["files"] == ["b.mkv"]


def test_progress_counts_latents(run, store, tmp_path):
    calls = []
    label(run, footage_of(run, [store[0]]), tmp_path / "latents.npz", lambda *call: calls.append(call))
    assert calls[-1] == (148 + 1 + 158, 307) and sorted(calls) == calls


def test_what_does_not_fit_is_refused(run, store, tmp_path):
    write_run(tmp_path / "vectors", VECTOR)
    vectors = lamjax.load(tmp_path / "vectors")
    with pytest.raises(ModelError, match=r"holds observations of shape \(16, 12, 3\), and .* takes \(5,\)"):
        footage_of(vectors, [store[0]])
    with pytest.raises(ModelError, match=r"has observations of shape \[5\], and a video's are \[H, W, 3\]"):
        footage_of(vectors, [tmp_path])
    write_video(tmp_path / "a.mkv", noise(2))
    with pytest.raises(ModelError, match="No clip has the 3 frames that a latent needs"):
        label(run, footage_of(run, [tmp_path / "a.mkv"]), tmp_path / "latents.npz")
    assert not list(tmp_path.glob("*latents*")) and not list(tmp_path.glob(".*"))


def test_the_command(run, tmp_path, capsys):
    write_video(tmp_path / "clips" / "a.mkv", noise(20, 16, 12))
    argv = ["label", str(run.folder), str(tmp_path / "clips"), "-o", str(tmp_path / "latents.parquet"), "--stride", "2"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'latents.parquet'}\n" and "labelling 1 clip with 10 frames" in err
    assert len(latent_files.read(tmp_path / "latents.parquet")[0]) == 10
    assert main([*argv[:3], "--out", str(tmp_path / "latents.csv")]) == 2
    assert "must end in .parquet, .npz or .safetensors" in capsys.readouterr().err
