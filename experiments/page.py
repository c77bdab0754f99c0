"""Results in CSV files, their tables on a page, and the look of their figures."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#6e7781")


def load(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def store(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Writes the CSV file atomically, so that an interrupted run leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".tmp").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path.with_suffix(".tmp").replace(path)


def filled(text: str, **sections: str) -> str:
    """The text with each section between its ``<!-- name -->`` and ``<!-- /name -->``."""
    for name, section in sections.items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", lambda m, s=section: m[1] + s + m[2], text, flags=re.S
        )
        if count != 1:
            raise ValueError(f"The page needs one pair of marks <!-- {name} -->, <!-- /{name} -->, not {count}.")
    return text


def style(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(color="#dde1e6", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
