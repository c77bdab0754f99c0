"""Figure 3 right: other agents that move more than the actions do take the latent first."""

from common import Panel, Run, main, seeds

from lamjax.linear import Point, WorldConfig


def runs(full: bool) -> list[Run]:
    sizes = range(2, 17) if full else (2, 4, 6, 8, 12, 16)
    return [
        Run(f"others' scale {s_exo:g}", d_z, Point(WorldConfig(s_exo=s_exo), d_z, seed=s))
        for s in seeds(full)
        for s_exo in (0.5, 2.0)
        for d_z in sizes
    ]


PANEL = Panel(
    name="fig3_right",
    title="Figure 3 right: other agents",
    xlabel="latent size",
    runs=runs,
    expected="scale 0.5: a tent, 1.95 at 8 latents, 1 at 16; scale 2: a V, 0.05 at 8 and 1 at 16.",
)

if __name__ == "__main__":
    main(PANEL)
