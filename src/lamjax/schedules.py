"""Learning-rate schedules."""

import jax
import jax.numpy as jnp
import optax

# (warm-up, total) steps of a schedule, ints or int32 ``[]``.
Lengths = tuple[int | jax.Array, int | jax.Array]


def check_lengths(steps: int, lengths: Lengths | None) -> None:
    """Raises `ValueError` where neither the settings (`steps` of them) nor `lengths` say how long training is."""
    if not steps and lengths is None:
        raise ValueError("These settings have no lengths (`program`): give the step `lengths`, or a config with steps.")


def warmup_linear(
    peak: float, start: float, end: float, warmup_steps: int | jax.Array, steps: int | jax.Array
) -> optax.Schedule:
    """From ``start * peak`` up to `peak` in `warmup_steps`, then down to ``end * peak`` at `steps`, both linear.

    The two lengths may be traced int32 ``[]``: one compiled program then serves runs of every length.
    """
    warmup_steps = jnp.minimum(warmup_steps, steps // 2)

    def line(begin: float, final: float, step: jax.Array, length: jax.Array) -> jax.Array:
        length = jnp.maximum(length, 1)
        return (begin - final) * (1 - jnp.clip(step, 0, length) / length) + final

    def schedule(step: jax.Array) -> jax.Array:
        rising = line(start * peak, peak, step, warmup_steps)
        return jnp.where(step < warmup_steps, rising, line(peak, end * peak, step - warmup_steps, steps - warmup_steps))

    return schedule
