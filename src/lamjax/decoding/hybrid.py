"""The actor of online decoding: a frozen latent policy with a decoder, and heads that PPO trains.

Dimension keys: B batch, Z latent size, O outputs of a policy head (see `lamjax.spaces`).
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lamjax.cloning import CloningState
from lamjax.models.layers import Dense
from lamjax.models.mlp import MLP
from lamjax.models.trunk import TrunkConfig, make_trunk
from lamjax.preprocess import ObsStats, normalise_obs, with_stats, without_stats
from lamjax.spaces import ActionSpace, Blend, as_space


@dataclasses.dataclass(frozen=True)
class HybridAgent:
    """The actor that PPO trains.

    Attributes:
      trunk: the latent policy's trunk.
      latent_dim: Z.
      space: the action space; a number n stands for `Discrete(n)`.
      decoder_hidden: widths of the decoder's hidden layers.
      supervised: whether there is a decoder; without one, only the RL head acts.
      train: "head" or "all" layers (see `OnlineConfig`).
      dtype: type of the trunk's activations.
      blend: how the outputs of the decoder and the RL head are combined (see `OnlineConfig`).
    """

    trunk: TrunkConfig
    latent_dim: int
    space: ActionSpace
    decoder_hidden: tuple[int, ...]
    supervised: bool = True
    train: Literal["head", "all"] = "head"
    dtype: Any = jnp.float32
    blend: Blend = "mean"

    def __post_init__(self):
        object.__setattr__(self, "space", as_space(self.space))

    @property
    def decoder(self) -> MLP:
        """The network that maps latents ``[B, Z]`` to outputs ``[B, O]`` of `space`."""
        return MLP((*self.decoder_hidden, self.space.num_outputs))

    @property
    def groups(self) -> tuple[str, ...]:
        """The parameter groups that PPO trains."""
        return ("fc", "policy_head", "value_head", *(("convs",) if self.train == "all" else ()))

    def init(self, key: jax.Array, policy: CloningState) -> tuple[dict[str, Any], dict[str, Any]]:
        """Splits stage 2's policy into trained and frozen parameters.

        Returns:
          The parameters that PPO trains: a copy of the fully connected layer, a policy head of zeros, a copy of the
          value head, and a copy of the convolutions if all layers are trained. And the frozen parameters, as far as
          they are used: the convolutions, the fully connected layer, the latent head, and a randomly initialised
          decoder.
        """
        trunk, head = policy.params["trunk_net"], policy.params["latent_head"]
        shape = (self.trunk.features, self.space.num_outputs)
        params = {
            "fc": jax.tree.map(jnp.copy, trunk["fc"]),
            "policy_head": {"kernel": jnp.zeros(shape, jnp.float32), "bias": jnp.zeros(shape[1:], jnp.float32)},
            "value_head": jax.tree.map(jnp.copy, policy.params["value_head"]),
        }
        frozen = {}
        if self.train == "all":
            params["convs"] = jax.tree.map(jnp.copy, trunk["convs"])
        if self.supervised:
            decoder = self.decoder.init(key, jnp.zeros((1, self.latent_dim)))["params"]
            frozen = {"fc": trunk["fc"], "latent_head": head, "decoder": decoder}
        if self.supervised or self.train == "head":
            frozen["convs"] = trunk["convs"]
        return params, with_stats(frozen, policy.obs_stats)

    def _fc(self, params: Any, x: jax.Array) -> jax.Array:
        layer = Dense(self.trunk.features, dtype=self.dtype)
        return nn.relu(layer.apply({"params": params}, x)).astype(jnp.float32)

    def _convs(self, params: Any, obs: jax.Array, stats: ObsStats = None) -> jax.Array:
        trunk = make_trunk(self.trunk, self.dtype)
        inputs = normalise_obs(obs, stats)
        return nn.relu(trunk.apply({"params": {"convs": params}}, inputs, method=lambda m, x: m.convs(x)))

    def encode(self, frozen: dict[str, Any], obs: jax.Array) -> dict[str, jax.Array]:
        """Computes what is constant during an update: convolutional features or observations, and decoded outputs."""
        frozen, stats = without_stats(frozen)
        if self.train == "all":
            features = {"obs": obs if stats is None else normalise_obs(obs, stats)}
        else:
            features = {"convs": self._convs(frozen["convs"], obs, stats)}
        if self.supervised:
            convs = features["convs"] if self.train == "head" else self._convs(frozen["convs"], obs, stats)
            latent = Dense(self.latent_dim).apply({"params": frozen["latent_head"]}, self._fc(frozen["fc"], convs))
            features["decoded"] = self.decoder.apply({"params": frozen["decoder"]}, latent)
        return features

    def apply(self, params: dict[str, Any], features: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Outputs ``[B, O]``, blended from both heads or from the RL head only, and values ``[B]``."""
        convs = self._convs(params["convs"], features["obs"]) if self.train == "all" else features["convs"]
        x = self._fc(params["fc"], convs)
        outputs = x @ params["policy_head"]["kernel"] + params["policy_head"]["bias"][None]
        value = x @ params["value_head"]["kernel"] + params["value_head"]["bias"][None]
        if self.supervised:
            outputs = self.space.blend(features["decoded"], outputs, self.blend)
        return outputs, value[:, 0]

    def __call__(self, params: dict[str, Any], obs: jax.Array) -> jax.Array:
        """Acts as a `lamjax.policies.Policy`: outputs ``[B, O]``; `params` is ``{"params": ..., "frozen": ...}``."""
        return self.apply(params["params"], self.encode(params.get("frozen", {}), obs))[0]
