"""One decision, made in one place: whether repeated steps become one dispatch or a loop on the host.

XLA:CPU runs a convolution's backward pass inside ``lax.scan`` 14 to 23 times slower than outside it, so on a CPU the
host loops over jitted steps of networks that convolve; all others fuse into one ``lax.scan``.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lamjax.optim import pack_groups, unpack_groups

# ``jit`` for what runs once, such as initialisation: drawing parameters of sixty shapes takes 24 CPU seconds to compile
# with XLA's optimisations and 7 without.
jit_once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def host_scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """``jax.lax.scan`` as a loop on the host; `step` brings its own ``jit``."""
    length = len(jax.tree.leaves(xs)[0])
    ys = []
    for index in range(length):
        carry, y = step(carry, jax.tree.map(lambda x, index=index: x[index], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


def packs() -> bool:
    """Whether parameters and moments are packed while steps repeat, which saves a step hundreds of kernels.

    True on an accelerator (see `lamjax.optim`). A CPU has no kernels to start, so there packing would only copy.
    """
    return jax.default_backend() != "cpu"


def repeat(step: Callable[[Any], tuple[Any, Any]], state: Any, n: int) -> tuple[Any, Any]:
    """Steps n times inside ``jit``: the state after, and the metrics' means. A single step stays outside the scan.

    If `packs` is true, `step` sees and returns a state whose ``params`` and ``opt_state`` are packed.
    """
    if n == 1:
        return step(state)
    if packs():
        params, opt_state = pack_groups(state.params, state.opt_state)
        state = state.replace(params=params, opt_state=opt_state)
    state, metrics = jax.lax.scan(lambda s, _: step(s), state, None, length=n)
    return unpack_groups(state), jax.tree.map(lambda x: x.mean(0), metrics)


def over_batches(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles ``function(state, *batch)`` for stacked batches ``[M, B, ...]``; its results get a leading axis M."""
    return jax.jit(lambda state, *batches: jax.lax.map(lambda batch: function(state, *batch), batches))


def fuses_steps(network: Any, *others: Any, backend: str | None = None) -> bool:
    """Whether repeated steps of these networks' training should run as one ``lax.scan``.

    Args:
      network: config of a trunk or a forward model, which says by ``convolves`` whether XLA's convolution is its own.
      *others: those that are trained or run in the same step.
      backend: by default JAX's.

    Returns:
      True on any accelerator, and on a CPU where none of them convolves.
    """
    return (backend or jax.default_backend()) != "cpu" or not any(config.convolves for config in (network, *others))
