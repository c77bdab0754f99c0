"""Stage 1's inverse model trained on actions: the ceiling for what its latents can hold.

    a_t = head(z_t),  z_t = IDM(o_{t-1}, o_t, o_{t+1}),  loss = mean -log p(a_t)

It has the input and the network of the inverse model, without a forward model and a quantiser.
`behaviour_cloning.train_step` trains it, as a policy whose observations are windows.

Dimension keys: B batch, K numbers that the head gives (see `lamjax.spaces`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lamjax import dynamics
from lamjax.cloning import CloningConfig
from lamjax.decoding import behaviour_cloning
from lamjax.decoding.behaviour_cloning import ActionState
from lamjax.dynamics import DynamicsConfig, DynamicsState
from lamjax.models import quantizer
from lamjax.models.layers import Dense
from lamjax.preprocess import ObsStats, without_stats
from lamjax.spaces import ActionSpace


@dataclasses.dataclass(frozen=True)
class ActionIDM:
    """The inverse model with a linear head that predicts the action.

    Attributes:
      config: stage 1's settings.
      space: the action space.
    """

    config: DynamicsConfig
    space: ActionSpace

    def init(self, key: jax.Array, obs_shape: tuple[int, ...]) -> dict[str, Any]:
        """Initial parameters for windows of observations of this shape."""
        key_model, key_head = jax.random.split(key)
        unsupervised = dataclasses.replace(self.config, action_weight=0.0)
        params = dynamics.init(key_model, unsupervised, obs_shape).params
        model = {name: tree for name, tree in params.items() if name != "fdm"}
        head = Dense(self.space.num_outputs).init(key_head, jnp.zeros((1, self.config.latent_dim)))["params"]
        return {"model": model, "head": head}

    def __call__(self, params: Any, windows: jax.Array) -> jax.Array:
        """Outputs float32 ``[B, K]`` of `space` for windows ``[B, k + 2, *obs_shape]``."""
        params, stats = without_stats(params)
        codebooks = quantizer.init(jax.random.key(0), self.config.quantizer)  # unused: the head reads z before it
        step = jnp.zeros((), jnp.int32)
        model = DynamicsState(params["model"], {}, codebooks, None, step, self.config, stats)
        latents = dynamics.infer_latents(model, windows).continuous
        return Dense(self.space.num_outputs).apply({"params": params["head"]}, latents)


def init(
    key: jax.Array,
    config: DynamicsConfig,
    training: CloningConfig,
    space: ActionSpace,
    obs_shape: tuple[int, ...],
    obs_stats: ObsStats = None,
) -> ActionState:
    """Starts the training of an `ActionIDM`.

    Args:
      key: a typed PRNG key.
      config: stage 1's settings, which hold the inverse model's.
      training: steps, batch and learning rate; its trunk must be the inverse model's.
      space: the action space.
      obs_shape: shape of one observation.
      obs_stats: as for `dynamics.init`.
    """
    agent = ActionIDM(config, space)
    return behaviour_cloning.start(agent, agent.init(key, obs_shape), training, True, obs_stats)
