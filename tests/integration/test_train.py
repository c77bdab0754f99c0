"""What a complete run leaves behind, and that doing it again does nothing."""

import dataclasses
import json
import math
import re
import shutil

import jax
import numpy as np
import pytest

import lamjax
from lamjax import envs, pipeline, policies
from lamjax.cli import main
from lamjax.data import open_store
from lamjax.pipeline.fresh_levels import keep_results
from lamjax.presets import PRESETS
from lamjax.training import checkpoint, run_folder
from lamjax.training.logging import read_metrics

SMOKE = PRESETS["smoke"]
FRAMES = SMOKE.online.ppo.total_frames
AGREEMENT = ("", "_merged", "_shuffled", "_merged_shuffled")
STAGE_KEYS = {
    "record": {"store", "frames", "episodes", "return_mean", "seconds", "frames_per_s"},
    "dynamics": {
        *("steps", "windows_per_s", "seconds", "fdm_mse", "copy_last_mse", "fdm_ratio"),
        *("probe_accuracy", "probe_accuracy_merged", "majority_accuracy", "majority_accuracy_merged"),
        *("untrained_probe_accuracy", "untrained_probe_accuracy_merged"),
        *("still_probe_accuracy", "still_probe_accuracy_merged"),
        *("codebook_perplexity", "dead_codes", "num_codes", "ok", "verdict"),
        *("action_information", "information_seconds"),
        *(f"code_{measure}{kind}" for measure in ("nmi", "purity") for kind in AGREEMENT),
    },
    "cloning": {"steps", "windows_per_s", "seconds", "mse", "null_mse", "ratio", "ok", "verdict"},
    "decode_offline": {"curve", "bc_curve", "oracle", "episodes", "normalised", "seconds", "ok", "verdict"},
    "decode_online": {
        *("frames", "curve", "return_mean", "return_stderr", "episodes", "normalised"),
        *("seconds", "frames_per_s", "ok", "verdict"),
    },
}
STAGE_KEYS["ppo_scratch"] = STAGE_KEYS["decode_online"]
TRAINED = STAGE_KEYS.keys() - {"record", "decode_offline"} | {"oracle"}  # what has checkpoints and rows of metrics


@pytest.fixture(scope="module")
def summary(whole):
    text = (whole / "summary.json").read_text()
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def numbers(value):
    """Every leaf of nested lists and dicts."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    else:
        yield value


def test_summary_says_what_was_run(summary):
    assert (summary["env"], summary["preset"], summary["seed"], summary["name"]) == ("coinrun", "smoke", 0, "smoke-s0")
    assert {"lamjax", "jax", "flax", "optax", "numpy", "python"} <= summary["versions"].keys()
    assert summary["device"]["platform"] == "cpu" and summary["device"]["count"] == 2
    assert summary["source"]["policy"] and summary["total_seconds"] > 0
    assert isinstance(summary["diagnosis"], list) and "git" in summary and "partial" not in summary


def test_summary_holds_every_stage_with_finite_numbers(summary):
    assert summary["stages"].keys() == STAGE_KEYS.keys()
    for stage, results in summary["stages"].items():
        assert STAGE_KEYS[stage] <= results.keys(), stage
        for leaf in numbers(results):
            assert leaf is not None and (isinstance(leaf, str | bool) or math.isfinite(leaf)), (stage, results)
        if stage != "record":
            assert results["ok"] != results["verdict"].startswith("failed: ")
            assert results["seconds"] > 0
    assert summary["nulls"].keys() == {"random_return"}  # the recorded policy was the random one
    assert summary["nulls"]["random_return"]["episodes"] == SMOKE.eval_episodes


def test_figures_fit_together(summary):
    stages = summary["stages"]
    dynamics = stages["dynamics"]
    assert dynamics["steps"] == SMOKE.dynamics.steps and stages["cloning"]["steps"] == SMOKE.cloning.steps
    assert dynamics["fdm_ratio"] == pytest.approx(dynamics["fdm_mse"] / dynamics["copy_last_mse"])
    assert stages["cloning"]["ratio"] == pytest.approx(stages["cloning"]["mse"] / stages["cloning"]["null_mse"])
    assert dynamics["num_codes"] == SMOKE.dynamics.quantizer.codes
    for perplexity, dead in zip(dynamics["codebook_perplexity"], dynamics["dead_codes"], strict=True):
        assert 1 <= perplexity <= dynamics["num_codes"] - dead + 1e-6
    for name in ("probe", "untrained_probe", "still_probe", "majority"):
        assert 0 <= dynamics[f"{name}_accuracy"] <= 1 and 0 <= dynamics[f"{name}_accuracy_merged"] <= 1
    for kind in AGREEMENT:
        assert 0 <= dynamics[f"code_nmi{kind}"] <= 1 and 0 < dynamics[f"code_purity{kind}"] <= 1
    assert dynamics["code_purity_merged"] >= dynamics["code_purity"]  # a union of classes is met no less often
    information = dynamics["action_information"]
    assert information.keys() == {
        *("share", "share_stderr", "untrained_share", "trained", "untrained", "supervised", "majority", "windows"),
    }
    ceiling = max(information["supervised"] - information["majority"], 0.02)
    assert information["share"] == pytest.approx((information["trained"] - information["majority"]) / ceiling)
    assert information["windows"] == SMOKE.analysis.probe_test
    offline = stages["decode_offline"]
    assert offline["oracle"].keys() == {"return_mean", "return_stderr", "episodes"}
    assert offline["oracle"]["episodes"] == SMOKE.offline.episodes
    for curve in (offline["curve"], offline["bc_curve"]):
        assert [n for n, *_ in curve] == list(SMOKE.offline.labels)
    for name in ("greedy_curve", "bc_greedy_curve", "idm_curve", "idm_greedy_curve"):
        assert [n for n, *_ in offline[name]] == list(SMOKE.offline.compare_at)
    assert offline["seeds"] == 1 and offline["stderr_over"] == "episodes"
    assert offline["by_seed"]["curve"] == [[n, 0, *rest] for n, *rest in offline["curve"]]
    for (n, normalised), (m, mean, _) in zip(offline["normalised"], offline["curve"], strict=True):
        assert n == m and normalised == pytest.approx(envs.normalised_return("coinrun", mean))
    for stage in ("decode_online", "ppo_scratch"):
        assert stages[stage]["frames"] == FRAMES and stages[stage]["episodes"] == SMOKE.eval_episodes
        assert all(0 < frames <= FRAMES for frames, _ in stages[stage]["curve"])
    assert stages["record"]["frames"] >= SMOKE.record.frames


def test_the_folder_holds_what_the_design_says(whole):
    names = {path.name for path in whole.iterdir()}
    assert {"config.json", "metrics.jsonl", "summary.json", "report.html", "checkpoints", "tensorboard"} <= names
    config = json.loads((whole / "config.json").read_text())
    assert config == {"env": "coinrun", "source": "random", **checkpoint.as_json(SMOKE)}
    assert {path.name for path in (whole / "checkpoints").iterdir()} == TRAINED
    assert list((whole / "tensorboard").glob("events.out.tfevents.*"))


def test_metrics_of_every_stage_are_finite(whole):
    rows = read_metrics(whole / "metrics.jsonl")
    assert rows.keys() == TRAINED
    for stage, last in (
        ("dynamics", SMOKE.dynamics.steps),
        ("cloning", SMOKE.cloning.steps),
        ("oracle", SMOKE.cloning.steps),
        ("ppo_scratch", FRAMES),
        ("decode_online", FRAMES),
    ):
        assert list(rows[stage])[-1] == last
        for row in rows[stage].values():
            assert all(value is not None for value in row.values()), row
    evaluated = [step for step, row in rows["dynamics"].items() if "test_fdm_mse" in row]
    assert evaluated == [10, 20]


def test_report_is_one_file(whole):
    page = (whole / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html") and "data:image" in page
    assert not re.search(r"""(?:src|href)=["']https?://""", page)


def test_policies_play(whole, summary):
    """Each policy in the run's folder is the one whose return the summary holds."""
    found = {path.name for path in (whole / "policies").iterdir()}
    assert found == {"decode_online", "ppo_scratch", "idm-64", *(f"offline-{n}" for n in SMOKE.offline.labels)}
    obs = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    for name in found:
        policy, params, info = policies.load_policy(whole / "policies" / name)
        logits = np.asarray(policy(params, obs))
        assert logits.shape == (3, 15) and np.isfinite(logits).all()
        if name in summary["stages"]:
            assert info["return_mean"] == summary["stages"][name]["return_mean"]
            assert (info["env"], info["seed"], info["frames"]) == ("coinrun", 0, FRAMES)
    kept, (_, _, info) = summary["decoder"], policies.load_policy(whole / "policies" / "idm-64")
    assert (kept["labels"], kept["accuracy"], kept["stderr"]) == (64, info["accuracy"], info["stderr"])


def test_checkpoints_hold_the_policies(whole):
    """What is evaluated is the end of training."""
    _, arrays, _ = checkpoint.restore_arrays(whole / "checkpoints" / "ppo_scratch")
    _, params, _ = policies.load_policy(whole / "policies" / "ppo_scratch")
    np.testing.assert_array_equal(arrays["params.policy_head.kernel"], params["policy_head"]["kernel"])
    assert arrays["update"] == SMOKE.scratch.ppo.num_updates


def test_the_same_command_again_does_nothing(whole, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("something was done again")

    for module, name in (
        (pipeline.record, "record"),
        (pipeline.windows, "train"),
        (pipeline.reinforcement, "train"),
        (pipeline.evaluation, "evaluate_all"),
        (pipeline.dynamics, "examine_dynamics"),
        (pipeline.offline, "clone_labels"),
    ):
        monkeypatch.setattr(module, name, forbidden)

    def state():
        kept = [whole / "metrics.jsonl", whole / "config.json", whole / "analysis.npz"]
        kept += [p for name in ("checkpoints", "policies") for p in (whole / name).rglob("*")]
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in kept if path.is_file()}

    before, stages = state(), json.loads((whole / "summary.json").read_text())["stages"]
    root = whole.parents[2]
    argv = ["train", "--env", "coinrun", "--preset", "smoke", "--policy", "random"]
    assert main([*argv, "--runs", str(root / "runs"), "--data", str(root / "data")]) == 0
    assert state() == before
    assert json.loads((whole / "summary.json").read_text())["stages"] == stages


def test_the_report_can_be_written_again(whole, capsys):
    page = whole / "report.html"
    page.unlink()
    assert main(["report", "--env", "coinrun", "--runs", str(whole.parents[1])]) == 0
    assert capsys.readouterr().out.strip() == str(page) and page.stat().st_size > 10_000


def test_the_action_information_of_a_run_on_fresh_levels(whole, tmp_path, capsys):
    argv = ["information", str(whole), "--data", str(tmp_path)]
    assert main([*argv, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert (
        results.keys()
        == run_folder.read_json(whole / "summary.json")["stages"]["dynamics"]["action_information"].keys()
    )
    fresh = open_store(tmp_path / "coinrun" / f"fresh-{SMOKE.analysis.information.frames}-s0")
    recorded = open_store(run_folder.read_json(whole / "summary.json")["stages"]["record"]["store"])
    assert not set(fresh.episodes.level_seed) & set(recorded.episodes.level_seed)
    assert main(argv) == 0  # another time with words, and nothing is recorded or trained again
    out, err = capsys.readouterr()
    assert "recording" not in err and "training" not in err
    assert f"fresh levels of coinrun, {results['windows']} held-out windows" in out
    assert f"{100 * results['supervised']:.1f} %" in out and "of what the frames reveal about the action" in out
    # The model that was shared has the same weights; what was kept of a run is in its card.
    lamjax.load(whole).export(tmp_path / "model")
    assert main(["information", str(tmp_path / "model"), "--data", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == results
    with pytest.raises(run_folder.RunError, match=r"has no summary\.json to keep results in: give a run folder"):
        keep_results(tmp_path / "model", results)
    shutil.copytree(whole, tmp_path / "run")
    keep_results(tmp_path / "run", results)
    lamjax.load(tmp_path / "run").export(tmp_path / "kept")
    row = f"the same on levels that the run did not record | {results['share']:.2f} ± {results['share_stderr']:.2f}"
    assert row in (tmp_path / "kept" / "README.md").read_text()


def test_a_policy_of_the_run_can_be_evaluated_and_recorded(whole, tmp_path, capfd):
    folder = str(whole / "policies" / "ppo_scratch")
    assert main(["eval", "--checkpoint", folder, "--episodes", "2", "--num-envs", "2", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["episodes"] == 2
    argv = ["record", "--policy", folder, "--frames", "64", "--num-envs", "2", "--out", str(tmp_path / "store")]
    assert main(argv) == 0
    store = open_store(tmp_path / "store")
    assert store.policy["kind"] == "checkpoint" and store.policy["stage"] == "ppo_scratch"


def test_another_seed_gives_another_result(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.dynamics, "examine_dynamics", lambda *args: {})
    config = dataclasses.replace(SMOKE, seed=1)
    with run_folder.Run(tmp_path / "run", "coinrun", config, {}) as opened:
        source = pipeline.find_source("coinrun", "random", tmp_path, 15)
        store = pipeline.record_stage(opened, source, tmp_path / "data")
        pipeline.dynamics_stage(opened, store)
    first = open_store(run_folder.read_json(whole / "summary.json")["stages"]["record"]["store"])
    assert store.manifest["files"]["observations/c.0.0.0.0"] != first.manifest["files"]["observations/c.0.0.0.0"]
    ours, theirs = (
        checkpoint.restore_arrays(folder / "checkpoints" / "dynamics")[2]["digests"]
        for folder in (tmp_path / "run", whole)
    )
    differ = {name for name in ours if name.startswith("params.") and ours[name] != theirs[name]}
    assert differ == {name for name in ours if name.startswith("params.")}


def test_stages_and_seeds_draw_from_keys_of_their_own():
    stages = ("record", "dynamics", "cloning", "offline", "online", "ppo_scratch", "evaluation", "probe")
    keys = {
        tuple(jax.random.key_data(run_folder.stage_key(seed, stage)).tolist()) for stage in stages for seed in (0, 1)
    }
    assert len(keys) == 2 * len(stages)


def test_aggregate_of_seeds(whole, tmp_path):
    """Means and standard errors over runs, from their summaries alone."""
    folders = []
    for seed, shift in ((0, 0.0), (1, 2.0)):
        summary = json.loads((whole / "summary.json").read_text()) | {"seed": seed}
        summary["stages"]["ppo_scratch"]["return_mean"] = 3.0 + shift
        summary["stages"]["decode_offline"]["curve"] = [[16, 2.0 + shift, 0.1]]
        summary["stages"]["dynamics"]["action_information"] = {"share": 0.5 + shift / 10, "untrained_share": 0.25}
        folders.append(tmp_path / f"smoke-s{seed}")
        folders[-1].mkdir()
        run_folder.write_json(folders[-1] / "summary.json", summary)
    found = json.loads(pipeline.aggregate(folders).read_text())
    assert found["seeds"] == [0, 1]
    assert found["stages"]["ppo_scratch"]["return_mean"] == {"mean": 4.0, "stderr": pytest.approx(1.0)}
    assert found["stages"]["decode_offline"]["curve"] == [[16, 3.0, pytest.approx(1.0)]]
    assert found["action_information"]["share"] == {"mean": pytest.approx(0.6), "stderr": pytest.approx(0.1)}
    assert found["action_information"]["untrained_share"]["mean"] == 0.25
