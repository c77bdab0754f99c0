"""Stage 3 and PPO from scratch: acting in real coinrun, learning, and the inverse model's inference.

The parts of an update are timed separately, with the calls that a run makes, and added up. The inverse model works
only in the first tenth of stage 3. On a CPU the paper's networks need minutes for an update, so one minibatch stands
for all.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Program, Stepper, compiled, milliseconds
from benchmarks.measure import row as measured_row
from benchmarks.settings import OBS, Settings
from benchmarks.training import init_cloning, init_dynamics
from lamjax import dynamics, envs, ppo
from lamjax.config import ScratchConfig
from lamjax.decoding import online
from lamjax.decoding.online import OnlineConfig
from lamjax.ppo import PPOConfig
from lamjax.presets import PRESETS


def stage_config(name: str, settings: Settings) -> OnlineConfig | ScratchConfig:
    """The settings of a row's stage."""
    return settings.preset.online if name == "stage3" else settings.preset.scratch


def ppo_config(name: str, settings: Settings) -> PPOConfig:
    """PPO's settings of a row."""
    if name == "stage3":
        return online.effective_ppo(settings.preset.online)
    config = settings.preset.scratch.ppo
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


def one_minibatch(config: PPOConfig) -> PPOConfig:
    """An update of a single minibatch, as large as the config's, on as many steps as fill it."""
    steps = config.num_steps // config.num_minibatches
    return dataclasses.replace(config, num_steps=steps, num_epochs=1, num_minibatches=1)


def row(name: str, settings: Settings, torch_rate: float | None) -> dict[str, Any]:
    """One row of the table."""
    preset, config = settings.preset, ppo_config(name, settings)
    timed = one_minibatch(config) if settings.slow else config
    env = envs.make("coinrun", config.num_envs)
    agent, frozen, state = start(name, settings, timed, env)
    driver, samples = ppo.Driver(agent, env), max(5, settings.repeats // 3)  # each holds many steps
    costs = _costs(driver, state.replace(config=one_minibatch(config)), frozen)

    act = Stepper(lambda state: acted(state, driver.collect(state, frozen)), state)
    act_ms = milliseconds(act, samples)
    rollout = driver.collect(act.state, frozen)
    learn_ms = milliseconds(Stepper(lambda state: driver.improve(state, rollout), act.state), samples)
    env.close()

    # A rollout computes one value more than it has steps. XLA counts one step of a rollout's loop.
    minibatches = config.num_epochs * config.num_minibatches
    acting = (config.num_steps + 1) / (timed.num_steps + 1)
    learning = minibatches / (timed.num_epochs * timed.num_minibatches)
    parts = [(acting, act_ms), (learning, learn_ms)]
    programs = list(zip(((config.num_steps + 1) / 2, minibatches), costs, strict=True))
    details = {"acting_ms": acting * np.median(act_ms), "learning_ms": learning * np.median(learn_ms)}
    if name == "stage3":
        infer, infer_ms = _inference(settings, timed.num_steps, env, samples)
        share, steps = preset.online.decoder.stop, config.num_steps - 2
        parts.append((share * steps / (timed.num_steps - 2), infer_ms))
        programs.append((share * steps, infer))
        inferring = steps / (timed.num_steps - 2) * np.median(infer_ms)
        details |= {"inverse_model_ms": inferring, "inverse_model_share": share}
    frames = config.frames_per_update
    return measured_row(
        name,
        settings.size,
        frames // config.num_minibatches,
        "frames/s",
        frames,
        parts,
        programs,
        stage_config(name, settings).dtype,
        torch_rate=torch_rate,
        **{key: float(value) for key, value in details.items()},
    )


def acted(state: ppo.PPOState, rollout: ppo.Rollout) -> tuple[ppo.PPOState, Any]:
    """The state after a round of acting without learning, and an array to block on."""
    return state.replace(actor=rollout.actor, update=state.update + 1), rollout.batch.advantage


def _costs(driver: ppo.Driver, state: ppo.PPOState, frozen: Any) -> tuple[Program, Program]:
    """Compiles acting and learning of one minibatch for XLA's counts."""
    rollout = jax.eval_shape(driver.collect, state, frozen)
    return compiled(jax.jit(driver.collect), state, frozen), compiled(jax.jit(driver.improve), state, rollout)


def _inference(settings: Settings, steps: int, env: envs.VectorEnv, samples: int) -> tuple[Program, np.ndarray]:
    """The inverse model on a rollout's transitions: the program, and milliseconds of its samples."""
    config = settings.preset.dynamics
    model: dynamics.DynamicsState = init_dynamics(jax.random.key(2), config, OBS)
    pairs = online.Pairs.init(2 * steps * env.num_envs, config.latent_dim, env.action_space)
    obs = jnp.zeros((steps, env.num_envs, *OBS), jnp.uint8)
    action, done = (jnp.zeros(obs.shape[:2], dtype) for dtype in (jnp.int32, bool))
    program = compiled(online.add_pairs, pairs, model, obs, action, done)
    return program, milliseconds(lambda: program.call(pairs, model, obs, action, done), samples)
