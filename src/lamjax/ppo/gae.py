"""Generalised advantage estimation (Schulman et al., 2016)."""

import chex
import jax
import jax.numpy as jnp


def gae(
    reward_t: jax.Array,
    value_t: jax.Array,
    next_value_t: jax.Array,
    terminated_t: jax.Array,
    done_t: jax.Array,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[jax.Array, jax.Array]:
    """Advantages and returns of a rollout.

        delta_t = r_t + gamma * (1 - terminated_t) * V(o'_t) - V(o_t)
        A_t     = delta_t + gamma * lambda * (1 - done_t) * A_{t+1}

    Args:
      reward_t: float32 ``[T, N]``, the reward of step t.
      value_t: float32 ``[T, N]``, V(o_t).
      next_value_t: float32 ``[T, N]``, V of the observation that step t led to: where an episode ended, its last
        observation, not the first of the next episode.
      terminated_t: bool ``[T, N]``, whether step t terminated the episode: nothing is bootstrapped there.
      done_t: bool ``[T, N]``, whether step t ended the episode, by termination or truncation: the trace is cut there.
      gamma: discount.
      gae_lambda: lambda.

    Returns:
      Advantages ``[T, N]`` and returns ``A_t + V(o_t)`` ``[T, N]``, both float32.
    """
    chex.assert_rank([reward_t, value_t], 2)
    chex.assert_equal_shape([reward_t, value_t, next_value_t, terminated_t, done_t])
    delta_t = reward_t + gamma * jnp.where(terminated_t, 0.0, next_value_t) - value_t
    decay_t = gamma * gae_lambda * (1.0 - done_t.astype(jnp.float32))

    def backward(advantage_tp1, delta_and_decay):
        delta, decay = delta_and_decay
        advantage = delta + decay * advantage_tp1
        return advantage, advantage

    _, advantage_t = jax.lax.scan(backward, jnp.zeros_like(delta_t[0]), (delta_t, decay_t), reverse=True)
    return advantage_t, advantage_t + value_t
