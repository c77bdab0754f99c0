"""The stages as pure functions, for environments that are JAX: ``jit`` one, or ``vmap`` it over seeds.

The steps are those of `dynamics`, `cloning`, `decoding` and `ppo`; what `pipeline` adds on the host (stores on disk,
checkpoints, reports) is left out, and a stage is one ``lax.scan``. Everything random follows from the key, so each row
of ``jax.vmap(f)(keys)`` is what ``f(key)`` gives.

    env = envs.make("cartpole", 64)
    params, _ = jitted.learn(key, env, config.expert)                        # a demonstrator
    trajectories = jitted.record(key, env, agent, params, 1024)
    train, test = jitted.split(trajectories)
    model, _ = jitted.train_dynamics(key, config.dynamics, train)            # stage 1
    policy, _ = jitted.train_cloning(key, config.cloning, train, model)      # stage 2
    agent, params, _ = jitted.decode_online(key, config.online, policy, model, env)  # stage 3

Dimension keys: T steps, N environments, F = N T frames, L labels, E windows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lamjax import acting, cloning, dynamics, ppo
from lamjax.acting import PolicyFn
from lamjax.cloning import CloningConfig, CloningState
from lamjax.config import ScratchConfig
from lamjax.data import stream
from lamjax.data.stream import Buffer, Labels
from lamjax.decoding import offline, online
from lamjax.decoding.hybrid import HybridAgent
from lamjax.decoding.offline import OfflineConfig
from lamjax.decoding.online import OnlineConfig
from lamjax.dynamics import DynamicsConfig, DynamicsState
from lamjax.envs import evaluate as evaluation
from lamjax.envs.api import VectorEnv
from lamjax.policies import DecodedPolicy
from lamjax.preprocess import ObsStats
from lamjax.spaces import ActionSpace, as_space
from lamjax.training.steps import cloning_step, dynamics_step, latents_at

_INFERRED = 256  # windows whose latents are inferred at a time


@struct.dataclass
class Trajectories:
    """Recorded transitions ``[N, T, ...]``; `done` says that the step ended an episode.

    `action` is the action that the environment executed, int32 ``[N, T]``, or float32 ``[N, T, D]`` within its bounds.
    `extra` is what `record`'s argument `read` returned at each observation, or None.
    """

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    done: jax.Array
    extra: Any = None


def learn(
    key: jax.Array, env: VectorEnv, config: ScratchConfig, params: Any = None
) -> tuple[Any, dict[str, jax.Array]]:
    """PPO from scratch, or from the parameters of an actor-critic.

    Returns:
      The parameters of ``config.agent(env.action_space)``, and the metrics of `ppo.update`, ``[updates]``.
    """
    agent = config.agent(env.action_space)
    if params is None:
        key_params, key = jax.random.split(key)
        params = agent.init(key_params, env.obs_shape)
    state = ppo.init(key, config.ppo, params, env)
    state, metrics = ppo.learn(state, agent, env)
    return state.params, metrics


def record(
    key: jax.Array,
    env: VectorEnv,
    policy: PolicyFn,
    params: Any,
    steps: int,
    read: Callable[[Any], Any] | None = None,
) -> Trajectories:
    """Plays `steps` steps of sampled actions in each of the N environments; the policy sees clean frames.

    Args:
      key: a typed PRNG key.
      env: N environments.
      policy: the policy.
      params: its parameters.
      steps: T.
      read: maps the environments' state to arrays ``[N, ...]`` that are kept beside the observations, such as
        `envs.Distracted.distractor_state`.
    """
    key_reset, key = jax.random.split(key)
    start = env.reset(key_reset)
    _, (obs, action, extra), (reward, terminated, truncated) = acting.demonstrate(
        env, policy, params, start, key, steps, read
    )
    trajectories = Trajectories(obs, action, reward, terminated | truncated, extra)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), trajectories)


def split(trajectories: Trajectories, held_out: float = 0.1) -> tuple[Trajectories, Trajectories]:
    """Splits transitions into a training and a held-out set, which come from different environments."""
    n = trajectories.done.shape[0]
    first = min(max(round((1 - held_out) * n), 1), n - 1)
    return tuple(jax.tree.map(lambda x, part=part: x[part], trajectories) for part in (slice(first), slice(first, n)))


def buffer(trajectories: Trajectories, length: int = 3) -> Buffer:
    """A buffer from which stages 1 and 2 sample windows of `length` frames; no window crosses an episode's end."""
    n, t = trajectories.done.shape
    frames = trajectories.obs.reshape(n * t, *trajectories.obs.shape[2:])
    ended = jnp.stack([trajectories.done[:, i : t - length + 1 + i] for i in range(length - 1)]).any(0)
    valid = jnp.pad(~ended, ((0, 0), (0, length - 1))).reshape(-1)
    starts = jnp.nonzero(valid, size=n * t, fill_value=0)[0].astype(jnp.int32)
    return Buffer(frames, starts, valid.sum().astype(jnp.int32))


def stats(trajectories: Trajectories) -> ObsStats:
    """As `preprocess.obs_stats`, inside ``jit``."""
    if trajectories.obs.dtype == jnp.uint8:
        return None
    flat = trajectories.obs.reshape(-1, *trajectories.obs.shape[2:])
    scale = flat.std(0)
    return {"mean": flat.mean(0), "scale": jnp.where(scale > 1e-6, scale, 1.0)}


def starts(key: jax.Array, trajectories: Trajectories, count: int, length: int = 3) -> jax.Array:
    """Draws the starts of windows, int32 ``[E]``, as indices into all F frames.

    It draws without replacement, so `count` must be at most the number of windows.
    """
    return stream.sample_starts(buffer(trajectories, length), key, jnp.zeros((), jnp.int32), count)


def windows(key: jax.Array, trajectories: Trajectories, count: int, length: int = 3) -> tuple[jax.Array, jax.Array]:
    """Draws (as `starts`) windows ``[E, length, *obs_shape]`` and the actions at their second-to-last frames."""
    first = starts(key, trajectories, count, length)
    frames, actions = (x.reshape(-1, *x.shape[2:]) for x in (trajectories.obs, trajectories.action))
    return stream.gather(frames, first, length), actions[first + length - 2]


def labelled(key: jax.Array, trajectories: Trajectories, count: int) -> tuple[jax.Array, jax.Array]:
    """Draws labelled observations ``[L, *obs_shape]`` and their actions, as `decode_offline` takes them."""
    drawn, actions = windows(key, trajectories, count)
    return drawn[:, 1], actions


def untrained_dynamics(
    key: jax.Array, config: DynamicsConfig, trajectories: Trajectories, space: ActionSpace | int | None = None
) -> DynamicsState:
    """The state from which `train_dynamics` starts under the same key: the baseline of its probes."""
    return dynamics.init(jax.random.split(key)[0], config, trajectories.obs.shape[2:], stats(trajectories), space)


def train_dynamics(
    key: jax.Array,
    config: DynamicsConfig,
    trajectories: Trajectories,
    labels: tuple[jax.Array, jax.Array] | None = None,
    space: ActionSpace | int | None = None,
) -> tuple[DynamicsState, dict[str, jax.Array]]:
    """Stage 1 on the transitions' frames.

    Args:
      key: a typed PRNG key.
      config: the settings.
      trajectories: what to learn from; their actions are not read.
      labels: with `config.action_weight`, windows and their actions (see `windows`), the only actions that stage 1
        sees.
      space: with labels, the action space, or the number of actions.

    Returns:
      The state, and metrics ``[steps]`` (see `dynamics.train_step`).
    """
    source, key_batches = buffer(trajectories, config.window), jax.random.split(key)[1]
    known = None
    if labels is not None:
        known = Labels(labels[0].reshape(-1, *labels[0].shape[2:]), labels[1])

    state = untrained_dynamics(key, config, trajectories, space)
    return jax.lax.scan(lambda s, _: dynamics_step(s, source, known, key_batches), state, length=config.steps)


def train_cloning(
    key: jax.Array, config: CloningConfig, trajectories: Trajectories, model: DynamicsState
) -> tuple[CloningState, dict[str, jax.Array]]:
    """Stage 2 on the transitions' frames: the state, and metrics ``[steps]`` (see `cloning.train_step`)."""
    source, (key_init, key) = buffer(trajectories, model.config.window), jax.random.split(key)
    state = cloning.init(key_init, config, trajectories.obs.shape[2:], model.config.latent_dim, model.obs_stats)

    latents, length = _latents(model, source), model.config.window
    step = lambda s, _: cloning_step(s, source, key, latents, None, length)  # noqa: E731
    return jax.lax.scan(step, state, length=config.steps)


def _latents(model: DynamicsState, source: Buffer) -> jax.Array:
    """The latents float32 ``[F, Z]`` of a buffer's windows, each at the place of its o_t; 0 where there is none."""
    latents = latents_at(model, source.frames, source.starts, _INFERRED)
    empty = jnp.zeros((len(source.frames), model.config.latent_dim))
    return empty.at[source.starts + model.config.context].set(latents)


def decode_offline(
    key: jax.Array,
    config: OfflineConfig,
    policy: CloningState,
    obs: jax.Array,
    actions: jax.Array,
    space: ActionSpace | int,
) -> tuple[DecodedPolicy, Any]:
    """Stage 3 from labels: a network and its parameters.

    Args:
      key: a typed PRNG key.
      config: the settings.
      policy: stage 2.
      obs: ``[L, *obs_shape]``.
      actions: ``[L, *space.shape]``.
      space: the action space, or the number of actions.
    """
    decoder, _ = offline.fit(key, cloning.predict_latents(policy, obs), actions, config, space)
    network = DecodedPolicy(policy.config.trunk, policy.latent_dim, as_space(space), config)
    return network, network.init(policy, decoder)


def decode_online(
    key: jax.Array, config: OnlineConfig, policy: CloningState, model: DynamicsState, env: VectorEnv
) -> tuple[HybridAgent, Any, dict[str, jax.Array]]:
    """Stage 3 by PPO: the agent, its parameters, and metrics ``[updates]``."""
    agent = online.make_agent(policy, config, env.action_space)
    state, metrics = online.learn(online.init(key, config, policy, env), model, agent, env)
    return agent, {"params": state.ppo.params, "frozen": state.frozen}, metrics


def evaluate(key: jax.Array, env: VectorEnv, policy: PolicyFn, params: Any, per_env: int) -> jax.Array:
    """Raw returns float32 ``[N, per_env]``: like `envs.evaluate`, with the same number of episodes per environment."""
    return evaluation.play_all(policy, params, env, per_env, key)[0]
