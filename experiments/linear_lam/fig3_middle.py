"""Figure 3 middle: iid noise lowers everything a little, and turns nothing around."""

from common import Panel, Run, main, seeds

from lamjax.linear import Point, WorldConfig

LEVELS = [0.1 * i for i in range(16)]


def runs(full: bool) -> list[Run]:
    levels = LEVELS if full else LEVELS[::3]
    latents = range(2, 17, 2) if full else (2, 4, 8, 16)
    return [
        Run(f"latent size {d_z}", s_iid, Point(WorldConfig(s_iid=s_iid), d_z, seed=s))
        for s in seeds(full)
        for d_z in latents
        for s_iid in levels
    ]


PANEL = Panel(
    name="fig3_middle",
    title="Figure 3 middle: iid noise (probe fitted with noise, evaluated without)",
    xlabel="standard deviation of the iid noise",
    runs=runs,
    probe="noisy-clean",
    expected="LLO falls smoothly; from 8 latents on 1.96 at 0.5, 1.75 at 1, 1.52 at 1.5.",
)

if __name__ == "__main__":
    main(PANEL)
