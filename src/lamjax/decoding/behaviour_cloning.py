"""Behaviour cloning of actions: of a few true ones (the baseline), or of pseudo-labels for all windows.

    loss = mean -log pi(a_t | o_t)

For continuous actions pi is a Gaussian (see `lamjax.spaces`).

LAPO+ (arXiv 2602.02762) reverses LAPO's order. It fits a decoder of the inverse model's latents on the few labels,
gives every training window a pseudo-label with it, and clones the policy from those.

Dimension keys: B batch, L labels.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lamjax import optim, parallel
from lamjax.cloning import CloningConfig
from lamjax.decoding import offline
from lamjax.decoding.offline import OfflineConfig
from lamjax.optim import grads_as, unpack_groups
from lamjax.ppo import ActorCriticAgent
from lamjax.preprocess import ObsStats, check_images, with_stats
from lamjax.schedules import warmup_linear
from lamjax.spaces import ActionSpace, as_space


class ActionState(struct.PyTreeNode):
    """Everything that behaviour cloning carries.

    Attributes:
      params: the agent's parameters, float32.
      opt_state: the optimizer's moments, float32.
      step: int32 ``[]``, steps done.
      agent: the network to train, ``(params, obs) -> outputs`` of its ``space`` (static): an actor-critic, whose value
        head is not trained, or any other `lamjax.policies.Policy`.
      config: stage 2's settings (static).
      decays: True if the learning rate warms up and decays as in stage 2, False if it stays at its peak (static).
      obs_stats: how observations that are not uint8 are standardised (see `normalise_obs`); constant.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    agent: Any = struct.field(pytree_node=False)
    config: CloningConfig = struct.field(pytree_node=False)
    decays: bool = struct.field(pytree_node=False)
    obs_stats: ObsStats = None

    @property
    def policy_params(self) -> dict[str, Any]:
        """The agent's parameters together with the observation statistics, as a policy uses them."""
        return with_stats(self.params, self.obs_stats)


def _optimizer(config: CloningConfig, decays: bool) -> optax.GradientTransformation:
    rate = config.learning_rate
    if decays:
        rate = warmup_linear(rate, 0.01, 0.0, config.warmup_steps, config.steps)
    return optim.optimizer(config.optimizer, rate, config.weight_decay)


def init(
    key: jax.Array,
    config: CloningConfig,
    space: ActionSpace | int,
    obs_shape: tuple[int, ...],
    decays: bool = True,
    obs_stats: ObsStats = None,
) -> ActionState:
    """Starts behaviour cloning from scratch.

    Args:
      key: a typed PRNG key.
      config: stage 2's settings, which hold the policy's trunk.
      space: the action space, or the number of actions.
      obs_shape: shape of one observation.
      decays: see `ActionState`.
      obs_stats: see `ActionState`.
    """
    agent = ActorCriticAgent(config.trunk, as_space(space), getattr(jnp, config.dtype))
    return start(agent, agent.init(key, obs_shape), config, decays, obs_stats)


def start(agent: Any, params: Any, config: CloningConfig, decays: bool, obs_stats: ObsStats) -> ActionState:
    """Starts behaviour cloning of `agent` from `params`; see `ActionState`."""
    stats = jax.tree.map(jnp.copy, obs_stats)  # a copy: states are donated
    opt_state = _optimizer(config, decays).init(params)
    return ActionState(params, opt_state, jnp.zeros((), jnp.int32), agent, config, decays, stats)


def train_step(
    state: ActionState, obs: jax.Array, actions: jax.Array, *, axis_name: str | None = None
) -> tuple[ActionState, dict[str, jax.Array]]:
    """One step of behaviour cloning, a pure function like `dynamics.train_step`.

    Args:
      state: the training state.
      obs: ``[B, *obs_shape]``.
      actions: ``[B, *space.shape]``.
      axis_name: devices over which gradients and metrics are reduced.

    Returns:
      The new state and metrics, float32 ``[]``: ``loss`` (nats) and ``accuracy``, or ``mse`` for continuous actions.
    """
    check_images(obs, state.obs_stats, 4)
    space = state.agent.space

    def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
        outputs = state.agent(with_stats(params, state.obs_stats), obs)
        return space.loss(outputs, actions).mean(), jnp.mean(space.score(space.mode(outputs), actions))

    params = parallel.vary(unpack_groups(state.params), axis_name)
    (loss, score), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    loss, score, grads = parallel.pmean((loss, score, grads_as(state.params, grads)), axis_name)
    updates, opt_state = _optimizer(state.config, state.decays).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = state.replace(params=params, opt_state=opt_state, step=state.step + 1)
    return new, {"loss": loss, space.score_name: score}


def pseudo_labels(decoder: Any, latents: jax.Array, config: OfflineConfig, space: ActionSpace | int) -> jax.Array:
    """The actions that a decoder finds most likely for the inverse model's latents.

    Args:
      decoder: the parameters that `offline.fit` returned for this model's latents.
      latents: float32 ``[B, Z]`` (`dynamics.Latents.continuous`).
      config: the decoder's settings.
      space: the action space, or the number of actions.

    Returns:
      ``[B, *space.shape]``; continuous actions are clipped to the bounds.
    """
    space = as_space(space)
    return space.clip(space.mode(offline.decode(decoder, latents, config, space)))
