"""The models that come with the package: small, loaded by name, judged beside their baselines."""

import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

import lamjax
from lamjax import pretrained
from lamjax.cli import main
from lamjax.shared_folder import CARD, CONFIG, WEIGHTS
from tests.small_runs import VECTOR, write_run

NAMES = sorted(pretrained.available())


def test_two_games_come_with_the_package_in_four_megabytes():
    assert NAMES == ["coinrun", "miner"]
    files = [path for name in NAMES for path in (pretrained.ROOT / name).iterdir()]
    assert {path.name for path in files} == {WEIGHTS, CONFIG, CARD}
    assert sum(path.stat().st_size for path in files) < 4e6


@pytest.mark.parametrize("name", NAMES)
def test_they_say_where_they_come_from_and_beat_their_baselines(name):
    summary = pretrained.available()[name]
    assert summary["env"] == name and summary["git"] and "dirty" not in summary["git"]
    assert summary["stages"]["dynamics"]["ok"]
    for information in (summary["stages"]["dynamics"]["action_information"], summary["fresh_levels"]):
        assert information["share"] > information["untrained_share"] + 2 * information["share_stderr"]
    text = json.dumps(summary) + (pretrained.ROOT / name / CARD).read_text()
    assert not re.search(r"/(home|root|Users|work|tmp)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_float16_weights_are_computed_with_in_float32(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lam = lamjax.load(name)
    arrays = safetensors.numpy.load_file(pretrained.ROOT / name / WEIGHTS)
    kernel = arrays["dynamics.params.idm.head.linear.kernel"]
    assert kernel.dtype == np.float16
    np.testing.assert_array_equal(lam.dynamics.params["idm"]["head"]["linear"]["kernel"], kernel.astype(np.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(lam.dynamics.params)} == {np.dtype(np.float32)}
    assert lam.env == name and lam.obs_shape == (64, 64, 3)
    assert lam.decoder is not None and lam.policies[lam.decoder].space.n == 15


def test_a_folder_of_that_name_is_meant_before_the_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert pretrained.resolve("coinrun") == pretrained.ROOT / "coinrun"
    assert str(pretrained.resolve("./coinrun/x")) == "coinrun/x" and str(pretrained.resolve("maze")) == "maze"
    write_run(tmp_path / "coinrun", VECTOR)
    assert lamjax.load("coinrun").obs_shape == VECTOR
    with pytest.raises(ValueError, match=r"or the name of a model that comes with lamjax \(coinrun, miner\)\.$"):
        lamjax.load("maze")


def test_they_are_listed(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES and all("(untrained 0." in line for line in lines)
