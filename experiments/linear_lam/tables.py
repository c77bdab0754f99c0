"""Puts the results of the CSV files into docs/linear_lam.md, between its marks."""

import textwrap
from collections.abc import Sequence

import numpy as np

from experiments.linear_lam.common import HERE, RESULTS, Panel, agreement
from experiments.page import filled, load

DOCS = HERE.parents[1] / "docs" / "linear_lam.md"


def all_panels(panels: list[Panel]) -> str:
    """SGD against the closed form, one line per panel."""
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
    """What a trained latent of the actions' size holds, seed 0."""
    lines = ["| panel | curve | x | NMSE q | NMSE noise | NMSE o | LLO | LLO, closed form |", "|" + "---|" * 8]
    for panel in panels:
        for row in load(RESULTS / f"{panel.name}.csv"):
            if panel.name.startswith(("fig3_right", "fig4_right")) and row["x"] == "8" and row["seed"] == "0":
                values = (f"{float(row[k]):.3f}" for k in ("nmse_q", "nmse_eps", "nmse_o", "llo", "closed_llo"))
                lines.append(f"| {panel.name} | {row['curve']} | 8 | {' | '.join(values)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def free() -> str:
    """What Figure 4 middle says of models without augmentation, whose C is free."""
    rows = load(RESULTS / "fig4_middle.csv")
    loose = [row for row in rows if row["curve"].endswith("kappa = 0")]
    fewest = min(int(row["steps"]) for row in loose)
    early = [row for row in loose if int(row["steps"]) == fewest]
    late = [row for row in loose if int(row["steps"]) > fewest]
    clean = {(row["curve"], row["x"], row["seed"]): float(row["llo"]) for row in rows}
    below = [
        clean[row["curve"].replace("kappa = 0", "kappa = 0.1"), row["x"], row["seed"]] - float(row["llo"])
        for row in late
    ]
    worst = max(float(row["excess"]) for row in rows)
    text = (
        f"Without augmentation C is free, and the dotted line is a latent that knows o alone: {len(early)} of "
        f"{len(loose)} models had converged after {fewest} steps, and lie near it, at an LLO of "
        f"{spread([float(row['llo']) for row in early])}. "
    )
    if late:
        text += (
            f"The other {len(late)} were trained for up to {max(int(row['steps']) for row in late)} steps, and reach "
            f"{spread([float(row['llo']) for row in late])}, at most {max(below):.2f} below the model with kappa = "
            "0.1: the noise of Adam at a rate of 0.01 does slowly what augmentation does at once. "
        )
    return textwrap.fill(text + f"All losses are within {worst:.4f} of the smallest.", 120)


def spare() -> str:
    """What Figure 4 right says of latents to spare."""
    labelled = [row for row in load(RESULTS / "fig4_right.csv") if row["curve"].endswith("1% labels")]
    many = [row for row in labelled if int(row["d_z"]) > 8]
    above = [float(row["llo"]) - float(row["closed_llo"]) for row in many]
    worst = max(float(row["excess"]) for row in labelled)
    sizes = sorted({int(row["d_z"]) for row in many})
    return textwrap.fill(
        f"With 1% of labels, one a batch, latents to spare ({sizes[0]} to {sizes[-1]}) fit the noise last: all losses "
        f"are within {worst:.4f} of the smallest, and the LLO of these latents is up to {max(above):.2f} above the "
        "line.",
        120,
    )


def grid() -> str:
    """Table 1's check: errors and both theories' values, then what can be read from the latent, with baselines."""
    rows = load(RESULTS / "grid.csv")
    names = list(dict.fromkeys((row["x"], row["curve"]) for row in rows))
    groups = [[row for row in rows if (row["x"], row["curve"]) == name] for name in names]

    def mean(group: list[dict[str, str]], column: str) -> str:
        return f"{np.mean([float(row[column]) for row in group]):.2f}"

    lines = [
        "| noise | square: error | best codes | linear | noise: error | best codes | linear | paper, square / noise |",
        "|" + "---|" * 8,
    ]
    paper = {"0": "0.624 / -", "1": "0.781 / 0.739", "2": "1.046 / 0.607"}
    for (x, curve), group in zip(names, groups, strict=True):
        cells = [x if curve == "from the start" else f"{x}, {curve}"]
        for what in ("square", "noise"):
            if what == "noise" and x == "0":
                cells += ["-"] * 3
                continue
            values = [float(row[f"{what}_error"]) for row in group]
            cells.append(f"{np.mean(values):.2f} ({spread(values)})")
            cells += [mean(group, f"{theory}_{what}") for theory in ("best", "linear")]
        lines.append(f"| {' | '.join(cells)} | {paper.get(x, '') if curve == 'from the start' else ''} |")
    lines += [
        "",
        "| noise | probe: action (shuffled, majority) | code and place: action (shuffled) "
        "| code: action, NMI (shuffled) | code: noise, NMI (shuffled) |",
        "|" + "---|" * 5,
    ]
    for (x, curve), group in zip(names, groups, strict=True):
        cells = [
            x if curve == "from the start" else f"{x}, {curve}",
            f"{mean(group, 'probe')} ({mean(group, 'probe_shuffled')}, {mean(group, 'majority')})",
            f"{mean(group, 'action_placed_purity')} ({mean(group, 'action_placed_purity_shuffled')})",
            f"{mean(group, 'action_nmi')} ({mean(group, 'action_nmi_shuffled')})",
            f"{mean(group, 'noise_nmi')} ({mean(group, 'noise_nmi_shuffled')})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    seeds, steps = len({row["seed"] for row in rows}), rows[0]["steps"]
    return "\n".join([*lines, "", f"Means over {seeds} seeds after {steps} updates; of errors also the range."])


def put(**sections: str) -> None:
    """Writes sections into the page."""
    DOCS.write_text(filled(DOCS.read_text(), **sections))
    print(f"{DOCS.relative_to(HERE.parents[1])}: {', '.join(sections)} written")


def of_panels(panels: list[Panel]) -> dict[str, str]:
    """The sections that `make linear` writes."""
    return {"agreement": all_panels(panels), "eight": at_eight(panels), "free": free(), "spare": spare()}
