"""Reports of complete, partial, failing and hostile runs."""

import copy
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from lamjax.analysis import drawing, figures, images, report, report_figures, run_results

SECTIONS = ["headline", "diagnosis", "dynamics", "cloning", "decoding", "numbers", "configuration", "command"]
RESULT = {"frames": 8192, "curve": [[4096, 3.0], [8192, 5.0]], "return_stderr": 0.2, "normalised": 0.4, "seconds": 61.0}
SUMMARY = {
    "env": "coinrun",
    "preset": "smoke",
    "seed": 0,
    "name": "smoke-s0",
    "git": "0123456789abcdef",
    "command": "make train ENV=coinrun",
    "versions": {"jax": "0.10.2"},
    "device": {"platform": "cpu", "kind": "cpu", "count": 1},
    "source": {"policy": "expert", "return_mean": 8.0},
    "stages": {
        "record": {"frames": 2048, "episodes": 12, "return_mean": 7.5, "seconds": 3.0, "frames_per_s": 682.0},
        "dynamics": {
            "steps": 60,
            "windows_per_s": 150.0,
            "seconds": 8.0,
            "fdm_mse": 2.1e-3,
            "copy_last_mse": 1.4e-2,
            "fdm_ratio": 0.15,
            "probe_accuracy": 0.4,
            "probe_accuracy_merged": 0.6,
            "majority_accuracy": 0.2,
            "majority_accuracy_merged": 0.3,
            "untrained_probe_accuracy": 0.25,
            "untrained_probe_accuracy_merged": 0.35,
            "still_probe_accuracy": 0.22,
            "still_probe_accuracy_merged": 0.33,
            "codebook_perplexity": [5.5, 3.25],
            "dead_codes": [1, 2],
            "num_codes": 8,
            "ok": True,
            "verdict": "better than copying",
        },
        "cloning": {"steps": 60, "mse": 0.2, "null_mse": 0.7, "ratio": 0.29, "ok": True, "verdict": "better than mean"},
        "decode_offline": {
            "curve": [[16, 3.0, 0.3], [256, 6.5, 0.2]],
            "bc_curve": [[16, 2.5, 0.3], [256, 4.0, 0.2]],
            "normalised": [[16, 0.04], [256, 0.5]],
            "episodes": 10,
            "ok": True,
            "verdict": "better than cloning",
        },
        "decode_online": {**RESULT, "return_mean": 7.0, "ok": True, "verdict": "better than scratch"},
        "ppo_scratch": {**RESULT, "return_mean": 5.0},
    },
    "nulls": {
        "random_return": {"mean": 2.7, "stderr": 0.1, "episodes": 10},
        "expert_return": {"mean": 8.1, "stderr": 0.1, "episodes": 10},
    },
    "diagnosis": [],
    "total_seconds": 4000.0,
}
ROWS = [
    {"stage": "dynamics", "step": step, "time": 1.0, "fdm_mse": 0.02 / (step + 1), "perplexity_0": 4.0,
     "perplexity_1": 3.0, "copy_last_mse": 0.014} | ({"test_fdm_ratio": 0.5, "test_fdm_mse": 7e-3} if step == 4 else {})
    for step in range(5)
]  # fmt: skip
ROWS += [{"stage": "cloning", "step": step, "time": 2.0, "loss": 0.5} for step in range(45)]
ROWS += [
    {"stage": stage, "step": step, "time": 3.0, "frames": 4096 * step, "episode_return": 3.0 + step}
    for stage in ("decode_online", "ppo_scratch")
    for step in range(3)
]


def arrays():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 5, 16, 16, 3), np.uint8)
    return {
        "latents": rng.normal(size=(40, 4)).astype(np.float32),
        "latents_untrained": rng.normal(size=(40, 4)).astype(np.float32),
        "actions": rng.integers(0, 15, 40),
        "merged": rng.integers(0, 2, 40),
        "action_names": np.array([f"action {index}" for index in range(15)]),
        "merged_names": np.array(["left", "right $5 <up>"]),
        "strip_context": frames[:, :2],
        "strip_truth": frames[:, 2],
        "strip_prediction": frames[:, 3],
        "rollout_frames": frames,
        "rollout_labels": np.array(["0, 1", "2, 3 <b>$", "a label that is much too long for its tile"]),
        "code_counts": rng.integers(0, 9, (2, 8)),
    }


def make_run(folder, summary=SUMMARY, rows=ROWS, with_arrays=True, tail=""):
    """A run folder; None leaves a file out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"env": "coinrun", "dynamics": {"steps": 60, "rate": 2e-4}}))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if rows is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    if with_arrays:
        np.savez(folder / "analysis.npz", **arrays())
    return folder


class Page(HTMLParser):
    """What a page contains: its ids, attributes and text, and whether its elements are closed."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, path):
        super().__init__()
        self.ids, self.attributes, self.words, self.open, self.tags = [], [], [], [], []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "smoke-s0")
    return folder, Page(report.write(folder))


def test_complete_run_has_every_section_and_figure(complete):
    folder, page = complete
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert "missing" not in page.text
    assert page.tags.count("svg") == len(report_figures.FIGURES)
    assert {path.name for path in (folder / "figures").iterdir()} == {
        *(f"{name}.png" for name in report_figures.FIGURES),
        "rollouts.gif",
    }
    assert not list(folder.glob("**/*.part*"))


def test_page_is_well_formed_and_loads_nothing(complete):
    _, page = complete
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags
    assert "http" not in page.source and "@import" not in page.source and "//" not in page.text
    for tag, name, value in page.attributes:
        if name in {"src", "srcset", "href", "xlink:href", "poster", "data"}:
            assert value.startswith(("data:", "#")), (tag, name)
            if tag == "img":
                assert value.startswith("data:")
            if value.startswith("#"):
                assert value[1:] in page.ids


def test_results_stand_beside_their_baselines(complete):
    _, page = complete
    for words in (
        "0.15 × copy-last forward model 2.10 × 10⁻³ copy last 1.40 × 10⁻² ✓",
        "60.0 % aliased actions merged untrained IDM 35.0 % o_t alone 33.0 % most frequent 30.0 % ✓",
        "6.50 ± 0.20 at 256 labels behaviour cloning 4.00 ± 0.20 random policy 2.70 expert 8.10 ✓",
        "7.00 ± 0.20 at 8.19 k frames PPO from scratch 5.00 ± 0.20 random policy 2.70 expert 8.10 ✓",
        "1 h 7 min",
        "make train ENV=coinrun",
        "every stage beats its baseline",
        "codebook_perplexity 5.5, 3.25",
        "labels mean stderr 16 3.00 0.30 256 6.50 0.20",
    ):
        assert words in page.text


INFORMATION = {
    **{"share": 0.231, "share_stderr": 0.034, "untrained_share": 0.1, "windows": 3396},
    **{"trained": 0.589, "untrained": 0.563, "supervised": 0.746, "majority": 0.543},
}


def test_the_action_information_and_the_oracle_stand_where_they_are_measured(tmp_path, complete):
    assert "Action information" not in complete[1].text and "all actions cloned" not in complete[1].text
    summary = copy.deepcopy(SUMMARY)
    summary["stages"]["dynamics"]["action_information"] = INFORMATION
    summary["stages"]["decode_offline"]["oracle"] = {"return_mean": 8.4, "return_stderr": 0.31, "episodes": 64}
    page = Page(report.write(make_run(tmp_path, summary)))
    for words in (
        "0.23 ± 0.03 of what the frames reveal about actions untrained IDM 0.10 needed 0.50 ✗",
        "on 3,396 held-out windows of uniform random play",
        "the action is read by accuracy, aliases merged share of what the frames reveal a probe on the latents 58.9 % "
        "0.23 ± 0.03 the same probe on an untrained IDM's latents 56.3 % 0.10 the same IDM, trained on the actions "
        "themselves 74.6 % 1.00 the most frequent action 54.3 % 0.00",
        "expert 8.10 all actions cloned 8.40 ± 0.31 ✓",
    ):
        assert words in page.text


def test_continuous_actions_are_shown_by_the_variance_that_is_explained(tmp_path):
    summary = copy.deepcopy(SUMMARY)
    stage = summary["stages"]["dynamics"]
    for key in [key for key in stage if "accuracy" in key]:
        del stage[key]
    others = {"mean_r2": -0.002, "untrained_probe_r2": 0.35, "still_probe_r2": 0.3, "linear_probe_r2": 0.5}
    stage |= {"probe_r2": 0.9, **others}
    stored = arrays()
    for name in ("actions", "merged", "action_names", "merged_names"):
        del stored[name]
    folder = make_run(tmp_path, summary, with_arrays=False)
    np.savez(folder / "analysis.npz", **stored, action_values=np.linspace(-2, 2, 40, dtype=np.float32)[:, None])
    page = Page(report.write(folder))
    assert "0.9 R², of continuous actions untrained IDM 0.35 o_t alone 0.3 mean -0.002 ✓" in page.text
    assert {"probe.png", "latents_trained.png", "latents_untrained.png"} <= {p.name for p in folder.glob("figures/*")}


def test_same_run_gives_same_figures(complete):
    _, page = complete
    curve = (np.arange(50.0), np.ones(50))
    texts = {drawing.svg(figures.cloning_loss(curve, None, 2.0), "x", 'a "quoted" <title>') for _ in range(2)}
    assert len(texts) == 1
    assert "var(--blue)" in page.source and drawing.BLUE not in page.source.split("</style>")[1]


def test_run_in_progress_shows_what_is_there(tmp_path):
    summary = {**SUMMARY, "stages": {"record": SUMMARY["stages"]["record"]}, "nulls": {}, "total_seconds": None}
    page = Page(report.write(make_run(tmp_path, summary, ROWS[:5], with_arrays=False, tail='{"stage": "dyna')))
    assert page.tags.count("svg") == 2
    assert "unfinished last logged at step 4" in page.text
    assert "0.5 × copy-last, at step 4" in page.text
    assert "Latent policy: missing, needs the metrics of stage 2." in page.text


def test_empty_folder_has_a_report(tmp_path):
    page = Page(report.write(tmp_path))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert tmp_path.name in page.text and "svg" not in page.tags


def test_metrics_keep_the_last_row_of_a_step_and_skip_damaged_lines(tmp_path):
    rows = [{"stage": "cloning", "step": step, "loss": loss} for step, loss in ((1, 9.0), (2, 9.0), (1, 3.0))]
    rows += [{"stage": "cloning", "step": 3, "loss": None}, {"stage": "cloning", "step": 4, "loss": float("nan")}]
    tail = "[" * 100_000 + '\n{"stage": "cloning", "step": Infinity}'
    tail += '\n[1]\n"x"\n\n{"step": 5}\n{"stage": "cloning", "step": null}\n{"stage": "cloning", "step": 6, "lo'
    run = run_results.load(make_run(tmp_path, None, rows, with_arrays=False, tail=tail))
    steps, losses = run.curve("cloning", "loss")
    np.testing.assert_array_equal(steps, [1, 2])
    np.testing.assert_array_equal(losses, [3, 9])
    assert run.curve("cloning", "absent") is None and run.curve("dynamics", "loss") is None


@pytest.mark.parametrize(("ok", "mark"), [(True, "✓"), (False, "✗ does not beat its baseline")])
def test_a_card_shows_its_stage_s_verdict(tmp_path, ok, mark):
    summary = copy.deepcopy(SUMMARY)
    stages = ("decode_offline", "decode_online")
    for stage in stages:
        summary["stages"][stage] |= {"ok": ok, "verdict": "as judged"}
    summary["stages"]["decode_offline"]["curve"] = [[16, 7.5, 0.2], [256, 7.0, 0.3]]
    page = Page(report.write(make_run(tmp_path, summary, None, with_arrays=False)))
    badge = "every stage beats its baseline" if ok else f"{len(stages)} of 6 stages failed"
    assert badge in page.text and "7.50 ± 0.20 at 16 labels" in page.text
    assert page.text.count("✗ does not beat its baseline") == (0 if ok else len(stages))
    assert page.text.count(mark) >= len(stages)


def test_failed_stage_is_called_failed(tmp_path):
    summary = copy.deepcopy(SUMMARY)
    summary["stages"]["decode_online"] |= {"ok": False, "verdict": "worse than scratch", "return_mean": 4.0}
    summary["diagnosis"] = [{"stage": "decode_online", "text": "too few frames", "try": "more frames"}]
    summary["banner"] = "recorded from a random policy"
    del summary["stages"]["decode_offline"]["curve"]
    page = Page(report.write(make_run(tmp_path, summary, None, with_arrays=False)))
    assert "1 of 6 stages failed" in page.text
    assert "Stage 3: online decoding failed worse than scratch" in page.text
    assert page.text.count("✗ does not beat its baseline") == 1
    assert "decode_online : too few frames Try more frames" in page.text
    assert "recorded from a random policy" in page.text
    assert ("span", "class", "badge failed") in page.attributes


def test_distractor_scores_stand_beside_those_of_the_action(tmp_path):
    summary = copy.deepcopy(SUMMARY)
    assert "The action or the distractor" not in Page(report.write(make_run(tmp_path / "a", summary, None, False))).text
    values = {"distractor_change_r2": 0.81, "linear_distractor_change_r2": 0.72, "untrained_distractor_change_r2": 0.63}
    summary["stages"]["dynamics"] |= values | {"probe_accuracy_merged": 0.541}
    text = Page(report.write(make_run(tmp_path / "b", summary, None, False))).text
    assert "The action or the distractor" in text and "action, aliases merged (accuracy) 54.1 %" in text
    assert "change from o_t to o_{t+1} (R²) 0.81 0.72 0.63 –" in text


def test_text_of_the_run_is_escaped(tmp_path):
    hostile = '<script src="http://x.invalid/a.js"></script>"\'&'
    summary = copy.deepcopy(SUMMARY) | {"name": hostile, "env": hostile, "command": hostile, "banner": hostile}
    summary["stages"]["cloning"]["verdict"] = hostile
    summary["stages"]["cloning"][hostile] = 1.0
    summary["versions"][hostile] = hostile
    del summary["stages"]["decode_offline"], summary["stages"]["decode_online"]
    summary["diagnosis"] = [{"stage": hostile, "text": hostile, "try": hostile}]
    folder = make_run(tmp_path, summary, None, with_arrays=False)
    (folder / "config.json").write_text(json.dumps({hostile: hostile}))
    page = Page(report.write(folder))
    assert "script" not in page.tags and "<script" not in page.source
    assert page.text.count(hostile) >= 8


def test_a_run_without_a_quantiser_has_no_figures_of_codes(tmp_path):
    results = {**SUMMARY["stages"]["dynamics"], "quantized": False}
    finished = SUMMARY | {"stages": SUMMARY["stages"] | {"dynamics": results}}
    begun = SUMMARY | {"stages": {}, "nulls": {}}
    for name, summary in (("finished", finished), ("begun", begun)):
        folder = make_run(tmp_path / name, summary)
        (folder / "config.json").write_text(json.dumps({"dynamics": {"quantizer": {"enabled": False}}}))
        page = Page(report.write(folder))
        assert {"figure-probe", "figure-perplexity", "figure-code_usage"} & set(page.ids) == {"figure-probe"}
        assert not {"perplexity.png", "code_usage.png"} & {path.name for path in (folder / "figures").iterdir()}


def test_missing_numbers_are_dashes(tmp_path):
    def blank(value):
        if isinstance(value, dict):
            return {key: blank(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [blank(inner) for inner in value]
        return value if isinstance(value, str | bool) else (None if isinstance(value, int) else float("nan"))

    rows = [{**row, "fdm_mse": None, "loss": float("nan")} for row in ROWS[:50]]
    folder = make_run(tmp_path, blank(SUMMARY), rows, with_arrays=False)
    nothing = np.full((40, 4), np.nan, np.float32)
    labels = {name: arrays()[name] for name in ("merged", "merged_names", "actions", "action_names")}
    np.savez(folder / "analysis.npz", latents=nothing, latents_untrained=nothing[:0], **labels)
    page = Page(report.write(folder))
    assert "nan" not in page.text.lower().split() and "None" not in page.text
    assert "fdm_mse –" in page.text and "codebook_perplexity –, –" in page.text
    assert "beat its baseline" not in page.text


def test_an_error_says_which_file_is_damaged(tmp_path):
    (tmp_path / "summary.json").write_text('{"env": ')
    with pytest.raises(ValueError, match=r"summary\.json"):
        report.write(tmp_path)
    for content in ("[]", "[" * 100_000):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(ValueError, match=r"summary\.json is not JSON"):
            report.write(tmp_path)
    for content in ('{"stages": 3}', '{"stages": {"dynamics": [1]}}', '{"nulls": "none"}'):
        (tmp_path / "summary.json").write_text(content)
        with pytest.raises(ValueError, match=r"summary\.json is not of a run: (stages|nulls) must hold an object f"):
            report.write(tmp_path)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "analysis.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=r"analysis\.npz"):
        report.write(tmp_path)


def test_gif_shows_every_frame_enlarged_and_stays_small(complete):
    folder, _ = complete
    with Image.open(folder / "figures" / "rollouts.gif") as gif:
        assert gif.n_frames == 5
        tile = 16 * round(images.TILE_PIXELS / 16)
        assert gif.size == (3 * (tile + 8) + 8, tile + 30)
        pixels = np.asarray(gif.convert("RGB"))[22 : 22 + tile, 8 : 8 + tile]
    blocks = pixels.reshape(16, tile // 16, 16, tile // 16, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 32, 32, 3), np.uint8)
    assert len(images.rollout_gif(frames, ["a", "b"], max_bytes=20_000)) <= 20_000


def test_strips_embed_the_frames_pixel_by_pixel(complete):
    _, page = complete
    svg = page.source.split('id="figure-strips"')[1].split("</figure>")[0]
    assert svg.count("<image") == 15 and "pixelated" in svg
    assert f'width="{5 * (192 + 8) - 8}"' in svg


def test_strips_outline_what_the_inverse_model_saw():
    frames = np.zeros((2, 5, 16, 16, 3), np.uint8)
    strips = frames[:, :2], frames[:, 2], frames[:, 3]
    assert not figures.strips(*strips).axes[0].patches
    first, second = figures.strips(*strips, np.array([(0, 0, 8), (3, 5, 8)])).axes[0].patches
    scale = 192 / 16
    assert (first.get_width(), first.get_height()) == (8 * scale, 8 * scale)
    assert first.get_x() == second.get_x() - 5 * scale == 192 + 8  # in the second column, o_t
    assert second.get_y() - first.get_y() == 3 * scale + 192 + 22  # in the next row


def test_vectors_are_drawn_as_curves_not_as_frames(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20, 3))
    vectors = {
        "strip_context": rng.normal(size=(20, 2, 3)),
        "strip_truth": truth,
        "strip_prediction": truth,
        "rollout_frames": rng.normal(size=(4, 13, 3)),
        "rollout_labels": np.array([f"code {i}" for i in range(4)]),
    }
    np.savez(tmp_path / "analysis.npz", **vectors)
    page = report.write(tmp_path).read_text()
    assert "rollouts_animated" not in page and not (tmp_path / "figures" / "rollouts.gif").exists()
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"strips", "rollouts"}
    changes = figures.vector_changes(vectors["strip_context"], truth, truth + 1)
    assert len(changes.axes) == 3
    x, y = changes.axes[1].collections[0].get_offsets().T
    np.testing.assert_allclose(x, truth[:, 1] - vectors["strip_context"][:, 1, 1])
    np.testing.assert_allclose(y, x + 1)
    imagined = figures.vector_rollouts(vectors["rollout_frames"], list(vectors["rollout_labels"]))
    np.testing.assert_array_equal(imagined.axes[2].lines[3].get_ydata(), vectors["rollout_frames"][3, :, 2])


def test_an_optional_stage_is_reported_if_the_run_has_it(tmp_path):
    title = report.STAGES["decode_named"]
    assert title not in Page(report.write(make_run(tmp_path / "without"))).text
    folder = make_run(tmp_path / "with")
    (folder / "config.json").write_text(json.dumps({"env": "coinrun", "named": {"frames": 8192}}))
    page = Page(report.write(folder))
    assert title in page.text and "unfinished" in page.text
    results = {**RESULT, "return_mean": 7.25, "curve": [[8192, 1.0], [12288, 7.25]]}
    results |= {"ok": True, "verdict": "7.25, named"}
    make_run(folder, SUMMARY | {"stages": SUMMARY["stages"] | {"decode_named": results}})
    (folder / "config.json").write_text(json.dumps({"env": "coinrun", "named": {"frames": 8192}}))
    page = Page(report.write(folder))
    assert "7.25, named" in page.text and "every stage beats its baseline" in page.text
