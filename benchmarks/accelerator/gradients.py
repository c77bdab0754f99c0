"""Gradients of the stages' losses by device and type, and their differences."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.settings import OBS
from benchmarks.training import init_cloning, init_dynamics
from lamjax import cloning, dynamics, envs, ppo
from lamjax.config import RunConfig
from lamjax.decoding import online
from lamjax.presets import with_dtype
from lamjax.training import driver

STAGES = ("stage1", "stage2", "stage3", "ppo")
NUM_ACTIONS = 15


def gradient_errors(reference: dict[str, Any], other: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Compares gradients with those of a reference, for all parameters and for each top-level module.

    Args:
      reference: a dict of modules, each a tree of arrays.
      other: the same structure and shapes.

    Returns:
      For "all" and each module ``relative_error``, ||other - reference|| / ||reference||, and ``cosine``, of the angle
      between the two; NaN where a norm is 0.
    """

    def flat(tree: Any) -> np.ndarray:
        return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])

    def errors(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        norm_x, norm_y = np.linalg.norm(x), np.linalg.norm(y)
        if not (norm_x and norm_y):
            return {"relative_error": float("nan"), "cosine": float("nan")}
        return {"relative_error": float(np.linalg.norm(y - x) / norm_x), "cosine": float(x @ y / (norm_x * norm_y))}

    return {"all": errors(flat(reference), flat(other))} | {
        name: errors(flat(reference[name]), flat(other[name])) for name in reference
    }


def coinrun_windows(count: int) -> np.ndarray:
    """Windows uint8 ``[count, 3, 64, 64, 3]`` of coinrun under random actions, a little into the levels."""
    from benchmarks import coinrun

    env, rng, frames = coinrun.native(count), np.random.default_rng(0), []
    for _ in range(20):
        env.act(rng.integers(0, NUM_ACTIONS, count).astype(np.int32))
        frames.append(env.observe()[1]["rgb"].copy())
    env.close()
    return np.stack(frames[-3:], 1)


def random_windows(count: int) -> np.ndarray:
    """Windows uint8 ``[count, 3, 64, 64, 3]`` of pixels without any order."""
    return np.random.default_rng(0).integers(0, 256, (count, 3, *OBS), np.uint8)


@dataclasses.dataclass(frozen=True)
class Problem:
    """The point at which gradients are compared: parameters and data in host memory, the same for every device."""

    preset: RunConfig
    model: dynamics.DynamicsState
    policy: cloning.CloningState
    windows: np.ndarray

    @classmethod
    def at_start(cls, preset: RunConfig, windows: np.ndarray) -> "Problem":
        """Networks at the start of training."""
        key = jax.random.key(0)
        model = init_dynamics(key, preset.dynamics, OBS)
        policy = init_cloning(key, preset.cloning, OBS, preset.dynamics.latent_dim)
        return cls(preset, *jax.device_get((model, policy)), windows)


def _typed(problem: Problem, dtype: str) -> Problem:
    """The problem with another dtype of the activations and the same parameters."""
    preset = with_dtype(problem.preset, dtype)
    return dataclasses.replace(
        problem,
        preset=preset,
        model=problem.model.replace(config=preset.dynamics),
        policy=problem.policy.replace(config=preset.cloning),
    )


def gradients(stage: str, problem: Problem, dtype: str, device: jax.Device) -> dict[str, Any]:
    """The gradient of a stage's loss with respect to its parameters, a dict of top-level modules, on the host.

    Args:
      stage: one of `STAGES`.
      problem: parameters and data.
      dtype: dtype of the activations.
      device: where it is computed.
    """
    jit = driver.jit_once if device.platform == "cpu" else jax.jit  # a CPU is the reference, which runs once
    problem = _typed(problem, dtype)
    loss, params, data = {"stage1": _dynamics, "stage2": _cloning}.get(stage, _ppo)(problem, stage)
    with jax.default_device(device):
        params, data = jax.device_put((params, data), device)
        return jax.device_get(jit(jax.grad(loss))(params, data))


def _dynamics(problem: Problem, stage: str) -> tuple[Any, Any, Any]:
    def loss(params: Any, data: Any) -> jax.Array:
        model, windows = data
        return dynamics.loss_fn(params, model, windows)[0]

    return loss, problem.model.params, (problem.model, problem.windows)


def _cloning(problem: Problem, stage: str) -> tuple[Any, Any, Any]:
    obs = problem.windows[:, -2]
    latents = np.random.default_rng(1).normal(size=(len(obs), problem.policy.latent_dim)).astype(np.float32)

    def loss(params: Any, data: Any) -> jax.Array:
        policy, obs, latents = data
        return jnp.mean(jnp.square(cloning.predict_latents(policy.replace(params=params), obs) - latents))

    params = {name: tree for name, tree in problem.policy.params.items() if name != "value_head"}
    rest = {name: tree for name, tree in problem.policy.params.items() if name == "value_head"}
    return lambda params, data: loss(params | rest, data), params, (problem.policy, obs, latents)


def _ppo(problem: Problem, stage: str) -> tuple[Any, Any, Any]:
    """PPO's loss on a minibatch with random advantages, actions and targets."""
    obs, rng = problem.windows[:, -2], np.random.default_rng(2)
    if stage == "stage3":
        config = problem.preset.online
        agent = online.make_agent(problem.policy, config, NUM_ACTIONS)
        params, frozen = agent.init(jax.random.key(1), problem.policy)
        # The head starts at zero, and with it the gradient of what lies under it.
        head = params["policy_head"]
        params["policy_head"] = head | {"kernel": 0.1 * jax.random.normal(jax.random.key(2), head["kernel"].shape)}
    else:
        config, frozen = problem.preset.scratch, None
        agent = config.agent(envs.make("coinrun", 1).action_space)
        params = agent.init(jax.random.key(1), OBS)
    advantage, target = rng.normal(size=(2, len(obs))).astype(np.float32)
    action = rng.integers(0, NUM_ACTIONS, len(obs)).astype(np.int32)
    # Old values and probabilities are near those of networks at their start: nothing is clipped.
    log_prob, value = np.full_like(target, -np.log(NUM_ACTIONS)), np.zeros_like(target)
    batch = ppo.Batch(None, action, log_prob, value, advantage, target)

    def loss(params: Any, data: Any) -> jax.Array:
        batch, obs, frozen = data
        return ppo.loss_fn(params, agent, batch.replace(features=agent.encode(frozen, obs)), config.ppo)[0]

    return loss, *jax.device_get((params, (batch, obs, frozen)))
