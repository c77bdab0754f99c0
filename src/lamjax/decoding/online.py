"""Stage 3, online: PPO on top of a frozen latent policy, with a decoder fitted on the agent's own transitions.

Two heads act together. The first is the frozen latent policy followed by a decoder, which is fitted by supervised
learning: the inverse model provides the latent of a transition, and the environment its action. The second is an RL
head that starts at zero. The logits are the mean of both, or their sum. For continuous actions both heads output means
and log standard deviations, which are added. The convolutions are frozen, so their output is computed once per frame
and no gradient passes through them.

There are two ablations. Without the supervised decoder, only the RL head acts, on the latent policy's features ("RL
only" in the paper's figure; its code was not released). And PPO can train all layers instead of only the last ones.

Dimension keys: T steps, N environments, K capacity, Z latent size, O outputs of a policy head.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from lamjax import dynamics, parallel, ppo
from lamjax.checks import check_fields
from lamjax.cloning import CloningState
from lamjax.decoding.hybrid import HybridAgent
from lamjax.dynamics import DynamicsState
from lamjax.envs.api import VectorEnv
from lamjax.ppo import Metrics, PPOConfig, PPOState
from lamjax.schedules import without_wait
from lamjax.spaces import ActionSpace, Blend, as_space

# LAPO's schedules as fractions of its 4M frames: heads first, then the layer below them. LAPO freezes the convolutions;
# if they are trained, they get the learning rate of PPO from scratch.
LEARNING_RATES = (
    ("policy_head", ((0.0, 0.0), (0.00875, 0.0), (0.0125, 2.5e-3), (1.0, 0.0))),
    ("value_head", ((0.0, 0.0), (0.00625, 0.0), (0.0125, 2.5e-3), (1.0, 0.0))),
    ("fc", ((0.0, 0.0), (0.0125, 0.0), (0.05, 1e-3), (1.0, 0.0))),
    ("convs", ((0.0, 0.0), (0.0125, 0.0), (0.05, 5e-4), (1.0, 0.0))),
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The supervised decoder's settings; the defaults are LAPO's. Times are fractions of the frame budget.

    Attributes:
      enabled: False leaves out the decoder ("RL only"): only the RL head acts, and since it need not wait for a
        decoder, PPO's schedules start where they first rise (`ppo_config`).
      hidden: widths of the hidden layers.
      start: no fit before this time.
      dense_until: a fit after every update until this time.
      stop: after this time no fits, and no more inference by the inverse model.
      every: between `dense_until` and `stop`, a fit after every n-th update.
      epochs: passes over all pairs in a fit; each fit starts from a new initialisation.
      batch_size: pairs per step.
      learning_rate: Adam's learning rate.
      label_smoothing: the share of each label that is spread over all actions; for continuous ones, over the whole box.
      capacity: K, the maximum number of pairs kept, the newest ones (the reference keeps all).
      mask_boundaries: False also fits on transitions across the end of an episode, as the reference does.
    """

    enabled: bool = True
    hidden: tuple[int, ...] = (192, 128, 64)
    start: float = 0.0025
    dense_until: float = 0.0125
    stop: float = 0.1
    every: int = 20
    epochs: int = 3
    batch_size: int = 512
    learning_rate: float = 1e-3
    label_smoothing: float = 0.05
    capacity: int = 400_000
    mask_boundaries: bool = True

    def __post_init__(self):
        check_fields(
            self,
            "online.decoder",
            at_least_1=("hidden", "every", "epochs", "batch_size", "capacity"),
            finite=("start", "dense_until", "stop", "learning_rate"),  # times above 1 are after the end
            shares=("label_smoothing",),
        )


@dataclasses.dataclass(frozen=True)
class OnlineConfig:
    """The settings of online decoding.

    Attributes:
      ppo: settings of PPO.
      decoder: settings of the decoder.
      train: "head" is LAPO: PPO trains a copy of the fully connected layer, and the heads on top of it. "all" also
        trains a copy of the convolutions, at the learning rate of the group "convs", while the decoder still reads the
        frozen ones.
      dtype: type of the trunk's activations; heads, losses, the decoder's fit and the optimizer stay in float32.
      blend: "mean" is LAPO: the mean of both heads' logits. As long as the RL head is zero, this halves the decoder's
        logits, so the decoder acts at a temperature of 2. "sum" keeps the decoder's probabilities, which helps in short
        runs. Continuous actions always use the sum.
    """

    ppo: PPOConfig = PPOConfig(learning_rates=LEARNING_RATES)
    decoder: DecoderConfig = DecoderConfig()
    train: Literal["head", "all"] = "head"
    dtype: Literal["float32", "bfloat16"] = "float32"
    blend: Blend = "mean"

    def __post_init__(self):
        check_fields(self, "online")


def ppo_config(config: OnlineConfig) -> PPOConfig:
    """PPO's settings. With a supervised decoder the RL head waits for it; without one, the wait is removed."""
    if config.decoder.enabled:
        return config.ppo
    rates = tuple((group, without_wait(points)) for group, points in config.ppo.learning_rates)
    return dataclasses.replace(config.ppo, learning_rates=rates)


def effective_ppo(config: OnlineConfig) -> PPOConfig:
    """`ppo_config`, without the schedule of the convolutions if they are frozen; presets always contain it."""
    settings = ppo_config(config)
    return settings if config.train == "all" else settings.without_rates("convs")


@struct.dataclass
class Pairs:
    """A ring buffer of (latent, action) pairs from the agent's own transitions.

    Attributes:
      latent: float32 ``[K, Z]``.
      action: ``[K, *space.shape]``, the action taken.
      valid: bool ``[K]``, False for an empty slot, or for a transition across the end of an episode.
      written: int32 ``[]``, pairs written so far.
    """

    latent: jax.Array
    action: jax.Array
    valid: jax.Array
    written: jax.Array

    @classmethod
    def init(cls, capacity: int, latent_dim: int, space: ActionSpace) -> "Pairs":
        """Creates an empty ring buffer."""
        return cls(
            jnp.zeros((capacity, latent_dim), jnp.float32),
            jnp.zeros((capacity, *space.shape), space.dtype),
            jnp.zeros(capacity, jnp.bool_),
            jnp.zeros((), jnp.int32),
        )


class OnlineState(struct.PyTreeNode):
    """The state of online decoding.

    Attributes:
      ppo: PPO's state.
      frozen: parameters that PPO does not train; its ``decoder`` is refitted between updates.
      pairs: the decoder's data.
      config: the settings (static).
    """

    ppo: PPOState
    frozen: dict[str, Any]
    pairs: Pairs
    config: OnlineConfig = struct.field(pytree_node=False)


def make_agent(policy: CloningState, config: OnlineConfig, space: ActionSpace | int) -> HybridAgent:
    """Builds the agent for a latent policy; `space` is the action space, or the number of actions."""
    hidden, supervised, dtype = config.decoder.hidden, config.decoder.enabled, getattr(jnp, config.dtype)
    trunk, space = policy.config.trunk, as_space(space)
    return HybridAgent(trunk, policy.latent_dim, space, hidden, supervised, config.train, dtype, config.blend)


def init(
    key: jax.Array, config: OnlineConfig, policy: CloningState, env: VectorEnv, devices: Sequence[jax.Device] = ()
) -> OnlineState:
    """Initialises online decoding of a latent policy in `env`, on several `devices` as in `ppo.init`."""
    key_agent, key_ppo = jax.random.split(key)
    agent = make_agent(policy, config, env.action_space)
    params, frozen = agent.init(key_agent, policy)
    capacity = min(config.decoder.capacity, config.ppo.total_frames) if config.decoder.enabled else 1
    pairs = Pairs.init(capacity, policy.latent_dim, env.action_space)
    state = ppo.init(key_ppo, effective_ppo(config), params, env, devices)
    frozen, pairs = parallel.replicate((frozen, pairs), devices)
    return OnlineState(state, frozen, pairs, config)


@functools.partial(jax.jit, static_argnames=("masked", "axis_name"))
def add_pairs(
    pairs: Pairs,
    model: DynamicsState,
    obs: jax.Array,
    action: jax.Array,
    done: jax.Array,
    masked: bool = True,
    axis_name: str | None = None,
) -> Pairs:
    """Infers the latents of a rollout's transitions and appends the pairs to the ring buffer.

    Args:
      pairs: the ring buffer.
      model: stage 1.
      obs: ``[T, N, *obs_shape]``.
      action: ``[T, N, *space.shape]``, the actions taken at those observations.
      done: bool ``[T, N]``, whether the step ended an episode.
      masked: False treats transitions across the end of an episode as valid (static).
      axis_name: name of the axis over devices with environments of their own; each device gets the pairs of all.

    Returns:
      The buffer with ``(T - 1 - k) N`` more pairs, where k is the model's context; a pair holds the latent of
      (o_{t-k}, ..., o_{t+1}) and a_t.
    """
    context, length = model.config.context, model.config.window

    def infer(_, t):
        window = jax.lax.dynamic_slice_in_dim(obs, t, length).swapaxes(0, 1)
        return None, dynamics.infer_latents(model, window).continuous

    steps = obs.shape[0] - length + 1
    _, latent = jax.lax.scan(infer, None, jnp.arange(steps))
    # A window crosses the end of an episode if any of its steps, except that of its last frame, ended one.
    ended = jnp.stack([done[offset : offset + steps] for offset in range(context + 1)]).any(0)
    valid = ~ended if masked else jnp.ones_like(ended)
    action = action[context:-1]
    latent, action, valid = (parallel.join(x, axis_name, axis=1) for x in (latent, action, valid))
    capacity, size = pairs.valid.shape[0], valid.size
    if size > capacity:
        raise ValueError(f"The decoder's capacity ({capacity}) is smaller than one update's transitions ({size}).")
    slots = (pairs.written + jnp.arange(size)) % capacity
    return Pairs(
        pairs.latent.at[slots].set(latent.reshape(size, -1)),
        pairs.action.at[slots].set(action.reshape(size, *pairs.action.shape[1:])),
        pairs.valid.at[slots].set(valid.reshape(-1)),
        pairs.written + size,
    )


@functools.partial(jax.jit, static_argnames=("agent", "config"))
def fit_decoder(key: jax.Array, pairs: Pairs, agent: HybridAgent, config: DecoderConfig) -> tuple[Any, jax.Array]:
    """Fits a new decoder to the pairs by maximum likelihood of the smoothed labels, with Adam.

    Returns:
      The decoder's parameters, and its score (accuracy or squared error) on the last batch, float32 ``[]``.
    """
    space, capacity = agent.space, pairs.valid.shape[0]
    key_init, key_rows = jax.random.split(key)
    params = agent.decoder.init(key_init, pairs.latent[:1])["params"]
    tx = optax.adam(config.learning_rate)
    batch = min(config.batch_size, capacity)
    filled = jnp.minimum(pairs.written, capacity)  # from the front: only rows that have been written are drawn

    def step(carry):
        index, params, opt_state, _ = carry
        rows = jax.random.randint(jax.random.fold_in(key_rows, index), (batch,), 0, filled)
        weight = pairs.valid[rows].astype(jnp.float32)

        def loss_fn(params):
            outputs, action = agent.decoder.apply({"params": params}, pairs.latent[rows]), pairs.action[rows]
            losses = space.loss(outputs, action, config.label_smoothing)
            scores = space.score(space.mode(outputs), action)
            total = jnp.maximum(weight.sum(), 1)
            return (losses * weight).sum() / total, (scores * weight).sum() / total

        grads, score = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return index + 1, optax.apply_updates(params, updates), opt_state, score

    steps = fit_steps(config, filled, capacity)
    carry = (jnp.zeros((), jnp.int32), params, tx.init(params), jnp.zeros((), jnp.float32))
    _, params, _, score = jax.lax.while_loop(lambda c: c[0] < steps, step, carry)
    return params, score


def fit_steps(config: DecoderConfig, filled: Any, capacity: int) -> Any:
    """The number of steps of a fit on `filled` pairs of a ring buffer of K."""
    return config.epochs * filled // min(config.batch_size, capacity)


def pairs_per_update(config: PPOConfig, window: int) -> int:
    """How many pairs an update adds: one for each window of this many frames in its rollout."""
    return max(0, config.num_steps - window + 1) * config.num_envs


def _share_done(config: PPOConfig, updates_done: int) -> float:
    return updates_done * config.frames_per_update / config.total_frames


def refits(config: OnlineConfig, updates_done: int) -> bool:
    """Whether the decoder is refitted after update number `updates_done` (counted from 1)."""
    decoder = config.decoder
    fraction = _share_done(config.ppo, updates_done)
    if not (decoder.enabled and decoder.start < fraction < decoder.stop):
        return False
    return fraction < decoder.dense_until or updates_done % decoder.every == 0


def collects(config: OnlineConfig, updates_done: int) -> bool:
    """Whether update number `updates_done` still adds pairs, because this or a later update may refit the decoder."""
    fraction = _share_done(config.ppo, updates_done)
    return config.decoder.enabled and fraction < config.decoder.stop


def update(state: OnlineState, model: DynamicsState, driver: ppo.Driver) -> tuple[OnlineState, Metrics]:
    """Runs one PPO update. While the decoder is still being fitted, it then infers latents and may refit the decoder.

    Call it on the host: it needs the number of the update to know what to compute.

    Args:
      state: the training state; PPO's parameters and moments are donated.
      model: stage 1, on each of the driver's devices.
      driver: PPO's driver, for the agent of `make_agent` and the environments and devices of `init`.

    Returns:
      The new state, and PPO's metrics with the decoder's score in training: ``decoder_accuracy``, or for continuous
      actions ``decoder_mse`` in half-ranges. The score is NaN if the decoder was not refitted.
    """
    number, add = int(state.ppo.update) + 1, _add_pairs_on(driver.devices)
    scheduled = collects(state.config, number), refits(state.config, number)
    rollout = driver.collect(state.ppo, state.frozen, keep_obs=scheduled[0])
    new, metrics = driver.improve(state.ppo, rollout)
    agent = cast(HybridAgent, driver.agent)
    return _feed_decoder(state.replace(ppo=new), metrics, rollout, model, agent, scheduled, add, _choose)


def learn(state: OnlineState, model: DynamicsState, agent: HybridAgent, env: VectorEnv) -> tuple[OnlineState, Metrics]:
    """Runs all updates in one ``lax.scan``; ``lax.cond`` replaces the decisions that `update` makes on the host.

    Args:
      state: the initial state.
      model: stage 1.
      agent: see `make_agent`.
      env: N environments written in JAX.

    Returns:
      The final state, and the metrics of `update`, each ``[updates]``.
    """
    config, numbers = state.config, range(1, state.config.ppo.num_updates + 1)
    collecting, refitting = (jnp.array([decides(config, n) for n in numbers]) for decides in (collects, refits))

    def step(state: OnlineState, scheduled: tuple[jax.Array, jax.Array]):
        rollout = ppo.collect(state.ppo, agent, env, state.frozen, keep_obs=config.decoder.enabled)
        new, metrics = ppo.improve(state.ppo, agent, rollout)
        return _feed_decoder(state.replace(ppo=new), metrics, rollout, model, agent, scheduled, add_pairs, jax.lax.cond)

    return jax.lax.scan(step, state, (collecting, refitting))


@functools.cache
def _add_pairs_on(devices: tuple[jax.Device, ...]) -> Callable:
    """`add_pairs` on several devices, which share the same buffer and each have their own rollout."""
    return parallel.map_step(add_pairs, devices, in_axes=(None, None, 0, 0, 0), static_argnums=(5,))


def _choose(condition: bool, yes: Callable, no: Callable, operand: Any) -> Any:
    """Does the same as ``jax.lax.cond``, for a condition that is known on the host."""
    return yes(operand) if condition else no(operand)


def _feed_decoder(
    state: OnlineState,
    metrics: Metrics,
    rollout: ppo.Rollout,
    model: DynamicsState,
    agent: HybridAgent,
    scheduled: tuple[Any, Any],
    add: Callable,
    cond: Callable,
) -> tuple[OnlineState, Metrics]:
    """After PPO's update, adds the rollout's pairs and refits the decoder if `scheduled` (collects, refits) says so."""
    config, unfitted = state.config.decoder, jnp.float32(np.nan)
    pairs, frozen, score = state.pairs, state.frozen, unfitted
    if config.enabled:
        rows, key = (rollout.obs, rollout.action, rollout.done), jax.random.fold_in(state.ppo.key, state.ppo.update)
        collecting, refitting = scheduled
        pairs = cond(collecting, lambda p: add(p, model, *rows, config.mask_boundaries), lambda p: p, pairs)
        decoder, score = cond(
            refitting,
            lambda p: fit_decoder(jax.random.fold_in(key, 2), p, agent, config),
            lambda _: (frozen["decoder"], unfitted),
            pairs,
        )
        frozen = {**frozen, "decoder": decoder}
    return state.replace(frozen=frozen, pairs=pairs), {**metrics, f"decoder_{agent.space.score_name}": score}
