"""What keeps XLA:CPU from computing one array many times."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def unfused(function: Callable[..., Any], *args: jax.Array) -> Any:
    """``function(*args)``, on a CPU apart from what is around it, and NaN there if the last argument begins with NaN.

    XLA:CPU computes what the arguments come from anew in each loop that reads them, however often that is, but does not
    fuse into a conditional (nor heed `jax.lax.optimization_barrier`). It cannot know that this one is always true,
    unless the training is lost.

    Args:
      function: of arrays, to arrays of floats in any tree.
      *args: of any shape, the last one floats and not empty.
    """
    if jax.default_backend() != "cpu":
        return function(*args)
    first = args[-1].ravel()[0]
    results = jax.eval_shape(function, *args)

    def lost(*_: jax.Array) -> Any:
        return jax.tree.map(lambda result: jnp.full(result.shape, jnp.nan, result.dtype), results)

    return jax.lax.cond(first == first, function, lost, *args)
