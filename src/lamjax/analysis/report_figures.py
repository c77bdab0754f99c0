"""Draws the figures of a report from the contents of a run folder."""

import base64
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from lamjax.analysis import diagnosis, drawing, figures, images
from lamjax.analysis.run_results import RunResults, finite_curve, number, points_of
from lamjax.training.disk import replace_file


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A figure in the page: its element, its caption and, if it could not be drawn, the reason."""

    caption: str
    element: Markup | None = None
    missing: str = ""


def _fdm_error(run: RunResults) -> Figure | None:
    train, test = run.curve("dynamics", "fdm_mse"), run.curve("dynamics", "test_fdm_mse")
    copy_last = number(run.stage("dynamics").get("copy_last_mse"))
    if math.isnan(copy_last) and (logged := run.curve("dynamics", "copy_last_mse")):
        copy_last = logged[1].mean()
    return figures.fdm_error(train, test, copy_last) if train or test else None


def _is_quantized(run: RunResults) -> bool:
    """Whether stage 1 quantises its latents. Without a quantiser a codebook only follows them."""
    settings = (run.config.get("dynamics") or {}).get("quantizer") or {}
    return run.stage("dynamics").get("quantized", settings.get("enabled")) is not False


def _perplexity(run: RunResults) -> Figure | None:
    curves: list[drawing.Curve] = []
    while curve := run.curve("dynamics", f"perplexity_{len(curves)}"):
        curves.append(curve)
    num_codes = run.stage("dynamics").get("num_codes")
    return figures.perplexity(curves, num_codes) if curves else None


@dataclasses.dataclass(frozen=True)
class ProbeView:
    """How the report shows the scores of a probe.

    Attributes:
        groups: for each group of bars the keys of the probe's score and of the constant baseline's.
        score: what the scores measure, in words.
        constant: what that baseline guesses, in words.
        unit: the text after the number in the headline.
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
    return figures.code_usage(fields[0]) if fields else None


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
    context, truth, prediction = fields
    if truth.ndim == 2:
        return figures.vector_changes(context, truth, prediction)
    squares = run.fields("strip_squares")
    return figures.strips(context[:6], truth[:6], prediction[:6], squares[0][:6] if squares else None)


def rollout_arrays(run: RunResults) -> tuple[np.ndarray, list[str]] | None:
    """Imagined frames uint8 [A, T, H, W, C] and their labels; None without them, and for vectors."""
    fields = run.fields("rollout_frames")
    if not fields or fields[0].ndim != 5:
        return None
    return fields[0], _rollout_labels(run, len(fields[0]))


def _rollout_labels(run: RunResults, count: int) -> list[str]:
    codes = [str(label) for label in run.arrays.get("rollout_labels", [])] if _is_quantized(run) else []
    return codes or [f"latent action {index}" for index in range(count)]


def _rollouts(run: RunResults) -> Figure | None:
    if arrays := rollout_arrays(run):
        return figures.rollouts(*arrays)
    fields = run.fields("rollout_frames")
    return figures.vector_rollouts(fields[0], _rollout_labels(run, len(fields[0]))) if fields else None


def _cloning(run: RunResults) -> Figure | None:
    train, test = run.curve("cloning", "loss"), run.curve("cloning", "test_loss")
    return figures.cloning_loss(train, test, number(run.stage("cloning").get("null_mse"))) if train or test else None


# Methods that use labels, besides the decoded latent policy and behaviour cloning, both sampled.
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
    decoded, cloned = points_of(stage.get("curve"), 3), points_of(stage.get("bc_curve"), 3)
    others = {label: points_of(stage.get(name), 3) for name, label in OFFLINE_CURVES.items() if stage.get(name)}
    oracle = number((stage.get("oracle") or {}).get("return_mean"))
    return figures.return_by_labels(decoded, cloned, *run.reference_returns(), others, oracle) if len(decoded) else None


def _by_frames(run: RunResults) -> Figure | None:
    decoded, scratch, pseudo_labelled = (
        finite_curve(run.stage(stage).get("curve")) or run.curve(stage, "episode_return", "frames")
        for stage in ("decode_online", "ppo_scratch", "decode_named")
    )
    if not (decoded or scratch or pseudo_labelled):
        return None
    return figures.return_by_frames(decoded, scratch, pseudo_labelled, *run.reference_returns())


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure of the report.

    Attributes:
        draw: draws the figure; returns None without data.
        title: its title.
        caption: the text below it.
        needs: the data that it needs, in words.
        applies: whether the report of a run has the figure at all.
    """

    draw: Callable[[RunResults], Figure | None]
    title: str
    caption: str
    needs: str
    applies: Callable[[RunResults], bool] = lambda run: True


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
        "the metrics of stage 1",
        _is_quantized,
    ),
    "probe": Plot(
        _probe,
        "Action probe",
        "On the run's own recording: accuracy with which a probe reads the true action from the latent, on held-out "
        "levels. Its baselines are the same probe on an untrained IDM, on an untrained IDM that sees only o_t (what "
        "the recorded policy gives away), and always guessing the most frequent action. Merged: actions with the same "
        "effect in this game count as one. For continuous actions: the share of their variance that is explained.",
        "the result of stage 1",
    ),
    "code_usage": Plot(
        _code_usage,
        "Code usage",
        "Share of the held-out windows with each code.",
        "the analysis of stage 1",
        _is_quantized,
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
        "The same windows through the IDM before training: structure that also appears here was not learned.",
        "the analysis of stage 1",
    ),
    "strips": Plot(
        _strips,
        "Predictions",
        "Held-out windows: both context frames, the frame that followed, the forward model's prediction under the "
        "inferred latent action, and their absolute difference, brightened. A white square is what the inverse model "
        "sees. The number above the difference is the window's error relative to repeating the last frame. For "
        "vectors: each number's predicted change against the true one.",
        "the analysis of stage 1",
    ),
    "rollouts": Plot(
        _rollouts,
        "Imagined rollouts",
        "What the forward model imagines from one frame under each of several common latent actions, held constant.",
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
        "same labels, and of any other methods that the run measured. The dash-dotted line, if there is one, is the "
        "oracle: a policy cloned from all true actions, for as long as stage 2 takes. Bars: one standard error, over "
        "draws of the labels if there are several, otherwise over episodes.",
        "the result of offline decoding",
    ),
    "return_by_frames": Plot(
        _by_frames,
        "Return against frames",
        "Return while PPO trains the decoded latent policy, a policy from scratch and, if the run has this stage, a "
        "policy cloned from pseudo-labels. Faint: mean of the episodes that ended in each update; bold: moving mean.",
        "the metrics of online decoding",
    ),
}


def draw_figures(run: RunResults, folder: Path) -> dict[str, Embedded]:
    """Draws every figure that applies to the run and has data, and also writes it into `folder`."""
    folder.mkdir(exist_ok=True)
    embedded = {}
    for name, plot in FIGURES.items():
        if not plot.applies(run):
            continue
        figure = plot.draw(run)
        if figure is None:
            embedded[name] = Embedded(plot.caption, missing=f"{plot.title}: missing, needs {plot.needs}.")
            continue
        replace_file(folder / f"{name}.png", drawing.png(figure))
        embedded[name] = Embedded(plot.caption, Markup(drawing.svg(figure, name, f"{plot.title}. {plot.caption}")))
    if arrays := rollout_arrays(run):
        gif = images.rollout_gif(*arrays)
        replace_file(folder / "rollouts.gif", gif)
        source = f"data:image/gif;base64,{base64.b64encode(gif).decode()}"
        caption = FIGURES["rollouts"].caption
        embedded["rollouts_animated"] = Embedded(caption, Markup('<img src="{}" alt="{}">').format(source, caption))
    return embedded
