"""PPO on environments that are JAX: lamjax's, and a plain one whose whole training is one function.

The plain one follows single-file JAX implementations (PureJaxRL, Lu et al. 2022): environments, GAE and minibatches in
one ``jit``, ``lax.scan`` inside ``lax.scan``, and only what CartPole needs: no reward scale, no bootstrap at time-outs,
no schedules by group. Networks, batch sizes and optimizer are those of our preset.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measure import row as measured_row
from benchmarks.settings import Settings
from lamjax import envs, ppo
from lamjax.ppo import ActorCriticAgent
from lamjax.preprocess import normalise_obs
from lamjax.presets import presets_for

UPDATES = 4  # in a dispatch


def plain(config: ppo.PPOConfig, network: Any, env: Any):
    """Returns ``(params, opt_state, obs, env_state, key) -> the same after UPDATES updates``, and what starts it."""
    n, t = config.num_envs, config.num_steps
    tx = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(1e-3))

    def apply(params, obs):
        return network.apply({"params": params}, normalise_obs(obs))

    def act(carry, _):
        params, obs, env_state, key = carry
        key, key_action, key_step = jax.random.split(key, 3)
        logits, value = apply(params, obs)
        action = jax.random.categorical(key_action, logits)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
        following, env_state, reward, terminated, truncated, _ = env.step(key_step, env_state, action)
        return (params, following, env_state, key), (obs, action, log_prob, value, reward, terminated | truncated)

    def accumulate(carry, step):
        advantage, following = carry
        value, reward, done = step
        delta = reward + config.gamma * following * (1 - done) - value
        advantage = delta + config.gamma * config.gae_lambda * (1 - done) * advantage
        return (advantage, value), advantage

    def loss_fn(params, batch):
        obs, action, old_log_prob, old_value, advantage, target = batch
        logits, value = apply(params, obs)
        log_probs = jax.nn.log_softmax(logits)
        ratio = jnp.exp(jnp.take_along_axis(log_probs, action[:, None], 1)[:, 0] - old_log_prob)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
        policy = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
        near = old_value + jnp.clip(value - old_value, -config.clip, config.clip)
        value_loss = 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(near - target)).mean()
        entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
        return policy + config.value_coef * value_loss - config.entropy_coef * entropy

    def improve(carry, batch):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss_fn)(params, batch), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def update(carry, _):
        params, opt_state, obs, env_state, key = carry
        (_, obs, env_state, key), steps = jax.lax.scan(act, (params, obs, env_state, key), None, t)
        inputs, action, log_prob, value, reward, done = steps
        last = apply(params, obs)[1]
        _, advantage = jax.lax.scan(accumulate, (jnp.zeros(n), last), (value, reward, done), reverse=True)
        rollout = inputs, action, log_prob, value, advantage, advantage + value
        flat = jax.tree.map(lambda x: x.reshape(n * t, *x.shape[2:]), rollout)

        def epoch(carry, key):
            rows = jax.random.permutation(key, n * t).reshape(config.num_minibatches, -1)
            return jax.lax.scan(improve, carry, jax.tree.map(lambda x: x[rows], flat))

        key, key_epochs = jax.random.split(key)
        (params, opt_state), _ = jax.lax.scan(
            epoch, (params, opt_state), jax.random.split(key_epochs, config.num_epochs)
        )
        return (params, opt_state, obs, env_state, key), reward.sum()

    def start(params, key):
        return params, tx.init(params), *env.reset(key), key

    return jax.jit(lambda carry: jax.lax.scan(update, carry, None, UPDATES)), start


def compare(name: str, env_name: str, settings: Settings, torch_rate: float | None) -> dict[str, Any]:
    """One row of the table. The two implementations take turns, so that other load slows both."""
    preset = presets_for(envs.obs_shape(env_name), env_name)["cpu"]
    config = preset.scratch.ppo
    env = envs.make(env_name, config.num_envs)
    agent = ActorCriticAgent(preset.scratch.trunk, env.num_actions)
    key = jax.random.key(0)
    params = agent.init(key, env.obs_shape)
    driver = ppo.Driver(agent, env)

    def ours(state: ppo.PPOState) -> tuple[ppo.PPOState, Any]:
        for _ in range(UPDATES):
            state, metrics = driver.update(state)
        return state, metrics

    theirs, start = plain(config, agent.network, env)
    states = [ppo.init(key, config, jax.tree.map(jnp.copy, params), env), start(params, key)]
    times: list[list[float]] = [[], []]
    compile_s = 0.0
    for sample in range(max(5, settings.repeats // 3) + 1):
        for index, call in enumerate((ours, theirs)):
            begun = time.perf_counter()
            states[index], metrics = call(states[index])
            jax.block_until_ready((states[index], metrics))
            seconds = time.perf_counter() - begun
            if sample:
                times[index].append(1e3 * seconds)
            elif call is ours:
                compile_s = seconds
    frames = config.frames_per_update
    batch = frames // config.num_minibatches
    row = measured_row(name, "cpu", batch, "frames/s", UPDATES * frames, [(1, np.array(times[0]))])
    plain_rate = 1e3 * UPDATES * frames / float(np.median(times[1]))
    return row | {"compile_s": compile_s, "details": {"of_plain_single_function": row["rate"] / plain_rate}}
