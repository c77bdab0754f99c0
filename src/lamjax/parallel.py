"""Steps over several devices and hosts: how to map a step, and collectives that do nothing on a single device.

A step takes ``axis_name: str | None`` and reduces gradients, statistics and metrics over it. `map_step` runs it under
``jit`` on one device and under ``pmap`` on several. Parameters, moments and statistics are the same on all devices:
`replicate` copies them to each, and they remain one logical array.

If several hosts run one program (`join_hosts`), `devices` are those of all hosts, and every host must call the same
steps in the same order. Each host has its own arrays; a leading axis of devices counts only the devices of that host.
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
    """The devices that training uses: all devices of all hosts.

    Raises:
      ValueError: if JAX cannot use the platform that it was asked to use.
    """
    try:
        return tuple(jax.devices())
    except (RuntimeError, AssertionError) as error:  # without a CUDA plugin, JAX fails an assertion that says nothing
        reason = str(error).partition("\n")[0]
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]  # JAX declares none of its settings
        raise ValueError(
            f"JAX finds no device of JAX_PLATFORMS={platforms}{reason and f' ({reason})'}: "
            "unset it, or install the JAX of that platform."
        ) from error


def share(count: int, devices: Sequence[jax.Device], name: str) -> int:
    """An equal part of `count` for each device.

    Raises:
      ValueError: if the count is not divisible; the message calls it `name`.
    """
    part, rest = divmod(count, len(devices))
    if rest:
        raise ValueError(
            f"{name} is {count} over all devices, which does not divide by their number, {len(devices)}: "
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
      step: the function; on several devices each sees its own part of the arguments, and `axis_name` is "devices".
      devices: where it runs.
      in_axes: for each argument that is not static, 0 if it has a leading axis of devices, None if it is the same on
        all devices. Ignored on one device, where no argument has that axis.
      out_axes: the same for the results.
      static_argnums: arguments that are compile-time constants.
      donate_argnums: arguments whose memory the results may reuse.
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
    """Copies a tree of arrays to each of several devices; for one device, returns the tree itself."""
    return tree if len(devices) < 2 else jax.device_put(tree, _layout(devices))


def deal(parts: Sequence[Any], devices: Sequence[jax.Device]) -> Any:
    """Stacks trees, one for each device, along a leading axis of devices; for one device, returns its tree."""
    if len(devices) < 2:
        return parts[0]
    return jax.tree.map(lambda *leaves: jax.device_put(jnp.stack(leaves), _layout(devices, AXIS)), *parts)


def collected(tree: Any, devices: Sequence[jax.Device]) -> list[Any]:
    """Undoes `deal`: the trees, one for each device."""
    if len(devices) < 2:
        return [tree]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(len(devices))]


def _layout(devices: Sequence[jax.Device], *axes: str) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.asarray(local(devices)), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """The devices of `devices` that belong to this host."""
    return [device for device in devices if device.process_index == jax.process_index()]


def on_one(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """A replicated tree on this host's first device only, for work on one device such as evaluation."""
    return tree if len(devices) < 2 else jax.device_put(tree, local(devices)[0])


def place(axis_name: str | None) -> dict[str, Any]:
    """This device's ``axis_index`` and the ``axis_size``, the arguments of `lamjax.data.stream.sample`."""
    if axis_name is None:
        return {"axis_index": 0, "axis_size": 1}
    return {"axis_index": jax.lax.axis_index(axis_name), "axis_size": jax.lax.axis_size(axis_name)}


def vary(tree: Any, axis_name: str | None) -> Any:
    """Marks arrays as different on each device, which a step does to parameters before it differentiates a loss.

    ``jax.shard_map`` knows that parameters are the same on every device, and sums their gradient over devices. A
    `pmean` of that sum would be too large by a factor of the number of devices. The gradient with respect to marked
    parameters is the device's own, as it is under ``pmap`` and ``vmap``, where nothing has to be marked.

    Args:
      tree: arrays, which keep their values.
      axis_name: the devices.
    """
    if axis_name is None or axis_name not in jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    # A value that depends on the device's index varies over devices, in every version of JAX. XLA removes the choice.
    on_device = jax.lax.axis_index(axis_name) >= 0
    return jax.tree.map(lambda x: jnp.where(on_device, x, x), tree)


def pmean(tree: Any, axis_name: str | None) -> Any:
    """Mean over the devices of `axis_name`; the tree itself when that is None."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def psum(tree: Any, axis_name: str | None) -> Any:
    """Sum over the devices of `axis_name`; the tree itself when that is None."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def join(x: jax.Array, axis_name: str | None, axis: int) -> jax.Array:
    """Concatenates the arrays of all devices of `axis_name` along `axis`, in the order of the devices."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, axis=axis, tiled=True)


def mean_and_var(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and population variance over all elements of `x` and all devices, float32 ``[]``; shapes must be equal."""
    mean = pmean(jnp.mean(x), axis_name)
    return mean, pmean(jnp.mean(jnp.square(x - mean)), axis_name)


def device_key(key: jax.Array, axis_name: str | None) -> jax.Array:
    """A key that differs on each device of `axis_name`."""
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def join_hosts(required: bool) -> None:
    """Joins the processes of one command on several hosts; call it before anything uses a device.

    On TPU pods, under Slurm and under Open MPI, JAX finds the other hosts by itself. Elsewhere, set the environment
    variables ``JAX_COORDINATOR_ADDRESS`` (host and port of process 0), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``.

    Args:
      required: if False, joins only if ``JAX_COORDINATOR_ADDRESS`` is set.

    Raises:
      ValueError: if the other hosts cannot be found.
    """
    if jax.distributed.is_initialized() or not (required or "JAX_COORDINATOR_ADDRESS" in os.environ):
        return
    variables = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    try:
        numbers: dict[str, Any] = {name: int(os.environ[key]) for name, key in variables.items() if key in os.environ}
        jax.distributed.initialize(**numbers)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"The other hosts were not found ({error}): set JAX_COORDINATOR_ADDRESS (host:port of the first), "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID on each of them."
        ) from error


def from_first(make: Callable[[], T]) -> T:
    """Calls `make` on the first host only; all hosts return its result, or raise its error."""
    if jax.process_count() == 1:
        return make()
    message = b""
    if jax.process_index() == 0:
        try:
            message = pickle.dumps((make(), None))
        except Exception as error:
            message = pickle.dumps((None, error))
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    padded = np.frombuffer(message.ljust(size, b"\0"), np.uint8)
    value, failure = pickle.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())
    if failure is not None:
        raise failure
    return value


def anywhere(flag: bool) -> bool:
    """Whether `flag` is true on any host. All hosts must call it together, and all get the same answer."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).any())
