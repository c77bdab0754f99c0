"""Beyond the paper: the action loss works from lam* = s_exo^2 - 1 on, and not below. Others orthogonal, d_o = 32."""

from common import Panel, Run, main, seeds

from lamjax.linear import Point, TrainConfig, WorldConfig


def runs(full: bool, dense: bool = False) -> list[Run]:
    weights = [0.125 * i for i in range(1, 97)] if dense else (0.5, 1.0, 2.0, 2.75, 3.5, 4.5, 6.5, 7.5, 9.0, 12.0)
    return [
        Run(
            f"others' scale {s_exo:g}",
            weight,
            Point(
                WorldConfig(d_o=32, d_a=4, d_b=4, s_exo=s_exo, s_iid=0.05, orthogonal=True),
                4,
                kappa=0.1,
                action_weight=weight,
                seed=s,
            ),
        )
        for s in seeds(full)
        for s_exo in (1.5, 2.0, 3.0)
        for weight in weights
    ]


PANEL = Panel(
    name="action_weight",
    title="Critical action weight (d_o = 32, 4 latents)",
    xlabel="weight of the action loss, in sums over coordinates",
    runs=runs,
    dense=lambda: runs(False, dense=True),
    latent="true",
    metric="nmse_q",
    xscale="log",
    config=TrainConfig(units="sum"),
    expected="steps from 1 to 0 at 1.25, 3 and 8.",
)

if __name__ == "__main__":
    main(PANEL)
