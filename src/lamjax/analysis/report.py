"""Writes the report of a run: one self-contained HTML file.

`write` reads `config.json`, `summary.json`, `metrics.jsonl` and `analysis.npz` of the run folder. Each may be absent or
incomplete: the report of an unfinished run shows what exists and says what is missing. It computes no results, so you
can write a report again on any machine. The figures also go to `figures/`, as PNG and GIF.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from lamjax.analysis import diagnosis
from lamjax.analysis.report_figures import PROBES, Embedded, draw_figures
from lamjax.analysis.report_text import EN_DASH, information_table, short_count, text, with_error
from lamjax.analysis.run_results import RunResults, load, number, points_of
from lamjax.training.disk import replace_file

STAGES = {
    "record": "Recording",
    "dynamics": "Stage 1: latent dynamics",
    "cloning": "Stage 2: latent cloning",
    "decode_offline": "Stage 3: offline decoding",
    "decode_online": "Stage 3: online decoding",
    "decode_named": "Stage 3: pseudo-labels from random play, then PPO",
    "decode_actions": "Stage 3: decoding actions",
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
    replace_file(report, render(run, draw_figures(run, run_dir / "figures")).encode())
    return report


@dataclasses.dataclass(frozen=True)
class Headline:
    """A result beside its baselines.

    Attributes:
        title: what was measured.
        value: the result as text.
        unit: follows the value.
        baselines: (name, result as text) of each comparison.
        beaten: whether the result beats every baseline that counts; None if that is unknown. Where a stage has one main
            result, this is the stage's verdict, so that a card never contradicts the badge.
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
    if information := stage.get("action_information"):
        share, untrained, stderr = (number(information.get(k)) for k in ("share", "untrained_share", "share_stderr"))
        baselines = [("untrained IDM", text(untrained, "mean")), ("needed", text(diagnosis.MIN_SHARE, "mean"))]
        beaten = _beats(share, [untrained + diagnosis.SHARE_STDERRS * stderr, diagnosis.MIN_SHARE])
        unit = "of what the frames reveal about actions"
        return Headline("Action information", with_error(share, stderr), unit, baselines, beaten)
    names = diagnosis.score_names(stage)
    view, value = PROBES[names.probe], stage.get(names.probe)
    labels = ("untrained IDM", "o_t alone", view.constant.removesuffix(" action"))
    baselines = [(label, text(stage.get(key), key)) for label, key in zip(labels, names.baselines, strict=True)]
    beaten = _beats(number(value) - diagnosis.MIN_PROBE_LEAD, [stage.get(key) for key in names.baselines])
    return Headline("Actions read from latents", text(value, names.probe), view.unit, baselines, beaten)


def _information(run: RunResults) -> dict[str, Any] | None:
    """The table of the action information: its number of windows, headings and rows; None if it was not measured."""
    stage = run.stage("dynamics")
    if not (information := stage.get("action_information")):
        return None
    headings, *rows = information_table(information, diagnosis.score_names(stage) is diagnosis.DISCRETE)
    play = number(stage.get("play_share") or 0.0)
    return {"windows": text(information.get("windows")), "headings": headings, "rows": rows, "play_share": play}


def _distractor(run: RunResults) -> list[tuple[str, list[str]]]:
    """Rows of a table: how well latents predict the action and a distractor; empty without a distractor."""
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
    curve, cloned = points_of(stage.get("curve"), 3), points_of(stage.get("bc_curve"), 3)
    labels, mean, stderr = max(curve.tolist(), key=lambda row: row[1], default=(math.nan, math.nan, math.nan))
    same = next((row for row in cloned.tolist() if row[0] == labels), (math.nan, math.nan, math.nan))
    baselines = [("behaviour cloning", with_error(*same[1:])), *_reference_texts(run)]
    unit = f"at {labels:,.0f} labels" if math.isfinite(labels) else ""
    return Headline("Return, decoded offline", with_error(mean, stderr), unit, baselines, stage.get("ok"))


def _headline_actions(run: RunResults) -> Headline:
    stage = run.stage("decode_actions")
    score = stage.get("score")
    sign = -1 if score == "mse" else 1  # less is better for errors
    decoded, cloned = points_of(stage.get("idm_curve"), 3).tolist(), points_of(stage.get("bc_curve"), 3).tolist()
    labels, value, _ = max(decoded, key=lambda row: sign * row[1], default=(math.nan, math.nan, math.nan))
    same = next((row[1] for row in cloned if row[0] == labels), math.nan)
    values = {"behaviour cloning": same, "a constant guess": number(stage.get("constant"))}
    key = str(score)
    baselines = [(name, text(each, key)) for name, each in values.items()]
    unit = f"{key} at {labels:,.0f} labels" if math.isfinite(labels) else ""
    return Headline("Actions decoded from latents", text(value, key), unit, baselines, stage.get("ok"))


def _action_curves(run: RunResults) -> list[tuple[str, ...]] | None:
    """The table of decoded actions: headings, then one row per number of labels; None without results."""
    stage = run.stage("decode_actions")
    if not stage:
        return None
    names = {
        "idm_curve": "decoder of the inverse model's latents",
        "policy_curve": "latent policy, decoded (sees only o_t)",
        "bc_curve": "behaviour cloning (sees only o_t)",
    }
    curves = {
        label: {n: (mean, error) for n, mean, error in stage[name]} for name, label in names.items() if name in stage
    }
    rows = [("labels", *curves, "a constant guess")]
    score, constant = stage["score"], text(stage["constant"], stage["score"])
    for n in sorted({n for curve in curves.values() for n in curve}):
        cells = (
            f"{text(curve[n][0], score)} ± {text(curve[n][1], score)}" if n in curve else EN_DASH
            for curve in curves.values()
        )
        rows.append((f"{n:,}", *cells, constant))
    return rows


def _headline_online(run: RunResults) -> Headline:
    stage, scratch = run.stage("decode_online"), run.stage("ppo_scratch")
    value, scratch_value = stage.get("return_mean"), scratch.get("return_mean")
    same = scratch.get("frames") in (None, stage.get("frames"))
    name = "PPO from scratch" if same else f"PPO, {short_count(scratch.get('frames'))} frames"
    baselines = [(name, with_error(scratch_value, scratch.get("return_stderr"))), *_reference_texts(run)]
    unit = f"at {short_count(stage['frames'])} frames" if stage.get("frames") else ""
    error = stage.get("return_stderr")
    return Headline("Return, decoded online", with_error(value, error), unit, baselines, stage.get("ok"))


def _reference_texts(run: RunResults) -> list[tuple[str, str]]:
    random, expert = run.reference_returns()
    texts = [("random policy", text(random, "mean")), ("expert", text(expert, "mean"))]
    if oracle := run.stage("decode_offline").get("oracle"):
        texts.append(("all actions cloned", with_error(oracle.get("return_mean"), oracle.get("return_stderr"))))
    return texts


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
        ok = summary.get("ok")
        state = "done" if ok is None else "passed" if ok else "failed"
        verdict = str(summary.get("verdict") or "").removeprefix("failed: ")  # the badge says it
        return Outcome(title, state, verdict, text(summary.get("seconds"), "seconds"))
    if rows := run.metrics.get(stage):
        return Outcome(title, "running", f"last logged at step {max(rows):,}", EN_DASH)
    return Outcome(title, "absent", "", EN_DASH)


def _verdict(outcomes: dict[str, Outcome]) -> tuple[str, str]:
    """State and verdict of the whole run."""
    failed = [outcome.title for outcome in outcomes.values() if outcome.state == "failed"]
    unfinished = any(outcome.state in {"running", "absent"} for outcome in outcomes.values())
    if failed:
        return "failed", ("unfinished, " if unfinished else "") + f"{len(failed)} of {len(outcomes)} stages failed"
    return ("running", "unfinished") if unfinished else ("passed", "every stage beats its baseline")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table of numbers: a key of `summary.json`, and its value as text or a curve as rows of text."""

    key: str
    value: str = ""
    columns: tuple[str, ...] = ()
    curve: tuple[tuple[str, ...], ...] = ()


_ELSEWHERE = {"stages", "nulls", "diagnosis", "banner", "command", "verdict"}


def _columns(path: str, width: int) -> tuple[str, ...]:
    """The headings of a curve, which follow from its place in `summary.json`."""
    stage, _, name = path.removeprefix(".partial.").partition(".")
    if stage == "decode_actions":
        return "labels", "mean", "stderr"
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
    """The scalars of a stage, which the report shows beside its figure."""
    return [row for row in _rows(run.stage(stage), stage) if row.value and row.key != "ok"]


def _is_played(run: RunResults) -> bool:
    """Whether a simulator exists in which policies were played."""
    return run.summary.get("simulator", True) is not False


def _has_actions(run: RunResults) -> bool:
    """Whether the recording has usable actions."""
    return run.stage("record").get("action_space") not in (None, {"n": 1})


def stages_of(run: RunResults) -> list[str]:
    """The stages that the run has, or will have, in the order of the report."""
    if not _is_played(run):
        return ["record", "dynamics", "cloning", *(["decode_actions"] if _has_actions(run) else [])]
    has_pseudo_labels = bool((run.config.get("named") or {}).get("frames"))  # an optional stage
    return [stage for stage in STAGES if stage != "decode_actions" and (stage != "decode_named" or has_pseudo_labels)]


def _headlines(run: RunResults) -> list[Callable[[RunResults], Headline]]:
    """The headlines at the top of the report."""
    if _is_played(run):
        return [_headline_dynamics, _headline_probe, _headline_offline, _headline_online]
    return [_headline_dynamics, *([_headline_probe, _headline_actions] if _has_actions(run) else [])]


def render(run: RunResults, embedded: dict[str, Embedded]) -> str:
    """Renders the report's HTML. Text from the run is escaped; only the figures go in as they are."""
    outcomes = {stage: _outcome(run, stage) for stage in stages_of(run)}
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
        played=_is_played(run),
        has_actions=_is_played(run) or _has_actions(run),
        action_curves=_action_curves(run),
        headlines=[headline(run) for headline in _headlines(run)],
        figures=embedded,
        information=_information(run),
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
        recorded = f"{short_count(frames)} frames recorded" if frames else "recorded"
        mean = number(source.get("return_mean"))
        facts.append(f"{recorded} from {source['policy']}" + (f" (return {mean:.2f})" if math.isfinite(mean) else ""))
    if run.summary.get("total_seconds"):
        overlap = ", in which stages overlap" if run.summary.get("beside") else ""
        facts.append(text(run.summary["total_seconds"], "seconds") + " in total" + overlap)
    if run.summary.get("git"):
        facts.append(f"commit {run.summary['git']!s}")
    return facts
