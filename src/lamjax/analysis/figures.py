"""The figures of a run's report: arrays in, a matplotlib `Figure` out.

A curve is a pair `(x [n], y [n])` of finite float arrays, or None if the run has none. A reference value that is None
or NaN is not drawn. Frames are uint8 `[..., H, W, C]` (see `images`).
"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatterSciNotation, MaxNLocator, NullLocator

from lamjax.analysis import drawing
from lamjax.analysis.drawing import (
    BLUE,
    CLASSES,
    FONT,
    GREEN,
    INK,
    LINES,
    MARKERS,
    MUTED,
    PURPLE,
    SMALL_FONT,
    THICK,
    THIN,
    VERMILLION,
    Curve,
)
from lamjax.analysis.images import image_grid, rgb

DIFFERENCE_GAIN = 2
MAX_POINTS, MAX_PANELS = 3000, 8
STRIP_PIXELS, FILM_PIXELS = 190, 114  # width of one frame, before rounding to whole pixels


def fdm_error(train: Curve | None, test: Curve | None, copy_last: float | None) -> Figure:
    """FDM mean squared error over stage 1, on training batches (`train`) and held-out levels (`test`).

    Frames are scaled to a range of 1. `copy_last` is the held-out error of predicting `o_{t+1} = o_t`.
    """
    fig, ax = drawing.panel("Forward model", "gradient step", "mean squared error")
    ax.set_yscale("log")
    drawing.smoothed(ax, train, "train", BLUE)
    drawing.line(ax, test, "held-out levels", VERMILLION)
    drawing.reference(ax, copy_last, "copy last frame", "--")
    drawing.step_axis(ax)
    # On an axis of less than two decades only one number would appear, so there the minor ticks have labels too.
    ax.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2, 0.4)))
    return drawing.legend(fig)


def perplexity(curves: list[Curve], num_codes: int | None) -> Figure:
    """Perplexity of each codebook, `exp(-sum_k p_k log p_k)`, and its maximum, the number of codes."""
    fig, ax = drawing.panel("Codebook perplexity", "gradient step", "effective number of codes")
    for index, curve in enumerate(curves):
        drawing.smoothed(ax, curve, f"codebook {index}", LINES[index % len(LINES)])
    drawing.reference(ax, num_codes, f"maximum ({num_codes} codes)", "--")
    ax.set_ylim(bottom=0)
    drawing.step_axis(ax)
    return drawing.legend(fig)


def probe_bars(groups: dict[str, tuple[float, ...]], score: str, constant: str) -> Figure:
    """Held-out scores of a probe that reads the true action from latents, and its baselines.

    Args:
        groups: for each set of actions (all, or aliases merged; or each kind of probe) the score, at most 1, for the
            trained IDM, an untrained one, an untrained one that sees only o_t, and `constant`; NaN if unknown.
        score: what is measured: accuracy, or variance explained.
        constant: the name of the constant baseline.
    """
    fig, ax = drawing.panel("Action probe", "", f"held-out {score} (%)")
    series = (
        ("trained IDM", BLUE, 1),
        ("untrained IDM", MUTED, 1),
        ("untrained IDM, only o_t", MUTED, 0.7),
        (constant, MUTED, 0.4),
    )
    centres = np.arange(len(groups))
    for index, (label, colour, alpha) in enumerate(series):
        percent = np.round(100 * np.array([values[index] for values in groups.values()], float), 1) + 0.0  # no -0.0
        bars = ax.bar(centres + 0.21 * (index - 1.5), np.nan_to_num(percent), 0.19, color=colour, alpha=alpha)
        bars.set_label(label)
        texts = [f"{value:.1f}" if math.isfinite(value) else "–" for value in percent]
        ax.bar_label(bars, texts, fontsize=SMALL_FONT, color=INK, padding=2)
    ax.set_xticks(centres, [drawing.plain(name) for name in groups], fontsize=FONT)
    ax.set_xlim(-0.6, len(groups) - 0.4)
    lowest = 100 * min((value for values in groups.values() for value in values if math.isfinite(value)), default=0)
    ax.set_ylim(max(min(0, 1.2 * lowest), -100), 100)
    ax.tick_params(axis="x", length=0)
    ax.grid(False, axis="x")
    return drawing.legend(fig)


def code_usage(counts: np.ndarray) -> Figure:
    """The share of windows that has each code, most used code first.

    Args:
        counts: int [codebooks, codes].
    """
    counts = np.asarray(counts, float)
    num_codes = counts.shape[1]
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    fig, ax = drawing.panel("Code usage", "code, by rank", "share of windows (%)")
    ranks = np.arange(num_codes + 1) + 0.5
    for index, row in enumerate(np.sort(share, axis=1)[:, ::-1]):
        label = f"codebook {index}: {np.count_nonzero(row)} of {num_codes} used"
        ax.stairs(row, ranks, color=LINES[index % len(LINES)], lw=THICK, label=label)
    drawing.reference(ax, 100 / num_codes, "all equally often", "--")
    ax.set_xlim(0.5, num_codes + 0.5)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return drawing.legend(fig)


def latents(points: np.ndarray, labels: np.ndarray, names: list[str], title: str) -> Figure:
    """Latent actions on their first two principal components, coloured by true action.

    Args:
        points: float [n, Z]; more than `MAX_POINTS` are thinned evenly to that number.
        labels: int [n], indices into `names`.
        names: the actions.
        title: the model that the latents come from.
    """
    fig, ax, projected, keep = _projected(points, title)
    labels = np.asarray(labels)[keep]
    for index in np.unique(labels):
        colour, marker = CLASSES[index % len(CLASSES)], MARKERS[index // len(CLASSES) % len(MARKERS)]
        x, y = projected[labels == index].T
        ax.scatter(x, y, s=9 if marker == MARKERS[0] else 14, c=colour, marker=marker, alpha=0.7, lw=0, rasterized=True)
        ax.scatter([], [], s=28, c=colour, marker=marker, lw=0, label=drawing.plain(names[index]))
    return drawing.legend(fig)


def latents_by_value(points: np.ndarray, values: np.ndarray, title: str) -> Figure:
    """Like `latents`, coloured by the first number of the true action: `values` are float [n, D]."""
    fig, ax, projected, keep = _projected(points, title)
    x, y = projected.T
    marks = ax.scatter(x, y, s=9, c=np.asarray(values)[keep, 0], cmap="viridis", alpha=0.7, lw=0, rasterized=True)
    bar = fig.colorbar(marks, ax=ax, shrink=0.8)
    bar.set_label("action" if np.shape(values)[1] == 1 else "action, number 0", fontsize=FONT, color=INK)
    bar.ax.tick_params(labelsize=SMALL_FONT, color=MUTED, labelcolor=INK, width=THIN)
    bar.outline.set(color=MUTED, linewidth=THIN)
    return fig


def _projected(points: np.ndarray, title: str) -> tuple[Figure, Axes, np.ndarray, np.ndarray]:
    """Axes for latents, the positions of at most `MAX_POINTS` of them [n, 2], and their indices [n]."""
    projected, explained = pca(points)
    xlabel, ylabel = (f"PC {i + 1} ({100 * share:.0f} % of variance)" for i, share in enumerate(explained))
    fig, ax = drawing.panel(title, xlabel, ylabel, size=(4.9, 4.9))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    keep = np.linspace(0, len(projected) - 1, min(len(projected), MAX_POINTS)).astype(int)
    return fig, ax, projected[keep], keep


def strips(context: np.ndarray, truth: np.ndarray, prediction: np.ndarray, squares: np.ndarray | None = None) -> Figure:
    """One-step predictions: the context frames, the next frame, the FDM's, and their absolute difference.

    Args:
        context: uint8 [k, K, H, W, C], up to `o_t`; K is 2, or 1 for models with a single context frame.
        truth: uint8 [k, H, W, C], `o_{t+1}`.
        prediction: uint8 [k, H, W, C], the FDM's output under the IDM's latent action.
        squares: int [k, 3], what the IDM saw of `o_t` (see `images.image_grid`), if it did not see all of it.
    """
    difference = np.abs(truth.astype(int) - prediction)
    amplified = np.minimum(DIFFERENCE_GAIN * difference, 255).astype(np.uint8)
    rows = np.concatenate([context, np.stack([truth, prediction, amplified], axis=1)], axis=1)
    columns = ["context t−1", "context t", "truth t+1", "prediction", f"|difference| × {DIFFERENCE_GAIN}"]
    columns = columns[2 - context.shape[1] :]
    ratio = np.square(difference).mean((1, 2, 3)) / np.maximum(
        np.square(truth.astype(int) - context[:, -1]).mean((1, 2, 3)), 1e-9
    )
    notes = [f"error {value:.2g} × copy-last" for value in ratio]
    now = context.shape[1] - 1
    return image_grid(rgb(rows), columns, notes, STRIP_PIXELS, len(columns) - 1, squares, now)


def rollouts(frames: np.ndarray, labels: list[str], max_frames: int = 8) -> Figure:
    """The frames of `rollout_gif` side by side, for print: one row per latent action, with time from left to right.

    `frames` are uint8 [A, T, H, W, C] and `labels` [A]. More than `max_frames` are thinned evenly to that number; the
    first and the last stay.
    """
    times = np.unique(np.linspace(0, frames.shape[1] - 1, min(frames.shape[1], max_frames)).astype(int))
    return image_grid(rgb(frames[:, times]), [f"frame {time}" for time in times], labels, FILM_PIXELS)


def vector_changes(context: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> Figure:
    """One-step predictions of vectors: the predicted change of the first `MAX_PANELS` numbers against the true one.

    Args:
        context: float [k, 2, D], `o_{t-1}` and `o_t`, standardised.
        truth: float [k, D], `o_{t+1}`.
        prediction: float [k, D], the FDM's output under the IDM's latent action.
    """
    true, predicted = truth - context[:, 1], prediction - context[:, 1]
    fig, axes = drawing.panels(min(truth.shape[1], MAX_PANELS), "true change", "predicted")
    for index, ax in enumerate(axes):
        x, y = true[:, index], predicted[:, index]
        error = np.square(x - y).mean() / max(np.square(x).mean(), 1e-12)
        ax.set_title(f"number {index}: error {error:.2g} × copy-last", fontsize=SMALL_FONT, color=INK, loc="left")
        ax.axline((0, 0), slope=1, color=INK, ls="--", lw=THIN)
        ax.scatter(x, y, s=9, c=BLUE, alpha=0.5, lw=0, rasterized=True)
    return fig


def vector_rollouts(frames: np.ndarray, labels: list[str]) -> Figure:
    """Rollouts that the FDM imagines from one vector under each constant latent action: one panel per number.

    `frames` are float [A, T, D], standardised, and `labels` [A]. It shows at most the first `MAX_PANELS` numbers.
    """
    fig, axes = drawing.panels(min(frames.shape[2], MAX_PANELS), "step", "")
    for index, ax in enumerate(axes):
        ax.set_title(f"number {index}", fontsize=SMALL_FONT, color=INK, loc="left")
        for row, label in enumerate(labels):
            style = "-" if row < len(CLASSES) else "--"
            colour = CLASSES[row % len(CLASSES)]
            ax.plot(frames[row, :, index], color=colour, ls=style, lw=THICK, label=drawing.plain(label))
    return drawing.legend(fig)


def cloning_loss(train: Curve | None, test: Curve | None, mean_latent: float | None) -> Figure:
    """Mean squared error of the latent policy over stage 2: on training batches (`train`) and held-out levels (`test`).

    `mean_latent` is the held-out error of always predicting the mean latent.
    """
    fig, ax = drawing.panel("Latent policy", "gradient step", "mean squared error (latent units)")
    drawing.smoothed(ax, train, "train", BLUE)
    drawing.line(ax, test, "held-out levels", VERMILLION)
    drawing.reference(ax, mean_latent, "mean latent", "--")
    ax.set_ylim(bottom=0)
    drawing.step_axis(ax)
    return drawing.legend(fig)


def return_by_labels(
    decoded: np.ndarray,
    cloned: np.ndarray,
    random: float | None = None,
    expert: float | None = None,
    others: dict[str, np.ndarray] | None = None,
    oracle: float | None = None,
) -> Figure:
    """Return of the decoded latent policy against the number of labelled transitions.

    Args:
        decoded: float [n, 3]: labels, mean return, standard error.
        cloned: the same for behaviour cloning on the same labels; may be empty.
        random: return of a random policy.
        expert: return of the demonstrator.
        others: other methods that use labels, by name, in the form of `decoded`.
        oracle: return of a policy cloned from all true actions.
    """
    fig, ax = drawing.panel("Return against labels", "labelled transitions", "episode return")
    ax.set_xscale("log", base=2)
    series = [(decoded, "latent policy, decoded", BLUE, "o"), (cloned, "behaviour cloning", VERMILLION, "s")]
    pairs = [(colour, marker) for marker in MARKERS[2:] for colour in (GREEN, PURPLE)]
    series += [(points, label, *pair) for (label, points), pair in zip((others or {}).items(), pairs, strict=False)]
    for points, label, colour, marker in series:
        if len(points):
            x, y, error = np.asarray(points, float).T
            width = THICK if colour in (BLUE, VERMILLION) else THIN
            ax.plot(x, y, color=colour, lw=width, marker=marker, ms=4, label=label)
            ax.errorbar(x, y, np.nan_to_num(error), fmt="none", ecolor=colour, elinewidth=1.2, capsize=2)
    drawing.reference(ax, expert, "expert", "--")
    drawing.reference(ax, oracle, "all actions cloned", "-.")
    drawing.reference(ax, random, "random policy", ":")
    ticks = np.unique(np.concatenate([np.asarray(points, float)[:, 0] for points, *_ in series if len(points)]))
    ax.xaxis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 10)].tolist()))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    return drawing.legend(fig)


def return_by_frames(
    decoded: Curve | None,
    scratch: Curve | None,
    pseudo_labelled: Curve | None = None,
    random: float | None = None,
    expert: float | None = None,
) -> Figure:
    """Return against environment frames: the latent policy decoded online, PPO from scratch, and PPO from a clone.

    A curve holds mean returns of the episodes that ended since its last point; `pseudo_labelled` is that of PPO from a
    policy cloned from pseudo-labels. `random` and `expert` are returns of a random policy and of the demonstrator.
    """
    fig, ax = drawing.panel("Return against frames", "environment frames", "episode return")
    drawing.smoothed(ax, decoded, "latent policy, decoded online", BLUE)
    drawing.smoothed(ax, pseudo_labelled, "pseudo-labels cloned, then PPO", GREEN)
    drawing.smoothed(ax, scratch, "PPO from scratch", VERMILLION)
    drawing.reference(ax, expert, "expert", "--")
    drawing.reference(ax, random, "random policy", ":")
    drawing.step_axis(ax)
    return drawing.legend(fig)


def pca(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects on the first two principal components.

    Args:
        points: float [n, Z], n >= 1, Z >= 1.

    Returns:
        float64 [n, 2], and the share of the variance that each component explains, [2]. A component that does not
        exist is zero. Signs are fixed: the largest loading of a component is positive.
    """
    centred = np.asarray(points, np.float64)
    centred = centred - centred.mean(0)
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    components = components[:2]
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1)
    projected, explained = np.zeros((len(centred), 2)), np.zeros(2)
    projected[:, : len(components)] = centred @ (components * np.where(largest < 0, -1, 1)).T
    explained[: len(components)] = (singular**2 / max((singular**2).sum(), 1e-12))[:2]
    return projected, explained
