"""The figures of a run's report: arrays in, a matplotlib `Figure` out.

Each figure has one function, and all share one style, set at the top of this file. They use the `Figure` class without
pyplot and without a global style, so any thread may draw. 1 inch is 100 CSS pixels in the report.

A curve is a pair `(x [n], y [n])` of finite float arrays, or None if the run has none. A reference value that is None
or NaN is left out. Frames are uint8 `[..., H, W, C]`; if C is not 1 or 3, each channel gets a colour.
"""

import html
import io
import math
import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    FuncFormatter,
    LogFormatterSciNotation,
    MaxNLocator,
    NullLocator,
)
from PIL import Image, ImageDraw, ImageFont

Curve = tuple[np.ndarray, np.ndarray]

# Both palettes suit the common forms of colour blindness. Lines: Okabe and Ito; the page has a lighter set for dark
# mode. Classes: Tol's "bright", which is legible on light and dark, for marks that are pixels in the page.
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
LINES = (BLUE, VERMILLION, GREEN, PURPLE)
CLASSES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
MARKERS = "o^sDvP"  # the colours start anew with each
INK, MUTED, GRID = "#1f2328", "#6e7781", "#dde1e6"
CSS_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"}
CSS_VARIABLES |= {BLUE: "blue", VERMILLION: "vermillion", GREEN: "green", PURPLE: "purple"}

DOTS_PER_INCH = 100  # in the report
PANEL = (4.9, 3.5)  # inches: two panels side by side fill the page
FONT, SMALL_FONT = 9, 8  # points
THIN, THICK = 0.8, 1.8  # points
DIFFERENCE_GAIN = 2
STRIP_PIXELS, FILM_PIXELS, TILE_PIXELS = 190, 114, 190  # width of one frame, before rounding to whole pixels
GIF_BYTES = 1_500_000


# ---------------------------------------------------------------------------------------------------------- stage 1


def fdm_error(train: Curve | None, test: Curve | None, copy_last: float | None) -> Figure:
    """FDM mean squared error over stage 1, beside the error of repeating the last frame.

    Args:
        train: step, error on the training batches; frames scaled to a range of 1.
        test: step, error on held-out levels.
        copy_last: held-out error of predicting `o_{t+1} = o_t`.
    """
    fig, ax = _panel("Forward model", "gradient step", "mean squared error")
    ax.set_yscale("log")
    _smoothed(ax, train, "train", BLUE)
    _line(ax, test, "held-out levels", VERMILLION)
    _reference(ax, copy_last, "copy last frame", "--")
    _step_axis(ax)
    # An axis that spans less than two decades would show one number: there minor ticks have labels too.
    ax.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(2, 0.4)))
    return _legend(fig)


def perplexity(curves: list[Curve], num_codes: int | None) -> Figure:
    """Perplexity of each codebook, `exp(-sum_k p_k log p_k)`, with its maximum, the number of codes."""
    fig, ax = _panel("Codebook perplexity", "gradient step", "effective number of codes")
    for index, curve in enumerate(curves):
        _smoothed(ax, curve, f"codebook {index}", LINES[index % len(LINES)])
    _reference(ax, num_codes, f"maximum ({num_codes} codes)", "--")
    ax.set_ylim(bottom=0)
    _step_axis(ax)
    return _legend(fig)


def probe_bars(groups: dict[str, tuple[float, float, float, float]], score: str, constant: str) -> Figure:
    """Held-out scores of a probe that reads the true action from latents, beside its baselines.

    Args:
        groups: for each set of actions (all, or aliases merged; or each kind of probe) the score, at most 1, on the
            trained IDM, on an untrained one, on an untrained one that sees o_t alone, and of `constant`; NaN if
            unknown.
        score: what is measured: accuracy, or variance explained.
        constant: the baseline that looks at nothing.
    """
    fig, ax = _panel("Action probe", "", f"held-out {score} (%)")
    series = (
        ("trained IDM", BLUE, 1),
        ("untrained IDM", MUTED, 1),
        ("untrained IDM, o_t alone", MUTED, 0.7),
        (constant, MUTED, 0.4),
    )
    centres = np.arange(len(groups))
    for index, (label, colour, alpha) in enumerate(series):
        percent = np.round(100 * np.array([values[index] for values in groups.values()], float), 1) + 0.0  # no -0.0
        bars = ax.bar(centres + 0.21 * (index - 1.5), np.nan_to_num(percent), 0.19, color=colour, alpha=alpha)
        bars.set_label(label)
        texts = [f"{value:.1f}" if math.isfinite(value) else "–" for value in percent]
        ax.bar_label(bars, texts, fontsize=SMALL_FONT, color=INK, padding=2)
    ax.set_xticks(centres, [_plain(name) for name in groups], fontsize=FONT)
    ax.set_xlim(-0.6, len(groups) - 0.4)
    lowest = 100 * min((value for values in groups.values() for value in values if math.isfinite(value)), default=0)
    ax.set_ylim(max(min(0, 1.2 * lowest), -100), 100)
    ax.tick_params(axis="x", length=0)
    ax.grid(False, axis="x")
    return _legend(fig)


def code_usage(counts: np.ndarray) -> Figure:
    """Share of the windows that each code takes, most used code first.

    Args:
        counts: int [codebooks, codes].
    """
    counts = np.asarray(counts, float)
    num_codes = counts.shape[1]
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    fig, ax = _panel("Code usage", "code, by rank", "share of windows (%)")
    ranks = np.arange(num_codes + 1) + 0.5
    for index, row in enumerate(np.sort(share, axis=1)[:, ::-1]):
        label = f"codebook {index}: {np.count_nonzero(row)} of {num_codes} used"
        ax.stairs(row, ranks, color=LINES[index % len(LINES)], lw=THICK, label=label)
    _reference(ax, 100 / num_codes, "all equally often", "--")
    ax.set_xlim(0.5, num_codes + 0.5)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return _legend(fig)


def latents(points: np.ndarray, labels: np.ndarray, names: list[str], title: str, max_points: int = 3000) -> Figure:
    """Latent actions on their first two principal components, coloured by true action.

    Args:
        points: float [n, Z].
        labels: int [n], indices into `names`.
        names: the actions.
        title: which model the latents come from.
        max_points: more are thinned to this number, evenly.
    """
    fig, ax, projected, keep = _projected(points, title, max_points)
    labels = np.asarray(labels)[keep]
    for index in np.unique(labels):
        colour, marker = CLASSES[index % len(CLASSES)], MARKERS[index // len(CLASSES) % len(MARKERS)]
        x, y = projected[labels == index].T
        ax.scatter(x, y, s=9 if marker == MARKERS[0] else 14, c=colour, marker=marker, alpha=0.7, lw=0, rasterized=True)
        ax.scatter([], [], s=28, c=colour, marker=marker, lw=0, label=_plain(names[index]))
    return _legend(fig)


def latents_by_value(points: np.ndarray, values: np.ndarray, title: str, max_points: int = 3000) -> Figure:
    """Latent actions on their first two principal components, coloured by the first number of the true action.

    Args:
        points: float [n, Z].
        values: float [n, D], the actions.
        title: which model the latents come from.
        max_points: more are thinned to this number, evenly.
    """
    fig, ax, projected, keep = _projected(points, title, max_points)
    x, y = projected.T
    marks = ax.scatter(x, y, s=9, c=np.asarray(values)[keep, 0], cmap="viridis", alpha=0.7, lw=0, rasterized=True)
    bar = fig.colorbar(marks, ax=ax, shrink=0.8)
    bar.set_label("action" if np.shape(values)[1] == 1 else "action, number 0", fontsize=FONT, color=INK)
    bar.ax.tick_params(labelsize=SMALL_FONT, color=MUTED, labelcolor=INK, width=THIN)
    bar.outline.set(color=MUTED, linewidth=THIN)
    return fig


def _projected(points: np.ndarray, title: str, max_points: int) -> tuple[Figure, Axes, np.ndarray, np.ndarray]:
    """Axes for latents, the positions of at most `max_points` of them [n, 2], and their indices [n]."""
    projected, explained = pca(points)
    axis_labels = [f"PC {i + 1} ({100 * share:.0f} % of variance)" for i, share in enumerate(explained)]
    fig, ax = _panel(title, *axis_labels, size=(4.9, 4.9))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    keep = np.linspace(0, len(projected) - 1, min(len(projected), max_points)).astype(int)
    return fig, ax, projected[keep], keep


def strips(context: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> Figure:
    """One-step predictions: the context frames, the next frame, the FDM's, and their absolute difference.

    Args:
        context: uint8 [k, K, H, W, C], up to `o_t`; K is 2, or 1 for models without another context frame.
        truth: uint8 [k, H, W, C], `o_{t+1}`.
        prediction: uint8 [k, H, W, C], the FDM's output under the IDM's latent action.
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
    return _image_grid(rgb(rows), columns, notes, STRIP_PIXELS, notes_at=len(columns) - 1)


def rollouts(frames: np.ndarray, labels: list[str], max_frames: int = 8) -> Figure:
    """The frames of `rollout_gif` side by side, for print: one row per latent action, time to the right.

    Args:
        frames: uint8 [A, T, H, W, C].
        labels: [A].
        max_frames: more are thinned to this number, evenly; the first and the last are kept.
    """
    times = np.unique(np.linspace(0, frames.shape[1] - 1, min(frames.shape[1], max_frames)).astype(int))
    return _image_grid(rgb(frames[:, times]), [f"frame {time}" for time in times], labels, FILM_PIXELS)


def vector_changes(context: np.ndarray, truth: np.ndarray, prediction: np.ndarray, max_panels: int = 8) -> Figure:
    """One-step predictions of vectors: for each number its predicted change against the true one.

    Args:
        context: float [k, 2, D], `o_{t-1}` and `o_t`, standardised.
        truth: float [k, D], `o_{t+1}`.
        prediction: float [k, D], the FDM's output under the IDM's latent action.
        max_panels: of more numbers the first are shown.
    """
    true, predicted = truth - context[:, 1], prediction - context[:, 1]
    fig, axes = _panels(min(truth.shape[1], max_panels), "true change", "predicted")
    for index, ax in enumerate(axes):
        x, y = true[:, index], predicted[:, index]
        error = np.square(x - y).mean() / max(np.square(x).mean(), 1e-12)
        ax.set_title(f"number {index}: error {error:.2g} × copy-last", fontsize=SMALL_FONT, color=INK, loc="left")
        ax.axline((0, 0), slope=1, color=INK, ls="--", lw=THIN)
        ax.scatter(x, y, s=9, c=BLUE, alpha=0.5, lw=0, rasterized=True)
    return fig


def vector_rollouts(frames: np.ndarray, labels: list[str], max_panels: int = 8) -> Figure:
    """Rollouts that the FDM imagines from one vector under each constant latent action: a panel for each number.

    Args:
        frames: float [A, T, D], standardised.
        labels: [A].
        max_panels: of more numbers the first are shown.
    """
    fig, axes = _panels(min(frames.shape[2], max_panels), "step", "")
    for index, ax in enumerate(axes):
        ax.set_title(f"number {index}", fontsize=SMALL_FONT, color=INK, loc="left")
        for row, label in enumerate(labels):
            style = "-" if row < len(CLASSES) else "--"
            ax.plot(frames[row, :, index], color=CLASSES[row % len(CLASSES)], ls=style, lw=THICK, label=_plain(label))
    return _legend(fig)


def rollout_gif(frames: np.ndarray, labels: list[str], max_bytes: int = GIF_BYTES) -> bytes:
    """Animates the rollouts that the FDM imagines from one frame under each constant latent action.

    Args:
        frames: uint8 [A, T, H, W, C].
        labels: [A], written above each tile.
        max_bytes: the frames are shown smaller, then with fewer colours, until the file is no larger.

    Returns:
        A GIF that loops for ever.
    """
    largest = max(1, round(TILE_PIXELS / frames.shape[3]))
    attempts = [(scale, 128) for scale in range(largest, 0, -1)] + [(1, 32), (1, 8)]
    for scale, colours in attempts:
        gif = _encode_gif([_tile(images, labels, scale) for images in np.swapaxes(rgb(frames), 0, 1)], colours)
        if len(gif) <= max_bytes:
            break
    return gif


# --------------------------------------------------------------------------------------------------- stages 2 and 3


def cloning_loss(train: Curve | None, test: Curve | None, mean_latent: float | None) -> Figure:
    """Error of the latent policy over stage 2, beside that of always predicting the mean latent.

    Args:
        train: step, mean squared error on the training batches.
        test: step, the same on held-out levels.
        mean_latent: held-out error of predicting the mean latent.
    """
    fig, ax = _panel("Latent policy", "gradient step", "mean squared error (latent units)")
    _smoothed(ax, train, "train", BLUE)
    _line(ax, test, "held-out levels", VERMILLION)
    _reference(ax, mean_latent, "mean latent", "--")
    ax.set_ylim(bottom=0)
    _step_axis(ax)
    return _legend(fig)


def return_by_labels(
    decoded: np.ndarray,
    cloned: np.ndarray,
    random: float | None = None,
    expert: float | None = None,
    others: dict[str, np.ndarray] | None = None,
) -> Figure:
    """Return of the decoded latent policy against the number of labelled transitions.

    Args:
        decoded: float [n, 3]: labels, mean return, standard error.
        cloned: the same for behaviour cloning on the same labels; may be empty.
        random: return of a random policy.
        expert: return of the demonstrator.
        others: the same for other ways from labels to a policy, by name.
    """
    fig, ax = _panel("Return against labels", "labelled transitions", "episode return")
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
    _reference(ax, expert, "expert", "--")
    _reference(ax, random, "random policy", ":")
    ticks = np.unique(np.concatenate([np.asarray(points, float)[:, 0] for points, *_ in series if len(points)]))
    ax.xaxis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 10)]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    return _legend(fig)


def return_by_frames(
    decoded: Curve | None,
    scratch: Curve | None,
    pseudo_labelled: Curve | None = None,
    random: float | None = None,
    expert: float | None = None,
) -> Figure:
    """Return of the latent policy decoded online, and of PPO from scratch, against environment frames.

    Args:
        decoded: frames, mean return of the episodes that ended since the last point.
        scratch: the same for PPO from scratch.
        pseudo_labelled: the same for PPO from a policy cloned from pseudo-labels.
        random: return of a random policy.
        expert: return of the demonstrator.
    """
    fig, ax = _panel("Return against frames", "environment frames", "episode return")
    _smoothed(ax, decoded, "latent policy, decoded online", BLUE)
    _smoothed(ax, pseudo_labelled, "pseudo-labels cloned, then PPO", GREEN)
    _smoothed(ax, scratch, "PPO from scratch", VERMILLION)
    _reference(ax, expert, "expert", "--")
    _reference(ax, random, "random policy", ":")
    _step_axis(ax)
    return _legend(fig)


# ---------------------------------------------------------------------------------------------------------- numerics


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


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean, float [n].

    The window shrinks from both sides towards the start, where curves are steep, and from the right alone towards
    the end, where they are flat and the last values matter.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    left = np.minimum(index, window // 2)
    right = np.minimum(left, index[::-1])
    return (sums[index + right + 1] - sums[index - left]) / (left + right + 1)


def rgb(frames: np.ndarray) -> np.ndarray:
    """Converts frames uint8 [..., H, W, C] to RGB [..., H, W, 3]; if C is not 1 or 3, each channel gets a colour."""
    channels = frames.shape[-1]
    if channels == 3:
        return frames
    if channels == 1:
        return np.repeat(frames, 3, axis=-1)
    colours = np.array([to_rgb(CLASSES[channel % len(CLASSES)]) for channel in range(channels)])
    return (np.max(frames[..., None] / max(frames.max(initial=0), 1) * colours, axis=-2) * 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ output


def png(figure: Figure) -> bytes:
    """Encodes a figure as PNG on white, with two pixels for each of the report's."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * DOTS_PER_INCH)
    return buffer.getvalue()


def svg(figure: Figure, name: str, description: str = "") -> str:
    """Encodes a figure as an `<svg>` element to put into a page.

    Colours become the CSS variables of `CSS_VARIABLES`, so that the page can switch to dark mode. The element loads
    nothing from elsewhere, and the same figure gives the same text.

    Args:
        figure: the figure.
        name: prefix of the element's ids, which are unique in a page if names are.
        description: text for readers that do not see the figure.
    """
    buffer = io.StringIO()
    empty = dict.fromkeys(["Creator", "Date", "Format", "Type"])
    figure.savefig(buffer, format="svg", dpi=2 * DOTS_PER_INCH, transparent=True, metadata=empty)
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    ids = {old: f"{name}-{index}" for index, old in enumerate(dict.fromkeys(re.findall(r' id="([^"]+)"', text)))}
    text = re.sub(r'( id="|url\(#|href="#)([^")]+)', lambda match: match[1] + ids[match[2]], text)
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    width, height = (round(DOTS_PER_INCH * inches) for inches in figure.get_size_inches())
    view = re.search(r'viewBox="[^"]+"', text)[0]
    opening = f'<svg {view} width="{width}" height="{height}" role="img" aria-label="{html.escape(description)}">'
    return opening + text[text.index(">") + 1 :].strip()


# ----------------------------------------------------------------------------------------------------------- drawing


def _panel(title: str, xlabel: str, ylabel: str, size: tuple[float, float] = PANEL) -> tuple[Figure, Axes]:
    """An empty figure with one set of axes in the style of all."""
    fig = Figure(figsize=size, layout="constrained", facecolor="white")
    ax = fig.subplots()
    ax.set_title(_plain(title), fontsize=FONT + 1, fontweight="bold", color=INK, loc="left")
    _style(ax, xlabel, ylabel, FONT)
    return fig, ax


def _panels(count: int, xlabel: str, ylabel: str, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """Small panels in rows of at most `columns`, in the style of all."""
    columns, rows = min(count, columns), -(-count // columns)
    fig = Figure(figsize=(2.5 * columns, 2.5 * rows), layout="constrained", facecolor="white")
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_axis_off()
    for ax in axes[:count]:
        _style(ax, xlabel, ylabel, SMALL_FONT)
    return fig, list(axes[:count])


def _style(ax: Axes, xlabel: str, ylabel: str, size: int) -> None:
    """Gives axes the common style; `size` is that of their labels in points."""
    ax.set_xlabel(xlabel, fontsize=size, color=INK)
    ax.set_ylabel(ylabel, fontsize=size, color=INK)
    ax.tick_params(which="both", labelsize=SMALL_FONT, color=MUTED, labelcolor=INK, width=THIN)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=MUTED, linewidth=THIN)
    ax.grid(True, color=GRID, lw=THIN)
    ax.set_axisbelow(True)


def _legend(fig: Figure) -> Figure:
    """Puts the legend below the axes, where it covers nothing, in as many columns as fit."""
    handles, labels = fig.axes[0].get_legend_handles_labels()
    if handles:
        style = {"frameon": False, "fontsize": SMALL_FONT, "labelcolor": INK, "handlelength": 1.8, "columnspacing": 1.4}
        fig.legend(handles, labels, loc="outside lower center", ncols=_legend_columns(labels), **style)
    return fig


def _legend_columns(labels: list[str], characters: int = 78) -> int:
    """The most columns that fit on a line; matplotlib fills them from top to bottom."""
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        longest = [max(map(len, labels[start : start + rows])) for start in range(0, len(labels), rows)]
        if len(longest) == columns and sum(longest) + 6 * columns <= characters:
            return columns
    return 1


def _line(ax: Axes, curve: Curve | None, label: str, colour: str) -> None:
    if curve is not None:
        x, y = curve
        ax.plot(x, y, color=colour, lw=THICK, marker="o" if len(x) <= 60 else None, ms=3, label=label)


def _smoothed(ax: Axes, curve: Curve | None, label: str, colour: str) -> None:
    """Draws a curve, faint, and over it its moving mean over a twentieth of its length."""
    if curve is None:
        return
    x, y = curve
    if len(x) < 40:
        return _line(ax, curve, label, colour)
    ax.plot(x, y, color=colour, lw=THIN, alpha=0.35)
    ax.plot(x, smooth(y, len(y) // 20), color=colour, lw=THICK, label=label)


def _reference(ax: Axes, value: float | None, label: str, style: str) -> None:
    if value is not None and math.isfinite(value):
        ax.axhline(value, color=INK, ls=style, lw=1.2, label=label)


def _step_axis(ax: Axes) -> None:
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def _plain(text: str) -> str:
    """Escapes text from data, so that mathtext shows it as it is."""
    return str(text).replace("$", r"\$")


# ------------------------------------------------------------------------------------------------------------ images


def _image_grid(rows: np.ndarray, columns: list[str], notes: list[str], pixels: int, notes_at: int = 0) -> Figure:
    """Frames [rows, columns, H, W, 3] on whole pixels, a heading per column and a note above each row."""
    count, width = rows.shape[:2]
    height_px, width_px = (max(1, round(pixels / rows.shape[3])) * size for size in rows.shape[2:4])
    gap, heading, note = 8, 24, 22
    total_w = width * (width_px + gap) - gap
    total_h = heading + count * (note + height_px)
    fig = Figure(figsize=(total_w / DOTS_PER_INCH, total_h / DOTS_PER_INCH), facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1))
    style = {"fontsize": SMALL_FONT, "color": INK, "va": "center"}
    for column, label in enumerate(columns):
        centre = column * (width_px + gap) + width_px / 2
        ax.text(centre, heading / 2, label, ha="center", fontweight="bold", **style)
    for row in range(count):
        top = heading + row * (note + height_px) + note
        ax.text(notes_at * (width_px + gap), top - note / 2, _plain(notes[row]), **style)
        for column in range(width):
            left = column * (width_px + gap)
            extent = (left, left + width_px, top + height_px, top)
            ax.imshow(rows[row, column], extent=extent, interpolation="none", aspect="auto")
    ax.set(xlim=(0, total_w), ylim=(total_h, 0))  # in pixels, from the top
    ax.set_axis_off()
    return fig


_FONT_FILE = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")  # of the other figures, too
_PLATE = [(31 + 40 * shade, 35 + 39 * shade, 40 + 39 * shade) for shade in range(6)]  # dark ground to light text


def _tile(images: np.ndarray, labels: list[str], scale: int) -> Image.Image:
    """Images [A, H, W, 3] enlarged by a whole factor, in rows of at most four, each below its label."""
    count, height, width = images.shape[:3]
    height, width = scale * height, scale * width
    columns, gap, heading = min(count, 4), 8, 22
    rows = -(-count // columns)
    size = (columns * (width + gap) + gap, rows * (heading + height + gap))
    canvas = Image.new("RGB", size, _PLATE[0])
    draw, font = ImageDraw.Draw(canvas), ImageFont.truetype(_FONT_FILE, 12)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        x = gap + index % columns * (width + gap)
        y = index // columns * (heading + height + gap)
        while draw.textlength(label, font=font) > width and len(label) > 1:
            label = label[:-2] + "…"
        draw.text((x, y + heading / 2), label, fill=_PLATE[-1], font=font, anchor="lm")
        canvas.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (x, y + heading))
    return canvas


def _encode_gif(images: list[Image.Image], colours: int) -> bytes:
    """A GIF of the images with one palette for all, the last one held for a second."""
    samples = [np.asarray(images[index]) for index in (0, len(images) // 2, -1)]
    chosen = Image.fromarray(np.concatenate(samples)).quantize(colours - len(_PLATE), dither=Image.Dither.NONE)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*chosen.getpalette(), *np.ravel(_PLATE)])
    indexed = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [150] * (len(indexed) - 1) + [1000]
    buffer = io.BytesIO()
    indexed[0].save(buffer, "GIF", save_all=True, append_images=indexed[1:], duration=durations, loop=0)
    return buffer.getvalue()
