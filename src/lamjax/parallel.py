"""Steps over several devices: how a step is spread, and collectives that do nothing on a single one.

A step takes ``axis_name: str | None`` and reduces over it what its devices must agree on. `map_step` runs it under
``jit`` on one device and under ``pmap`` on several; what all devices share (parameters, moments, statistics) stays one
logical array, laid out on each of them by `replicate`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AXIS = "devices"


def map_step(
    step: Callable,
    devices: Sequence[jax.Device],
    *,
    in_axes: tuple[Any, ...],
    out_axes: Any = None,
    static_argnums: tuple[int, ...] = (),
    donate_argnums: tuple[int, ...] = (),
) -> Callable:
    """Compiles ``step(*args, axis_name=...)`` for some devices: ``jit`` for one, ``pmap`` for several.

    Args:
      step: the function; on several devices it sees its own part of each argument, and `axis_name` is "devices".
      devices: where it runs.
      in_axes: for each argument that is not static, 0 where it has a leading axis of devices and None where all devices
        see the same; on one device nothing has that axis, and this does not count.
      out_axes: the same for the results.
      static_argnums: arguments that are compiled in.
      donate_argnums: arguments whose memory the results may take.
    """
    if len(devices) == 1:
        alone = functools.partial(step, axis_name=None)
        return jax.jit(alone, static_argnums=static_argnums, donate_argnums=donate_argnums)
    axes = list(in_axes)
    for position in sorted(static_argnums):
        axes.insert(position, None)
    return jax.pmap(
        functools.partial(step, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=tuple(axes),
        out_axes=out_axes,
        static_broadcasted_argnums=static_argnums,
        donate_argnums=donate_argnums,
        devices=list(devices),
    )


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Lays a tree of arrays out on each of several devices; the tree itself for one."""
    if len(devices) == 1:
        return tree
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def spread(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Lays row d of each array ``[D, ...]`` of a tree on device d; the tree itself for one device.

    What lies elsewhere is copied at every call of a pmapped step.
    """
    if len(devices) == 1:
        return tree
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS)))


def on_one(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A replicated tree on the first device alone, for what runs there: evaluation, environments, checkpoints."""
    return tree if len(devices) == 1 else jax.device_put(tree, devices[0])


def place(axis_name: str | None) -> dict[str, Any]:
    """``axis_index`` and ``axis_size`` of the device that runs this, as `lamjax.data.stream.sample` takes them."""
    if axis_name is None:
        return {"axis_index": 0, "axis_size": 1}
    return {"axis_index": jax.lax.axis_index(axis_name), "axis_size": jax.lax.axis_size(axis_name)}


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
