"""Behaviour cloning: a policy cloned from actions, a few true ones (the baseline) or many pseudo-labels of a decoder.

    loss = mean -log pi(a_t | o_t)

Of continuous actions pi is a Gaussian (see `lamjax.spaces`).

LAPO+ (arXiv 2602.02762) reverses LAPO's order: the few labels decode the inverse model, which then gives every training
window a pseudo-label, and the policy is cloned from those.

Dimension keys: B batch, L labels.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lamjax import dynamics, parallel
from lamjax.cloning import CloningConfig
from lamjax.decoding import offline
from lamjax.decoding.offline import OfflineConfig
from lamjax.dynamics import DynamicsState
from lamjax.optim import grads_as, unpack_groups
from lamjax.ppo import ActorCriticAgent
from lamjax.preprocess import ObsStats, normalise_obs, with_stats
from lamjax.schedules import warmup_linear
from lamjax.spaces import ActionSpace, as_space


@struct.dataclass
class ActionState:
    """Everything that cloning of actions carries.

    Attributes:
      params: the agent's parameters, float32.
      opt_state: AdamW's moments, float32.
      step: int32 ``[]``, steps done.
      agent: the actor-critic, whose value head is not trained (static).
      config: stage 2's settings (static).
      decays: whether the learning rate warms up and decays as stage 2's, or stays at its peak (static).
      obs_stats: how observations that are not uint8 are standardised (see `normalise_obs`); constant.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    agent: ActorCriticAgent = struct.field(pytree_node=False)
    config: CloningConfig = struct.field(pytree_node=False)
    decays: bool = struct.field(pytree_node=False)
    obs_stats: ObsStats = None

    @property
    def policy_params(self) -> dict[str, Any]:
        """The agent's parameters as a policy: with how observations are standardised."""
        return with_stats(self.params, self.obs_stats)


def _optimizer(config: CloningConfig, decays: bool) -> optax.GradientTransformation:
    rate = config.learning_rate
    if decays:
        rate = warmup_linear(rate, 0.01, 0.0, config.warmup_steps, config.steps)
    return optax.adamw(rate, weight_decay=config.weight_decay)


def init(
    key: jax.Array,
    config: CloningConfig,
    space: ActionSpace | int,
    obs_shape: tuple[int, ...],
    decays: bool = True,
    obs_stats: ObsStats = None,
) -> ActionState:
    """Starts a policy over `space` on observations of `obs_shape`, with stage 2's trunk, from scratch."""
    agent = ActorCriticAgent(config.trunk, space, getattr(jnp, config.dtype))
    params = agent.init(key, obs_shape)
    stats = jax.tree.map(jnp.copy, obs_stats)  # a copy: states are donated
    opt_state = _optimizer(config, decays).init(params)
    return ActionState(params, opt_state, jnp.zeros((), jnp.int32), agent, config, decays, stats)


def train_step(
    state: ActionState, obs: jax.Array, actions: jax.Array, *, axis_name: str | None = None
) -> tuple[ActionState, dict[str, jax.Array]]:
    """One step of cloning. Pure, as `dynamics.train_step`.

    Args:
      state: the training state.
      obs: ``[B, *obs_shape]``.
      actions: ``[B, *space.shape]``.
      axis_name: devices over which gradients and metrics are reduced.

    Returns:
      The new state and metrics, float32 ``[]``: ``loss`` (nats) and ``accuracy``, or of continuous actions ``mse``.
    """
    space = state.agent.space

    def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
        outputs, _ = state.agent.network.apply({"params": params}, normalise_obs(obs, state.obs_stats))
        return space.loss(outputs, actions).mean(), jnp.mean(space.score(space.mode(outputs), actions))

    params = parallel.vary(unpack_groups(state.params), axis_name)
    (loss, score), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    loss, score, grads = parallel.pmean((loss, score, grads_as(state.params, grads)), axis_name)
    updates, opt_state = _optimizer(state.config, state.decays).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = state.replace(params=params, opt_state=opt_state, step=state.step + 1)
    return new, {"loss": loss, space.score_name: score}


def pseudo_labels(
    model: DynamicsState, decoder: Any, windows: jax.Array, config: OfflineConfig, space: ActionSpace | int
) -> jax.Array:
    """The likeliest actions of windows, by a decoder of the inverse model's latents.

    Args:
      model: stage 1.
      decoder: what `offline.fit` gave on its latents.
      windows: ``[B, k + 2, *obs_shape]``.
      config: the decoder's settings.
      space: what actions are.

    Returns:
      ``[B, *space.shape]``, the action at o_t; continuous ones within the bounds.
    """
    latents = dynamics.infer_latents(model, windows).continuous
    space = as_space(space)
    return space.clip(space.mode(offline.decode(decoder, latents, config, space)))
