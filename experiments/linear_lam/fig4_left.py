"""Figure 4 left: a policy that follows the observation hides the actions from too small a latent.

Probed as by the authors: on the predicted change o^ - o, fitted on-policy, evaluated under random actions. A fully
deterministic policy (chi = 1) has no innovation, hence no optimum: the axis ends before it.
"""

from common import Panel, Run, main, seeds

from lamjax.linear import Point, WorldConfig


def runs(full: bool) -> list[Run]:
    levels = [0.1 * i for i in range(10)] if full else (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
    latents = range(2, 17, 2) if full else (2, 4, 6, 8, 16)
    return [
        Run(f"latent size {d_z}", chi, Point(WorldConfig(chi=chi), d_z, seed=s))
        for s in seeds(full)
        for d_z in latents
        for chi in levels
    ]


PANEL = Panel(
    name="fig4_left",
    title="Figure 4 left: policy (probe fitted on-policy, evaluated under random actions)",
    xlabel="deterministic part of the policy, chi",
    runs=runs,
    latent="change",
    on_policy=False,
    metric="nmse_a",
    expected="NMSE of the action = (1 - d_z / 8) (1 + chi^2) below 8 latents, 0 from 8 on.",
)

if __name__ == "__main__":
    main(PANEL)
