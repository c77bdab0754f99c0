"""One decision, made in one place: whether repeated steps become one dispatch or a loop on the host.

XLA:CPU runs a convolution's backward pass inside ``lax.scan`` 14 to 23 times slower than outside it, so on a CPU the
host loops over jitted steps; elsewhere the steps fuse into one ``lax.scan``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def host_scan(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """``jax.lax.scan`` as a loop on the host; `step` brings its own ``jit``."""
    length = len(jax.tree.leaves(xs)[0])
    ys = []
    for index in range(length):
        carry, y = step(carry, jax.tree.map(lambda x, index=index: x[index], xs))
        ys.append(y)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


def fuses_steps(backend: str | None = None) -> bool:
    """True where repeated training steps should run as one ``lax.scan``: everywhere but on a CPU."""
    return (backend or jax.default_backend()) != "cpu"
