"""Puts the results of the CSV files into docs/linear_lam.md, between its markers."""

import re

import numpy as np
from common import HERE, RESULTS, Panel, agreement, load

DOCS = HERE.parents[1] / "docs" / "linear_lam.md"


def all_panels(panels: list[Panel]) -> str:
    """SGD against the closed form, a line a panel."""
    lines = ["| panel | points | converged | what | median gap | worst gap | worst excess |", "|" + "---|" * 7]
    for panel in panels:
        rows = load(RESULTS / f"{panel.name}.csv")
        if not rows:
            continue
        gaps, converged = agreement(panel, rows)
        worst = max(float(row["excess"]) for row in rows)
        what = {"llo": "LLO", "nmse_q": "NMSE of q", "nmse_a": "NMSE of a"}[panel.metric]
        lines.append(
            f"| {panel.title} | {len(rows)} | {converged} | {what} | {np.median(gaps):.4f} | {gaps.max():.4f} "
            f"| {worst:.1e} |"
        )
    return "\n".join(lines)


def at_eight(panels: list[Panel]) -> str:
    """What a latent of the actions' size knows, as trained, seed 0."""
    lines = ["| panel | curve | x | NMSE q | NMSE noise | NMSE o | LLO | LLO, closed form |", "|" + "---|" * 8]
    for panel in panels:
        for row in load(RESULTS / f"{panel.name}.csv"):
            if panel.name.startswith(("fig3_right", "fig4_right")) and row["x"] == "8" and row["seed"] == "0":
                values = (f"{float(row[k]):.3f}" for k in ("nmse_q", "nmse_eps", "nmse_o", "llo", "closed_llo"))
                lines.append(f"| {panel.name} | {row['curve']} | 8 | {' | '.join(values)} |")
    return "\n".join(lines)


def write(panels: list[Panel]) -> None:
    """Replaces what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    text = DOCS.read_text()
    for name, table in (("agreement", all_panels(panels)), ("eight", at_eight(panels))):
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", lambda m, t=table: m[1] + t + m[2], text, flags=re.S
        )
    DOCS.write_text(text)
    print(f"{DOCS.relative_to(HERE.parents[1])}: tables written")
