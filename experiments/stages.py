"""The library's stages as the experiments run them: small networks, jitted whole, and what stage 1 learned."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from lamjax import cloning, dynamics, envs, jitted, policies
from lamjax.analysis import latents, probes
from lamjax.analysis.examine import perplexity, still
from lamjax.cloning import CloningConfig
from lamjax.config import RunConfig, ScratchConfig
from lamjax.decoding import behaviour_cloning
from lamjax.decoding.online import LEARNING_RATES, OnlineConfig
from lamjax.dynamics import DynamicsState
from lamjax.envs.api import VectorEnv
from lamjax.jitted import Trajectories
from lamjax.models.grid import GridConfig, GridFDMConfig
from lamjax.ppo import ActorCriticAgent
from lamjax.preprocess import ObsStats
from lamjax.presets import GRID_PRESETS, VECTOR_PRESETS
from lamjax.training.driver import jit_once
from lamjax.training.steps import labelled_step

_GRID = GRID_PRESETS["cpu"]


def _slowly(stage: ScratchConfig) -> ScratchConfig:
    """PPO at a fifth of the preset's rate: the demonstrators, of 11.8 on Breakout, and PPO from scratch were so."""
    rates = (("", ((0.0, 1e-3), (1.0, 0.0))),)
    return dataclasses.replace(stage, ppo=dataclasses.replace(stage.ppo, learning_rates=rates))


# The presets, with half the channels and batches of 64: a cell takes seconds, and 15 or more are needed. Without a
# quantiser, since that is what gave a policy on grids (`vq_ablation`); PPO trains the last layers, unless it says so.
GRID = dataclasses.replace(
    _GRID,
    dynamics=dataclasses.replace(
        _GRID.dynamics,
        steps=1000,
        batch_size=64,
        idm=GridConfig(channels=(16,), features=64),
        fdm=GridFDMConfig(channels=16, blocks=1),
        quantizer=dataclasses.replace(_GRID.dynamics.quantizer, enabled=False),
    ),
    cloning=dataclasses.replace(_GRID.cloning, steps=2000, batch_size=64),
    offline=dataclasses.replace(_GRID.offline, steps=1000, hidden=(64,)),
    online=dataclasses.replace(
        _GRID.online, train="head", ppo=dataclasses.replace(_GRID.online.ppo, learning_rates=LEARNING_RATES)
    ),
    scratch=_slowly(_GRID.scratch),
    expert=_slowly(_GRID.expert),
)
_VECTOR = VECTOR_PRESETS["cpu"]
VECTOR = dataclasses.replace(
    _VECTOR,
    dynamics=dataclasses.replace(_VECTOR.dynamics, steps=2000),
    cloning=dataclasses.replace(_VECTOR.cloning, steps=2000),
    offline=dataclasses.replace(_VECTOR.offline, steps=1000, hidden=(64,)),
)

EXPERT_FRAMES = {"minatar/breakout": 1_048_576, "cartpole": 262_144}
NUM_ENVS = 64
PROBE_TRAIN, PROBE_TEST = 8192, 2048

learn = jax.jit(jitted.learn, static_argnames=("env", "config"))
record = jax.jit(jitted.record, static_argnames=("env", "policy", "steps", "read"))
train_dynamics = jax.jit(jitted.train_dynamics, static_argnames=("config", "space"))
train_cloning = jax.jit(jitted.train_cloning, static_argnames="config")
evaluate = jax.jit(jitted.evaluate, static_argnames=("env", "policy", "per_env"))
windows = jax.jit(jitted.windows, static_argnames="count")
untrained_dynamics = jit_once(jitted.untrained_dynamics, static_argnames=("config", "space"))
_starts = jax.jit(jitted.starts, static_argnames="count")
available = jax.jit(lambda trajectories: jitted.buffer(trajectories).num_starts)
_evaluate_dynamics = jax.jit(dynamics.evaluate)


def keys(seed: int, count: int = 8) -> jax.Array:
    """The keys of a seed's steps, typed ``[count]``."""
    return jax.random.split(jax.random.key(seed), count)


def settings(env: str) -> RunConfig:
    return VECTOR if env == "cartpole" else GRID


def expert_config(env: str) -> ScratchConfig:
    """PPO's settings for the demonstrator that most experiments share."""
    config = settings(env).expert
    return dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, total_frames=EXPERT_FRAMES[env]))


def expert_folder(env: str, seed: int, config: ScratchConfig | None = None) -> Path:
    frames = (config or expert_config(env)).ppo.total_frames
    return common.WORK / "experts" / f"{env.replace('/', '-')}-{frames}-s{seed}"


def expert(env: str, seed: int, config: ScratchConfig | None = None) -> tuple[policies.Policy, dict]:
    """A demonstrator that PPO trained from scratch, kept in a folder: what asks for it again shares it."""
    folder, config = expert_folder(env, seed, config), config or expert_config(env)
    if not (folder / "policy.json").exists():
        vector = envs.make(env, config.ppo.num_envs)
        network = ActorCriticAgent(config.trunk, vector.num_actions)
        key_learn, key_play = jax.random.split(jax.random.key(1_000_003 + seed))
        params, metrics = learn(key_learn, vector, config)
        returns = evaluate(key_play, envs.make(env, NUM_ENVS), network, params, 2)
        info = {"env": env, "seed": seed, "frames": config.ppo.total_frames, "return_mean": float(returns.mean())}
        info["curve"] = [float(x) for x in np.nan_to_num(metrics["episode_return"])]
        policies.save_policy(folder, network, params, info)
    policy, params, _ = policies.load_policy(folder)
    return policy, params


def expert_info(env: str, seed: int, config: ScratchConfig | None = None) -> dict:
    """What is known of it: ``return_mean`` over 128 episodes, ``frames``, and ``curve``, returns while it learned."""
    expert(env, seed, config)
    return json.loads((expert_folder(env, seed, config) / "policy.json").read_text())["info"]


def expert_return(env: str, seed: int) -> float:
    """What the demonstrator got over 128 episodes."""
    return expert_info(env, seed)["return_mean"]


def infer(model: DynamicsState, windows: np.ndarray) -> np.ndarray:
    """Latents before the quantiser, float32 ``[E, Z]``."""
    return latents.latents_of(model, windows)[0]


def drawn(key: jax.Array, trajectories: Trajectories, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows on the host ``[E, 3, *obs_shape]``, the actions at their middle, and where they start among all frames.

    Recordings of few windows give them all, at most `count`.
    """
    count = min(count, int(available(trajectories)))
    starts = np.asarray(_starts(key, trajectories, count))
    frames = np.asarray(trajectories.obs).reshape(-1, *trajectories.obs.shape[2:])
    return frames[starts[:, None] + np.arange(3)], np.asarray(trajectories.action).reshape(-1)[starts + 1], starts


def examine(
    key: jax.Array,
    model: DynamicsState,
    untrained: DynamicsState,
    train: Trajectories,
    held_out: Trajectories,
    classes: int,
) -> dict[str, float]:
    """What stage 1 learned, on recordings that it did not see, beside its nulls.

    Returns:
      ``fdm_ratio`` (error over that of copying), ``perplexity`` and ``used_codes`` (means over codebooks), ``probe``
      and its nulls ``untrained_probe``, ``still_probe`` (untrained, shown o_t alone) and ``majority``,
      ``linear_probe``, and ``nmi`` of joint codes and actions beside ``nmi_shuffled``.
    """
    keys = jax.random.split(key, 3)
    fit, fit_actions, _ = drawn(keys[0], train, PROBE_TRAIN)
    test, test_actions, _ = drawn(keys[1], held_out, PROBE_TEST)
    errors = jax.device_get(_evaluate_dynamics(model, test))
    z, codes = latents.latents_of(model, test)
    fit_z = infer(model, fit)

    def probe(some: DynamicsState, view=lambda windows: windows) -> float:
        return probes.accuracy(
            keys[2], infer(some, view(fit)), fit_actions, infer(some, view(test)), test_actions, classes
        )

    match = probes.agreement(codes, test_actions, range(classes), 0)
    return {
        "fdm_ratio": float(errors["fdm_mse"] / errors["copy_last_mse"]),
        "probe": probes.accuracy(keys[2], fit_z, fit_actions, z, test_actions, classes),
        "untrained_probe": probe(untrained),
        "still_probe": probe(untrained, still),
        "majority": probes.majority_accuracy(fit_actions, test_actions),
        "linear_probe": probes.accuracy(keys[2], fit_z, fit_actions, z, test_actions, classes, hidden=()),
        "perplexity": float(perplexity(errors["code_counts"]).mean()),
        "used_codes": float((errors["code_counts"] > 0).sum(-1).mean()),
        "nmi": match["code_nmi"],
        "nmi_shuffled": match["code_nmi_shuffled"],
    }


@functools.partial(jax.jit, static_argnames=("config", "env"))
def decode_online(
    key: jax.Array, config: OnlineConfig, policy: cloning.CloningState, model: DynamicsState, env: VectorEnv
) -> tuple[dict, dict[str, jax.Array]]:
    """Parameters and metrics of `jitted.decode_online`, whose agent is no array."""
    return jitted.decode_online(key, config, policy, model, env)[1:]


_predict = jax.jit(cloning.predict_latents)


def cloning_ratio(key: jax.Array, policy: cloning.CloningState, model: DynamicsState, held_out: Trajectories) -> float:
    """Stage 2's error on held-out latents over their variance."""
    windows, _, _ = drawn(key, held_out, PROBE_TEST)
    target, found = infer(model, windows), np.asarray(_predict(policy, jnp.asarray(windows[:, 1])))
    return float(np.square(found - target).mean() / np.square(target - target.mean(0)).mean())


def decoded_return(
    key: jax.Array, config: RunConfig, policy: cloning.CloningState, train: Trajectories, labels: int, env: VectorEnv
) -> float:
    """The mean return of the latent policy, decoded from so many labels, over two episodes in each environment."""
    key_labels, key_fit, key_play = jax.random.split(key, 3)
    seen, taken = windows(key_labels, train, labels)
    network, params = jitted.decode_offline(key_fit, config.offline, policy, seen[:, 1], taken, env.num_actions)
    return float(evaluate(key_play, env, network, params, 2).mean())


@functools.partial(jax.jit, static_argnames=("config", "num_actions", "decays"))
def clone_actions(
    key: jax.Array,
    config: CloningConfig,
    obs: jax.Array,
    taken: jax.Array,
    num_actions: int,
    stats: ObsStats,
    *,
    decays: bool,
) -> dict:
    """The parameters of a policy cloned from observations ``[L, *obs_shape]`` and actions ``[L]``.

    As in a run, the learning rate stays at its peak for a few true labels, and decays as stage 2's for pseudo-labels of
    all windows.
    """
    key_init, key_rows = jax.random.split(key)
    state = behaviour_cloning.init(key_init, config, num_actions, obs.shape[1:], decays, stats)

    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key_rows, jnp.arange(config.steps))
    rows = jax.vmap(lambda key: jax.random.randint(key, (config.batch_size,), 0, len(obs)))(keys)
    return jax.lax.scan(lambda s, _: labelled_step(s, obs, taken, rows), state, length=config.steps)[0].policy_params


@functools.cache
def recorded(env: str, policy: str, steps: int, seed: int) -> tuple[Trajectories, Trajectories]:
    """Training and held-out recordings of 64 environments, of the demonstrator or of uniform actions."""
    vector = envs.make(env, NUM_ENVS)
    uniform = policies.UniformPolicy(vector.num_actions), {}
    return jitted.split(record(keys(seed)[0], vector, *(expert(env, seed) if policy == "expert" else uniform), steps))
