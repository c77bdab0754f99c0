"""Learning-rate schedules."""

import jax
import jax.numpy as jnp
import optax

# (warm-up, total) steps of a schedule, ints or int32 ``[]``.
Lengths = tuple[int | jax.Array, int | jax.Array]

# A piecewise linear schedule: (fraction of training, learning rate) points.
Schedule = tuple[tuple[float, float], ...]


def check_lengths(steps: int, lengths: Lengths | None) -> None:
    """Raises `ValueError` if neither the settings (their `steps`) nor `lengths` say how long training is."""
    if not steps and lengths is None:
        raise ValueError("These settings have no lengths (`program`): give the step `lengths`, or a config with steps.")


def check_schedule(name: str, points: Schedule) -> None:
    """Raises `ValueError`, which calls the schedule `name`, unless its points are in order and its rates are valid."""
    places, rates = [place for place, _ in points], [rate for _, rate in points]
    if not points or places != sorted(places) or not 0 <= places[0] <= places[-1] <= 1:
        raise ValueError(f"{name} must hold points in order of their fraction of training, from 0 to 1, not {points}.")
    if not all(0 <= rate < float("inf") for rate in rates):
        raise ValueError(f"{name} must hold rates that are not negative or infinite, not {rates}.")


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


def piecewise(points: Schedule, fraction: jax.Array) -> jax.Array:
    """The rate at a fraction of training, float32 ``[]``: linear between the points, constant beyond them."""
    xs, ys = (jnp.array(values, jnp.float32) for values in zip(*points, strict=True))
    return jnp.interp(fraction, xs, ys)


def without_wait(points: Schedule) -> Schedule:
    """A schedule that begins where it first rises: ((0, 0), (a, 0), (b, r), ...) to ((0, 0), (b - a, r), ...)."""
    rises = next((index for index, (_, rate) in enumerate(points) if rate > 0), 0)
    if rises == 0:
        return points
    wait = points[rises - 1][0]
    return ((0.0, 0.0), *((x if x == 1 else x - wait, rate) for x, rate in points[rises:]))
