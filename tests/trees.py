"""Trees of arrays in tests."""

import jax
import numpy as np


def close(ours, theirs, **tolerance):
    """Asserts that two trees are close; chex's assertion needs numpy 2, and Procgen asks for an older one."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), *jax.device_get((ours, theirs)))


def x64():
    """What ``JAX_ENABLE_X64=1`` switches on, inside a block; its name depends on JAX's version."""
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()
