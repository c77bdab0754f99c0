"""PPO: config, state, and one update (a rollout, its advantages, epochs of minibatches).

An *agent* is any frozen dataclass with ``encode(frozen, obs) -> features`` and ``apply(params, features) -> (outputs,
value)``; what outputs mean, its `space` of actions says. Features are computed once a frame and reused in every epoch,
so what is frozen is never differentiated and never computed twice; an agent without a frozen part encodes by the
identity.

Dimension keys: T steps, N environments, B = T * N / minibatches, K numbers that a policy head gives.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from lamjax import parallel
from lamjax.envs.api import VectorEnv, stepper
from lamjax.optim import grads_as, pack_groups, unpack_groups
from lamjax.ppo import losses
from lamjax.ppo.gae import gae
from lamjax.ppo.rollout import ActorState, EpisodeStats, init_actor, rollout
from lamjax.spaces import ActionSpace
from lamjax.training import driver

# A piecewise linear schedule: (fraction of the frames, learning rate) points.
Schedule = tuple[tuple[float, float], ...]


class Agent(Protocol):
    """What PPO trains."""

    space: ActionSpace

    def encode(self, frozen: Any, obs: jax.Array) -> Any:
        """Observations ``[B, *obs_shape]`` to features, a pytree of ``[B, ...]``."""
        ...

    def apply(self, params: Any, features: Any) -> tuple[jax.Array, jax.Array]:
        """Features to outputs float32 ``[B, K]`` and values float32 ``[B]``."""
        ...


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO's settings; the defaults are LAPO's (Procgen, easy).

    Attributes:
      total_frames: environment frames to train for; schedules are fractions of it.
      num_envs: N, over all devices.
      num_steps: T, steps of each environment in an update.
      num_epochs: passes over an update's transitions.
      num_minibatches: minibatches in a pass.
      gamma: discount.
      gae_lambda: lambda of the advantage estimate.
      clip: clip of the probability ratio and of the value's move.
      entropy_coef: weight of the entropy bonus.
      value_coef: weight of the value loss.
      max_grad_norm: clip of the gradient's global norm, over what is trained.
      reward_limit: clip of the rewards after scaling by their running deviation; 0 leaves rewards raw.
      bootstrap_truncation: whether a time-out bootstraps from the last observation (the reference: no).
      learning_rates: pairs of a top-level parameter group and its schedule; the group "" is every other.
      adam_eps: epsilon of Adam.
      grad_chunks: pieces that a minibatch's gradient is summed from. Exact; on a CPU, where a convolution's gradients
        slow down with the batch, pieces of a few dozen rows are the fastest.
    """

    total_frames: int = 4_000_000
    num_envs: int = 64
    num_steps: int = 64
    num_epochs: int = 3
    num_minibatches: int = 8
    gamma: float = 0.999
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy_coef: float = 0.0025
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    reward_limit: float = 10.0
    bootstrap_truncation: bool = False
    learning_rates: tuple[tuple[str, Schedule], ...] = (("", ((0.0, 5e-4), (1.0, 0.0))),)
    adam_eps: float = 1e-8
    grad_chunks: int = 1

    def __post_init__(self):
        batch = self.num_envs * self.num_steps
        if batch % (self.num_minibatches * self.grad_chunks):
            raise ValueError(
                f"num_envs * num_steps = {batch} must divide into num_minibatches * grad_chunks = "
                f"{self.num_minibatches} * {self.grad_chunks} pieces."
            )

    @property
    def program(self) -> "PPOConfig":
        """The settings that programs depend on: neutral where runs may differ and still share what is compiled."""
        return dataclasses.replace(self, total_frames=self.num_envs * self.num_steps, learning_rates=())

    @property
    def num_updates(self) -> int:
        """Whole updates in `total_frames`."""
        return self.total_frames // (self.num_envs * self.num_steps)


@struct.dataclass
class PPOState:
    """Everything that training carries.

    Attributes:
      params: what is trained, a dict of groups.
      opt_state: Adam's moments, float32.
      actor: where the episodes stand.
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


def optimizer(config: PPOConfig) -> optax.GradientTransformation:
    """Clip by global norm, then Adam's direction; the learning rate is applied by group in the step."""
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale_by_adam(eps=config.adam_eps))


def learning_rates(config: PPOConfig, params: dict[str, Any], update: jax.Array) -> dict[str, jax.Array]:
    """The learning rate of each top-level group of `params` at an update (set once an update, as the reference)."""
    schedules = dict(config.learning_rates)
    fraction = update * (config.num_envs * config.num_steps) / config.total_frames
    rates = {}
    for group in params:
        points = schedules.get(group, schedules.get(""))
        if points is None:
            raise ValueError(f"learning_rates names no schedule for the parameter group {group!r}.")
        xs, ys = (jnp.array(values, jnp.float32) for values in zip(*points, strict=True))
        rates[group] = jnp.interp(fraction, xs, ys)
    return rates


def init(
    key: jax.Array, config: PPOConfig, params: dict[str, Any], env: VectorEnv, devices: Sequence[jax.Device] = ()
) -> PPOState:
    """Starts training `params` in `env`, on the default device or on several.

    Args:
      key: a typed PRNG key.
      config: the settings.
      params: what is trained.
      env: N environments; with several devices N / D, of which each device plays a batch of its own.
      devices: D of them; `actor` then has a leading axis D, and everything else is laid out on each.

    Raises:
      ValueError: if there are not N environments.
    """
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


@struct.dataclass
class Batch:
    """A rollout flattened to ``[T * N, ...]``, with its advantages."""

    features: Any
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


@struct.dataclass
class Rollout:
    """What one round of acting gives.

    Attributes:
      actor: where the episodes stand after it.
      batch: the flat transitions.
      obs: ``[T, N, *obs_shape]``, or None where they were not asked for.
      action: ``[T, N, *space.shape]``, what was carried out; `batch` holds the samples, unclipped.
      done: bool ``[T, N]``, the step ended an episode.
      episodes: statistics of the episodes that ended.
    """

    actor: ActorState
    batch: Batch
    obs: jax.Array | None
    action: jax.Array
    done: jax.Array
    episodes: EpisodeStats


@functools.partial(jax.jit, static_argnames=("agent", "env", "axis_name", "keep_obs"))
def collect(
    agent: Agent,
    env: VectorEnv,
    state: PPOState,
    frozen: Any = None,
    axis_name: str | None = None,
    keep_obs: bool = False,
) -> Rollout:
    """Acts for T steps in N environments and estimates advantages."""
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


def loss_fn(params: Any, agent: Agent, batch: Batch, config: PPOConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """PPO's loss of a minibatch whose advantages are normalised; returns it with metrics, all float32 ``[]``."""
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


@functools.partial(jax.jit, static_argnames=("agent", "config", "axis_name"), donate_argnums=(0,))
def minibatch_step(
    carry: tuple[Any, Any],
    rows: jax.Array,
    batch: Batch,
    rates: dict[str, jax.Array],
    *,
    agent: Agent,
    config: PPOConfig,
    axis_name: str | None = None,
) -> tuple[tuple[Any, Any], dict[str, jax.Array]]:
    """One gradient step on the rows int32 ``[B]`` of a batch; `carry` is ``(params, opt_state)``."""
    params, opt_state = carry
    minibatch = jax.tree.map(lambda x: x[rows], batch)
    mean, var = parallel.mean_and_var(minibatch.advantage, axis_name)
    count = parallel.psum(jnp.float32(rows.size), axis_name)
    deviation = jnp.sqrt(var * count / jnp.maximum(count - 1, 1))  # the sample's, as PyTorch's std
    minibatch = minibatch.replace(advantage=(minibatch.advantage - mean) / (deviation + 1e-8))

    # Unrolled, not scanned: see `driver`.
    grad_fn = jax.grad(loss_fn, has_aux=True)
    size, trained = rows.size // config.grad_chunks, unpack_groups(params)
    pieces = [
        grad_fn(trained, agent, jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], minibatch), config)
        for i in range(config.grad_chunks)
    ]
    grads, metrics = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *pieces)
    grads, metrics = parallel.pmean((grads_as(params, grads), metrics), axis_name)

    updates, opt_state = optimizer(config).update(grads, opt_state)
    updates = {group: jax.tree.map(lambda u, r=rates[group]: -r * u, tree) for group, tree in updates.items()}
    params = optax.apply_updates(params, updates)
    return (params, opt_state), {**metrics, "grad_norm": optax.tree.norm(grads)}


def improve(
    state: PPOState, agent: Agent, rollout: Rollout, *, scan: Callable = jax.lax.scan, axis_name: str | None = None
) -> tuple[PPOState, dict[str, jax.Array]]:
    """Epochs of minibatches on a rollout, in one dispatch unless `scan` is a loop on the host; see `update`."""
    run = _improve_fused if scan is jax.lax.scan else _improve
    rates = _learning_rates(state.config, tuple(state.params), state.update)
    new, metrics = run(state.replace(config=state.config.program), agent, rollout, rates, scan, axis_name)
    return new.replace(config=state.config), metrics


@functools.partial(jax.jit, static_argnums=(0, 1))
def _learning_rates(config: PPOConfig, groups: tuple[str, ...], update: jax.Array) -> dict[str, jax.Array]:
    return learning_rates(config, dict.fromkeys(groups), update)


def _improve(
    state: PPOState, agent: Agent, rollout: Rollout, rates: dict[str, jax.Array], scan: Callable, axis_name: str | None
) -> tuple[PPOState, dict[str, jax.Array]]:
    config = state.config
    step = functools.partial(
        minibatch_step,
        batch=rollout.batch,
        rates=rates,
        agent=agent,
        config=config,
        axis_name=axis_name,
    )
    rows = _minibatches(state, rollout, axis_name)
    carry = state.params, state.opt_state
    if scan is jax.lax.scan and driver.packs():
        carry = pack_groups(*carry)
    carry, metrics = scan(step, carry, rows)
    params, opt_state = unpack_groups(carry)
    metrics = _summary(metrics, rollout, axis_name)
    new = state.replace(params=params, opt_state=opt_state, actor=rollout.actor, update=state.update + 1)
    return new, metrics


def _minibatches(state: PPOState, rollout: Rollout, axis_name: str | None) -> jax.Array:
    """The rows of a rollout that each minibatch of an update takes, int32 ``[epochs * minibatches, B]``."""
    config = state.config
    key = parallel.device_key(jax.random.fold_in(jax.random.fold_in(state.key, state.update), 1), axis_name)
    size = rollout.done.size
    rows = jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, config.num_epochs))
    return rows.reshape(config.num_epochs * config.num_minibatches, -1)


def _summary(metrics: dict[str, jax.Array], rollout: Rollout, axis_name: str | None) -> dict[str, jax.Array]:
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


_improve_fused = jax.jit(_improve, static_argnames=("agent", "scan", "axis_name"))


def collect_on(
    devices: Sequence[jax.Device],
    agent: Agent,
    env: VectorEnv,
    state: PPOState,
    frozen: Any = None,
    keep_obs: bool = False,
) -> Rollout:
    """`collect` on one device or on the several of `init`; the rollout then has a leading axis of devices."""
    if len(devices) < 2:
        return collect(agent, stepper(env), state.replace(config=state.config.program), frozen, None, keep_obs)
    act = _mapped_collect(tuple(devices), agent, stepper(env), keep_obs)
    return act(state.replace(actor=None, config=state.config.program), state.actor, frozen)


@functools.cache
def _mapped_collect(devices: tuple[jax.Device, ...], agent: Agent, env: Any, keep_obs: bool) -> Callable:
    def act(shared: PPOState, actor: ActorState, frozen: Any, axis_name: str | None) -> Rollout:
        return collect(agent, env, shared.replace(actor=actor), frozen, axis_name, keep_obs)

    return parallel.map_step(act, devices, in_axes=(None, 0, None), out_axes=0)


def improve_on(
    devices: Sequence[jax.Device], state: PPOState, agent: Agent, rollout: Rollout, *, scan: Callable = jax.lax.scan
) -> tuple[PPOState, dict[str, jax.Array]]:
    """`improve` on one device or on several, each of which takes its part of every minibatch from its own rollout."""
    if len(devices) < 2:
        return improve(state, agent, rollout, scan=scan)
    rollout, actor = rollout.replace(actor=None, obs=None), rollout.actor
    shared = state.replace(actor=None)
    fused, minibatches, step, summary = _mapped_improve(tuple(devices), agent, state.config)
    if scan is jax.lax.scan:
        new, metrics = fused(shared, rollout)
        return new.replace(actor=actor), metrics
    rows = minibatches(shared, rollout)
    numbers = np.arange(state.config.num_epochs * state.config.num_minibatches, dtype=np.int32)
    (params, opt_state), metrics = scan(
        lambda carry, number: step(carry, rows, number, rollout.batch, state.update),
        (state.params, state.opt_state),
        numbers,
    )
    metrics = summary(metrics, rollout)
    jax.block_until_ready(metrics)  # hundreds of collectives un-awaited abort a CPU's fake devices
    return state.replace(params=params, opt_state=opt_state, actor=actor, update=state.update + 1), metrics


@functools.cache
def _mapped_improve(devices: tuple[jax.Device, ...], agent: Agent, config: PPOConfig) -> tuple[Callable, ...]:
    """`improve` in one dispatch, and its parts for a loop on the host."""

    def fused(shared: PPOState, rollout: Rollout, axis_name: str | None):
        return improve(shared, agent, rollout, axis_name=axis_name)

    def step(carry, rows: jax.Array, number: jax.Array, batch: Batch, update: jax.Array, axis_name: str | None):
        rates = learning_rates(config, carry[0], update)
        return minibatch_step(carry, rows[number], batch, rates, agent=agent, config=config, axis_name=axis_name)

    over = functools.partial(parallel.map_step, devices=devices)
    return (
        over(fused, in_axes=(None, 0)),
        over(_minibatches, in_axes=(None, 0), out_axes=0),
        over(step, in_axes=(None, 0, None, 0, None), donate_argnums=(0,)),
        over(_summary, in_axes=(None, 0)),
    )


def update(
    state: PPOState,
    agent: Agent,
    env: VectorEnv,
    frozen: Any = None,
    *,
    scan: Callable = jax.lax.scan,
    axis_name: str | None = None,
) -> tuple[PPOState, dict[str, jax.Array]]:
    """One PPO update: T steps in N environments, then epochs of minibatches.

    Two dispatches, acting and learning; under ``jit`` one. On a CPU call it un-jitted with ``scan=driver.host_scan``:
    the minibatches then run as a loop on the host (see `driver`), which donates parameters and moments.

    Args:
      state: the training state.
      agent: what acts and is trained (static).
      env: N environments (static).
      frozen: the agent's frozen parameters.
      scan: how minibatches are repeated.
      axis_name: devices to reduce gradients and statistics over.

    Returns:
      The new state and metrics, float32 ``[]``, means over the update's minibatches: ``policy_loss``, ``value_loss``,
      ``entropy`` (nats), ``approx_kl``, ``clip_fraction``, ``grad_norm``, ``explained_variance``; and of the episodes
      that ended, ``episodes`` (how many), ``episode_return`` and ``episode_length`` (means, NaN where none ended).
    """
    shared = state.replace(config=state.config.program)
    rollout = collect(agent, stepper(env), shared, frozen, axis_name)
    return improve(state, agent, rollout, scan=scan, axis_name=axis_name)


def update_on(
    devices: Sequence[jax.Device],
    state: PPOState,
    agent: Agent,
    env: VectorEnv,
    frozen: Any = None,
    *,
    scan: Callable = jax.lax.scan,
) -> tuple[PPOState, dict[str, jax.Array]]:
    """`update` on one device or on those of `init`; called on the host."""
    return improve_on(devices, state, agent, collect_on(devices, agent, env, state, frozen), scan=scan)


def learn(
    state: PPOState, agent: Agent, env: VectorEnv, frozen: Any = None, updates: int | None = None
) -> tuple[PPOState, dict[str, jax.Array]]:
    """Updates in one ``lax.scan``, for an environment that is JAX: ``jit`` it, or ``vmap`` it over states.

    Args:
      state: the training state.
      agent: see `update`.
      env: see `update`.
      frozen: see `update`.
      updates: how many; by default all of the config.

    Returns:
      The state after, and the metrics of `update`, ``[updates]``.
    """
    length = state.config.num_updates if updates is None else updates
    return jax.lax.scan(lambda s, _: update(s, agent, env, frozen), state, length=length)
