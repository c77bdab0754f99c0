"""Data that nobody can play: stages 1 and 2, actions decoded on held-out episodes, a report without returns."""

import json

import numpy as np
import pytest

import lamjax
from lamjax import data, pipeline
from lamjax.cli import main
from lamjax.presets import PRESETS, VECTOR_PRESETS
from lamjax.spaces import Discrete

MOVES = np.array([[1, 0], [-1, 0], [0, 0.5]], np.float32)


def write_store(path, env="robot", episodes=20, length=40):
    """Points that actions move about in the plane, as vectors of four numbers."""
    rng = np.random.default_rng(0)
    with data.StoreWriter(path, env=env, obs_shape=(4,), obs_dtype="float32", num_actions=3) as writer:
        for level in range(episodes):
            actions = rng.integers(0, 3, length)
            places = np.cumsum(np.concatenate([np.zeros((1, 2)), MOVES[actions[:-1]]]), 0)
            obs = np.concatenate([places, places[:, ::-1]], 1).astype(np.float32)
            writer.append_episode(obs, actions, np.zeros(length), level, "cut")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a store with actions, and the command that started it."""
    folder = tmp_path_factory.mktemp("robot")
    store = write_store(folder / "store")
    argv = ["train", "--store", str(store), "--preset", "smoke", "--runs", str(folder / "runs")]
    argv += ["--dynamics.steps", "300", "--offline.steps", "300"]
    assert main(argv) == 0
    return folder / "runs" / "robot" / "smoke-s0", argv


def test_actions_are_decoded_on_held_out_episodes_beside_their_baselines(run):
    folder, _ = run
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["stages"]) == {"record", "dynamics", "cloning", "decode_actions"} and summary["nulls"] == {}
    assert summary["simulator"] is False and summary["env"] == "robot"
    results = summary["stages"]["decode_actions"]
    counts = list(VECTOR_PRESETS["smoke"].offline.labels)
    assert results["score"] == "accuracy"
    for name in ("idm_curve", "policy_curve", "bc_curve"):
        assert [n for n, *_ in results[name]] == counts
        assert all(value >= 0 and error > 0 for _, value, error in results[name])
    # The inverse model sees what followed; what sees o_t alone cannot know these random actions.
    decoded, cloned = (results[name][-1][1] for name in ("idm_curve", "bc_curve"))
    assert decoded > cloned and decoded > results["constant"]
    assert results["ok"] and "a constant guess" in results["verdict"]


def test_the_model_labels_and_decodes(run):
    folder, _ = run
    lam = lamjax.load(folder)
    assert lam.obs_shape == (4,) and lam.decoder == "idm-64"
    assert lam.policies[lam.decoder].space == Discrete(3)
    assert lam.decode(lam.infer(np.zeros((9, 4), np.float32))).shape == (7,)


def test_a_probe_of_its_labels_repeats_the_runs_own_numbers(run, tmp_path, capsys):
    """From the file of latents alone, the probes read what those of the run itself read, to the last digit."""
    folder, argv = run
    store, labels = argv[argv.index("--store") + 1], tmp_path / "latents.npz"
    assert main(["label", str(folder), store, "-o", str(labels)]) == 0
    capsys.readouterr()
    assert main(["probe", str(labels), "--actions", store, "--run", str(folder), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    own = json.loads((folder / "summary.json").read_text())["stages"]["dynamics"]
    names = ["probe_accuracy", "linear_probe_accuracy", "majority_accuracy", "code_nmi", "code_purity"]
    for name in [*names, *(f"{name}_merged" for name in names)]:
        assert results[name] == own[name]
    assert results["predictions"]["psnr"][0][0] == 1 and results["predictions"]["clips"] > 0


def test_the_report_has_no_returns(run):
    page = (run[0] / "report.html").read_text()
    assert "Actions decoded from latents" in page and "Stage 3: decoding actions" in page
    assert "Return" not in page.split('<section id="numbers">')[0]


def test_again_it_does_nothing_and_another_policy_is_refused(run, capfd):
    folder, argv = run
    before = (folder / "summary.json").read_text()
    assert main(argv) == 0
    assert json.loads((folder / "summary.json").read_text())["stages"] == json.loads(before)["stages"]
    capfd.readouterr()
    for options, sentence in (
        (["--policy", "random"], "Nobody can play robot, so there is no policy to record"),
        (["--within", "10m"], "--within measures how robot is played, and nobody can"),
        (["--env", "robo"], "There is no environment called 'robo'"),
    ):
        assert main([*argv, *options]) == 2
        assert sentence in capfd.readouterr().err


def test_presets_fit_frames_of_any_shape(tmp_path):
    for shape, factor in (((32, 32, 3), 1), ((64, 96, 1), 1), ((128, 96, 3), 2), ((256, 200, 5), 4)):
        with data.StoreWriter(tmp_path / str(shape), env="clips", obs_shape=shape, num_actions=1) as writer:
            writer.append_episode(np.zeros((1, *shape), np.uint8), np.zeros(1, int), np.zeros(1), 0, "cut")
        for preset, usual in PRESETS.items():
            _, config = pipeline.choose_preset("clips", preset, tmp_path / str(shape))
            assert config.cloning.trunk.stem == factor * usual.cloning.trunk.stem
            assert config.dynamics.focus == 0
        dynamics = pipeline.choose_preset("clips", "cpu-agent", tmp_path / str(shape))[1].dynamics
        assert (dynamics.focus_at, dynamics.focus, dynamics.play_share) == ("agent", 16 * factor, 0.0)
        assert dynamics.locator.cell == 2 * factor and dynamics.focus // dynamics.idm.stem == 16
    # The environment's name, not the store, decides for what can be played.
    assert pipeline.choose_preset("maze", "cpu", tmp_path / str(shape))[1] == PRESETS["cpu"]


def test_without_an_environment_and_a_store_there_is_nothing_to_learn_from():
    with pytest.raises(ValueError, match="Say what to learn from: an environment, or a store of trajectories"):
        lamjax.train()
