"""Repeats a training step, and decides for all stages whether repeated steps are one dispatch or a loop on the host.

XLA:CPU runs a convolution's backward pass inside ``lax.scan`` 14 to 23 times slower than outside. So on a CPU the host
loops over jitted steps of networks that convolve; all other steps fuse into one ``lax.scan``.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lamjax import parallel
from lamjax.optim import pack_groups, unpack_groups

FUSED = 25  # optimizer steps in a dispatch if steps fuse

# ``jit`` for functions that run once, such as initialisation: XLA compiles the draws of sixty shapes in 24 CPU seconds
# with its optimisations and in 7 without.
jit_once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def fuses_steps(network: Any, *others: Any, backend: str | None = None) -> bool:
    """Whether repeated steps of these networks' training should run as one ``lax.scan``.

    True on any accelerator (`backend` is JAX's by default), and on a CPU if no network uses XLA's convolution, which
    its config's ``convolves`` says. `others` are the other networks in the same step.
    """
    return (backend or jax.default_backend()) != "cpu" or not any(config.convolves for config in (network, *others))


def steps_per_dispatch(*networks: Any) -> int:
    """How many optimizer steps of these networks one dispatch holds (see `fuses_steps`)."""
    return FUSED if fuses_steps(*networks) else 1


@functools.cache
def compile_steps(
    step: Callable, devices: tuple[jax.Device, ...], in_axes: tuple[int | None, ...], static: int = 0
) -> Callable:
    """Compiles a training step for some devices, once for all runs.

    Args:
      step: ``(state, *args, axis_name=...) -> (state, metrics)``, pure.
      devices: the devices that run it.
      in_axes: for the state and each argument that is not static, as for `parallel.map_step`.
      static: how many of the last arguments are static.

    Returns:
      ``(state, *args, n) -> (state, metrics)``: n steps in one dispatch, and the means of their metrics. It donates the
      state.
    """

    def steps(state: Any, *args: Any, axis_name: str | None) -> tuple[Any, Any]:
        *rest, n = args
        return repeat(lambda state: step(state, *rest, axis_name=axis_name), state, n)

    last = tuple(range(len(in_axes), len(in_axes) + static + 1))
    return parallel.map_step(steps, devices, in_axes=in_axes, static_argnums=last, donate_argnums=(0,))


def repeat(step: Callable[[Any], tuple[Any, Any]], state: Any, n: int) -> tuple[Any, Any]:
    """Runs n steps inside ``jit``; returns the state and the metrics' means. A single step needs no scan.

    If `packs` is true, `step` sees and returns a state whose ``params`` and ``opt_state`` are packed.
    """
    if n == 1:
        return step(state)
    if packs():
        params, opt_state = pack_groups(state.params, state.opt_state)
        state = state.replace(params=params, opt_state=opt_state)
    state, metrics = jax.lax.scan(lambda s, _: step(s), state, None, length=n)
    return unpack_groups(state), jax.tree.map(lambda x: x.mean(0), metrics)


def packs() -> bool:
    """Whether to pack parameters and moments while steps repeat, which saves hundreds of kernels per step.

    True on an accelerator (see `lamjax.optim`). A CPU launches no kernels, so packing would only copy.
    """
    return jax.default_backend() != "cpu"


def host_scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """Runs ``jax.lax.scan`` as a loop on the host; `step` must be jitted itself."""
    length = len(jax.tree.leaves(xs)[0])
    ys = []
    for index in range(length):
        carry, y = step(carry, jax.tree.map(lambda x, index=index: x[index], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


def over_batches(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles ``function(state, *batch)`` for stacked batches ``[M, B, ...]``; its results get a leading axis M."""
    return jax.jit(lambda state, *batches: jax.lax.map(lambda batch: function(state, *batch), batches))
