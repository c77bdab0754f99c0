"""Learning-rate schedules that the stages share."""

import optax


def warmup_linear(peak: float, start: float, end: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """From ``start * peak`` up to `peak` in `warmup_steps`, then down to ``end * peak`` at `steps`, both linear."""
    warmup_steps = min(warmup_steps, steps // 2)
    return optax.join_schedules(
        [
            optax.linear_schedule(start * peak, peak, max(warmup_steps, 1)),
            optax.linear_schedule(peak, end * peak, max(steps - warmup_steps, 1)),
        ],
        [warmup_steps],
    )
