"""Files of latents and of actions are joined by episode and frame, and what does not fit is refused by name."""

import numpy as np
import pytest

from lamjax import data
from lamjax.cli import main
from lamjax.data import latent_files
from lamjax.data.latent_files import LatentFileError, LatentRows
from lamjax.pipeline.probe import probe_file
from tests.small_runs import VECTOR, clip, write_run

EPISODES, LENGTH = 10, 30


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Latents that hold the action, and the true actions in another order, without those of the first episode."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    episode, t = np.repeat(np.arange(EPISODES), LENGTH), np.tile(np.arange(LENGTH), EPISODES)
    action = rng.integers(0, 3, len(t)).astype(np.int32)
    mask = (t > 0) & (t < LENGTH - 1)
    z = np.where(mask[:, None], np.stack([action, rng.normal(size=len(t))], 1), np.nan).astype(np.float32)
    rows = LatentRows(episode.astype(np.int32), t.astype(np.int32), t / 10, mask, z)
    latent_files.write(folder / "latents.parquet", [rows], {})
    order = rng.permutation(np.flatnonzero(episode > 0))
    np.savez(folder / "actions.npz", episode=episode[order], t=t[order], action=action[order])
    np.savez(folder / "aligned.npz", action=action)
    return folder


def test_actions_are_found_by_episode_and_frame_and_merged(files):
    probe, results = probe_file(files / "latents.parquet", files / "actions.npz", merged=(0, 0, 1))
    assert results["fit"] + results["windows"] == (EPISODES - 1) * (LENGTH - 2)
    assert results["curve"][-1][1] > 0.95 > results["constant_score"]
    assert probe.target_space.n == 2 and results["majority_accuracy_merged"] > results["majority_accuracy"]
    with pytest.raises(LatentFileError, match="--merged needs one class for each discrete action, and got 2"):
        probe_file(files / "latents.parquet", files / "aligned.npz", merged=(0, 1))


def test_the_command_prints_a_table(files, capsys):
    assert main(["probe", str(files / "latents.parquet"), "--actions", str(files / "aligned.npz")]) == 0
    out = capsys.readouterr().out
    assert f"fitted on {8 * (LENGTH - 2)} latents, tested on {2 * (LENGTH - 2)}" in out
    for words in ("a probe on the latents (accuracy)", "a constant guess", "shuffled actions", "from 64 labels", "±"):
        assert words in out


def test_a_model_is_judged_without_any_actions(tmp_path, capsys):
    write_run(tmp_path / "run", VECTOR)
    with data.StoreWriter(tmp_path / "store", env="clips", obs_shape=VECTOR, obs_dtype="float32", num_actions=1) as w:
        for level in range(20):
            w.append_episode(clip(VECTOR, 6, level), np.zeros(6, int), np.zeros(6), level, "cut")
    out, store = str(tmp_path / "latents.npz"), str(tmp_path / "store")
    assert main(["label", str(tmp_path / "run"), store, "-o", out]) == 0
    capsys.readouterr()
    assert main(["probe", out, "--run", str(tmp_path / "run"), "--frames", store]) == 0
    printed = capsys.readouterr().out
    for words in (
        "PSNR of the prediction 4 frames ahead",
        "the last true frame instead",
        "under another clip's latents",
    ):
        assert words in printed
    assert "8 frames" not in printed  # episodes of 6 frames show 4 after the first two
    assert main(["probe", out, "--run", str(tmp_path / "run")]) == 2
    assert "There is nothing to measure: give --actions, or --run and --frames" in capsys.readouterr().err


def test_one_frame_alone_is_a_baseline_where_there_are_frames(files, tmp_path):
    with data.StoreWriter(tmp_path / "store", env="a", obs_shape=(4,), num_actions=1) as writer:
        for level in range(EPISODES):
            writer.append_episode(
                np.zeros((LENGTH, 4), np.uint8), np.zeros(LENGTH, int), np.zeros(LENGTH), level, "cut"
            )
    args = (files / "latents.parquet", files / "aligned.npz")
    _, results = probe_file(*args, frames=tmp_path / "store")
    assert results["score"] > results["still_score"] + 0.2
    with data.StoreWriter(tmp_path / "short", env="a", obs_shape=(4,), num_actions=1) as writer:
        writer.append_episode(np.zeros((3, 4), np.uint8), np.zeros(3, int), np.zeros(3), 0, "cut")
    with pytest.raises(LatentFileError, match=r"has 3 frames, and .* has 300 rows: label it"):
        probe_file(*args, frames=tmp_path / "short")


def test_what_does_not_fit_is_refused(files, tmp_path):
    np.savez(tmp_path / "short.npz", action=np.zeros(5, int))
    np.savez(tmp_path / "none.npz", act=np.zeros(5, int))
    with data.StoreWriter(tmp_path / "store", env="a", obs_shape=(4,), num_actions=1) as writer:
        writer.append_episode(np.zeros((3, 4), np.uint8), np.zeros(3, int), np.zeros(3), 0, "cut")
    for actions, sentence in (
        ("short.npz", "has 5 rows and no columns 'episode' and 't', not 300"),
        ("none.npz", "has no column 'action': rename the column"),
        ("store", "has 3 frames and 1 actions, and .* has 300 rows: label this store, which must have actions"),
    ):
        with pytest.raises(LatentFileError, match=sentence):
            probe_file(files / "latents.parquet", tmp_path / actions)
