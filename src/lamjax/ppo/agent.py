"""What PPO trains: the protocol `Agent`, and the standard one, a network with a policy head and a value head."""

import dataclasses
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from lamjax.models.policy import ActorCritic
from lamjax.models.trunk import TrunkConfig
from lamjax.preprocess import ObsStats, normalise_obs, without_stats
from lamjax.spaces import ActionSpace, as_space


class Agent(Protocol):
    """What PPO trains, a frozen dataclass. `encode` is computed once per update; `apply` is differentiated."""

    @property
    def space(self) -> ActionSpace:
        """The action space."""
        ...

    @property
    def trunk(self) -> TrunkConfig:
        """The network's sizes; on the host its `convolves` decides how minibatches are repeated."""
        ...

    def encode(self, frozen: Any, obs: jax.Array) -> Any:
        """Observations ``[B, *obs_shape]`` to features, a pytree of ``[B, ...]``."""
        ...

    def apply(self, params: Any, features: Any) -> tuple[jax.Array, jax.Array]:
        """Features to outputs float32 ``[B, K]`` and values float32 ``[B]``."""
        ...


@dataclasses.dataclass(frozen=True)
class ActorCriticAgent:
    """One network with a policy head and a value head.

    Attributes:
      trunk: sizes of the trunk.
      space: the action space; a number n stands for `Discrete(n)`.
      dtype: type of the activations.
    """

    trunk: TrunkConfig
    space: ActionSpace
    dtype: Any = jnp.float32

    def __post_init__(self):
        object.__setattr__(self, "space", as_space(self.space))

    @property
    def network(self) -> nn.Module:
        """The network, built from the sizes."""
        return ActorCritic(self.trunk, self.space.num_outputs, self.dtype)

    def init(self, key: jax.Array, obs_shape: tuple[int, ...]) -> dict[str, Any]:
        """Initial parameters for observations of this shape."""
        return self.network.init(key, jnp.zeros((1, *obs_shape)))["params"]

    def encode(self, frozen: ObsStats, obs: jax.Array) -> jax.Array:
        """The observations, standardised by statistics; uint8 ones stay as they are, to take little memory."""
        return obs if frozen is None else normalise_obs(obs, frozen)

    def apply(self, params: Any, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encoded observations ``[B, *obs_shape]`` to the outputs ``[B, K]`` of `space` and values ``[B]``, float32."""
        return self.network.apply({"params": params}, normalise_obs(features))

    def __call__(self, params: Any, obs: jax.Array) -> jax.Array:
        """As a policy (`lamjax.policies.Policy`): outputs ``[B, K]``, with parameters by `preprocess.with_stats`."""
        params, stats = without_stats(params)
        return self.apply(params, self.encode(stats, obs))[0]
