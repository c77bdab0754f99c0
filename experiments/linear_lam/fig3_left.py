"""Figure 3 left: without noise, actions are learned as far as the latent has room."""

from common import Panel, Run, main, seeds

from lamjax.linear import Point, WorldConfig


def runs(full: bool) -> list[Run]:
    sizes = range(1, 17) if full else (1, 2, 4, 8, 12, 16)
    actions = range(2, 17, 2) if full else (2, 4, 8, 16)
    return [
        Run(f"{d_a} actions", d_z, Point(WorldConfig(d_a=d_a), d_z, seed=s))
        for s in seeds(full)
        for d_a in actions
        for d_z in sizes
    ]


PANEL = Panel(
    name="fig3_left",
    title="Figure 3 left: no noise",
    xlabel="latent size",
    runs=runs,
    expected="LLO = 1 + min(1, d_z / d_a), with a knee at d_z = d_a.",
)

if __name__ == "__main__":
    main(PANEL)
