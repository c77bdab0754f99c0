"""Checkpoints of the reference become runs that go on, and runs become checkpoints, exact to the bit."""

import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from lamjax import cli, cloning, dynamics
from lamjax.cli import main
from lamjax.interop import golden, pytorch, torch_runs, torchfile
from lamjax.interop.pytorch import WeightsError
from lamjax.presets import PRESETS
from lamjax.training import checkpoint


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_same(result, want):
    assert result.keys() == want.keys()
    for kind in want:
        assert result[kind].keys() == want[kind].keys()
        for name, array in want[kind].items():
            np.testing.assert_array_equal(result[kind][name], array, strict=True)


def test_there_and_back(networks, arrays, capfd):
    trained = {name: array + 150 if name.endswith("tracked") else array for name, array in networks["wm"].items()}
    networks = networks | {"wm": trained}
    torchfile.write(Path("models.pt"), {"model": {"module": networks, "optimizer": {"step": np.array(3)}}})
    assert main(["import-torch", "models.pt", "--env", "maze", "--name", "theirs"]) == 0
    out, err = capfd.readouterr()
    assert out == "runs/maze/theirs\n" and err.startswith("found idm, wm, policy; continue with: lamjax train ")
    # The command that it prints means these settings.
    words = shlex.split(err.partition("continue with: ")[2])
    args = cli.parse("train", words[2:])
    assert (args.env, args.name, args.preset) == ("maze", "theirs", "paper")
    config = args.config
    want = golden.config_of(arrays)
    assert (config.dynamics.idm, config.dynamics.fdm, config.cloning.trunk) == (want.idm, want.fdm, want.idm)
    assert config.dynamics.latent_dim == 32 and config.dynamics.steps == PRESETS["paper"].dynamics.steps
    # Its stages are done: they are restored at their last steps.
    run = Path("runs/maze/theirs/checkpoints")
    obs, key = (64, 64, 3), jax.random.key(0)
    template = jax.eval_shape(lambda: dynamics.init(key, config.dynamics, obs))
    template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    saved = checkpoint.restore(run / "dynamics", template, config=config.dynamics)
    assert saved.step == config.dynamics.steps and saved.tree.step == 150 and np.isnan(saved.meta["seconds"])
    np.testing.assert_array_equal(saved.tree.codebooks.count, networks["idm"]["vq.ema_count"])
    template = jax.eval_shape(lambda: cloning.init(key, config.cloning, obs, 32))
    template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    saved = checkpoint.restore(run / "cloning", template, config=config.cloning)
    assert saved.step == config.cloning.steps == saved.tree.step
    # And out again.
    assert main(["export-torch", "runs/maze/theirs"]) == 0
    out, err = capfd.readouterr()
    assert out == "runs/maze/theirs/models.pt\n" and err == "wrote idm, wm, policy\n"
    assert_same(torchfile.read(Path("runs/maze/theirs/models.pt")), networks)


def test_the_options_of_any_preset(networks, capfd):
    torchfile.write(Path("models.pt"), networks)
    assert main(["import-torch", "models.pt", "--preset", "smoke", "--dynamics.quantizer.no-enabled"]) == 0
    words = shlex.split(capfd.readouterr().err.partition("continue with: ")[2])
    config = cli.parse("train", words[2:]).config
    imported = torch_runs.import_torch([Path("models.pt")], Path("run"), PRESETS["smoke"])
    assert config == imported.config != PRESETS["smoke"]


def test_stages_in_files_of_their_own(networks, capfd):
    torchfile.write(Path("idm.pt"), networks["idm"])
    torchfile.write(Path("wm.pt"), {"state_dict": networks["wm"]})
    torchfile.write(Path("policy.pt"), networks["policy"])
    assert main(["import-torch", "idm.pt", "wm.pt"]) == 0
    assert main(["import-torch", "policy.pt"]) == 0  # into the same run
    capfd.readouterr()
    assert main(["export-torch", "runs/coinrun/imported", "--out", "all.pt"]) == 0
    assert_same(torchfile.read(Path("all.pt")), networks)
    assert main(["import-torch", "policy.pt"]) == 2
    assert "already has a stage cloning: choose another --name" in capfd.readouterr().err


def test_the_models_of_pytorch(networks, capfd):
    torch = pytest.importorskip("torch")
    from benchmarks import torch_lapo

    class Config:
        """A class that the reader cannot know."""

    globals()["Config"] = Config
    Config.__qualname__ = "Config"
    config = [2, 6, 3, 2, 5, 11]
    idm, wm, policy = torch_lapo.make(config, seed=4)
    state = {"idm": idm.state_dict(), "wm": wm.state_dict(), "policy": policy.state_dict()}
    optimizer = torch.optim.AdamW([*idm.parameters(), *wm.parameters()])
    torch.save({**state, "opt": optimizer.state_dict(), "cfg": Config(), "step": 7}, "models.pt")
    assert main(["import-torch", "models.pt"]) == 0
    assert main(["export-torch", "runs/coinrun/imported", "--out", "again.pt"]) == 0
    again = torch.load("again.pt", weights_only=True)
    others = torch_lapo.make(config, seed=5)
    for kind, module in zip(("idm", "wm", "policy"), others, strict=True):
        module.load_state_dict(again[kind], strict=True)
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, state[kind][name])


def test_what_holds_no_networks_of_lapo(networks):
    def fails(tree, sentence):
        flat = torchfile.flatten(tree)
        torchfile.write(Path("a.pt"), flat)
        with pytest.raises(WeightsError, match=sentence):
            torch_runs.import_torch([Path("a.pt")], Path("run"), PRESETS["paper"])
        assert not Path("run").exists()

    fails({"weight": np.ones(3)}, "none of LAPO's networks: no state dict")
    fails({"idm": networks["idm"]}, "an inverse model and no forward one")
    fails({"wm": networks["wm"]}, "a forward model and no inverse one")
    fails({"a": networks["policy"], "b": networks["policy"]}, r"two networks of a kind, at a\. and b\.")
    fails({"x": networks["policy"] | {"fc_rl.weight": np.ones(3)}}, "fc_rl.weight belongs to no network")
    fails({"x": networks["policy"] | {"fc.weight": np.ones((256, 2000))}}, "which no square image gives")
    head = {"policy_head.weight": np.ones((16, 256)), "policy_head.bias": np.ones(16)}
    fails(networks | {"policy": networks["policy"] | head}, "latents have 16 numbers and the inverse model's 32")
    lacking = {name: array for name, array in networks["idm"].items() if name != "fc.bias"}
    fails(networks | {"idm": lacking}, "idm.fc.bias is missing")
    for value, dtype in ((np.nan, np.float32), (-np.inf, np.float16), (1e39, np.float64)):
        spoilt = networks["policy"] | {"fc.bias": np.full(networks["policy"]["fc.bias"].shape, value, dtype)}
        fails({"policy": spoilt}, r"policy\.fc\.bias is not finite in float32: its training had diverged")


def test_runs_that_the_reference_cannot_hold(folder, capfd):
    assert main(["export-torch", "runs/none"]) == 2
    assert "There is no folder runs/none" in capfd.readouterr().err
    Path("run").mkdir()
    assert main(["export-torch", "run"]) == 2
    assert "run has no checkpoint of stage 1 or 2" in capfd.readouterr().err
    smoke = PRESETS["smoke"].dynamics
    leaves = {"params": {"idm": {"w": np.zeros(1)}}, "batch_stats": {"b": np.zeros(1)}, "step": np.array(3)}
    leaves["codebooks"] = {name: np.zeros(1) for name in ("embedding", "count", "total")}
    checkpoint.save(Path("run/checkpoints/dynamics"), 3, leaves, config=smoke)
    assert main(["export-torch", "run"]) == 2
    assert "IMPALA trunks with pooling" in capfd.readouterr().err
    assert not Path("run/models.pt").exists()


def test_image_sizes_are_read_off_the_weights(networks):
    assert pytorch.policy_input(networks["policy"]) == (64, 3) and pytorch.latent_dim(networks["policy"]) == 32
