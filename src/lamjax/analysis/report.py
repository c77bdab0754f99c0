"""Writes the report of a run: one self-contained HTML file.

`write` reads `config.json`, `summary.json`, `metrics.jsonl` and `analysis.npz` of the run folder. Each may be absent or
incomplete: the report of an unfinished run shows what is there and says what is missing. It computes no results, so a
report can be written again on any machine. The figures also go to `figures/`, as PNG and GIF.
"""

import base64
import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from lamjax.analysis import diagnosis, figures
from lamjax.training.logging import read_metrics

STAGES = {
    "record": "Recording",
    "dynamics": "Stage 1: latent dynamics",
    "cloning": "Stage 2: latent cloning",
    "decode_offline": "Stage 3: offline decoding",
    "decode_online": "Stage 3: online decoding",
    "decode_named": "Stage 3: pseudo-labels from random play, then PPO",
    "ppo_scratch": "PPO from scratch",
}


def write(run_dir: Path) -> Path:
    """Writes `report.html` and `figures/` of a run.

    Args:
        run_dir: the run folder; unfinished runs are fine.

    Returns:
        The path of the report. The file needs no other and makes no request.

    Raises:
        ValueError: a file of the run is damaged; the message names it.
    """
    run_dir = Path(run_dir)
    run = load(run_dir)
    report = run_dir / "report.html"
    _replace(report, render(run, _draw(run, run_dir / "figures")).encode())
    return report


# ------------------------------------------------------------------------------------------------------------- input


@dataclasses.dataclass(frozen=True)
class RunResults:
    """The contents of a run folder.

    Attributes:
        name: the run's name.
        config: the configuration, nested; empty if absent.
        summary: the machine-readable result; empty if absent.
        metrics: stage -> step -> row, steps in ascending order.
        arrays: the arrays of `analysis.npz`.
    """

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    metrics: dict[str, dict[int, dict[str, float]]]
    arrays: dict[str, np.ndarray]

    def stage(self, stage: str) -> dict[str, Any]:
        """The results of a stage, empty if it has not ended."""
        return (self.summary.get("stages") or {}).get(stage) or {}

    def baseline(self, name: str) -> dict[str, Any]:
        """Returns of a policy to compare with: `random_return` or `expert_return`."""
        return (self.summary.get("nulls") or {}).get(name) or {}

    def curve(self, stage: str, metric: str, x: str = "step") -> figures.Curve | None:
        """The finite values of a metric over steps or frames, float [n] each; None without any."""
        rows = self.metrics.get(stage, {}).values()
        return _finite([(number(row.get(x, row["step"])), number(row.get(metric))) for row in rows])

    def fields(self, *names: str) -> list[np.ndarray] | None:
        """Arrays of `analysis.npz`; None if one is absent or empty."""
        arrays = [self.arrays.get(name) for name in names]
        return arrays if all(array is not None and array.size for array in arrays) else None


def load(run_dir: Path) -> RunResults:
    """Reads a run folder; what is absent stays empty."""
    summary = _read_json(run_dir / "summary.json")
    return RunResults(
        name=summary.get("name") or run_dir.resolve().name,
        config=_read_json(run_dir / "config.json"),
        summary=summary,
        metrics=read_metrics(run_dir / "metrics.jsonl"),
        arrays=_read_arrays(run_dir / "analysis.npz"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): remove it or run the stage that writes it again") from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise ValueError(f"{path} cannot be read ({error}): remove it or analyse the run again") from error


def number(value: Any) -> float:
    """The value as a float, NaN if it is not a number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def _points(rows: Any, width: int) -> np.ndarray:
    """Rows of numbers as float [n, width]; short rows are filled with NaN, rows without x and y left out."""
    filled = [[number(value) for value in [*row, *[None] * width][:width]] for row in rows or []]
    points = np.array(filled, float).reshape(-1, width)
    return points[np.isfinite(points[:, :2]).all(1)]


def _finite(points: list[tuple[float, float]]) -> figures.Curve | None:
    x, y = _points(points, 2).T
    return (x, y) if len(x) else None


# ----------------------------------------------------------------------------------------------------------- figures


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A figure in the page: its element, its caption and, if it could not be drawn, why."""

    caption: str
    element: Markup | None = None
    missing: str = ""


def _fdm_error(run: RunResults) -> Figure | None:
    train, test = run.curve("dynamics", "fdm_mse"), run.curve("dynamics", "test_fdm_mse")
    copy_last = number(run.stage("dynamics").get("copy_last_mse"))
    if math.isnan(copy_last) and (logged := run.curve("dynamics", "copy_last_mse")):
        copy_last = logged[1].mean()
    return figures.fdm_error(train, test, copy_last) if train or test else None


def _perplexity(run: RunResults) -> Figure | None:
    if run.stage("dynamics").get("quantized") is False:
        return None
    count = 0
    while run.curve("dynamics", f"perplexity_{count}"):
        count += 1
    curves = [run.curve("dynamics", f"perplexity_{index}") for index in range(count)]
    num_codes = run.stage("dynamics").get("num_codes")
    return figures.perplexity(curves, num_codes) if curves else None


@dataclasses.dataclass(frozen=True)
class ProbeView:
    """How the report shows the scores of a probe.

    Attributes:
        groups: for each group of bars the keys of the probe and of the baseline that looks at nothing.
        score: what the scores measure, in words.
        constant: what that baseline guesses, in words.
        unit: follows the number in the headline.
        row: the probe's name in a table.
    """

    groups: dict[str, tuple[str, str]]
    score: str
    constant: str
    unit: str
    row: str


PROBES = {
    diagnosis.DISCRETE.probe: ProbeView(
        {
            "all actions": ("probe_accuracy", "majority_accuracy"),
            "aliases merged": ("probe_accuracy_merged", "majority_accuracy_merged"),
        },
        "accuracy",
        "most frequent action",
        "aliased actions merged",
        "action, aliases merged (accuracy)",
    ),
    diagnosis.CONTINUOUS.probe: ProbeView(
        {"MLP": ("probe_r2", "mean_r2"), "linear": ("linear_probe_r2", "mean_r2")},
        "variance explained",
        "mean action",
        "R², of continuous actions",
        "action (R²)",
    ),
}


def _probe(run: RunResults) -> Figure | None:
    stage = run.stage("dynamics")
    view = PROBES[diagnosis.score_names(stage).probe]
    groups = {
        label: tuple(number(stage.get(name)) for name in (probe, f"untrained_{probe}", f"still_{probe}", constant))
        for label, (probe, constant) in view.groups.items()
    }
    known = {label: values for label, values in groups.items() if math.isfinite(values[0])}
    return figures.probe_bars(known, view.score, view.constant) if known else None


def _code_usage(run: RunResults) -> Figure | None:
    fields = run.fields("code_counts")
    unused = run.stage("dynamics").get("quantized") is False
    return figures.code_usage(fields[0]) if fields and not unused else None


def _latents(run: RunResults, name: str, title: str) -> Figure | None:
    fields = run.fields(name, "merged", "merged_names") or run.fields(name, "actions", "action_names")
    if not (fields := fields or run.fields(name, "action_values")):
        return None
    points, labels, *names = fields
    finite = np.isfinite(points).all(1)
    if not finite.any():
        return None
    if not names:
        return figures.latents_by_value(points[finite], labels[finite], title)
    return figures.latents(points[finite], labels[finite], [str(name) for name in names[0]], title)


def _strips(run: RunResults) -> Figure | None:
    fields = run.fields("strip_context", "strip_truth", "strip_prediction")
    if not fields:
        return None
    if fields[1].ndim == 2:
        return figures.vector_changes(*fields)
    return figures.strips(*(array[:6] for array in fields))


def rollout_arrays(run: RunResults) -> tuple[np.ndarray, list[str]] | None:
    """Imagined frames uint8 [A, T, H, W, C] and their labels; None without them, and of vectors."""
    fields = run.fields("rollout_frames")
    if not fields or fields[0].ndim != 5:
        return None
    labels = [str(label) for label in run.arrays.get("rollout_labels", [])]
    return fields[0], labels or [f"latent action {index}" for index in range(len(fields[0]))]


def _rollouts(run: RunResults) -> Figure | None:
    if arrays := rollout_arrays(run):
        return figures.rollouts(*arrays)
    fields = run.fields("rollout_frames", "rollout_labels")
    return figures.vector_rollouts(fields[0], [str(label) for label in fields[1]]) if fields else None


def _cloning(run: RunResults) -> Figure | None:
    train, test = run.curve("cloning", "loss"), run.curve("cloning", "test_loss")
    return figures.cloning_loss(train, test, number(run.stage("cloning").get("null_mse"))) if train or test else None


def _reference_returns(run: RunResults) -> tuple[float, float]:
    return tuple(number(run.baseline(name).get("mean")) for name in ("random_return", "expert_return"))


# Ways from labels to a policy besides the decoded latent policy and behaviour cloning, both sampled.
OFFLINE_CURVES = {
    "greedy_curve": "latent policy, decoded, greedy",
    "bc_greedy_curve": "behaviour cloning, greedy",
    "idm_curve": "decoder of the IDM's latents",
    "idm_greedy_curve": "decoder of the IDM's latents, greedy",
    "relabel_curve": "pseudo-labels of the IDM, cloned",
    "relabel_greedy_curve": "pseudo-labels of the IDM, cloned, greedy",
}


def _by_labels(run: RunResults) -> Figure | None:
    partial = (run.summary.get("partial") or {}).get("decode_offline") or {}
    stage = run.stage("decode_offline") or partial
    decoded, cloned = _points(stage.get("curve"), 3), _points(stage.get("bc_curve"), 3)
    others = {label: _points(stage.get(name), 3) for name, label in OFFLINE_CURVES.items() if stage.get(name)}
    return figures.return_by_labels(decoded, cloned, *_reference_returns(run), others) if len(decoded) else None


def _by_frames(run: RunResults) -> Figure | None:
    curves = [
        _finite(run.stage(stage).get("curve")) or run.curve(stage, "episode_return", "frames")
        for stage in ("decode_online", "ppo_scratch", "decode_named")
    ]
    return figures.return_by_frames(*curves, *_reference_returns(run)) if any(curves) else None


@dataclasses.dataclass(frozen=True)
class Plot:
    """How to draw a figure (None without data), its title and caption, and the data that it needs."""

    draw: Callable[[RunResults], Figure | None]
    title: str
    caption: str
    needs: str


FIGURES = {
    "fdm_error": Plot(
        _fdm_error,
        "Forward model",
        "Error of the forward model, frames scaled to a range of 1, on a logarithmic axis. The dashed line is the "
        "error of predicting that nothing changes.",
        "the metrics of stage 1",
    ),
    "perplexity": Plot(
        _perplexity,
        "Codebook perplexity",
        "Effective number of codes in use, per codebook; 1 is a collapsed codebook.",
        "the metrics of stage 1, with its quantiser",
    ),
    "probe": Plot(
        _probe,
        "Action probe",
        "Accuracy with which a probe reads the true action from the latent, on held-out levels, beside the same probe "
        "on an untrained IDM, on an untrained IDM that sees o_t alone (what the recorded policy gives away), and "
        "beside always guessing the most frequent action. Merged: actions that do the same in this game count as one. "
        "Of continuous actions: the share of their variance that is explained.",
        "the result of stage 1",
    ),
    "code_usage": Plot(
        _code_usage,
        "Code usage",
        "Share of the held-out windows that have each code.",
        "the analysis of stage 1, with its quantiser",
    ),
    "latents_trained": Plot(
        lambda run: _latents(run, "latents", "Trained IDM"),
        "Latents of the trained IDM",
        "Latent actions of held-out windows on their first two principal components, coloured by the true action.",
        "the analysis of stage 1",
    ),
    "latents_untrained": Plot(
        lambda run: _latents(run, "latents_untrained", "Untrained IDM"),
        "Latents of the untrained IDM",
        "The same windows through the IDM before training: structure that is here too was not learned.",
        "the analysis of stage 1",
    ),
    "strips": Plot(
        _strips,
        "Predictions",
        "Held-out windows: both context frames, the frame that followed, the forward model's prediction under the "
        "inferred latent action, and their absolute difference, brightened. Above the difference stands the window's "
        "error relative to repeating the last frame. Of vectors: each number's predicted change against the true one.",
        "the analysis of stage 1",
    ),
    "rollouts": Plot(
        _rollouts,
        "Imagined rollouts",
        "What the forward model imagines from one frame under each of the most used latent actions, held constant.",
        "the analysis of stage 1",
    ),
    "cloning": Plot(
        _cloning,
        "Latent policy",
        "Error of the latent policy. The dashed line is the error of always predicting the mean latent.",
        "the metrics of stage 2",
    ),
    "return_by_labels": Plot(
        _by_labels,
        "Return against labels",
        "Return of the policy whose decoder was fitted on that many labelled transitions, of behaviour cloning on the "
        "same labels, and of other ways from these labels to a policy if the run measured them. Bars: one standard "
        "error, over draws of the labels if there are several, else over episodes.",
        "the result of offline decoding",
    ),
    "return_by_frames": Plot(
        _by_frames,
        "Return against frames",
        "Return while PPO trains the decoded latent policy, while it trains a policy from scratch, and, if the run has "
        "this stage, while it trains a policy cloned from pseudo-labels. Faint: mean of the episodes that ended at "
        "each update; bold: moving mean.",
        "the metrics of online decoding",
    ),
}


def _draw(run: RunResults, folder: Path) -> dict[str, Embedded]:
    """Draws every figure that the run has data for, and writes it into `folder` too."""
    folder.mkdir(exist_ok=True)
    embedded = {}
    for name, plot in FIGURES.items():
        figure = plot.draw(run)
        if figure is None:
            embedded[name] = Embedded(plot.caption, missing=f"{plot.title}: missing, needs {plot.needs}.")
            continue
        _replace(folder / f"{name}.png", figures.png(figure))
        embedded[name] = Embedded(plot.caption, Markup(figures.svg(figure, name, f"{plot.title}. {plot.caption}")))
    if arrays := rollout_arrays(run):
        gif = figures.rollout_gif(*arrays)
        _replace(folder / "rollouts.gif", gif)
        source = f"data:image/gif;base64,{base64.b64encode(gif).decode()}"
        caption = FIGURES["rollouts"].caption
        embedded["rollouts_animated"] = Embedded(caption, Markup('<img src="{}" alt="{}">').format(source, caption))
    return embedded


# -------------------------------------------------------------------------------------------------------------- text

EN_DASH = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def text(value: Any, key: str = "") -> str:
    """Formats a value in the unit of its key; an en dash stands for a missing value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return EN_DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value or EN_DASH
    if isinstance(value, list):
        return ", ".join(text(item, key) for item in value) or EN_DASH
    if "seconds" in key:
        return _duration(value)
    if "accuracy" in key:
        return f"{100 * value:.1f} %"
    if "per_s" in key:
        return f"{_digits(value)} per second"
    if "mse" in key:
        return _scientific(value) if abs(value) < 0.1 else _digits(value)
    if key in {"mean", "stderr", "return_mean", "return_stderr"}:
        return f"{value:.2f}"
    if isinstance(value, int):
        return str(value) if key == "seed" else f"{value:,}"
    return _digits(value)


def _digits(value: float) -> str:
    """Three significant digits, without exponents where they can be avoided."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else _scientific(value)


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    if int(exponent) == 0 or value == 0:
        return mantissa
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def _duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def _frames(count: Any) -> str:
    """Formats a number of frames in a few characters."""
    count = number(count)
    if math.isnan(count):
        return EN_DASH
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k" if count >= 1e3 else f"{count:.0f}"


def _with_error(mean: Any, stderr: Any) -> str:
    error = f" ± {stderr:.2f}" if math.isfinite(number(stderr)) else ""
    return text(number(mean), "mean") + error


# ---------------------------------------------------------------------------------------------------------- headlines


@dataclasses.dataclass(frozen=True)
class Headline:
    """A result beside its baselines.

    Attributes:
        title: what was measured.
        value: the result as text.
        unit: follows the value.
        baselines: (name, result as text) of each comparison.
        beaten: whether the result beats every baseline that counts; None if that is unknown.
    """

    title: str
    value: str
    unit: str
    baselines: list[tuple[str, str]]
    beaten: bool | None


def _beats(value: Any, baselines: list[Any]) -> bool | None:
    """Whether a value is above every known baseline; None without a value or a baseline."""
    known = [number(baseline) for baseline in baselines if math.isfinite(number(baseline))]
    return number(value) > max(known) if known and math.isfinite(number(value)) else None


def _headline_dynamics(run: RunResults) -> Headline:
    stage = run.stage("dynamics")
    ratio, unit = stage.get("fdm_ratio"), "× copy-last"
    names = {"forward model": "fdm_mse", "copy last": "copy_last_mse"}
    baselines = [(label, text(stage.get(key), key)) for label, key in names.items()]
    if not stage and (logged := run.curve("dynamics", "test_fdm_ratio")):
        ratio, unit = logged[1][-1], f"× copy-last, at step {logged[0][-1]:,.0f}"
    return Headline("Forward model error", text(ratio), unit, baselines, _beats(-number(ratio), [-1]))


def _headline_probe(run: RunResults) -> Headline:
    stage = run.stage("dynamics")
    names = diagnosis.score_names(stage)
    view, value = PROBES[names.probe], stage.get(names.probe)
    labels = ("untrained IDM", "o_t alone", view.constant.removesuffix(" action"))
    baselines = [(label, text(stage.get(key), key)) for label, key in zip(labels, names.baselines, strict=True)]
    beaten = _beats(value, [stage.get(key) for key in names.baselines])
    return Headline("Actions read from latents", text(value, names.probe), view.unit, baselines, beaten)


def _distractor(run: RunResults) -> list[tuple[str, list[str]]]:
    """Rows of a table: how well latents tell the action and a distractor; empty without a distractor."""
    stage = run.stage("dynamics")
    if "distractor_change_r2" not in stage:
        return []
    probe = diagnosis.score_names(stage).probe
    names = {
        PROBES[probe].row: probe,
        "distractor's change from o_t to o_{t+1} (R²)": "distractor_change_r2",
        "distractor's state at o_t (R²)": "distractor_state_r2",
    }
    kinds = ("", "linear_", "untrained_", "untrained_linear_")
    return [(label, [text(stage.get(kind + key), key) for kind in kinds]) for label, key in names.items()]


def _headline_offline(run: RunResults) -> Headline:
    stage = run.stage("decode_offline")
    curve, cloned = _points(stage.get("curve"), 3), _points(stage.get("bc_curve"), 3)
    labels, mean, stderr = max(curve.tolist(), default=(math.nan, math.nan, math.nan))
    same = next((row for row in cloned.tolist() if row[0] == labels), (math.nan, math.nan, math.nan))
    baselines = [("behaviour cloning", _with_error(*same[1:])), *_reference_texts(run)]
    beaten = _beats(mean, [same[1], _reference_returns(run)[0]])
    unit = f"at {labels:,.0f} labels" if math.isfinite(labels) else ""
    return Headline("Return, decoded offline", _with_error(mean, stderr), unit, baselines, beaten)


def _headline_online(run: RunResults) -> Headline:
    stage, scratch = run.stage("decode_online"), run.stage("ppo_scratch")
    value, scratch_value = stage.get("return_mean"), scratch.get("return_mean")
    same = scratch.get("frames") in (None, stage.get("frames"))
    name = "PPO from scratch" if same else f"PPO, {_frames(scratch.get('frames'))} frames"
    baselines = [(name, _with_error(scratch_value, scratch.get("return_stderr"))), *_reference_texts(run)]
    unit = f"at {_frames(stage['frames'])} frames" if stage.get("frames") else ""
    beaten = _beats(value, [scratch_value, _reference_returns(run)[0]])
    return Headline("Return, decoded online", _with_error(value, stage.get("return_stderr")), unit, baselines, beaten)


def _reference_texts(run: RunResults) -> list[tuple[str, str]]:
    random, expert = _reference_returns(run)
    return [("random policy", text(random, "mean")), ("expert", text(expert, "mean"))]


# ----------------------------------------------------------------------------------------------------------- outcomes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a stage ended: state is passed, failed, done (nothing to beat), running or absent."""

    title: str
    state: str
    verdict: str
    seconds: str


def _outcome(run: RunResults, stage: str) -> Outcome:
    summary, title = run.stage(stage), STAGES[stage]
    if summary:
        state = {True: "passed", False: "failed"}.get(summary.get("ok"), "done")
        return Outcome(title, state, summary.get("verdict") or "", text(summary.get("seconds"), "seconds"))
    if rows := run.metrics.get(stage):
        return Outcome(title, "running", f"last logged at step {max(rows):,}", EN_DASH)
    return Outcome(title, "absent", "", EN_DASH)


def _verdict(outcomes: dict[str, Outcome]) -> tuple[str, str]:
    """State and verdict of the run as a whole."""
    failed = [outcome.title for outcome in outcomes.values() if outcome.state == "failed"]
    unfinished = any(outcome.state in {"running", "absent"} for outcome in outcomes.values())
    if failed:
        return "failed", ("unfinished, " if unfinished else "") + f"{len(failed)} of {len(outcomes)} stages failed"
    return ("running", "unfinished") if unfinished else ("passed", "every stage beats its baseline")


# ------------------------------------------------------------------------------------------------------------- tables


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table of numbers: a key of `summary.json`, and its value as text or a curve as rows of text."""

    key: str
    value: str = ""
    columns: tuple[str, ...] = ()
    curve: tuple[tuple[str, ...], ...] = ()


_ELSEWHERE = {"stages", "nulls", "diagnosis", "banner", "command", "verdict"}


def _columns(path: str, width: int) -> tuple[str, ...]:
    """The headings of a curve, by its place in `summary.json`."""
    stage, _, name = path.removeprefix(".partial.").partition(".")
    if stage == "decode_offline":
        if name == "normalised":
            return "labels", "normalised"
        return ("labels", "draw", "mean", "stderr") if name.startswith("by_seed.") else ("labels", "mean", "stderr")
    return ("frames", "mean") if name == "curve" else tuple(f"[{index}]" for index in range(width))


def _tables(summary: dict[str, Any]) -> dict[str, list[Row]]:
    """All numbers of the summary, by group."""
    stages = summary.get("stages") or {}
    groups = {"Run": _rows(summary)}
    groups |= {STAGES.get(name, name): _rows(stage or {}, name) for name, stage in stages.items()}
    groups["Baselines"] = _rows(summary.get("nulls") or {})
    return {title: rows for title, rows in groups.items() if rows}


def _rows(values: dict[str, Any], stage: str = "", prefix: str = "") -> list[Row]:
    rows = []
    for key, value in values.items():
        if key in _ELSEWHERE:
            continue
        if isinstance(value, dict):
            rows += _rows(value, stage, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], list):
            rows.append(_curve_row(prefix + key, value, f"{stage}.{prefix}{key}"))
        else:
            rows.append(Row(prefix + key, text(value, key)))
    return rows


def _curve_row(key: str, points: list[list[Any]], path: str) -> Row:
    columns = _columns(path, len(points[0]))
    curve = tuple(tuple(text(value, name) for name, value in zip(columns, point, strict=False)) for point in points)
    return Row(key, "", columns, curve)


def _stage_numbers(run: RunResults, stage: str) -> list[Row]:
    """The scalars of a stage, which stand beside its figure."""
    return [row for row in _rows(run.stage(stage), stage) if row.value and row.key != "ok"]


# ------------------------------------------------------------------------------------------------------------- output


def render(run: RunResults, embedded: dict[str, Embedded]) -> str:
    """Renders the report's HTML. Text from the run is escaped; only the figures go in as they are."""
    outcomes = {stage: _outcome(run, stage) for stage in STAGES}
    if not (run.config.get("named") or {}).get("frames"):
        del outcomes["decode_named"]  # an optional stage
    state, verdict = _verdict(outcomes)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lamjax.analysis"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.jinja").render(
        run=run,
        summary=run.summary,
        title=_title(run),
        state=state,
        verdict=verdict,
        facts=_facts(run),
        outcomes=outcomes,
        headlines=[f(run) for f in (_headline_dynamics, _headline_probe, _headline_offline, _headline_online)],
        figures=embedded,
        distractor=_distractor(run),
        cloning_numbers=_stage_numbers(run, "cloning"),
        tables=_tables(run.summary),
        config=json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else "",
    )


def _title(run: RunResults) -> list[str]:
    env, preset, seed = (run.summary.get(key, run.config.get(key)) for key in ("env", "preset", "seed"))
    title = [str(part) for part in (env, preset) if part] + ([f"seed {seed}"] if seed is not None else [])
    return title or [run.name]


def _facts(run: RunResults) -> list[str]:
    """The line below the title: what ran, on what, from which demonstrations, how long."""
    device = run.summary.get("device") or {}
    source = run.summary.get("source") or {}
    facts = [run.name]
    if device:
        facts.append(f"{device.get('count') or 1} × {device.get('kind') or device.get('platform')}")
    if source.get("policy"):
        frames = run.stage("record").get("frames")
        recorded = f"{_frames(frames)} frames recorded" if frames else "recorded"
        mean = number(source.get("return_mean"))
        facts.append(f"{recorded} from {source['policy']}" + (f" (return {mean:.2f})" if math.isfinite(mean) else ""))
    if run.summary.get("total_seconds"):
        facts.append(text(run.summary["total_seconds"], "seconds") + " in total")
    if run.summary.get("git"):
        facts.append(f"commit {run.summary['git']!s}")
    return facts


def _replace(path: Path, content: bytes) -> None:
    """Writes a file in one step, so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
