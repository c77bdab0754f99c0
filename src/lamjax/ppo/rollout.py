"""PPO's rollouts: T steps of acting in N environments, with the reward normalisation of gym 0.23.

Acting comes first and gives arrays ``[T, N]`` (`lamjax.acting`). Scaled rewards and the episodes' returns are computed
from them afterwards, since no action depends on them.

Dimension keys: T steps, N environments, K numbers that a policy head gives (see `lamjax.spaces`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lamjax import acting, parallel
from lamjax.envs.api import VectorEnv, stepper, takes_turns


@struct.dataclass
class RewardScale:
    """Running variance of the discounted return (gym's ``NormalizeReward``): rewards are divided by its square root.

    Attributes:
      discounted: float32 ``[N]``, the running return R <- gamma R + r of each environment, 0 after an episode.
      mean, var, count: float32 ``[]``, moments of all R so far, population variance; the count starts at 1e-4.
    """

    discounted: jax.Array
    mean: jax.Array
    var: jax.Array
    count: jax.Array

    @classmethod
    def init(cls, num_envs: int) -> "RewardScale":
        """The start: mean 0, variance 1, count 1e-4."""
        return cls(
            *(jnp.full(shape, start, jnp.float32) for shape, start in ((num_envs, 0), ((), 0), ((), 1), ((), 1e-4)))
        )


def scale_reward(
    scale: RewardScale, reward: jax.Array, done: jax.Array, gamma: float, limit: float, axis_name: str | None = None
) -> tuple[RewardScale, jax.Array]:
    """Divides the rewards of one step by the square root of the running variance, and clips them.

    Args:
      scale: statistics so far.
      reward: float32 ``[N]``, raw rewards.
      done: bool ``[N]``, episodes that this step ended.
      gamma: discount of the running return.
      limit: the result is clipped to ``[-limit, limit]``.
      axis_name: devices that share the statistics.

    Returns:
      The new statistics and float32 ``[N]`` scaled rewards.
    """
    discounted = scale.discounted * gamma + reward
    mean, var = parallel.mean_and_var(discounted, axis_name)
    n = parallel.psum(jnp.float32(discounted.size), axis_name)
    total = scale.count + n
    delta = mean - scale.mean
    new_var = (scale.var * scale.count + var * n + jnp.square(delta) * scale.count * n / total) / total
    scaled = jnp.clip(reward * jax.lax.rsqrt(new_var + 1e-8), -limit, limit)
    new = RewardScale(jnp.where(done, 0.0, discounted), scale.mean + delta * n / total, new_var, total)
    return new, scaled


class ActorState(struct.PyTreeNode):
    """The state of acting between steps.

    Attributes:
      env: the environments' state.
      obs: ``[N, *obs_shape]``, the current observations.
      episode_return: float32 ``[N]``, raw return of the running episodes.
      episode_length: int32 ``[N]``.
      reward_scale: see `RewardScale`.
    """

    env: Any
    obs: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array
    reward_scale: RewardScale


def init_actor(env: VectorEnv, key: jax.Array) -> ActorState:
    """Starts N episodes."""
    obs, env_state = env.reset(key)
    n = env.num_envs
    return ActorState(env_state, obs, jnp.zeros(n, jnp.float32), jnp.zeros(n, jnp.int32), RewardScale.init(n))


@struct.dataclass
class Transitions:
    """A rollout, every field ``[T, N, ...]``.

    `features` is the policy's input, and `action` its sample before it is clipped to the bounds. `final_value` is the
    value of the last observation where the step truncated an episode, else 0.
    """

    features: Any
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    terminated: jax.Array
    done: jax.Array
    final_value: jax.Array


@struct.dataclass
class EpisodeStats:
    """Episodes that ended in a rollout: how many, and the sums of their raw returns and lengths, float32 ``[]``."""

    count: jax.Array
    return_sum: jax.Array
    length_sum: jax.Array


def rollout(
    env: VectorEnv,
    encode: Callable[[jax.Array], Any],
    act: Callable[[Any], tuple[jax.Array, jax.Array]],
    state: ActorState,
    key: jax.Array,
    *,
    num_steps: int,
    gamma: float,
    reward_limit: float,
    bootstrap_truncation: bool,
    axis_name: str | None = None,
) -> tuple[ActorState, Transitions, EpisodeStats]:
    """Acts for `num_steps` steps with sampled actions.

    Args:
      env: N environments.
      encode: maps observations ``[N, *obs_shape]`` to features, which are computed once per frame and stored.
      act: maps features to outputs ``[N, K]``, logits for discrete actions, and values ``[N]``.
      state: the current state of the episodes.
      key: a typed PRNG key.
      num_steps: T.
      gamma: discount, for the reward scale.
      reward_limit: clip of the scaled rewards; 0 leaves the rewards raw.
      bootstrap_truncation: True also evaluates the last observation of truncated episodes (see `gae`).
      axis_name: devices that share the reward statistics.

    Returns:
      The next state, the transitions, and the episodes that ended.
    """
    env = stepper(env)

    def choose(draw: Callable[[jax.Array], jax.Array], obs: jax.Array, env_state: Any) -> tuple[jax.Array, dict]:
        features = encode(obs)
        outputs, value = act(features)
        sample = draw(outputs)
        log_prob = env.action_space.log_prob(outputs, sample)
        extra = {"features": features, "action": sample, "log_prob": log_prob, "value": value}
        return env.action_space.clip(sample), extra

    def keep(reward: jax.Array, terminated: jax.Array, truncated: jax.Array, info: Any) -> dict[str, jax.Array]:
        final_value, done = jnp.zeros_like(reward), terminated | truncated
        if bootstrap_truncation:
            value = jax.lax.cond(
                jnp.any(truncated), lambda obs: act(encode(obs))[1], lambda _: final_value, info["final_observation"]
            )
            final_value = jnp.where(truncated, value, 0.0)
        ends_for_good = terminated if bootstrap_truncation else done
        return {"reward": reward, "terminated": ends_for_good, "done": done, "final_value": final_value}

    unroll = acting.unroll_in_turns if takes_turns(env) else acting.unroll
    (obs, env_state), extras, outcomes = unroll(env, choose, (state.obs, state.env), key, num_steps, keep)
    state, reward, episodes = _summarise(
        state.replace(env=env_state, obs=obs), outcomes["reward"], outcomes["done"], gamma, reward_limit, axis_name
    )
    return state, Transitions(**extras, **outcomes | {"reward": reward}), episodes


def _summarise(
    state: ActorState, reward: jax.Array, done: jax.Array, gamma: float, reward_limit: float, axis_name: str | None
) -> tuple[ActorState, jax.Array, EpisodeStats]:
    """Scales the rewards ``[T, N]`` of a rollout, and sums up the episodes that ended in it."""

    def step(carry: tuple[Any, RewardScale], inputs: tuple[jax.Array, jax.Array]):
        running, scale = carry
        reward, done = inputs
        running, (episode_return, episode_length) = acting.count(running, inputs)
        if reward_limit > 0:
            scale, reward = scale_reward(scale, reward, done, gamma, reward_limit, axis_name)
        ended = done.astype(jnp.float32)
        stats = EpisodeStats(ended.sum(), (ended * episode_return).sum(), (ended * episode_length).sum())
        return (running, scale), (reward, stats)

    start = (state.episode_return, state.episode_length), state.reward_scale
    (running, scale), (reward, stats) = jax.lax.scan(step, start, (reward, done))
    state = state.replace(episode_return=running[0], episode_length=running[1], reward_scale=scale)
    return state, reward, jax.tree.map(jnp.sum, stats)
