"""Figure 4 middle: without augmentation the true latent is full of the observation; with it, it is clean.

The noise is uniform on [0, s), as the authors programmed it: its mean takes a latent, hence the knee at 9 latents.
The noise is left out of LLO, as in their plot. Without augmentation C is free, and training leaves it where it
started: the latent tells of the observation only, so LLO = 1 - d_z / d_o.
"""

from common import Panel, Run, main, seeds

from lamjax.linear import Point, WorldConfig


def runs(full: bool) -> list[Run]:
    sizes = range(2, 17) if full else (2, 4, 6, 8, 9, 16)
    return [
        Run(
            f"s = {s_iid:g}, kappa = {kappa:g}",
            d_z,
            Point(WorldConfig(s_iid=s_iid, noise="uniform"), d_z, kappa=kappa, seed=s),
        )
        for s in seeds(full)
        for kappa in (0.1, 0.01, 0.0)
        for s_iid in (0.0, 0.1, 0.5, 1.0)
        for d_z in sizes
    ]


def bounds(run: Run) -> dict[str, float] | None:
    if run.point.kappa > 0:
        return None
    nmse_o = 1 - run.point.d_z / run.point.world.d_o
    return {"nmse_q": 1.0, "nmse_a": 1.0, "nmse_eps": 1.0, "nmse_o": nmse_o, "llo": nmse_o}


PANEL = Panel(
    name="fig4_middle",
    title="Figure 4 middle: augmentation, true latent",
    xlabel="latent size",
    runs=runs,
    latent="true",
    palette=4,
    bounds=bounds,
    no_noise_term=True,
    expected="kappa 0.1: as Figure 3, 2 to 1.92 from 9 latents on; kappa 0: about 0.95 throughout; 0.01: in between.",
)

if __name__ == "__main__":
    main(PANEL)
