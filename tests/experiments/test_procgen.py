"""The script of the Procgen results: what it does next, and what it makes of finished runs."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from lamjax import envs

FOLDER = Path(__file__).parents[2] / "experiments" / "procgen"


def module(name):
    spec = importlib.util.spec_from_file_location(f"procgen_{name}", FOLDER / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


run, figure = module("run"), module("figure")


def write_summary(folder, seed, mean, stages=("dynamics", "cloning", "decode_offline", "ppo_scratch", "decode_online")):
    curve = [[1000 * i, mean * i / 10] for i in range(1, 11)]
    online = {"return_mean": mean, "return_stderr": 0.1, "frames": 10_000, "curve": curve, "seconds": 5.0}
    information = {"share": mean / 10, "share_stderr": 0.02, "untrained_share": 0.1}
    information |= {"majority": 0.5, "supervised": 0.9, "trained": 0.5 + 0.04 * mean}
    results = {
        "dynamics": {"fdm_ratio": 0.1, "action_information": information, "seconds": 1.0},
        "cloning": {"seconds": 2.0},
        "decode_offline": {"curve": [[16, 3.0, 0.1], [64, 4.0, 0.1]], "bc_curve": [[16, 1.0, 0.1], [64, 2.0, 0.1]]}
        | {"seconds": 3.0},
        "ppo_scratch": online | {"return_mean": mean / 2},
        "decode_online": online,
        "decode_named": online | {"return_mean": mean - 1},
    }
    folder.mkdir(parents=True)
    summary = {
        "seed": seed,
        "git": "abc",
        "device": {"platform": "cpu"},
        "versions": {"jax": "0"},
        "source": {"policy": "expert", "return_mean": 9.0},
        "nulls": {"random_return": {"mean": 2.7}},
        "stages": {name: results[name] for name in stages},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "report.html").touch()


@pytest.fixture
def args(tmp_path):
    return run.Args(games=("maze",), preset="smoke", seeds=2, runs=tmp_path / "runs", results=tmp_path / "results")


def left(args):
    return [piece.name for piece in run.pieces(args, "maze") if not piece.done()]


def test_it_does_what_is_missing_in_order(args):
    everything = ["expert"]
    for seed in range(2):
        everything += [f"LAPO, seed {seed}", f"rl_only, seed {seed}", f"no_vq, seed {seed}"]
    assert left(args) == everything
    folder = args.runs / "maze"
    write_summary(folder / "smoke-s0", 0, 8.0)
    write_summary(folder / "smoke-no_vq-s0", 0, 5.0, stages=("dynamics", "cloning", "decode_online"))
    write_summary(folder / "smoke-s1", 1, 8.0, stages=("dynamics",))  # cut off
    assert left(args) == ["expert", "rl_only, seed 0", "LAPO, seed 1", "rl_only, seed 1", "no_vq, seed 1"]


def test_a_weak_shipped_expert_is_trained_anew(args):
    weak = [piece.name for piece in run.pieces(args, "coinrun") if not piece.done()]
    any_will_do = run.dataclasses.replace(args, expert_at_least=0.0)
    assert weak[0] == "expert"
    assert [piece.name for piece in run.pieces(any_will_do, "coinrun") if not piece.done()] == weak[1:]


def test_a_planner_needs_no_training(args):
    planned = run.dataclasses.replace(args, planners=True)
    assert left(args)[0] == "expert" and left(planned) == left(args)[1:]
    assert next(run.pieces(planned, "ninja")).name == "expert"  # a game without a planner
    assert not next(run.pieces(planned, "ninja")).done()


def test_only_latents_need_no_expert(args):
    latents = run.dataclasses.replace(args, only_latents=True)
    assert left(latents) == ["stage 1, seed 0", "stage 1, seed 1"]
    write_summary(args.runs / "maze" / "smoke-s0", 0, 8.0, stages=("dynamics",))
    assert left(latents) == ["stage 1, seed 1"]
    results = run.collect(latents, "maze")
    assert results["online"] == results["offline"] == {} and results["seeds"] == [0]
    assert figure.latents_table({"maze": results}).splitlines()[2:] == [
        "| maze | expert | 1 | 0.500 | 0.900 | 0.820 | 0.80 ± 0.02 | 0.10 |",
        "| mean of 1 |  |  |  |  |  | 0.80 |  |",
    ]
    results["dynamics"][0]["action_information"]["supervised"] = 0.51  # frames tell hardly anything
    assert figure.latents_table({"maze": results}).splitlines()[2:] == [
        "| maze | expert | 1 | 0.500 | 0.510 | 0.820 |  |  |",
        "| mean of 1 |  |  |  |  |  | 0.00 |  |",
    ]
    assert figure.row("maze", results, figure.paper()["maze"]) == figure.row("maze", None, figure.paper()["maze"])
    assert figure.way({"maze": results}).count("\n") == 1  # no returns, so only the head


def test_latents_are_those_of_the_best_demonstrator_there_is(args, monkeypatch):
    chosen = []
    monkeypatch.setattr(run.pipeline, "find_source", lambda game, policy, *_: chosen.append(policy) or exit())
    for game, planned in (
        ("coinrun", False),
        ("coinrun", True),
        ("fruitbot", True),
        ("maze", False),
        ("chaser", False),
    ):
        latents = run.dataclasses.replace(args, only_latents=True, planners=planned)
        with pytest.raises(SystemExit):
            next(run.pieces(latents, game)).do()
    assert chosen == ["expert", "expert", "planner", "planner", "random"]


def test_a_run_that_was_cut_off_counts_only_for_what_latents_hold(args):
    folder = args.runs / "maze"
    write_summary(folder / "smoke-s0", 0, 8.0)
    write_summary(folder / "smoke-s1", 1, 6.0, stages=("dynamics", "cloning", "decode_offline", "ppo_scratch"))
    results = run.collect(args, "maze")
    assert [len(results["online"][name]["return"]["values"]) for name in ("lapo", "ppo_scratch")] == [1, 1]
    assert len(results["offline"]["curve"]) == len(results["nulls"]) == 1
    assert len(results["dynamics"]) == 2
    write_summary(args.runs / "heist" / "smoke-s0", 0, 8.0, stages=("dynamics", "ppo_scratch"))
    assert run.collect(args, "heist")["online"] == {}


def test_variants_change_what_they_name():
    config = run.PRESETS["paper"]
    rl_only, no_vq = run.without_decoder(config), run.without_quantizer(config)
    assert config.online.decoder.enabled and not rl_only.online.decoder.enabled and not no_vq.online.decoder.enabled
    assert rl_only.dynamics == config.dynamics and not no_vq.dynamics.quantizer.enabled


def test_results_and_figures_of_finished_runs(args):
    assert run.collect(args, "maze") is None
    folder = args.runs / "maze"
    write_summary(folder / "smoke-s0", 0, 8.0)
    write_summary(folder / "smoke-s1", 1, 6.0)
    write_summary(folder / "smoke-rl_only-s0", 0, 4.0, stages=("decode_online",))
    results = run.collect(args, "maze")
    assert results["online"]["lapo"]["return"] == {"mean": 7.0, "stderr": 1.0, "values": [8.0, 6.0]}
    assert results["online"]["rl_only"]["return"] == {"mean": 4.0, "stderr": None, "values": [4.0]}
    assert results["online"]["ppo_scratch"]["normalised"]["mean"] == pytest.approx(envs.normalised_return("maze", 3.5))
    assert "no_vq" not in results["online"] and results["seconds"]["dynamics"]["mean"] == 1.0
    assert set(results["offline"]) == {"curve", "bc_curve"} and "pseudo_labels" not in results["online"]
    # From random play, 2.7, to the expert, 9.
    way = "| `maze` | 2 | 0.68 ± 0.16 |  | 0.13 ± 0.08 |"
    assert figure.way({"maze": results}).splitlines()[-1] == way
    assert figure.latents_table({"maze": results}).splitlines()[2].endswith("| 0.70 ± 0.10 | 0.10 |")
    assert [bar.get_height() for bar in figure.latents({"maze": results}).axes[0].patches] == pytest.approx([0.7, 0.1])

    frames, rows = figure.curves(results, "lapo")
    assert rows.shape == (2, len(frames)) and frames[-1] == 10_000
    np.testing.assert_allclose(rows[0, -1], 8.0, rtol=0.1)  # the end of a rising line, smoothed
    np.testing.assert_allclose(rows[1], rows[0] * 6 / 8, rtol=1e-6)
    panels = figure.online({"maze": results}).axes
    assert len(panels) == 2 and len(panels[1].lines) >= 3
    assert len(figure.offline({"maze": results}).axes) == 1


def test_pseudo_labels_are_shown_where_a_run_has_them(args):
    everything = ("dynamics", "cloning", "decode_offline", "ppo_scratch", "decode_online", "decode_named")
    write_summary(args.runs / "maze" / "smoke-s0", 0, 8.0, stages=everything)
    results = run.collect(args, "maze")
    assert results["online"]["pseudo_labels"]["return"]["values"] == [7.0]
    assert results["seconds"]["decode_named"]["mean"] == 5.0
    cells = dict(zip(figure.LABELS, figure.row("maze", results, figure.paper()["maze"])[5:], strict=False))
    assert cells["lapo"].startswith("8.00 (") and cells["pseudo_labels"] == "7.00"
    labels = [line.get_label() for line in figure.online({"maze": results}).axes[1].lines]
    assert figure.LABELS["pseudo_labels"] in labels


def test_the_papers_values_are_those_of_all_games():
    reported = figure.paper()
    assert set(reported) == set(envs.PROCGEN_GAMES)
    normalised = {
        method: np.mean([envs.normalised_return(game, row[method]) for game, row in reported.items()])
        for method in ("lapo", "rl_only", "ppo_scratch", "offline")
    }
    # The means that the paper's aggregate figures show.
    assert normalised == pytest.approx({"lapo": 1.0, "rl_only": 0.93, "ppo_scratch": 0.44, "offline": 0.57}, abs=0.015)


def test_pages_say_what_the_committed_results_say():
    results = figure.load()
    for path, text in figure.PAGES.items():
        assert text(path.read_text(), results) == path.read_text(), path
    page = figure.PAGE.read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {game}" for game in figure.paper()]
    for game, result in results.items():
        if not result["online"]:
            continue
        line = next(line for line in lines if line.startswith(f"| {game} "))
        assert f"| {np.mean(result['online']['lapo']['return']['values']):.2f} ± " in line
        assert f"({figure.paper()[game]['lapo']:.2f})" in line
