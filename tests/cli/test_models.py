"""Verbs for trained models."""

import pytest

import lamjax
from lamjax.cli import main
from tests.small_runs import VECTOR, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on vectors."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, VECTOR)
    return folder


def test_a_run_is_exported_once(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "model")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'model'}\n"
    assert lamjax.load(tmp_path / "model").env == "clips"
    assert main(["export", str(run), str(tmp_path / "model")]) == 2
    assert capsys.readouterr().err.startswith(f"lamjax: {tmp_path / 'model'} already exists")


def test_a_policy_alone_is_exported_and_has_no_latents(run, tmp_path, capsys):
    policy = str(run / "policies" / "offline-16")
    assert main(["export", policy, str(tmp_path / "policy"), "--dtype", "float16"]) == 0
    assert main(["label", policy, str(tmp_path), "-o", str(tmp_path / "latents.npz")]) == 2
    assert "is a policy, which has no latents" in capsys.readouterr().err
    assert lamjax.load(tmp_path / "policy").network == lamjax.load(policy).network
