"""Beyond the paper: actions with effects of unequal size. Each competes for itself: those below the noise are lost."""

from common import Panel, Run, main, seeds

from lamjax.linear import Point, WorldConfig

SCALES = tuple(2.0 ** (1 - 0.5 * i) for i in range(8))  # 2 down to 0.18


def runs(full: bool, dense: bool = False) -> list[Run]:
    sizes = range(1, 17) if dense or full else (2, 4, 6, 8, 12, 16)
    return [
        Run(
            f"others' scale {s_exo:g}",
            d_z,
            Point(WorldConfig(s_exo=s_exo, s_iid=0.05, action_scales=SCALES), d_z, seed=s),
        )
        for s in seeds(full)
        for s_exo in (0.1, 0.5, 1.2)
        for d_z in sizes
    ]


PANEL = Panel(
    name="anisotropic",
    title="Actions of unequal effect (2 to 0.18)",
    xlabel="latent size",
    runs=runs,
    dense=lambda: runs(False, dense=True),
    metric="nmse_a",
    expected="a plateau of 8 latents, at the number of actions whose effect is below the others' scale.",
)

if __name__ == "__main__":
    main(PANEL)
