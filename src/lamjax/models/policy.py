"""Policies: the latent policy of stage 2 and the actor-critic of plain PPO.

Dimension keys: B batch, F trunk features, Z latent size, K numbers that a policy head gives (see `lamjax.spaces`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lamjax.models.layers import Dense
from lamjax.models.trunk import TrunkConfig, make_trunk


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
