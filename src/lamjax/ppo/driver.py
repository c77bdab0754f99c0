"""PPO on the host: compiles the pure steps of `learner` for one device or several, and repeats them.

An update is two dispatches, one for acting and one for all minibatches. Where `lamjax.training.driver` says so, a loop
on the host replaces the second. It calls a program for each piece of a gradient, because one that holds all pieces
of a minibatch takes four times as long to compile (`cpu` preset: 29 CPU seconds instead of 7).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import envs, parallel
from lamjax.envs.api import VectorEnv, stepper
from lamjax.models.trunk import TrunkConfig, default_trunk
from lamjax.ppo import learner
from lamjax.ppo.agent import ActorCriticAgent, Agent
from lamjax.ppo.config import PPOConfig
from lamjax.ppo.learner import Metrics, PPOState, Rollout
from lamjax.training.driver import fuses_steps, host_scan, jit_once

DEFAULTS = PPOConfig()


class Programs(NamedTuple):
    """The steps of `learner`, compiled for some devices.

    `shared` is a `PPOState` without the fields that are separate arguments or unused; its config is the settings'
    `program`, so that runs of any length share the compiled programs. On several devices actors and rollouts have a
    leading axis of devices. `carry` is ``(params, opt_state)``; its memory is donated to the result.

    Attributes:
      collect: ``(shared, actor, frozen, agent, env, keep_obs) -> rollout``.
      improve: ``(carry, shared, rollout, rates, agent) -> (carry, metrics)``, all minibatches in one dispatch.
      minibatches: ``(shared, rollout) -> rows`` of all minibatches.
      minibatch: ``(params, batch, rows, number, agent, config) -> (data, total)``, one minibatch and a gradient of 0.
      gradient: ``(total, params, data, piece, agent, config) -> total``, which adds one piece's gradient.
      apply: ``(carry, total, rates, config) -> (carry, metrics)``, the optimizer's step.
      summary: ``(metrics, rollout) -> metrics`` of the update.
    """

    collect: Callable
    improve: Callable
    minibatches: Callable
    minibatch: Callable
    gradient: Callable
    apply: Callable
    summary: Callable


@functools.cache
def programs(devices: tuple[jax.Device, ...]) -> Programs:
    """The programs for some devices, shared by all runs."""

    def collect(shared, actor, frozen, agent, env, keep_obs, *, axis_name):
        state = shared.replace(actor=actor)
        return learner.collect(state, agent, env, frozen, keep_obs=keep_obs, axis_name=axis_name)

    def improve(carry, shared, rollout, rates, agent, *, axis_name):
        params, opt_state = carry
        state = shared.replace(params=params, opt_state=opt_state)
        state, metrics = learner.improve(state, agent, rollout, rates, axis_name=axis_name)
        return (state.params, state.opt_state), metrics

    def minibatch(params, batch, rows, number, agent, config, *, axis_name):
        data = learner.minibatch(batch, rows[number], axis_name=axis_name)
        total = jax.eval_shape(lambda: learner.piece_gradient(params, data, 0, agent, config))
        return data, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), total)

    def gradient(total, params, data, piece, agent, config, *, axis_name):
        more = learner.piece_gradient(params, data, piece, agent, config, axis_name=axis_name)
        return jax.tree.map(jnp.add, total, more)

    def apply(carry, total, rates, config, *, axis_name):
        return learner.apply_gradient(carry, total, rates, config, axis_name=axis_name)

    over = functools.partial(parallel.map_step, devices=devices)
    return Programs(
        over(collect, in_axes=(None, 0, None), out_axes=0, static_argnums=(3, 4, 5)),
        over(improve, in_axes=(None, None, 0, None), static_argnums=(4,), donate_argnums=(0,)),
        over(learner.minibatches, in_axes=(None, 0), out_axes=0),
        over(minibatch, in_axes=(None, 0, 0, None), out_axes=0, static_argnums=(4, 5)),
        over(gradient, in_axes=(0, None, 0, None), out_axes=0, static_argnums=(4, 5), donate_argnums=(0,)),
        over(apply, in_axes=(None, 0, None), static_argnums=(3,), donate_argnums=(0,)),
        over(learner.summary, in_axes=(None, 0)),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _learning_rates(config: PPOConfig, groups: tuple[str, ...], update: jax.Array) -> dict[str, jax.Array]:
    return learner.learning_rates(config, groups, update)


class Driver:
    """Repeats PPO updates on the host, on one device or on the devices of `init`."""

    def __init__(self, agent: Agent, env: VectorEnv, devices: Sequence[jax.Device] = (), *, fuse: bool | None = None):
        """Compiles nothing yet.

        Args:
          agent: the agent that acts and is trained.
          env: the environments that `init` got.
          devices: the devices that `init` got.
          fuse: whether minibatches are one dispatch or a loop on the host; by default `fuses_steps` decides by the
            agent's trunk.
        """
        self.agent, self.env = agent, stepper(env)
        self.devices = tuple(devices) or (jax.local_devices()[0],)
        self.fuse = fuses_steps(agent.trunk) if fuse is None else fuse
        self.programs = programs(self.devices)

    def collect(self, state: PPOState, frozen: Any = None, *, keep_obs: bool = False) -> Rollout:
        """See `lamjax.ppo.collect`; on several devices everything in the rollout has a leading axis of devices."""
        shared = state.replace(opt_state=None, actor=None, config=state.config.program)
        return self.programs.collect(shared, state.actor, frozen, self.agent, self.env, keep_obs)

    def improve(self, state: PPOState, rollout: Rollout) -> tuple[PPOState, Metrics]:
        """See `lamjax.ppo.improve`; it reuses the memory of the state's parameters and moments.

        Each of several devices takes its part of every minibatch from its own rollout.
        """
        rates = _learning_rates(state.config, tuple(state.params), state.update)
        config, data = state.config.program, rollout.replace(actor=None, obs=None)
        shared = state.replace(params=None, opt_state=None, actor=None, config=config)
        carry = state.params, state.opt_state
        if self.fuse:
            carry, metrics = self.programs.improve(carry, shared, data, rates, self.agent)
        else:
            rows = self.programs.minibatches(shared, data)
            numbers = np.arange(config.num_epochs * config.num_minibatches, dtype=np.int32)
            step = functools.partial(self._step, data.batch, rows, rates, config)
            carry, metrics = host_scan(step, carry, numbers)
            metrics = self.programs.summary(metrics, data)
            if len(self.devices) > 1:
                jax.block_until_ready(metrics)  # hundreds of collectives in flight abort a CPU's fake devices
        params, opt_state = carry
        new = state.replace(params=params, opt_state=opt_state, actor=rollout.actor, update=state.update + 1)
        return new, metrics

    def _step(self, batch, rows, rates, config, carry, number):
        """`lamjax.ppo.minibatch_step` in one dispatch for each piece of the gradient."""
        data, total = self.programs.minibatch(carry[0], batch, rows, number, self.agent, config)
        for piece in np.arange(config.grad_chunks, dtype=np.int32):
            total = self.programs.gradient(total, carry[0], data, piece, self.agent, config)
        return self.programs.apply(carry, total, rates, config)

    def update(self, state: PPOState, frozen: Any = None) -> tuple[PPOState, Metrics]:
        """See `lamjax.ppo.update`; it reuses the memory of the state's parameters and moments."""
        return self.improve(state, self.collect(state, frozen))


def train(
    env: str | VectorEnv,
    config: PPOConfig = DEFAULTS,
    key: jax.Array | None = None,
    *,
    trunk: TrunkConfig | None = None,
    progress: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> tuple[ActorCriticAgent, dict[str, Any], dict[str, np.ndarray]]:
    """Trains an actor-critic from scratch, in native Procgen or in an environment that is JAX.

    Args:
      env: a name that `lamjax.envs.make` knows, or `config.num_envs` environments.
      config: the settings.
      key: a typed PRNG key; None means ``jax.random.key(0)``.
      trunk: the network's trunk; by default the `default_trunk` for the observations.
      progress: called after each update with the frames so far and the update's metrics.

    Returns:
      The agent, its parameters, and the metrics of `update`, float32 ``[updates]``. ``agent.apply(params, obs)`` gives
      the outputs of ``agent.space`` and values.

    Raises:
      ValueError: if `env` has another number of environments.
      UnknownEnvError: if there is no environment of this name.
    """
    vector = envs.make(env, config.num_envs) if isinstance(env, str) else env
    try:
        agent = ActorCriticAgent(trunk or default_trunk(vector.obs_shape), vector.action_space)
        key_params, key = jax.random.split(jax.random.key(0) if key is None else key)
        params = jit_once(agent.init, static_argnums=1)(key_params, vector.obs_shape)
        state, driver, rows = learner.init(key, config, params, vector), Driver(agent, vector), []
        for number in range(1, config.num_updates + 1):
            state, metrics = driver.update(state)
            rows.append(jax.device_get(metrics))
            if progress:
                progress(number * config.frames_per_update, rows[-1])
    finally:
        if isinstance(env, str):
            vector.close()
    return agent, state.params, jax.tree.map(lambda *values: np.stack(values), *rows)
