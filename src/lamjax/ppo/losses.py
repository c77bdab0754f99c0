"""PPO's losses (Schulman et al., 2017), as functions of arrays."""

import chex
import jax
import jax.numpy as jnp


def policy_loss(log_ratio: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """The clipped surrogate ``mean(max(-A r, -A clip(r, 1 - clip, 1 + clip)))``, r = exp(`log_ratio`).

    Args:
      log_ratio: float32 ``[B]``, log pi(a|o) - log pi_old(a|o).
      advantage: float32 ``[B]``, normalised.
      clip: half-width of the trust region.
    """
    chex.assert_equal_shape([log_ratio, advantage])
    ratio = jnp.exp(log_ratio)
    return jnp.mean(jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 1 - clip, 1 + clip)))


def value_loss(value: jax.Array, old_value: jax.Array, target: jax.Array, clip: float) -> jax.Array:
    """Half the mean squared error, the larger of the plain one and the one clipped around the old value.

    Args:
      value: float32 ``[B]``, V(o) now.
      old_value: float32 ``[B]``, V(o) when the rollout was made.
      target: float32 ``[B]``, returns.
      clip: how far V may move from the old value before the clipped error counts.
    """
    chex.assert_equal_shape([value, old_value, target])
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    return 0.5 * jnp.mean(jnp.maximum(jnp.square(value - target), jnp.square(clipped - target)))
