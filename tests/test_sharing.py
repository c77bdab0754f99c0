"""A shared model computes what its run computes, to the bit; a folder that is damaged or foreign is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import lamjax
from lamjax import loading
from lamjax.models.locator import LocatorConfig
from lamjax.pipeline.sources import find_source
from lamjax.sharing import ModelError
from lamjax.training import checkpoint
from tests.data.importers.sources import flip
from tests.small_runs import ACTIONS, IMAGE, VECTOR, clip, write_run

FILES = ("model.safetensors", "config.json", "README.md")
RESULTS = {
    "fdm_mse": 0.002,
    "copy_last_mse": 0.01,
    "probe_accuracy_merged": 0.71,
    "untrained_probe_accuracy_merged": 0.55,
    "still_probe_accuracy_merged": 0.52,
    "majority_accuracy_merged": 0.5,
    "ok": False,
    "verdict": "failed: for the test",
}
SUMMARY = {
    "preset": "smoke",
    "command": "lamjax train --store /home/somebody/clips",
    "source": {"policy": "store", "store": "/home/somebody/clips"},
    "stages": {"dynamics": RESULTS, "cloning": {"mse": 0.25, "null_mse": 0.5}},
    "nulls": {"random_return": {"mean": 0.5, "stderr": 0.1}},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run with an action head and offline policies, and the model that was exported of it."""
    folder = tmp_path_factory.mktemp("shared")
    write_run(folder / "run", VECTOR, action_weight=1.0, summary=SUMMARY)
    run = lamjax.load(folder / "run")
    run.export(folder / "model")
    return run, folder / "model"


@pytest.fixture
def copy(shared, tmp_path):
    """The model folder, to be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes((shared[1] / name).read_bytes())
    return folder


def test_what_is_shared_is_what_was_trained(shared):
    run, folder = shared
    model = lamjax.load(folder)
    for ours, theirs in ((model.dynamics, run.dynamics), (model.cloning, run.cloning)):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    frames = clip(VECTOR)
    np.testing.assert_array_equal(model.infer(frames).codes, run.infer(frames).codes)
    np.testing.assert_array_equal(model.decode(model.infer(frames)), run.decode(run.infer(frames)))
    (name,) = model.policies
    assert name == "offline-64" and model.policies[name].info == {"return_mean": 1.0}
    np.testing.assert_array_equal(model.policies[name](frames), run.policies[name](frames))
    assert (model.env, model.config, model.obs_shape) == (run.env, run.config, run.obs_shape)


def test_a_model_around_the_agent_is_shared_with_the_network_that_finds_it(tmp_path):
    around = {"focus": 8, "focus_at": "agent", "locator": LocatorConfig(channels=4, layers=1)}
    write_run(tmp_path / "run", IMAGE, **around)
    run = lamjax.load(tmp_path / "run")
    run.export(tmp_path / "model")
    model, frames = lamjax.load(tmp_path / "model"), clip(IMAGE)
    for loaded in (run, model):
        assert loaded.dynamics.config.locator == around["locator"]
        assert len(jax.tree.leaves(loaded.dynamics.locator)) == 6
    np.testing.assert_array_equal(model.infer(frames).continuous, run.infer(frames).continuous)


def test_it_can_be_shared_again(shared, tmp_path):
    lamjax.load(shared[1]).export(tmp_path / "again")
    for name in FILES[:2]:
        assert (tmp_path / "again" / name).read_bytes() == (shared[1] / name).read_bytes()


def test_plain_safetensors_reads_the_weights(shared):
    run, folder = shared
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    kernel = run.dynamics.params["idm"]["head"]["linear"]["kernel"]
    np.testing.assert_array_equal(arrays["dynamics.params.idm.head.linear.kernel"], kernel)
    assert {name.partition(".")[0] for name in arrays} == {"dynamics", "cloning", "decoder"}


def test_the_card_holds_every_figure_beside_its_baselines_and_no_folder_of_the_machine(shared):
    card = (shared[1] / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: lamjax\n")
    assert "| error of the predicted frame | 2.00 × 10⁻³ | copy the last frame 0.01 |" in card.replace(
        "1.00 × 10⁻²", "0.01"
    )
    assert "71.0 % | untrained model 55.0 %, o_t alone 52.0 %, most frequent action 50.0 %" in card
    assert "| error of the cloned latents | 0.25 | their mean 0.5 |" in card
    assert "failed: for the test" in card and "640 frames of 10 episodes of clips" in card
    assert all("somebody" not in (shared[1] / name).read_text("utf-8", "replace") for name in FILES)


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("where", [0.05, 0.5, 0.95])
def test_a_flipped_byte_is_refused(copy, name, where):
    flip(copy / name, where)
    with pytest.raises(ModelError) as error:
        lamjax.load(copy)
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_of_another_library_is_refused(copy):
    (copy / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ModelError, match=r"does not hold a model of lamjax: its config\.json does not have the format"):
        lamjax.load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"^There is no model in .*: config\.json is missing\.$"):
        lamjax.load(copy)


def test_what_does_not_fit_together_is_refused(copy, shared):
    note = json.loads((copy / "config.json").read_text())
    for change, sentence in (
        ({"version": 9}, "is a model of version 9"),
        ({"dynamics": {"nope": 1}}, "a valid model"),
    ):
        changed = note | change
        changed["sha256"] = checkpoint.note_digest(changed)
        (copy / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=sentence):
            lamjax.load(copy)
    with pytest.raises(ModelError, match="already exists: remove it, or choose another folder"):
        shared[0].export(copy)


@pytest.fixture(scope="module")
def policy(shared, tmp_path_factory):
    """The folder of a policy of the run, and what it was exported to, in both types."""
    source, folder = shared[0].folder / "policies" / "offline-64", tmp_path_factory.mktemp("policies")
    for dtype in ("float32", "float16"):
        loading.export(source, folder / dtype, dtype)
    return source, folder


def test_a_policy_is_shared_as_a_model_is(policy, tmp_path):
    source, folder = policy
    theirs, ours = lamjax.load(source), lamjax.load(folder / "float32")
    assert (ours.network, ours.info) == (theirs.network, theirs.info)
    frames = clip(VECTOR)
    np.testing.assert_array_equal(ours(frames), theirs(frames))
    assert sorted(path.name for path in (folder / "float32").iterdir()) == sorted(FILES)
    loading.export(folder / "float32", tmp_path / "again")
    for name in FILES[:2]:
        assert (tmp_path / "again" / name).read_bytes() == (folder / "float32" / name).read_bytes()
    # Both forms can be played and recorded.
    (one, other) = (find_source("cartpole", str(path), tmp_path, ACTIONS) for path in (source, folder / "float32"))
    assert one.policy == other.policy and one.digest != other.digest


def test_a_policys_card_holds_its_return(policy):
    card = (policy[1] / "float32" / "README.md").read_text()
    assert "# float32\n\nA policy for clips, trained by lamjax (preset `smoke`, seed 0)." in card
    assert "| return | 1.00 | random policy 0.50 ± 0.10 |" in card and "from existing trajectories" in card


def test_float16_is_half_as_large_and_computed_with_in_float32(policy):
    arrays = [safetensors.numpy.load_file(policy[1] / dtype / FILES[0]) for dtype in ("float32", "float16")]
    assert arrays[0].keys() == arrays[1].keys()
    for name, array in arrays[0].items():
        assert array.dtype == np.float32 and arrays[1][name].dtype == np.float16
        np.testing.assert_allclose(arrays[1][name], array, atol=1e-3)
    half = lamjax.load(policy[1] / "float16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype(np.float32)}


def test_weights_too_large_for_float16_are_not_written(shared, tmp_path):
    run = shared[0]
    state = run.dynamics
    large = state.replace(params=jax.tree.map(lambda x: x + 1e5, state.params))
    with pytest.raises(ModelError, match=r"^dynamics\.params\..* is not finite in float16: nothing was written\.$"):
        dataclasses.replace(run, dynamics=large).export(tmp_path / "model", "float16")
    assert not (tmp_path / "model").exists()


def test_a_damaged_policy_is_refused(policy, tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(policy[1] / "float32", folder)
    flip(folder / FILES[0], 0.5)
    with pytest.raises(ModelError, match=r"model\.safetensors was changed or damaged .*: fetch the folder again"):
        lamjax.load(folder)
    note = json.loads((folder / "config.json").read_text()) | {"kind": "nope"}
    weights = (policy[1] / "float32" / FILES[0]).read_bytes()
    (folder / FILES[0]).write_bytes(weights)
    (folder / "config.json").write_text(json.dumps(note | {"sha256": checkpoint.note_digest(note)}))
    with pytest.raises(ModelError, match="does not hold a valid policy"):
        lamjax.load(folder)
