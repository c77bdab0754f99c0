"""Beyond the paper: removing the fraction c* = 1 - 1 / s_exo of the noise is enough, if others are orthogonal.

Not all of it: where training never sees noise, SGD leaves D as it started, and the noise is in the latent afterwards.
"""

from common import Panel, Run, main, seeds

from lamjax.linear import Point, WorldConfig


def runs(full: bool, dense: bool = False) -> list[Run]:
    fractions = [0.01 * i for i in range(96)] if dense else (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
    return [
        Run(
            f"scale {s_exo:g}, {'orthogonal' if orthogonal else 'random'}",
            clean,
            Point(WorldConfig(d_o=32, d_a=4, d_b=4, s_exo=s_exo, clean=clean, orthogonal=orthogonal), 4, seed=s),
        )
        for s in seeds(full)
        for s_exo in (2.0, 4.0)
        for orthogonal in (True, False)
        for clean in fractions
    ]


PANEL = Panel(
    name="cleaning",
    title="Data cleaning (d_o = 32, 4 latents)",
    xlabel="fraction of the noise that is removed before training",
    runs=runs,
    dense=lambda: runs(False, dense=True),
    metric="nmse_q",
    expected="orthogonal: a step at 0.5 and 0.75; random directions overlap, so the step is a slope that ends above 0.",
)

if __name__ == "__main__":
    main(PANEL)
