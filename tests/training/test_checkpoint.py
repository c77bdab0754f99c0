"""Checkpoints come back bit-equal or not at all: whatever happens to the files, never with other values."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from flax import struct

from lamjax.training import checkpoint
from lamjax.training.checkpoint import CheckpointError

ONE_SENTENCE = r"^[^\n]+[^.]\.$"

# Reads of a damaged checkpoint that are still under way when orbax gives up complain to its closed event loop.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    widths: tuple[int, ...] = (8, 16)


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 10
    inner: Inner = Inner()


@struct.dataclass
class State:
    params: dict
    opt_state: object
    key: jax.Array
    step: jax.Array
    config: Config = struct.field(pytree_node=False)


def make_state(number: int) -> State:
    """A state in which every array depends on `number`."""
    key = jax.random.key(number)
    kernel = jax.random.normal(jax.random.fold_in(key, 1), (64, 64))
    params = {"dense": {"kernel": kernel, "bias": jnp.full(5, number / 3, jnp.bfloat16)}}
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(params)
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(number, x.dtype), opt_state)
    return State(params, opt_state, key, jnp.int32(number), Config())


def bits(state: State) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in checkpoint.flatten(state).items()}


def host_of(number: int) -> dict[str, np.ndarray]:
    return {"native": np.arange(number, number + 9, dtype=np.uint8), "lengths": np.array([number], np.int64)}


def save(folder, step: int, **kwargs) -> None:
    kwargs = {"config": Config(), "host": host_of(step), "meta": {"seconds": step + 0.5}} | kwargs
    checkpoint.save(folder, step, make_state(step), **kwargs)


def restore(folder):
    return checkpoint.restore(folder, make_state(0), config=Config())


def assert_is(restored: checkpoint.Restored, step: int) -> None:
    """Everything in the checkpoint is what was saved as `step`."""
    assert restored.step == step
    assert bits(restored.tree) == bits(make_state(step))
    assert {name: array.tolist() for name, array in restored.host.items()} == {
        name: array.tolist() for name, array in host_of(step).items()
    }
    assert restored.meta == {"seconds": step + 0.5}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two good checkpoints, 5 and 10."""
    folder = tmp_path_factory.mktemp("saved") / "stage"
    save(folder, 5)
    save(folder, 10)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the two checkpoints, to be damaged."""
    return shutil.copytree(saved, tmp_path / "stage")


# Round trips


def test_what_is_saved_comes_back_bit_equal(saved):
    restored = restore(saved)
    assert_is(restored, 10)
    want = make_state(10)
    assert isinstance(restored.tree, State)
    assert jax.tree.structure(restored.tree) == jax.tree.structure(want)
    for ours, theirs in zip(jax.tree.leaves(restored.tree), jax.tree.leaves(want), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert restored.tree.params["dense"]["bias"].dtype == jnp.bfloat16
    # The key works as a key, and draws what the saved one draws.
    np.testing.assert_array_equal(jax.random.normal(restored.tree.key, 3), jax.random.normal(want.key, 3))
    assert restored.host["native"].dtype == np.uint8 and restored.host["lengths"].dtype == np.int64


def test_special_values_come_back(tmp_path):
    tree = {"x": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-42]), "flag": jnp.array([True, False])}
    checkpoint.save(tmp_path / "stage", 1, tree, config=Config())
    restored = checkpoint.restore(tmp_path / "stage", tree, config=Config())
    assert {k: v.tobytes() for k, v in checkpoint.flatten(restored.tree).items()} == {
        k: v.tobytes() for k, v in checkpoint.flatten(tree).items()
    }
    assert (restored.host, restored.meta) == ({}, {})


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path / "absent") is None
    (tmp_path / "empty").mkdir()
    assert restore(tmp_path / "empty") is None


def test_two_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path / "stage", step)
    assert sorted(path.name for path in (tmp_path / "stage").iterdir()) == ["3", "4"]
    assert_is(restore(tmp_path / "stage"), 4)


def test_relative_folders_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("stage"), 3)
    assert_is(restore(Path("stage")), 3)


def test_a_step_saved_again_replaces_the_old_one(folder):
    checkpoint.save(folder, 10, make_state(77), config=Config())
    assert bits(restore(folder).tree) == bits(make_state(77))


def test_flatten_names_leaves_by_their_path():
    names = set(checkpoint.flatten(make_state(1)))
    assert {"params.dense.kernel", "params.dense.bias", "key", "step"} <= names
    assert any(name.startswith("opt_state.") for name in names)


# Damage


def files_of(folder):
    return sorted(path for path in (folder / "10").rglob("*") if path.is_file())


def kinds(saved):
    """The files of a checkpoint by kind, with names that do not change between saves."""
    files = {}
    for path in files_of(saved):
        name = path.relative_to(saved / "10").as_posix()
        files.setdefault(re.sub(r"[0-9a-f]{32}", "*", name), []).append(path.relative_to(saved))
    return files


def survives(folder):
    """Restores; passes if the values are right, or if an error says that none can be had. Returns the step."""
    try:
        restored = restore(folder)
    except CheckpointError as error:
        assert re.match(ONE_SENTENCE, str(error))
        return None
    assert_is(restored, restored.step)
    return restored.step


def test_a_checkpoint_consists_of_what_the_damage_tests_damage(saved):
    assert {"arrays/d/*", "arrays/manifest.ocdbt", "arrays/_METADATA", "note/metadata"} <= set(kinds(saved))


@pytest.mark.parametrize("damage", ["truncated", "deleted", "emptied", "garbage"])
def test_whatever_happens_to_a_file_no_wrong_value_comes_back(saved, tmp_path, damage):
    fell_back = 0
    for number, paths in enumerate(kinds(saved).values()):
        folder = shutil.copytree(saved, tmp_path / str(number))
        for path in paths:
            target = folder / path
            content = target.read_bytes()
            if damage == "deleted":
                target.unlink()
            else:
                new = {"truncated": content[: len(content) // 2], "emptied": b"", "garbage": b"\x00\xff" * 99}
                target.write_bytes(new[damage])
        step = survives(folder)
        assert step in (5, 10)
        fell_back += step == 5
    assert fell_back >= 3  # otherwise nothing was damaged


def test_one_flipped_bit_never_changes_a_value(saved, tmp_path):
    rng = np.random.default_rng(0)
    steps = []
    for number, path in enumerate(files_of(saved)):
        folder = shutil.copytree(saved, tmp_path / str(number))
        content = (saved / path.relative_to(saved)).read_bytes()
        for _ in range(3):
            flipped = bytearray(content)
            flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
            (folder / path.relative_to(saved)).write_bytes(flipped)
            steps.append(survives(folder))
    assert set(steps) == {5, 10}


def test_a_flipped_value_falls_back_and_says_so(folder, caplog):
    """Orbax alone restores the large arrays with a flipped bit, without an error."""
    path = max(files_of(folder), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    assert len(content) > 10_000
    silent = 0
    for position in range(len(content) // 8, 3 * len(content) // 4, len(content) // 8):
        flipped = bytearray(content)
        flipped[position] ^= 16
        path.write_bytes(flipped)
        caplog.clear()
        assert_is(restore(folder), 5)
        assert f"checkpoint {folder / '10'}" in caplog.text and "falling back to the one before" in caplog.text
        silent += "is damaged in params.dense.kernel" in caplog.text
    assert silent  # the digest catches what the reader does not


def test_note_is_checked_too(folder):
    note = folder / "10" / "note" / "metadata"
    text = note.read_text()
    assert '"seconds": 10.5' in text and '"rate": 0.5' in text
    for old, new in (('"seconds": 10.5', '"seconds": 11.5'), ('"rate": 0.5', '"rate": 0.7')):
        note.write_text(text.replace(old, new))
        assert_is(restore(folder), 5)


def test_arrays_that_claim_more_than_memory_holds_are_not_read(folder, caplog):
    """Asking for so much memory would end the process, with nothing to catch."""
    arrays = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/10/arrays/"}).result()
    name = next(name for name in arrays.list().result() if name.endswith(b".zarray"))
    metadata = json.loads(arrays.read(name).result().value)
    metadata["shape"], metadata["chunks"] = [10**14], [8]
    arrays.write(name, json.dumps(metadata)).result()
    with caplog.at_level("WARNING"):
        assert_is(restore(folder), 5)
    assert "bytes of memory, and this machine has" in caplog.text


def test_all_damaged_is_one_sentence(folder):
    for note in folder.rglob("note/metadata"):
        note.write_text("{")
    with pytest.raises(CheckpointError, match=ONE_SENTENCE) as caught:
        restore(folder)
    assert str(folder) in str(caught.value)


def test_training_goes_on_after_a_fall_back(folder):
    """Steps between the good checkpoint and the damaged one must be saved, although the damaged one is newer."""
    (folder / "10" / "note" / "metadata").unlink()
    assert_is(restore(folder), 5)
    save(folder, 7)
    assert_is(restore(folder), 7)
    assert sorted(path.name for path in folder.iterdir()) == ["5", "7"]
    save(folder, 10)
    assert_is(restore(folder), 10)


def test_half_a_save_is_ignored(folder):
    shutil.copytree(folder / "10", folder / "11.orbax-checkpoint-tmp")
    (folder / "notes.txt").write_text("not a checkpoint")
    assert_is(restore(folder), 10)


# Other configurations and shapes


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (Config(steps=11), "steps is 10 there and 11 here"),
        (Config(inner=Inner(rate=0.7)), "inner.rate is 0.5 there and 0.7 here"),
        (Config(inner=Inner(widths=(8,))), r"inner.widths is \[8, 16\] there and \[8\] here"),
    ],
)
def test_another_configuration_names_the_field(saved, config, field):
    with pytest.raises(CheckpointError, match=field) as caught:
        checkpoint.restore(saved, make_state(0), config=config)
    assert re.match(ONE_SENTENCE, str(caught.value)) and str(saved / "10") in str(caught.value)


def test_a_field_on_one_side_alone_is_named():
    assert checkpoint.differing_field({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}) == "a.c is 2 there and None here"
    assert checkpoint.differing_field({"a": {"b": 1}}, {"a": 3}) == "a is 3 there and {'b': 1} here"
    assert checkpoint.differing_field({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) is None


def test_settings_of_an_older_version_have_the_defaults_of_what_came_later(saved):
    """A field that a checkpoint knows nothing of was off when it was saved."""

    @dataclasses.dataclass(frozen=True)
    class Wider(Inner):
        extra: tuple[str, ...] = ("a",)

    @dataclasses.dataclass(frozen=True)
    class Newer(Config):
        inner: Inner = Wider()
        weight: float = 0.0

    assert checkpoint.restore(saved, make_state(0), config=Newer()).step > 0
    for changed, message in (
        (Newer(weight=0.5), "weight is 0.0 there and 0.5 here"),
        (Newer(inner=Wider(extra=())), r"inner\.extra is \['a'\] there and \[\] here"),
        (Newer(steps=11), "steps is 10 there and 11 here"),
    ):
        with pytest.raises(CheckpointError, match=message):
            checkpoint.restore(saved, make_state(0), config=changed)


def test_wrong_shape_dtype_and_missing_leaf_are_named(saved):
    state = make_state(0)

    def with_dense(**changes):
        return state.replace(params={"dense": {**state.params["dense"], **changes}})

    for template, message in (
        (with_dense(kernel=jnp.zeros((64, 5))), r"params\.dense\.kernel is float32\[64, 64\] there and .*\[64, 5\]"),
        (with_dense(bias=jnp.zeros(5)), r"params\.dense\.bias is bfloat16\[5\] there and float32\[5\] here"),
        (with_dense(scale=jnp.zeros(5)), r"params\.dense\.scale is in only one of them"),
        (state.replace(params={"dense": {"kernel": state.params["dense"]["kernel"]}}), r"params\.dense\.bias is in"),
        (state.replace(key=jax.random.split(jax.random.key(0))), r"key is uint32\[2\] there and uint32\[2, 2\] here"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint.restore(saved, template, config=Config())
        assert re.match(ONE_SENTENCE, str(caught.value))


# Killed while saving

SAVER = """
import sys
from pathlib import Path
import numpy as np
from lamjax.training import checkpoint
import dataclasses

@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 10

folder = Path(sys.argv[1])
step = int(sys.argv[2])
while True:
    step += 1
    tree = {f"a{i}": np.full((256, 1024), step * 100 + i, np.float32) for i in range(12)}
    checkpoint.save(folder, step, tree, config=Config(), meta={"step": step})
"""


def test_sigkill_while_saving_leaves_the_step_before(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Config:
        steps: int = 10

    folder = tmp_path / "stage"
    template = {f"a{i}": np.zeros((256, 1024), np.float32) for i in range(12)}
    step = 0
    for glob in ("*tmp*", "*tmp*/arrays*"):
        child = subprocess.Popen([sys.executable, "-c", SAVER, str(folder), str(step)])
        try:
            while child.poll() is None:
                # At least one save of this child is complete, and the next one has begun.
                if (folder / str(step + 1)).exists() and any(folder.glob(glob)):
                    break
                time.sleep(0.0005)
            child.send_signal(signal.SIGKILL)
        finally:
            child.kill()
            child.wait()
        assert child.returncode == -signal.SIGKILL
        restored = checkpoint.restore(folder, template, config=Config())
        assert restored.step > step and restored.meta == {"step": restored.step}
        for i in range(12):
            np.testing.assert_array_equal(restored.tree[f"a{i}"], restored.step * 100 + i)
        step = restored.step


def test_nest_undoes_flatten():
    tree = {"a": {"b": np.arange(3), "c": {"d": np.ones((2, 1))}}, "e": np.zeros(())}
    jax.tree.map(np.testing.assert_array_equal, checkpoint.nest(checkpoint.flatten(tree)), tree)
