"""HDF5 files of LAOM, robomimic and Minari become stores that hold exactly what they held."""

import json
import sys

import numpy as np
import pytest

from lamjax import data
from lamjax.cli import main
from lamjax.data import timestamps
from lamjax.data.importers import common
from lamjax.data.importers.errors import ImportDataError
from lamjax.data.importers.hdf5 import import_hdf5
from lamjax.spaces import Discrete
from tests.data.importers.videos import noise

LENGTHS = [9, 12, 7, 30, 11, 8, 10, 13, 6, 14, 9]  # eleven, so that demo_10 does not come after demo_1
ENDS = np.cumsum(LENGTHS)
TOTAL = sum(LENGTHS)
FRAMES = noise(TOTAL)
VECTORS = (np.arange(2 * TOTAL).reshape(TOTAL, 2) / 8).astype(np.float32)
INTEGERS = np.arange(TOTAL) % 5
REWARDS = np.arange(TOTAL) % 3 / 2


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


def rows():
    """The number and the rows of each episode."""
    return [(number, slice(end - length, end)) for number, (length, end) in enumerate(zip(LENGTHS, ENDS, strict=True))]


def write_laom(h5py, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update({"domain": "walker", "img_hw": 16, "frames": np.zeros(5000)})
        for number, at in rows():
            group = file.create_group(str(number))
            group.create_dataset("obs", data=FRAMES[at], chunks=(4, 16, 16, 3), compression="gzip", fletcher32=True)
            group["states"], group["actions"] = VECTORS[at], VECTORS[at]


def write_robomimic(h5py, path, masks=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs.update({"total": TOTAL, "env_args": json.dumps({"env_name": "Lift"})})
        for number, at in rows():
            group = file["data"].create_group(f"demo_{number}")
            group.attrs["num_samples"] = at.stop - at.start
            group["actions"], group["rewards"] = VECTORS[at], REWARDS[at]
            group["dones"] = np.arange(at.start, at.stop) == at.stop - 1
            for place in ("obs", "next_obs"):
                group[f"{place}/agentview_image"] = FRAMES[at]
                group[f"{place}/robot0_eye_in_hand_image"] = 255 - FRAMES[at]
                group[f"{place}/robot0_eef_pos"] = VECTORS[at]
        if masks:
            file["mask/train"] = np.array([f"demo_{number}" for number in range(8)], "S8")
            file["mask/valid"] = np.array([f"demo_{number}" for number in range(8, 11)], "S8")


def write_minari(h5py, folder, named=False, metadata=True):
    """A data set whose last episodes lie in a second file, to which the first one links."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    with (
        h5py.File(folder / "data" / "main_data.hdf5", "w") as main_file,
        h5py.File(folder / "data" / "additional_data_0.hdf5", "w") as other,
    ):
        for number, at in rows():
            group = (other if number > 8 else main_file).create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": at.stop - at.start})
            group["observations/image" if named else "observations"] = np.concatenate([FRAMES[at], FRAMES[:1]])
            group["actions"], group["rewards"] = INTEGERS[at], REWARDS[at]
            group["terminations"] = np.full(at.stop - at.start, False)
            group["truncations"] = np.arange(at.start, at.stop) == at.stop - 1
            if number > 8:
                main_file[f"episode_{number}"] = h5py.ExternalLink("additional_data_0.hdf5", f"episode_{number}")
    if metadata:
        space = json.dumps({"type": "Discrete", "dtype": "int64", "start": 0, "n": 7})
        (folder / "data" / "metadata.json").write_text(json.dumps({"data_format": "hdf5", "action_space": space}))


def imported(path, out, **options):
    import_hdf5(path, out, env="toy", **options)
    return data.open_store(out)


def actions_of(store):
    return data.evaluation_actions(store, np.arange(store.num_frames), length=2)


def test_laoms_layout(h5py, tmp_path):
    write_laom(h5py, tmp_path / "walker.hdf5")
    listed, calls = [], []
    tell = {"announce": listed.append, "progress": lambda *call: calls.append(call)}
    store = imported(tmp_path / "walker.hdf5", tmp_path / "store", **tell)
    np.testing.assert_array_equal(store.observations(), FRAMES)
    np.testing.assert_array_equal(actions_of(store), VECTORS)
    assert store.has_actions and store.action_space.low == tuple(VECTORS.min(0).tolist())
    assert store.episodes.length.tolist() == LENGTHS and set(store.episodes.ending) == {"cut"}
    assert set(store.episodes.split) == {"train", "test"} and not store.episodes.returns.any()
    assert timestamps.files_of(store)[10] == "walker.hdf5 10" and np.isnan(timestamps.seconds_of(store)).all()
    about = {name: store.policy[name] for name in ("format", "camera", "stride", "size", "attributes")}
    attributes = {"domain": "walker", "img_hw": 16}
    want = {"format": "hdf5", "camera": "obs", "stride": 1, "size": [16, 16], "attributes": attributes}
    assert about == want
    assert len(listed) == 1 and f"Importing 1 file of {tmp_path} with {TOTAL} frames in 11 episodes" in listed[0]
    assert calls[-1] == (TOTAL, TOTAL)


def test_robomimics_layout(h5py, tmp_path):
    write_robomimic(h5py, tmp_path / "lift.hdf5")
    with pytest.raises(ImportDataError, match=r"cameras: choose one with --camera obs/agent.*\| obs/robot0_eye"):
        imported(tmp_path / "lift.hdf5", tmp_path / "store")
    store = imported(tmp_path / "lift.hdf5", tmp_path / "store", camera="agentview_image")
    np.testing.assert_array_equal(store.observations(), FRAMES)
    np.testing.assert_array_equal(actions_of(store), VECTORS)
    assert store.episodes.length.tolist() == LENGTHS and set(store.episodes.ending) == {"terminated"}
    assert store.episodes.split.tolist() == ["train"] * 8 + ["test"] * 3 and "masks" in store.env_params["split"]
    assert store.episodes.returns.tolist() == [REWARDS[at].sum() for _, at in rows()]
    assert json.loads(store.policy["attributes"]["env_args"]) == {"env_name": "Lift"}
    wrist = imported(tmp_path / "lift.hdf5", tmp_path / "wrist", camera="robot0_eye_in_hand_image")
    np.testing.assert_array_equal(wrist.observations(), 255 - FRAMES)


@pytest.mark.parametrize(("named", "metadata", "count"), [(False, True, 7), (True, False, 5)])
def test_minaris_layout(h5py, tmp_path, named, metadata, count):
    write_minari(h5py, tmp_path / "grid" / "expert-v0", named, metadata)
    store = imported(tmp_path / "grid" / "expert-v0", tmp_path / "store")
    np.testing.assert_array_equal(store.observations(), FRAMES)  # without the last of each episode
    np.testing.assert_array_equal(actions_of(store), INTEGERS)
    assert store.action_space == Discrete(count) and set(store.episodes.ending) == {"truncated"}
    assert store.episodes.returns.tolist() == [REWARDS[at].sum() for _, at in rows()]


def test_strides_and_sizes(h5py, tmp_path):
    write_robomimic(h5py, tmp_path / "data" / "lift.hdf5", masks=False)
    options = {"camera": "agentview_image", "stride": 3}
    store = imported(tmp_path / "data", tmp_path / "store", **options)
    kept = np.concatenate([np.arange(at.start, at.stop, 3) for _, at in rows()])
    np.testing.assert_array_equal(store.observations(), FRAMES[kept])
    np.testing.assert_array_equal(actions_of(store), VECTORS[kept])
    assert store.episodes.returns.tolist() == [REWARDS[at].sum() for _, at in rows()]
    same = imported(tmp_path / "data", tmp_path / "same", size=(16,), **options)
    np.testing.assert_array_equal(same.observations(), store.observations())
    half = imported(tmp_path / "data", tmp_path / "half", size=(8, 4), **options)
    means = FRAMES[kept].reshape(len(kept), 8, 2, 4, 4, 3).mean((2, 4))
    assert half.obs_shape == (8, 4, 3) and np.abs(half.observations() - means).max() < 1.5


def test_grey_frames(h5py, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(2):
            file[f"{number}/obs"], file[f"{number}/actions"] = FRAMES[:9, ..., number], np.zeros(9, int)
    store = imported(tmp_path / "a.h5", tmp_path / "store")
    np.testing.assert_array_equal(store.observations()[:9], FRAMES[:9, ..., :1])
    scaled = imported(tmp_path / "a.h5", tmp_path / "scaled", size=(16,))
    np.testing.assert_array_equal(scaled.observations()[:9], FRAMES[:9, ..., :1].repeat(3, -1))


def test_of_a_single_episode_the_end_is_held_out(h5py, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["0/obs"], file["0/actions"] = FRAMES[:20], VECTORS[:20]
    store = imported(tmp_path / "a.h5", tmp_path / "store")
    assert store.episodes.split.tolist() == ["train", "test"] and store.episodes.length.tolist() == [18, 2]
    np.testing.assert_array_equal(store.observations(), FRAMES[:20])
    assert timestamps.files_of(store) == ["a.h5 0", "a.h5 0"]


class StopError(Exception):
    pass


def test_an_interrupted_import_goes_on(h5py, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CHECKPOINT_FRAMES", 80)
    write_laom(h5py, tmp_path / "walker.hdf5")

    def stop(position, _):
        if position > 60:
            raise StopError

    with pytest.raises(StopError):
        imported(tmp_path / "walker.hdf5", tmp_path / "store", progress=stop)
    seen = []
    store = imported(tmp_path / "walker.hdf5", tmp_path / "store", progress=lambda position, _: seen.append(position))
    assert seen[0] > 28  # the first episodes were not read again
    whole = imported(tmp_path / "walker.hdf5", tmp_path / "whole")
    assert store.manifest["files"] == whole.manifest["files"]


def test_damaged_files_are_named_or_left_out(h5py, tmp_path):
    for name in ("a", "b"):
        write_laom(h5py, tmp_path / "data" / f"{name}.hdf5")
    path = tmp_path / "data" / "b.hdf5"
    whole = path.read_bytes()
    for number, damage in enumerate((whole[: len(whole) // 2], b"", b"no HDF5 at all")):
        path.write_bytes(damage)
        with pytest.raises(ImportDataError, match=r"b\.hdf5 is damaged \("):
            imported(tmp_path / "data", tmp_path / "store")
        store = imported(tmp_path / "data", tmp_path / str(number), skip_damaged=True)
        np.testing.assert_array_equal(store.observations(), FRAMES)
        assert list(store.policy["skipped_as_damaged"]) == ["b.hdf5"]
    path.write_bytes(whole)
    with h5py.File(path) as file:  # inside the frames of one episode, whose checksum is compared
        place = file["3/obs"].id.get_chunk_info(2).byte_offset
    path.write_bytes(whole[: place + 100] + bytes([whole[place + 100] ^ 16]) + whole[place + 101 :])
    with pytest.raises(ImportDataError, match=r"b\.hdf5 is damaged \("):
        imported(tmp_path / "data", tmp_path / "store")
    store = imported(tmp_path / "data", tmp_path / "others", skip_damaged=True)
    assert list(store.policy["skipped_as_damaged"]) == ["b.hdf5 3"] and len(store.episodes) == 21


def test_what_does_not_fit_is_refused(h5py, tmp_path):
    path = tmp_path / "a.hdf5"

    def fails(sentence, write):
        with h5py.File(path, "w") as file:
            write(file)
        with pytest.raises(ImportDataError) as error:
            imported(path, tmp_path / "store")
        assert sentence in str(error.value) and str(path) in str(error.value)

    def episode(**arrays):
        arrays = {"obs": FRAMES[:9], "actions": VECTORS[:9]} | arrays
        return lambda file: [file.create_dataset(f"0/{name}", data=each) for name, each in arrays.items()]

    fails("has no episodes: groups with actions and with obs", lambda file: file.create_group("data/demo_0"))
    for arrays, sentence in (
        ({"obs": VECTORS[:9]}, "has no images in 0/obs"),
        ({"obs": FRAMES[:8]}, "0 has 9 actions but 8 observations"),
        ({"rewards": np.zeros(8)}, "0 has 9 actions but 8 rewards"),
        ({"rewards": np.full(9, np.nan)}, "0, row 0: column 'rewards' must hold finite"),
        ({"actions": np.where(np.arange(18).reshape(9, 2) == 7, np.inf, 0)}, "0, row 3: column 'actions' must hold"),
        ({"actions": np.full(9, -2)}, "actions must lie in"),
        ({"actions": np.array([b"left"] * 9)}, "0/actions are neither integers nor vectors of numbers"),
    ):
        fails(sentence, episode(**arrays))
    for other, sentence in (("none", "There is no"), (".", "holds no files that end in .hdf5, .h5, .he5")):
        path.unlink(missing_ok=True)
        with pytest.raises(ImportDataError, match=sentence.replace(".", r"\.")):
            imported(tmp_path / other, tmp_path / "store")


def test_frames_of_two_sizes_need_a_size(h5py, tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for number, frames in enumerate((FRAMES[:9], FRAMES[:9, :12])):
            file[f"{number}/obs"], file[f"{number}/actions"] = frames, VECTORS[:9]
    with pytest.raises(ImportDataError, match=r"of \[12, 16, 3\] in 1, and others have \[16, 16, 3\]: scale them"):
        imported(tmp_path / "a.hdf5", tmp_path / "store")
    assert imported(tmp_path / "a.hdf5", tmp_path / "store", size=(16,)).num_frames == 18


def test_the_command(h5py, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_robomimic(h5py, tmp_path / "lift.hdf5")
    assert main(["import-hdf5", "lift.hdf5", "--camera", "agentview_image", "--stride", "2"]) == 0
    out, err = capsys.readouterr()
    assert out == "data/lift/hdf5\n" and "in 11 episodes" in err
    assert data.open_store("data/lift/hdf5").obs_shape == (16, 16, 3)
    assert main(["import-hdf5", "lift.hdf5", "--stride", "0"]) == 2
    assert "--stride and --size must be at least 1" in capsys.readouterr().err


def test_without_h5py_it_says_what_to_install(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.hdf5").write_bytes(b"\x89HDF")
    assert main(["import-hdf5", str(tmp_path / "a.hdf5"), "--out", str(tmp_path / "store")]) == 2
    assert capfd.readouterr().err == 'lamjax: Reading HDF5 files needs h5py: pip install "lamjax[hdf5]".\n'
