"""Policies: the latent policy of stage 2 and the actor-critic of plain PPO.

Dimension keys: B batch, F trunk features, Z latent size, K numbers that a policy head gives (see `lamjax.spaces`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lamjax.models.init import Dense
from lamjax.models.trunk import TrunkConfig, make_trunk

ObsStats = dict[str, jax.Array] | None


def obs_stats(obs: np.ndarray) -> ObsStats:
    """What `normalise_obs` needs beside observations ``[E, *obs_shape]``: None for uint8, whose range is known.

    Returns:
      ``{"mean", "scale"}`` float32 ``[*obs_shape]`` for any other type; a number that never changes has scale 1.
    """
    if obs.dtype == np.uint8:
        return None
    scale = obs.std(0, dtype=np.float64)
    mean, scale = obs.mean(0, dtype=np.float64), np.where(scale > 1e-6, scale, 1.0)
    return {"mean": jnp.asarray(mean, jnp.float32), "scale": jnp.asarray(scale, jnp.float32)}


def normalise_obs(obs: jax.Array, stats: ObsStats = None) -> jax.Array:
    """uint8 pixels in [0, 255] to float32 in [-0.5, 0.5]; other observations to float32, standardised by `stats`."""
    if obs.dtype == jnp.uint8:
        return obs.astype(jnp.float32) / 255.0 - 0.5
    obs = obs.astype(jnp.float32)
    if stats is None:
        return obs
    lead = (None,) * (obs.ndim - stats["mean"].ndim)
    return (obs - stats["mean"][lead]) / stats["scale"][lead]


class ActorCritic(nn.Module):
    """Trunk, policy head and value head."""

    trunk: TrunkConfig
    num_outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps observations ``[B, *obs_shape]`` to outputs ``[B, K]`` and values ``[B]``, float32."""
        features = make_trunk(self.trunk, self.dtype)(x)
        small = nn.initializers.orthogonal(0.01)
        outputs = nn.Dense(self.num_outputs, kernel_init=small, name="policy_head")(features.astype(jnp.float32))
        value = nn.Dense(1, kernel_init=nn.initializers.orthogonal(1.0), name="value_head")(
            features.astype(jnp.float32)
        )
        return outputs, value[:, 0]


class LatentPolicy(nn.Module):
    """Stage 2's network: one observation to a latent action, and the value head that stage 3 will train."""

    trunk: TrunkConfig
    latent_dim: int
    dtype: Any = jnp.float32

    def setup(self):
        """Names the parts that stage 3 takes over."""
        self.trunk_net = make_trunk(self.trunk, self.dtype)
        self.latent_head = Dense(self.latent_dim)
        # LAPO's helper asks for a gain of 1 and always gives sqrt(2).
        self.value_head = nn.Dense(1, kernel_init=nn.initializers.orthogonal(2**0.5))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps observations ``[B, *obs_shape]`` to latents ``[B, Z]`` and values ``[B]``, float32."""
        features = self.trunk_net(x).astype(jnp.float32)
        return self.latent_head(features), self.value_head(features)[:, 0]
