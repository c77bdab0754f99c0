"""What PPO trains: any `Agent`, and the plain one, a network with a policy head and a value head."""

import dataclasses
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from lamjax.models.policy import ActorCritic
from lamjax.models.trunk import TrunkConfig
from lamjax.preprocess import normalise_obs
from lamjax.spaces import ActionSpace, as_space


class Agent(Protocol):
    """What PPO trains, a frozen dataclass. Encodings stay as they are during an update; `apply` is differentiated.

    Attributes:
      space: what actions are.
      trunk: the network's sizes; on the host its `convolves` decides how minibatches are repeated (`lamjax.training`).
    """

    space: ActionSpace
    trunk: TrunkConfig

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
      space: what actions are; a number n stands for `Discrete(n)`.
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
        """Parameters for observations of this shape."""
        return self.network.init(key, jnp.zeros((1, *obs_shape)))["params"]

    def encode(self, frozen: None, obs: jax.Array) -> jax.Array:
        """The observations themselves: nothing is frozen, and uint8 is the smallest thing to keep."""
        return obs

    def apply(self, params: Any, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Observations ``[B, *obs_shape]`` to the outputs ``[B, K]`` of `space` and values ``[B]``, float32.

        Parameters that were cloned from recorded observations may say by ``obs_stats`` how to standardise them; these
        are not trained.
        """
        stats = jax.lax.stop_gradient(params.get("obs_stats"))
        return self.network.apply({"params": params}, normalise_obs(features, stats))
