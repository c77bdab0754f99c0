"""PPO as pure functions: one update acts, estimates advantages, and takes epochs of minibatch steps.

    rollout = collect(state, agent, env)             # T steps in N environments, and their advantages
    state, metrics = improve(state, agent, rollout)  # epochs of minibatches

An `Agent` encodes each frame once, and every epoch reuses the features, so frozen layers are never differentiated and
never computed twice. Call all of this under ``jit``; `lamjax.ppo.Driver` compiles it for one device or several.

Dimension keys: T steps, N environments, B = T * N / minibatches, K numbers that a policy head gives.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lamjax import parallel
from lamjax.envs.api import VectorEnv
from lamjax.optim import grads_as, pack_groups, unpack_groups
from lamjax.ppo import losses
from lamjax.ppo.agent import Agent
from lamjax.ppo.config import PPOConfig, check_groups
from lamjax.ppo.gae import gae
from lamjax.ppo.rollout import ActorState, EpisodeStats, init_actor, rollout
from lamjax.schedules import piecewise
from lamjax.training import driver

Metrics = dict[str, jax.Array]


class PPOState(struct.PyTreeNode):
    """Everything that training carries.

    Attributes:
      params: the trained parameters, a dict of groups.
      opt_state: Adam's moments, float32.
      actor: the current state of the episodes.
      update: int32 ``[]``, updates done.
      key: the base key; update k draws from ``fold_in(key, k)``.
      config: the settings (static).
    """

    params: Any
    opt_state: Any
    actor: ActorState
    update: jax.Array
    key: jax.Array
    config: PPOConfig = struct.field(pytree_node=False)


@struct.dataclass
class Batch:
    """A rollout flattened to ``[T * N, ...]``, with its advantages."""

    features: Any
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


class Rollout(struct.PyTreeNode):
    """The result of one round of acting.

    Attributes:
      actor: the state of the episodes after it.
      batch: the flat transitions.
      obs: ``[T, N, *obs_shape]``, or None unless `collect` was asked to keep them.
      action: ``[T, N, *space.shape]``, the actions that were executed; `batch` holds the samples, unclipped.
      done: bool ``[T, N]``, whether the step ended an episode.
      episodes: statistics of the episodes that ended.
    """

    actor: ActorState
    batch: Batch
    obs: jax.Array | None
    action: jax.Array
    done: jax.Array
    episodes: EpisodeStats


def optimizer(config: PPOConfig) -> optax.GradientTransformation:
    """Global-norm clip, then Adam's direction; `minibatch_step` applies each group's learning rate."""
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=config.adam_eps))


def learning_rates(config: PPOConfig, groups: Sequence[str], update: jax.Array) -> dict[str, jax.Array]:
    """The learning rate of each parameter group at an update, float32 ``[]``, constant within it as in the reference.

    Raises:
      ValueError: if a group has no schedule, or a schedule no group.
    """
    check_groups(config, groups)
    schedules = dict(config.learning_rates)
    fraction = update * config.frames_per_update / config.total_frames
    rates = {}
    for group in groups:
        rates[group] = piecewise(schedules[group if group in schedules else ""], fraction)
    return rates


def init(
    key: jax.Array, config: PPOConfig, params: dict[str, Any], env: VectorEnv, devices: Sequence[jax.Device] = ()
) -> PPOState:
    """Starts training `params` in `env`, on the default device or on several.

    Args:
      key: a typed PRNG key.
      config: the settings.
      params: the parameters to train.
      env: N environments, or with D devices N / D of them, of which each device plays its own batch.
      devices: the D devices; `actor` then has a leading axis D, and everything else is replicated.

    Raises:
      ValueError: if there are not N environments, or the learning rates do not match the groups of `params`.
    """
    check_groups(config, params)
    count = max(len(devices), 1)
    if env.num_envs * count != config.num_envs:
        each = f" on each of {count} devices" if count > 1 else ""
        raise ValueError(f"The config asks for {config.num_envs} environments, but env has {env.num_envs}{each}.")
    key, key_env = jax.random.split(key)
    keys = [key_env] if count == 1 else [jax.random.fold_in(key_env, index) for index in range(count)]
    actor = parallel.deal([init_actor(env, of_device) for of_device in keys], devices)
    shared = (params, optimizer(config).init(params), jnp.zeros((), jnp.int32), key)
    params, opt_state, update, key = parallel.replicate(shared, devices)
    return PPOState(params, opt_state, actor, update, key, config)


def collect(
    state: PPOState,
    agent: Agent,
    env: VectorEnv,
    frozen: Any = None,
    *,
    keep_obs: bool = False,
    axis_name: str | None = None,
) -> Rollout:
    """Acts for T steps in N environments and estimates advantages; `keep_obs` also returns the observations."""
    config = state.config
    key = parallel.device_key(jax.random.fold_in(state.key, state.update), axis_name)

    def encode(obs: jax.Array) -> Any:
        return agent.encode(frozen, obs), obs if keep_obs else None

    def act(encoded: Any) -> tuple[jax.Array, jax.Array]:
        return agent.apply(state.params, encoded[0])

    actor, steps, episodes = rollout(
        env,
        encode,
        act,
        state.actor,
        key,
        num_steps=config.num_steps,
        gamma=config.gamma,
        reward_limit=config.reward_limit,
        bootstrap_truncation=config.bootstrap_truncation,
        axis_name=axis_name,
    )
    _, last_value = act(encode(actor.obs))
    following_value = jnp.concatenate([steps.value[1:], last_value[None]])
    advantage, target = gae(
        steps.reward,
        steps.value,
        jnp.where(steps.done, steps.final_value, following_value),
        steps.terminated,
        steps.done,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
    )
    features, obs = steps.features
    flat = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:]),
        Batch(features, steps.action, steps.log_prob, steps.value, advantage, target),
    )
    action = jax.vmap(env.action_space.clip)(steps.action)
    return Rollout(actor, flat, obs, action, steps.done, parallel.psum(episodes, axis_name))


def loss_fn(params: Any, agent: Agent, batch: Batch, config: PPOConfig) -> tuple[jax.Array, Metrics]:
    """PPO's loss on a minibatch with normalised advantages; returns it with metrics, all float32 ``[]``."""
    outputs, value = agent.apply(params, batch.features)
    log_ratio = agent.space.log_prob(outputs, batch.action) - batch.log_prob
    policy = losses.policy_loss(log_ratio, batch.advantage, config.clip)
    value_error = losses.value_loss(value, batch.value, batch.target, config.clip)
    entropy = agent.space.entropy(outputs).mean()
    loss = policy + config.value_coef * value_error - config.entropy_coef * entropy
    return loss, {
        "policy_loss": policy,
        "value_loss": value_error,
        "entropy": entropy,
        "approx_kl": jnp.mean(jnp.expm1(log_ratio) - log_ratio),
        "clip_fraction": jnp.mean((jnp.abs(jnp.expm1(log_ratio)) > config.clip).astype(jnp.float32)),
    }


def minibatches(state: PPOState, rollout: Rollout, *, axis_name: str | None = None) -> jax.Array:
    """The rows of a rollout in each minibatch of an update, int32 ``[epochs * minibatches, B]``."""
    config = state.config
    key = parallel.device_key(jax.random.fold_in(jax.random.fold_in(state.key, state.update), 1), axis_name)
    size = rollout.done.size
    rows = jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, config.num_epochs))
    return rows.reshape(config.num_epochs * config.num_minibatches, -1)


def minibatch_step(
    carry: tuple[Any, Any],
    rows: jax.Array,
    batch: Batch,
    rates: dict[str, jax.Array],
    agent: Agent,
    config: PPOConfig,
    *,
    axis_name: str | None = None,
) -> tuple[tuple[Any, Any], Metrics]:
    """One gradient step on the rows int32 ``[B]`` of a batch; `carry` is ``(params, opt_state)``."""
    data, params = minibatch(batch, rows, axis_name=axis_name), unpack_groups(carry[0])
    # Unrolled, not scanned: see `lamjax.training.driver`.
    pieces = [piece_gradient(params, data, i, agent, config, axis_name=axis_name) for i in range(config.grad_chunks)]
    total = jax.tree.map(lambda *leaves: sum(leaves), *pieces)
    return apply_gradient(carry, total, rates, config, axis_name=axis_name)


def minibatch(batch: Batch, rows: jax.Array, *, axis_name: str | None = None) -> Batch:
    """The rows int32 ``[B]`` of a batch, their advantages normalised over all devices."""
    chosen = jax.tree.map(lambda x: x[rows], batch)
    mean, var = parallel.mean_and_var(chosen.advantage, axis_name)
    count = parallel.psum(jnp.float32(rows.size), axis_name)
    deviation = jnp.sqrt(var * count / jnp.maximum(count - 1, 1))  # of the sample, like PyTorch's std
    return chosen.replace(advantage=(chosen.advantage - mean) / (deviation + 1e-8))


def piece_gradient(
    params: Any, data: Batch, piece: Any, agent: Agent, config: PPOConfig, *, axis_name: str | None = None
) -> tuple[Any, Metrics]:
    """The gradient of `loss_fn` with its metrics, on piece number `piece` of a minibatch's `grad_chunks`."""
    size = data.advantage.size // config.grad_chunks
    part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, piece * size, size), data)
    return jax.grad(loss_fn, has_aux=True)(parallel.vary(params, axis_name), agent, part, config)


def apply_gradient(
    carry: tuple[Any, Any],
    total: tuple[Any, Metrics],
    rates: dict[str, jax.Array],
    config: PPOConfig,
    *,
    axis_name: str | None = None,
) -> tuple[tuple[Any, Any], Metrics]:
    """The optimizer's step; `total` is the sum of `piece_gradient` over the pieces of each device's minibatch."""
    params, opt_state = carry
    grads, metrics = jax.tree.map(lambda x: x / config.grad_chunks, total)
    grads, metrics = parallel.pmean((grads_as(params, grads), metrics), axis_name)
    updates, opt_state = optimizer(config).update(grads, opt_state)
    updates = {group: jax.tree.map(lambda u, r=rates[group]: -r * u, tree) for group, tree in updates.items()}
    params = optax.apply_updates(params, updates)
    return (params, opt_state), {**metrics, "grad_norm": optax.tree.norm(grads)}


def summary(metrics: Metrics, rollout: Rollout, *, axis_name: str | None = None) -> Metrics:
    """An update's metrics, from those of its minibatches ``[epochs * minibatches]`` and its rollout."""
    batch, episodes = rollout.batch, rollout.episodes
    _, residual_var = parallel.mean_and_var(batch.target - batch.value, axis_name)
    _, target_var = parallel.mean_and_var(batch.target, axis_name)
    return jax.tree.map(jnp.mean, metrics) | {
        "explained_variance": 1 - residual_var / (target_var + 1e-8),
        "episodes": episodes.count,
        "episode_return": episodes.return_sum / episodes.count,
        "episode_length": episodes.length_sum / episodes.count,
    }


def improve(
    state: PPOState,
    agent: Agent,
    rollout: Rollout,
    rates: dict[str, jax.Array] | None = None,
    *,
    axis_name: str | None = None,
) -> tuple[PPOState, Metrics]:
    """Trains for epochs of minibatches on a rollout; without `rates` the config's schedules give the learning rates."""
    if rates is None:
        rates = learning_rates(state.config, state.params, state.update)
    carry = state.params, state.opt_state
    if driver.packs():
        carry = pack_groups(*carry)

    def step(carry: tuple[Any, Any], rows: jax.Array) -> tuple[tuple[Any, Any], Metrics]:
        return minibatch_step(carry, rows, rollout.batch, rates, agent, state.config, axis_name=axis_name)

    carry, metrics = jax.lax.scan(step, carry, minibatches(state, rollout, axis_name=axis_name))
    params, opt_state = unpack_groups(carry)
    new = state.replace(params=params, opt_state=opt_state, actor=rollout.actor, update=state.update + 1)
    return new, summary(metrics, rollout, axis_name=axis_name)


def update(
    state: PPOState, agent: Agent, env: VectorEnv, frozen: Any = None, *, axis_name: str | None = None
) -> tuple[PPOState, Metrics]:
    """One PPO update: T steps in N environments, then epochs of minibatches.

    Args:
      state: the training state.
      agent: the agent that acts and is trained (static).
      env: N environments (static).
      frozen: the agent's frozen parameters.
      axis_name: devices to reduce gradients and statistics over.

    Returns:
      The new state and metrics, float32 ``[]``, means over the update's minibatches: ``policy_loss``, ``value_loss``,
      ``entropy`` (nats), ``approx_kl``, ``clip_fraction``, ``grad_norm``, ``explained_variance``; and of the episodes
      that ended, ``episodes`` (how many), ``episode_return`` and ``episode_length`` (means, NaN where none ended).
    """
    return improve(state, agent, collect(state, agent, env, frozen, axis_name=axis_name), axis_name=axis_name)


def learn(
    state: PPOState, agent: Agent, env: VectorEnv, frozen: Any = None, updates: int | None = None
) -> tuple[PPOState, Metrics]:
    """All updates in one ``lax.scan``, for an environment that is JAX: ``jit`` it, or ``vmap`` it over states.

    Args:
      state: the training state.
      agent: see `update`.
      env: see `update`.
      frozen: see `update`.
      updates: how many; by default all that the config asks for.

    Returns:
      The final state, and the metrics of `update`, ``[updates]``.
    """
    length = state.config.num_updates if updates is None else updates
    return jax.lax.scan(lambda s, _: update(s, agent, env, frozen), state, length=length)
