"""Beyond the paper: how many transitions it takes. The optimum of sample moments, judged on the exact ones."""

import csv

import numpy as np
from matplotlib.figure import Figure

from experiments.linear_lam.common import HERE, RESULTS, options, save
from experiments.page import COLOURS, style
from lamjax.linear import Moments, WorldConfig, excess, make_world, optimum, sample_overlap

SIZES = (192, 256, 512, 1024, 2048, 4096, 8192, 16384)
NOISE = (0.5, 1.0, 1.5)


def produce(full: bool) -> None:
    rows = []
    for s_iid in NOISE:
        for fix_a in (True, False):
            for n in SIZES:
                for seed in range(3 if full else 1):
                    world = make_world(WorldConfig(s_iid=s_iid), seed)
                    exact = world.moments()
                    samples = Moments.of_samples(world.sample(n, np.random.default_rng([seed, n])))
                    solution = optimum(samples, 8, fix_a=fix_a)
                    overlap = np.sum((solution.lam.D @ world.factors.X) ** 2) / 8
                    over = excess(solution.lam, optimum(exact, 8, ties="ignore"), exact)
                    bound = sample_overlap(n, 128, s_iid, fix_a=fix_a)
                    rows.append([s_iid, fix_a, n, seed, f"{overlap:.4f}", f"{bound:.4f}", f"{over:.4g}"])
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "finite_data.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["s_iid", "fix_a", "n", "seed", "overlap", "bound", "excess"])
        writer.writerows(rows)
    fig = Figure(figsize=(6.2, 3.6), layout="constrained")
    ax = fig.add_subplot()
    style(ax, "Finite data (d_o = 128, 8 actions, 8 latents)", "transitions", "overlap with the actions, cos²")
    dense = np.unique(np.geomspace(SIZES[0], SIZES[-1], 200).astype(int))
    for colour, s_iid in zip(COLOURS, NOISE, strict=False):
        for fix_a in (True, False):
            curve = [sample_overlap(int(n), 128, s_iid, fix_a=fix_a) for n in dense]
            label = f"s = {s_iid:g}, {'A = I' if fix_a else 'A learned'}"
            ax.plot(dense, curve, "-" if fix_a else "--", color=colour, linewidth=1.4, label=label)
            mine = [(row[2], float(row[4])) for row in rows if row[0] == s_iid and row[1] == fix_a]
            marks = "o" if fix_a else "s"
            ax.plot(*zip(*mine, strict=True), marks, color=colour, markersize=4, fillstyle="full" if fix_a else "none")
    ax.set_xscale("log")
    fig.legend(loc="outside right center", fontsize=8, frameon=False)
    path = save(fig, "finite_data")
    gaps = [abs(float(row[4]) - float(row[5])) for row in rows if row[2] >= 256]
    print(
        f"finite_data: |overlap - theory| median {np.median(gaps):.3f}, worst {max(gaps):.3f} from 256 transitions on"
    )
    print(f"  {path.relative_to(HERE.parents[1])}")


if __name__ == "__main__":
    produce(options().full)
