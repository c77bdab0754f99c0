"""The style that all figures of a report share, and their conversion to PNG and SVG.

The functions use matplotlib's `Figure` class without pyplot and without a global style, so any thread may draw. 1 inch
is 100 CSS pixels in the report.
"""

import html
import io
import math
import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

Curve = tuple[np.ndarray, np.ndarray]

# Both palettes suit the common forms of colour blindness. Lines use Okabe and Ito's; the page has a lighter set for
# dark mode. Classes use Tol's "bright", which is legible on light and dark, because their marks are pixels in the page.
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
LINES = (BLUE, VERMILLION, GREEN, PURPLE)
CLASSES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
MARKERS = "o^sDvP"  # each marker goes through all colours
INK, MUTED, GRID = "#1f2328", "#6e7781", "#dde1e6"
CSS_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"}
CSS_VARIABLES |= {BLUE: "blue", VERMILLION: "vermillion", GREEN: "green", PURPLE: "purple"}

DOTS_PER_INCH = 100  # in the report
PANEL = (4.9, 3.5)  # inches: two panels side by side fill the page
FONT, SMALL_FONT = 9, 8  # points
THIN, THICK = 0.8, 1.8  # points


def png(figure: Figure) -> bytes:
    """Encodes a figure as PNG on white, with two pixels for each of the report's."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * DOTS_PER_INCH)
    return buffer.getvalue()


def svg(figure: Figure, name: str, description: str = "") -> str:
    """Encodes a figure as an `<svg>` element to put into a page.

    Colours become the CSS variables of `CSS_VARIABLES`, so that the page can switch to dark mode. The element loads
    nothing from elsewhere, and the same figure always gives the same text. `name` is the prefix of the element's ids,
    which are unique in a page if names are; `description` is for readers who cannot see the figure.
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
    view = next(re.finditer(r'viewBox="[^"]+"', text))[0]
    opening = f'<svg {view} width="{width}" height="{height}" role="img" aria-label="{html.escape(description)}">'
    return opening + text[text.index(">") + 1 :].strip()


def panel(title: str, xlabel: str, ylabel: str, size: tuple[float, float] = PANEL) -> tuple[Figure, Axes]:
    """An empty figure with one set of axes, in the common style."""
    fig = Figure(figsize=size, layout="constrained", facecolor="white")
    ax = fig.subplots()
    ax.set_title(plain(title), fontsize=FONT + 1, fontweight="bold", color=INK, loc="left")
    _style(ax, xlabel, ylabel, FONT)
    return fig, ax


def panels(count: int, xlabel: str, ylabel: str) -> tuple[Figure, list[Axes]]:
    """Small panels in rows of at most four, in the common style."""
    columns, rows = min(count, 4), -(-count // 4)
    fig = Figure(figsize=(2.5 * columns, 2.5 * rows), layout="constrained", facecolor="white")
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.set_axis_off()
    for ax in axes[:count]:
        _style(ax, xlabel, ylabel, SMALL_FONT)
    return fig, list(axes[:count])


def _style(ax: Axes, xlabel: str, ylabel: str, size: int) -> None:
    """Gives axes the common style; `size` is the font size of their labels in points."""
    ax.set_xlabel(xlabel, fontsize=size, color=INK)
    ax.set_ylabel(ylabel, fontsize=size, color=INK)
    ax.tick_params(which="both", labelsize=SMALL_FONT, color=MUTED, labelcolor=INK, width=THIN)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=MUTED, linewidth=THIN)
    ax.grid(True, color=GRID, lw=THIN)
    ax.set_axisbelow(True)


def legend(fig: Figure) -> Figure:
    """Puts the legend below the axes, where it covers no data, in as many columns as fit."""
    handles, labels = fig.axes[0].get_legend_handles_labels()
    if handles:
        style = {"frameon": False, "fontsize": SMALL_FONT, "labelcolor": INK, "handlelength": 1.8, "columnspacing": 1.4}
        fig.legend(handles, labels, loc="outside lower center", ncols=_legend_columns(labels), **style)
    return fig


def _legend_columns(labels: list[str]) -> int:
    """The most columns that fit on a line; matplotlib fills them from top to bottom."""
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        longest = [max(map(len, labels[start : start + rows])) for start in range(0, len(labels), rows)]
        if len(longest) == columns and sum(longest) + 6 * columns <= 78:  # characters
            return columns
    return 1


def line(ax: Axes, curve: Curve | None, label: str, colour: str) -> None:
    """Draws a curve, with marks if it has few points."""
    if curve is not None:
        x, y = curve
        ax.plot(x, y, color=colour, lw=THICK, marker="o" if len(x) <= 60 else None, ms=3, label=label)


def smoothed(ax: Axes, curve: Curve | None, label: str, colour: str) -> None:
    """Draws a faint curve, and on top of it its moving mean over a twentieth of its length."""
    if curve is None:
        return
    x, y = curve
    if len(x) < 40:
        return line(ax, curve, label, colour)
    ax.plot(x, y, color=colour, lw=THIN, alpha=0.35)
    ax.plot(x, smooth(y, len(y) // 20), color=colour, lw=THICK, label=label)


def reference(ax: Axes, value: float | None, label: str, style: str) -> None:
    """Draws a horizontal line at a reference value."""
    if value is not None and math.isfinite(value):
        ax.axhline(value, color=INK, ls=style, lw=1.2, label=label)


def step_axis(ax: Axes) -> None:
    """Starts the horizontal axis at 0, with round ticks such as 5k."""
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def plain(text: str) -> str:
    """Escapes text from data, so that mathtext shows it unchanged."""
    return str(text).replace("$", r"\$")


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean, float [n].

    The window shrinks on both sides towards the start, where curves are steep, and only on the right towards the end,
    where they are flat and the last values matter.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    left = np.minimum(index, window // 2)
    right = np.minimum(left, index[::-1])
    return (sums[index + right + 1] - sums[index - left]) / (left + right + 1)
