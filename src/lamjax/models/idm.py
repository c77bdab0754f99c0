"""LAPO's inverse dynamics model."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lamjax.models.layers import Dense
from lamjax.models.trunk import TrunkConfig, make_trunk


class IDM(nn.Module):
    """Three frames to the latent action between the last two."""

    trunk: TrunkConfig
    latent_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps frames joined on channels ``[B, H, W, 3C]``, floats in [-0.5, 0.5], to latents float32 ``[B, Z]``."""
        features = make_trunk(self.trunk, self.dtype)(x).astype(jnp.float32)
        return Dense(self.latent_dim, name="head")(features)  # a rounded latent may be nearest to another code
