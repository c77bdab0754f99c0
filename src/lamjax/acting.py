"""Acting: a policy unrolled in N environments for T steps, inside ``jit``.

Recording, evaluation and PPO all act here: they say what a step keeps, and reduce what comes back.

Dimension keys: T steps, N environments, K numbers that a policy head gives (see `lamjax.spaces`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lamjax.spaces import ActionSpace

# Observations ``[N, *obs_shape]`` and the environments' state, as ``reset`` returns them.
Position = tuple[jax.Array, Any]
# ``(draw, obs, env_state) -> (action, extra)``; `draw` samples actions ``[N, ...]`` from outputs ``[N, K]``.
Act = Callable[[Callable[[jax.Array], jax.Array], jax.Array, Any], tuple[jax.Array, Any]]
# ``(params, obs [N, *obs_shape]) -> outputs [N, K]``; hashable, and equal to what computes the same, for ``jit``.
# One with the attribute ``reads_state`` takes the environments' state as a third argument (`respond`).
PolicyFn = Callable[..., jax.Array]


def _without_info(*outcome: Any) -> tuple[Any, ...]:
    return outcome[:3]


def _sample(space: ActionSpace, random_share: float, key: jax.Array, outputs: jax.Array) -> jax.Array:
    """Draws actions ``[N, ...]`` from outputs ``[N, K]``; with this probability an action is uniformly random."""
    if random_share:
        key_random, key = jax.random.split(key)
        random = jax.random.bernoulli(key_random, random_share, outputs.shape[:1])
        outputs = jnp.where(random[:, None], space.uniform(len(outputs)), outputs)
    return space.sample(key, outputs)


def unroll(
    env: Any,
    act: Act,
    start: Position,
    key: jax.Array,
    num_steps: int,
    keep: Callable = _without_info,
    random_share: float = 0.0,
) -> tuple[Position, Any, Any]:
    """Acts for `num_steps` steps in all N environments at once.

    Args:
      env: N environments, or their `lamjax.envs.api.stepper`.
      act: chooses actions ``[N, *space.shape]`` within their bounds, and returns with them what the caller wants to
        keep of the step, any pytree of ``[N, ...]``.
      start: where the environments stand.
      key: a typed PRNG key; each step splits its share into a key for the actions and one for the environments.
      num_steps: T.
      keep: maps the outcome ``(reward, terminated, truncated, info)`` of a step to what the caller wants to keep of it;
        by default all but ``info``, which holds a second copy of every frame.
      random_share: probability in [0, 1] that `act` draws a uniform action, at each step in each environment.

    Returns:
      Where the environments stand afterwards, and what `act` and `keep` gave at each step, ``[T, N, ...]``.
    """

    def step(position: Position, step_key: jax.Array):
        key_action, key_env = jax.random.split(step_key)
        action, extra = act(functools.partial(_sample, env.action_space, random_share, key_action), *position)
        obs, env_state, *outcome = env.step(key_env, position[1], action)
        return (obs, env_state), (extra, keep(*outcome))

    position, (extras, outcomes) = jax.lax.scan(step, start, jax.random.split(key, num_steps))
    return position, extras, outcomes


def unroll_in_turns(
    env: Any, act: Act, start: Position, key: jax.Array, num_steps: int, keep: Callable = _without_info
) -> tuple[Position, Any, Any]:
    """`unroll` for two groups in turn: the host steps one while the device acts for the other.

    Only environments for which `lamjax.envs.api.takes_turns` is true can do so. Turn ``2 t + g`` acts for group g at
    step t. It sends that group's actions, and receives the other group's response to the actions of the previous turn.
    The first turn has no previous one: it receives group 1's current observations, which `start` also holds. `act` gets
    the observations of one group, and the state of all N environments.
    """
    half = env.num_envs // 2
    keys = jax.random.split(key, num_steps)

    def turn(position: Position, number: jax.Array):
        group = number % 2
        key_action, _ = jax.random.split(keys[number // 2])

        def draw(outputs: jax.Array) -> jax.Array:
            # Sampled as rows of all N, so that each environment gets the action that `unroll` would draw for it.
            everyone = jnp.zeros((2, *outputs.shape), outputs.dtype).at[group].set(outputs)
            sample = env.action_space.sample(key_action, everyone.reshape(2 * half, -1))
            return sample.reshape(2, half, *sample.shape[1:])[group]

        action, extra = act(draw, *position)
        obs, env_state, *outcome = env.exchange(position[1], action, group)
        return (obs, env_state), (extra, keep(*outcome))

    obs, env_state = start
    turns = jnp.arange(2 * num_steps, dtype=jnp.int32)
    (obs, env_state), (extras, outcomes) = jax.lax.scan(turn, (obs[:half], env_state), turns)
    last_obs, env_state, *outcome = env.receive(env_state, jnp.int32(1))
    # A turn's outcome arrives in the next one.
    outcomes = jax.tree.map(lambda x, last: jnp.concatenate([x[1:], last[None]]), outcomes, keep(*outcome))
    extras, outcomes = jax.tree.map(lambda x: x.reshape(num_steps, 2 * half, *x.shape[2:]), (extras, outcomes))
    return (jnp.concatenate([obs, last_obs]), env_state), extras, outcomes


def respond(policy: PolicyFn, params: Any, obs: jax.Array, env_state: Any) -> jax.Array:
    """Outputs ``[N, K]`` of a policy; a planner (`lamjax.planners`) reads the environments' state."""
    if getattr(policy, "reads_state", False):
        return policy(params, obs, env_state)
    return policy(params, obs)


def demonstrate(
    env: Any,
    policy: PolicyFn,
    params: Any,
    start: Position,
    key: jax.Array,
    num_steps: int,
    read: Callable[[Any], Any] | None = None,
    random_share: float = 0.0,
) -> tuple[Position, Any, Any]:
    """Unrolls a demonstrator, which samples from ``policy(params, obs)`` and always sees clean frames.

    Under a distractor it sees only the game, so that its play does not depend on the distractor. Each step keeps the
    observations, which do show the distractor, the actions, and what `read` returns of the environments' state. With
    probability `random_share` the action of a step in an environment is uniformly random.
    """

    def act(draw: Callable[[jax.Array], jax.Array], obs: jax.Array, env_state: Any):
        action = env.action_space.clip(draw(respond(policy, params, clean_obs(obs, env_state), env_state)))
        return action, (obs, action, read(env_state) if read else None)

    return unroll(env, act, start, key, num_steps, random_share=random_share)


def count(running: tuple[jax.Array, jax.Array], step: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
    """Adds a step's rewards and episode ends ``[N]`` to running returns float32 and lengths int32 ``[N]``.

    This is the body of a ``lax.scan``. It returns the running values for the next step, which are 0 where an episode
    ended, and the values that include this step.
    """
    reward, done = step
    episode_return, episode_length = running[0] + reward, running[1] + 1
    following = jnp.where(done, 0.0, episode_return), jnp.where(done, 0, episode_length)
    return following, (episode_return, episode_length)


# Only environments with levels or a distractor have the attributes that these functions read.


def clean_obs(obs: jax.Array, env_state: Any) -> jax.Array:
    """The observations ``[N, *obs_shape]`` without a distractor."""
    return getattr(env_state, "clean", obs)


def distractor_dim(env: Any) -> int:
    """D: how many numbers describe the distractor that the observations show (`Distracted.distractor_state`)."""
    return getattr(env, "distractor_dim", 0)


def level_and_distractor(env: Any, env_state: Any) -> tuple[jax.Array, jax.Array]:
    """The levels being played, int32 ``[N]``, -1 without levels, and the state of the distractor, ``[N, D]``."""
    level_seed = getattr(env_state, "level_seed", jnp.full(env.num_envs, -1, jnp.int32))
    return level_seed, env.distractor_state(env_state) if distractor_dim(env) else jnp.zeros((env.num_envs, 0))
