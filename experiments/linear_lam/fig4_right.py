"""Figure 4 right: a few labels turn the latent to the actions, with the weight that the authors' code gives them."""

from common import Panel, Run, main, seeds

from lamjax.linear import Point, TrainConfig, WorldConfig


def runs(full: bool) -> list[Run]:
    sizes = range(2, 17) if full else (2, 4, 6, 8, 12, 16)
    return [
        Run(
            f"others' scale {s_exo:g}, {labels:g}% labels",
            d_z,
            Point(
                WorldConfig(s_exo=s_exo),
                d_z,
                kappa=0.1,
                action_weight=1.0 if labels else 0.0,
                label_fraction=labels / 100,
                seed=s,
            ),
        )
        for s in seeds(full)
        for labels in ((0, 1, 5, 10) if full else (0, 1))
        for s_exo in (0.5, 1.0, 2.0)
        for d_z in sizes
    ]


PANEL = Panel(
    name="fig4_right",
    title="Figure 4 right: action labels (augmentation 0.1, true latent)",
    xlabel="latent size",
    runs=runs,
    latent="true",
    palette=3,
    # 1% of labels is one transition a batch: a smaller rate lets its noise average out.
    config=TrainConfig(learning_rate=3e-3, steps=8000, max_rounds=2, units="code"),
    expected="no labels: a tent, about 1, and a V; 1% labels: three tents that reach 2 at 8 latents.",
)

if __name__ == "__main__":
    main(PANEL)
