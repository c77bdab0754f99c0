"""Acting in N environments for T steps, inside ``jit``, with the reward normalisation of gym 0.23.

Acting comes first and gives arrays ``[T, N]``; what nothing acts on, scaled rewards and the episodes' returns, follows
from them. An environment of two groups (`lamjax.envs.api.takes_turns`) acts with one while the host steps the other.

Dimension keys: T steps, N environments, K numbers that a policy head gives (see `lamjax.spaces`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lamjax import parallel
from lamjax.envs.api import VectorEnv, stepper, takes_turns


@struct.dataclass
class RewardScale:
    """Running variance of the discounted return (gym's ``NormalizeReward``): rewards are divided by its root.

    Attributes:
      discounted: float32 ``[N]``, the running return R <- gamma R + r of each environment, 0 after an episode.
      mean, var, count: float32 ``[]``, moments of all R seen, population variance; the count starts at 1e-4.
    """

    discounted: jax.Array
    mean: jax.Array
    var: jax.Array
    count: jax.Array

    @classmethod
    def init(cls, num_envs: int) -> "RewardScale":
        """The start: mean 0, variance 1, count 1e-4."""
        return cls(jnp.zeros(num_envs), jnp.zeros(()), jnp.ones(()), jnp.full((), 1e-4, jnp.float32))


def scale_reward(
    scale: RewardScale, reward: jax.Array, done: jax.Array, gamma: float, limit: float, axis_name: str | None = None
) -> tuple[RewardScale, jax.Array]:
    """Divides the rewards of one step by the root of the running variance, and clips them.

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


@struct.dataclass
class ActorState:
    """What acting carries from step to step.

    Attributes:
      env: the environments' state.
      obs: ``[N, *obs_shape]``, what is seen now.
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
    return ActorState(env_state, obs, jnp.zeros(n), jnp.zeros(n, jnp.int32), RewardScale.init(n))


@struct.dataclass
class Transitions:
    """A rollout, every field ``[T, N, ...]``.

    `features` is what the policy was computed from, `action` its sample, before it is clipped to the bounds.
    `final_value` is the value of the last observation where the step truncated an episode, else 0.
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
      encode: observations ``[N, *obs_shape]`` to features, computed once a frame and stored.
      act: features to outputs ``[N, K]``, the logits of discrete actions, and values ``[N]``.
      state: where the episodes stand.
      key: a typed PRNG key.
      num_steps: T.
      gamma: discount, for the reward scale.
      reward_limit: clip of the scaled rewards; 0 leaves the rewards raw.
      bootstrap_truncation: True also evaluates the last observation of truncated episodes (see `gae`).
      axis_name: devices that share the reward statistics.

    Returns:
      The state after, the transitions, and the episodes that ended.
    """
    env = stepper(env)
    play = _play_in_turns if takes_turns(env) else _play
    env_state, obs, steps = play(env, encode, act, state, key, num_steps, bootstrap_truncation)
    state = state.replace(env=env_state, obs=obs)
    state, reward, episodes = summarise(state, steps.reward, steps.done, gamma, reward_limit, axis_name)
    ends_for_good = steps.terminated if bootstrap_truncation else steps.done
    return state, steps.replace(reward=reward, terminated=ends_for_good), episodes


def summarise(
    state: ActorState, reward: jax.Array, done: jax.Array, gamma: float, reward_limit: float, axis_name: str | None
) -> tuple[ActorState, jax.Array, EpisodeStats]:
    """Scales the rewards of a rollout, and sums up the episodes that ended in it.

    Args:
      state: where the episodes stood, as regards `episode_return`, `episode_length` and `reward_scale`.
      reward: float32 ``[T, N]``, raw.
      done: bool ``[T, N]``, steps that ended an episode.
      gamma: discount, for the reward scale.
      reward_limit: clip of the scaled rewards; 0 leaves them raw.
      axis_name: devices that share the reward statistics.

    Returns:
      The state with these three fields as they are after the rollout, float32 ``[T, N]`` scaled rewards, and the
      episodes that ended.
    """

    def step(carry: tuple[jax.Array, jax.Array, RewardScale], inputs: tuple[jax.Array, jax.Array]):
        episode_return, episode_length, scale = carry
        reward, done = inputs
        episode_return, episode_length = episode_return + reward, episode_length + 1
        if reward_limit > 0:
            scale, reward = scale_reward(scale, reward, done, gamma, reward_limit, axis_name)
        ended = done.astype(jnp.float32)
        stats = EpisodeStats(ended.sum(), (ended * episode_return).sum(), (ended * episode_length).sum())
        carry = jnp.where(done, 0.0, episode_return), jnp.where(done, 0, episode_length), scale
        return carry, (reward, stats)

    start = state.episode_return, state.episode_length, state.reward_scale
    (episode_return, episode_length, scale), (reward, stats) = jax.lax.scan(step, start, (reward, done))
    state = state.replace(episode_return=episode_return, episode_length=episode_length, reward_scale=scale)
    return state, reward, jax.tree.map(jnp.sum, stats)


def _play(
    env: Any, encode: Callable, act: Callable, state: ActorState, key: jax.Array, num_steps: int, bootstrap: bool
) -> tuple[Any, jax.Array, Transitions]:
    """Steps all N environments at once.

    Returns:
      The environments' state, what they show, and the transitions, with raw rewards and true terminations.
    """
    space = env.action_space

    def step(carry: tuple[Any, jax.Array], step_key: jax.Array):
        env_state, obs = carry
        key_action, key_env = jax.random.split(step_key)
        features = encode(obs)
        outputs, value = act(features)
        action = space.sample(key_action, outputs)
        log_p = space.log_prob(outputs, action)
        answer = env.step(key_env, env_state, space.clip(action))
        obs, env_state, outcome = _outcome(answer, encode, act, bootstrap)
        return (env_state, obs), Transitions(features, action, log_p, value, **outcome)

    (env_state, obs), steps = jax.lax.scan(step, (state.env, state.obs), jax.random.split(key, num_steps))
    return env_state, obs, steps


def _play_in_turns(
    env: Any, encode: Callable, act: Callable, state: ActorState, key: jax.Array, num_steps: int, bootstrap: bool
) -> tuple[Any, jax.Array, Transitions]:
    """`_play` with the two groups of an environment in turn: the host steps one while the device computes the other.

    Turn ``2 t + g`` acts with group g at step t. It sends that group's actions, and receives what the other group
    answers to those of the turn before. The first turn receives what group 1 shows already: `state` holds it too.
    """
    space, half = env.action_space, env.num_envs // 2
    keys = jax.random.split(key, num_steps)

    def turn(carry: tuple[Any, jax.Array], number: jax.Array):
        env_state, obs = carry
        group = number % 2
        features = encode(obs)
        outputs, value = act(features)
        # Drawn among the rows of all N, so that each environment gets the action that `_play` draws for it.
        key_action, _ = jax.random.split(keys[number // 2])
        everyone = jnp.zeros((2, *outputs.shape), outputs.dtype).at[group].set(outputs)
        drawn = space.sample(key_action, everyone.reshape(2 * half, -1))
        action = drawn.reshape(2, half, *drawn.shape[1:])[group]
        log_p = space.log_prob(outputs, action)
        answer = env.exchange(env_state, space.clip(action), group)
        obs, env_state, outcome = _outcome(answer, encode, act, bootstrap)
        return (env_state, obs), ((features, action, log_p, value), outcome)

    turns = jnp.arange(2 * num_steps, dtype=jnp.int32)
    (env_state, obs), (acted, outcomes) = jax.lax.scan(turn, (state.env, state.obs[:half]), turns)
    answer = env.receive(env_state, jnp.int32(1))
    last_obs, env_state, last = _outcome(answer, encode, act, bootstrap)
    # A turn's outcome arrives in the next one.
    outcomes = jax.tree.map(lambda x, end: jnp.concatenate([x[1:], end[None]]), outcomes, last)
    acted, outcomes = jax.tree.map(lambda x: x.reshape(num_steps, 2 * half, *x.shape[2:]), (acted, outcomes))
    return env_state, jnp.concatenate([obs, last_obs]), Transitions(*acted, **outcomes)


def _outcome(answer: tuple[Any, ...], encode: Callable, act: Callable, bootstrap: bool) -> tuple[Any, Any, dict]:
    """The observations, the state and a transition's outcome in what an environment's ``step`` returned."""
    obs, env_state, reward, terminated, truncated, info = answer
    final_value = jnp.zeros_like(reward)
    if bootstrap:
        value = jax.lax.cond(
            jnp.any(truncated), lambda o: act(encode(o))[1], lambda _: final_value, info["final_observation"]
        )
        final_value = jnp.where(truncated, value, 0.0)
    outcome = {"reward": reward, "terminated": terminated, "done": terminated | truncated, "final_value": final_value}
    return obs, env_state, outcome
