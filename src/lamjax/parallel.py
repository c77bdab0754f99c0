"""Steps over several devices and hosts: how a step is spread, and collectives that do nothing on a single device.

A step takes ``axis_name: str | None`` and reduces over it what its devices must agree on. `map_step` runs it under
``jit`` on one device and under ``pmap`` on several; what all devices share (parameters, moments, statistics) stays one
logical array, laid out on each of them by `replicate`.

Where several hosts run one program (`join_hosts`), `devices` are those of all of them, and every host calls the same
steps in the same order. Its arrays are its own: a leading axis of devices counts those of this host alone.
"""

import functools
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

AXIS = "devices"

T = TypeVar("T")


def devices() -> tuple[jax.Device, ...]:
    """What training runs on: all devices, those of all hosts together."""
    return tuple(jax.devices())


def share(count: int, devices: Sequence[jax.Device], name: str) -> int:
    """An equal part of `count` for each device.

    Raises:
      ValueError: if there is none; it calls the count by `name`.
    """
    part, rest = divmod(count, len(devices))
    if rest:
        raise ValueError(
            f"{name} is {count} over all devices and does not divide by these {len(devices)}: "
            f"choose a multiple of {len(devices)}, or show JAX fewer devices."
        )
    return part


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
    return tree if len(devices) < 2 else jax.device_put(tree, _layout(devices))


def deal(parts: Sequence[Any], devices: Sequence[jax.Device]) -> Any:
    """Trees of equal structure, one for each device, as one tree with a leading axis of devices; the tree for one."""
    if len(devices) < 2:
        return parts[0]
    return jax.tree.map(lambda *leaves: jax.device_put(jnp.stack(leaves), _layout(devices, AXIS)), *parts)


def collected(tree: Any, devices: Sequence[jax.Device]) -> list[Any]:
    """The trees that `deal` put together."""
    if len(devices) < 2:
        return [tree]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(len(devices))]


def _layout(devices: Sequence[jax.Device], *axes: str) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.asarray(local(devices)), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of `devices` that are this host's."""
    return [device for device in devices if device.process_index == jax.process_index()]


def on_one(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A replicated tree on this host's first device alone, for what runs there: evaluation, say."""
    return tree if len(devices) < 2 else jax.device_put(tree, local(devices)[0])


def place(axis_name: str | None) -> dict[str, Any]:
    """``axis_index`` and ``axis_size`` of the device that runs this, as `lamjax.data.stream.sample` takes them."""
    if axis_name is None:
        return {"axis_index": 0, "axis_size": 1}
    return {"axis_index": jax.lax.axis_index(axis_name), "axis_size": jax.lax.axis_size(axis_name)}


def vary(tree: Any, axis_name: str | None) -> Any:
    """Marks arrays as each device's own, which a step does to parameters before it differentiates a loss by them.

    ``jax.shard_map`` knows that parameters are the same on every device, and sums the gradient by them over devices. A
    `pmean` of it would be too large by the number of devices. The gradient by marked parameters is the device's own, as
    under ``pmap`` and ``vmap``, where nothing has to be marked.

    Args:
      tree: arrays, which keep their values.
      axis_name: the devices.
    """
    if axis_name is None or axis_name not in jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    # What depends on the device's index varies by its type, in every version of JAX. XLA removes the choice.
    on_device = jax.lax.axis_index(axis_name) >= 0
    return jax.tree.map(lambda x: jnp.where(on_device, x, x), tree)


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


def join_hosts(asked: bool) -> None:
    """Makes one program of the same command on several hosts, before anything touches a device.

    On TPU pods, under Slurm and under Open MPI JAX finds the others by itself. Elsewhere the environment tells:
    ``JAX_COORDINATOR_ADDRESS`` (host and port of process 0), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``.

    Args:
      asked: False joins only where ``JAX_COORDINATOR_ADDRESS`` is set.

    Raises:
      ValueError: if the other hosts cannot be found.
    """
    if jax.distributed.is_initialized() or not (asked or "JAX_COORDINATOR_ADDRESS" in os.environ):
        return
    told = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    try:
        jax.distributed.initialize(**{name: int(os.environ[key]) for name, key in told.items() if key in os.environ})
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"The other hosts were not found ({error}): set JAX_COORDINATOR_ADDRESS (host:port of the first), "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID on each of them."
        ) from error


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives or raises on the first host, on all of them; it is called there alone."""
    if jax.process_count() == 1:
        return make()
    message = b""
    if jax.process_index() == 0:
        try:
            message = pickle.dumps((make(), None))
        except Exception as error:
            message = pickle.dumps((None, error))
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    sent = np.frombuffer(message.ljust(size, b"\0"), np.uint8)
    value, error = pickle.loads(multihost_utils.broadcast_one_to_all(sent).tobytes())
    if error is not None:
        raise error
    return value


def anywhere(flag: bool) -> bool:
    """Whether `flag` is true on any host; all must ask together, and get the same answer."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).any())
