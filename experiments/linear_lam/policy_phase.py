"""Beyond the paper: augmentation undoes what a policy hides. LLO over chi and kappa, with the border in closed form."""

import csv

import numpy as np
from matplotlib.figure import Figure

from experiments.linear_lam.common import HERE, RESULTS, options, save
from experiments.page import style
from lamjax.linear import WorldConfig, critical_kappa, make_world, optimum, score

S_EXO = 0.5
CHIS, KAPPAS = np.linspace(0, 0.975, 40), np.geomspace(0.03, 10, 41)


def compute() -> np.ndarray:
    """LLO, ``[kappa, chi]``, at the exact optimum (d_o = 32, 4 actions, 4 latents)."""
    overlap = np.empty((len(KAPPAS), len(CHIS)))
    for j, chi in enumerate(CHIS):
        world = make_world(WorldConfig(d_o=32, d_a=4, d_b=4, s_exo=S_EXO, chi=float(chi), orthogonal=True))
        moments = world.moments()
        for i, kappa in enumerate(KAPPAS):
            overlap[i, j] = score(optimum(moments, 4, kappa=float(kappa), ties="ignore").lam, world).llo
    return overlap


def produce() -> None:
    overlap = compute()
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "policy_phase.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kappa", "chi", "llo"])
        writer.writerows(
            [f"{k:.4g}", f"{c:.4g}", f"{overlap[i, j]:.4g}"] for i, k in enumerate(KAPPAS) for j, c in enumerate(CHIS)
        )
    fig = Figure(figsize=(5.4, 3.6), layout="constrained")
    ax = fig.add_subplot()
    style(ax, f"Policy and augmentation (others' scale {S_EXO})", "deterministic part of the policy, chi", "kappa")
    mesh = ax.pcolormesh(CHIS, KAPPAS, overlap, cmap="viridis", vmin=0, vmax=2, shading="nearest", rasterized=True)
    border = [(c, critical_kappa(S_EXO, float(c))) for c in np.linspace(0.501, 0.975, 200)]
    ax.plot(*zip(*border, strict=True), color="white", linewidth=2, label="border in closed form")
    ax.set_yscale("log")
    ax.set_ylim(KAPPAS[0], KAPPAS[-1])
    fig.colorbar(mesh, label="LLO of the true latent")
    fig.legend(loc="outside lower center", fontsize=8, facecolor="#440154", labelcolor="white")
    path = save(fig, "policy_phase")
    print(f"policy_phase: LLO from {overlap.min():.2f} to {overlap.max():.2f}\n  {path.relative_to(HERE.parents[1])}")


if __name__ == "__main__":
    options()
    produce()
