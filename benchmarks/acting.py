"""Stage 3 and PPO from scratch: acting in real coinrun, learning from it, and the inverse model beside both.

The parts of an update are measured alone and added up: the paper's networks need minutes for one on a CPU, and the
inverse model is at work in the first tenth of stage 3 only.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import Stepper, compiled, milliseconds
from benchmarks.measure import row as measured_row
from benchmarks.settings import OBS, Settings
from benchmarks.training import init_cloning, init_dynamics
from lamjax import dynamics, envs
from lamjax.decoding import online
from lamjax.ppo import train as ppo
from lamjax.ppo.train import PPOConfig
from lamjax.presets import PRESETS
from lamjax.training import driver

FEW = 4  # steps of acting in a sample, where a whole rollout would take too long


def ppo_config(name: str, settings: Settings) -> PPOConfig:
    """PPO's settings of a row."""
    config = settings.preset.online.ppo if name == "stage3" else settings.preset.scratch.ppo
    if name == "ppo" and settings.slow:
        return dataclasses.replace(config, grad_chunks=PRESETS["cpu"].scratch.ppo.grad_chunks)
    return config


def start(name: str, settings: Settings, config: PPOConfig, env: envs.VectorEnv) -> tuple[Any, Any, ppo.PPOState]:
    """The agent of a row, its frozen parameters, and PPO's state before its first update."""
    preset, key = settings.preset, jax.random.key(0)
    if name == "stage3":
        policy = init_cloning(key, preset.cloning, OBS, preset.dynamics.latent_dim)
        agent = online.make_agent(policy, preset.online, env.action_space)
        params, frozen = agent.init(key, policy)
    else:
        agent, frozen = preset.scratch.agent(env.action_space), None
        params = agent.init(key, env.obs_shape)
    return agent, frozen, ppo.init(key, config, params, env)


def row(name: str, settings: Settings, torch_rate: float | None) -> dict[str, Any]:
    """One row of the table."""
    preset, config = settings.preset, ppo_config(name, settings)
    acted = FEW if settings.slow else config.num_steps
    env = envs.make("coinrun", config.num_envs)
    agent, frozen, state = start(name, settings, dataclasses.replace(config, num_steps=acted), env)

    collect = compiled(ppo.collect, agent, env, state, frozen)
    act = Stepper(lambda state: _acted(state, collect.call(state, frozen)), state)
    rollouts = max(5, settings.repeats // 3)  # each holds many steps
    act_ms = milliseconds(act, rollouts)
    rollout = collect.call(act.state, frozen)
    minibatches = config.num_epochs * config.num_minibatches
    learn, learn_ms, learn_count = _learning(act.state, agent, rollout, config, settings)
    env.close()

    # Beside its steps a rollout computes one more value.
    acting = (config.num_steps + 1) / (acted + 1)
    parts = [(acting, act_ms), (learn_count, learn_ms)]
    programs = [((config.num_steps + 1) / 2, collect), (minibatches, learn)]
    details = {"acting_ms": acting * _median(act_ms), "learning_ms": learn_count * _median(learn_ms)}
    if name == "stage3":
        infer, infer_ms = _inference(settings, acted, env, rollouts)
        share, steps = preset.online.decoder.stop, config.num_steps - 2
        parts.append((share * steps / (acted - 2), infer_ms))
        programs.append((share * steps, infer))
        details |= {"inverse_model_ms": steps / (acted - 2) * _median(infer_ms), "inverse_model_share": share}
    frames = config.num_envs * config.num_steps
    return measured_row(
        name,
        settings.size,
        frames // config.num_minibatches,
        "frames/s",
        frames,
        parts,
        programs,
        (preset.online if name == "stage3" else preset.scratch).dtype,
        torch_rate=torch_rate,
        **details,
    )


def _median(ms: Any) -> float:
    return float(sorted(ms)[len(ms) // 2])


def _acted(state: ppo.PPOState, rollout: ppo.Rollout) -> tuple[ppo.PPOState, Any]:
    return state.replace(actor=rollout.actor, update=state.update + 1), rollout.batch.advantage


def _learning(state: ppo.PPOState, agent: Any, rollout: ppo.Rollout, config: PPOConfig, settings: Settings):
    """The program that learns, milliseconds of its samples, and how many of those an update has."""
    if driver.fuses_steps(agent.trunk):
        improve = jax.jit(lambda state, rollout: ppo.improve(state, agent, rollout), donate_argnums=0)
        program = compiled(improve, state, rollout)
        return program, milliseconds(Stepper(lambda s: program.call(s, rollout), state), settings.repeats), 1
    size = config.num_envs * config.num_steps // config.num_minibatches
    rows = jax.random.randint(jax.random.key(1), (size,), 0, len(rollout.batch.action))
    rates = ppo.learning_rates(config, state.params, state.update)
    carry, data = (state.params, state.opt_state), {"batch": rollout.batch, "rates": rates}
    program = compiled(ppo.minibatch_step, carry, rows, **data, agent=agent, config=config)
    step = Stepper(lambda carry: program.call(carry, rows, **data), carry)
    return program, milliseconds(step, settings.repeats), config.num_epochs * config.num_minibatches


def _inference(settings: Settings, steps: int, env: envs.VectorEnv, samples: int):
    """The inverse model on a rollout's transitions: the program, and milliseconds of its samples."""
    config = settings.preset.dynamics
    model: dynamics.DynamicsState = init_dynamics(jax.random.key(2), config, OBS)
    pairs = online.Pairs.init(2 * steps * env.num_envs, config.latent_dim, env.action_space)
    obs = jnp.zeros((steps, env.num_envs, *OBS), jnp.uint8)
    action, done = (jnp.zeros(obs.shape[:2], dtype) for dtype in (jnp.int32, bool))
    program = compiled(online.add_pairs, pairs, model, obs, action, done)
    return program, milliseconds(lambda: program.call(pairs, model, obs, action, done), samples)
