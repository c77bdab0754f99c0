"""Collectives that do nothing without an axis name, so that one step function runs under jit, vmap and pmap."""

from typing import Any

import jax
import jax.numpy as jnp


def pmean(tree: Any, axis_name: str | None) -> Any:
    """Mean over the devices of `axis_name`; the tree itself when that is None."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def psum(tree: Any, axis_name: str | None) -> Any:
    """Sum over the devices of `axis_name`; the tree itself when that is None."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def join(x: jax.Array, axis_name: str | None, axis: int) -> jax.Array:
    """The arrays of all devices of `axis_name`, joined along `axis` in the order of the devices."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, axis=axis, tiled=True)


def mean_and_var(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and population variance of all of `x` over all devices (equal shapes on each), scalars."""
    mean = pmean(jnp.mean(x), axis_name)
    return mean, pmean(jnp.mean(jnp.square(x - mean)), axis_name)


def device_key(key: jax.Array, axis_name: str | None) -> jax.Array:
    """A key that differs on each device of `axis_name`."""
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
