"""The library's stages as the experiments run them: small networks, each stage jitted as a whole."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from lamjax import cloning, dynamics, envs, jitted, policies
from lamjax.analysis import latents, probes
from lamjax.analysis.examine import perplexity, still
from lamjax.cloning import CloningConfig, CloningState
from lamjax.config import RunConfig, ScratchConfig
from lamjax.decoding import behaviour_cloning, offline
from lamjax.decoding.online import LEARNING_RATES, OnlineConfig
from lamjax.dynamics import DynamicsState
from lamjax.envs.api import VectorEnv
from lamjax.jitted import Trajectories
from lamjax.models.grid import GridConfig, GridFDMConfig
from lamjax.preprocess import ObsStats
from lamjax.presets import GRID_PRESETS, VECTOR_PRESETS
from lamjax.spaces import ActionSpace
from lamjax.training.driver import jit_once
from lamjax.training.steps import labelled_step


def with_ppo(stage: Any, **settings: Any) -> Any:
    """The settings of a stage that trains with PPO, with some of PPO's settings replaced."""
    return dataclasses.replace(stage, ppo=dataclasses.replace(stage.ppo, **settings))


# The tables of grids were measured with these settings, and a test holds them. If the preset changes, write them out
# here, or a resumed experiment would mix two recipes in one table.
MEASURED = GRID_PRESETS["cpu"]
# A fifth of the preset's rate. With it the demonstrators reached a mean return of 11.8 on Breakout.
_SLOW = (("", ((0.0, 1e-3), (1.0, 0.0))),)

# The presets, with half the channels and batches of 64: a cell takes seconds, and an experiment has 15 or more. There
# is no quantiser, because only continuous latents gave a policy on grids (`vq_ablation`). Online, PPO trains the last
# layers unless an experiment says otherwise.
GRID = dataclasses.replace(
    MEASURED,
    dynamics=dataclasses.replace(
        MEASURED.dynamics,
        steps=1000,
        batch_size=64,
        idm=GridConfig(channels=(16,), features=64),
        fdm=GridFDMConfig(channels=16, blocks=1),
        quantizer=dataclasses.replace(MEASURED.dynamics.quantizer, enabled=False),
    ),
    cloning=dataclasses.replace(MEASURED.cloning, steps=2000, batch_size=64),
    offline=dataclasses.replace(MEASURED.offline, steps=1000, hidden=(64,)),
    online=dataclasses.replace(with_ppo(MEASURED.online, learning_rates=LEARNING_RATES), train="head"),
    scratch=with_ppo(MEASURED.scratch, learning_rates=_SLOW),
    expert=with_ppo(MEASURED.expert, learning_rates=_SLOW),
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
available = jax.jit(lambda trajectories: jitted.buffer(trajectories).num_starts)
_starts = jax.jit(jitted.starts, static_argnames="count")
_evaluate_dynamics = jax.jit(dynamics.evaluate)
_predict_latents = jax.jit(cloning.predict_latents)
_pseudo_labels = jax.jit(behaviour_cloning.pseudo_labels, static_argnames=("config", "space"))


def keys(seed: int, count: int = 8) -> jax.Array:
    """The keys of a seed's steps, typed ``[count]``."""
    return jax.random.split(jax.random.key(seed), count)


def expert_config(env: str) -> ScratchConfig:
    """PPO's settings for the demonstrator that most experiments share."""
    return with_ppo((VECTOR if env == "cartpole" else GRID).expert, total_frames=EXPERT_FRAMES[env])


def expert_folder(env: str, seed: int, config: ScratchConfig | None = None) -> Path:
    """The folder of a demonstrator."""
    frames = (config or expert_config(env)).ppo.total_frames
    return common.WORK / "experts" / f"{env.replace('/', '-')}-{frames}-s{seed}"


def expert(env: str, seed: int, config: ScratchConfig | None = None) -> tuple[policies.Policy, dict]:
    """A demonstrator that PPO trained from scratch, and its parameters; the first call trains it and saves it."""
    folder, config = expert_folder(env, seed, config), config or expert_config(env)
    if not (folder / "policy.json").exists():
        vector = envs.make(env, config.ppo.num_envs)
        network = config.agent(vector.action_space)
        key_learn, key_play = jax.random.split(jax.random.key(1_000_003 + seed))
        params, metrics = learn(key_learn, vector, config)
        returns = evaluate(key_play, envs.make(env, NUM_ENVS), network, params, 2)
        info = {"env": env, "seed": seed, "frames": config.ppo.total_frames, "return_mean": float(returns.mean())}
        info["curve"] = [float(x) for x in np.nan_to_num(metrics["episode_return"])]
        policies.save_policy(folder, network, params, info)
    policy, params, _ = policies.load_policy(folder)
    return policy, params


def expert_info(env: str, seed: int, config: ScratchConfig | None = None) -> dict:
    """``return_mean`` over 128 episodes, ``frames``, and ``curve``, the returns of a demonstrator's training."""
    expert(env, seed, config)
    return json.loads((expert_folder(env, seed, config) / "policy.json").read_text())["info"]


def expert_return(env: str, seed: int) -> float:
    """The demonstrator's mean return over 128 episodes."""
    return expert_info(env, seed)["return_mean"]


@functools.cache
def recordings(env: str, policy: str, steps: int, seed: int) -> tuple[Trajectories, Trajectories]:
    """Training and held-out recordings of 64 environments, by the demonstrator or with uniform actions."""
    vector = envs.make(env, NUM_ENVS)
    uniform = policies.UniformPolicy(vector.num_actions), {}
    return jitted.split(record(keys(seed)[0], vector, *(expert(env, seed) if policy == "expert" else uniform), steps))


def train_models(seed: int, config: RunConfig, train: Trajectories) -> tuple[DynamicsState, CloningState]:
    """Stages 1 and 2 on a recording."""
    _, key_dynamics, key_cloning, *_ = keys(seed)
    model, _ = train_dynamics(key_dynamics, config.dynamics, train)
    policy, _ = train_cloning(key_cloning, config.cloning, train, model)
    return model, policy


def infer(model: DynamicsState, windows: np.ndarray) -> np.ndarray:
    """Latents before the quantiser, float32 ``[E, Z]``."""
    return latents.latents_of(model, windows)[0]


def draw_windows(key: jax.Array, trajectories: Trajectories, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws windows in host memory ``[E, 3, *obs_shape]``, the actions at o_t, and the index of each first frame.

    E is `count`, or the number of all windows if there are fewer.
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
    """Measures stage 1 and its baselines on held-out recordings.

    Returns:
      ``fdm_ratio`` (the error over that of the copy-last baseline), ``perplexity`` and ``used_codes`` (means over
      codebooks), ``probe`` and its baselines ``untrained_probe``, ``still_probe`` (untrained, given only o_t) and
      ``majority``, ``linear_probe``, and ``nmi`` of joint codes and actions with its baseline ``nmi_shuffled``.
    """
    key_fit, key_test, key_probe = jax.random.split(key, 3)
    fit, fit_actions, _ = draw_windows(key_fit, train, PROBE_TRAIN)
    test, test_actions, _ = draw_windows(key_test, held_out, PROBE_TEST)
    errors = jax.device_get(_evaluate_dynamics(model, test))
    test_z, codes = latents.latents_of(model, test)
    fit_z = infer(model, fit)
    agreement = probes.agreement(codes, test_actions, range(classes), 0)

    def probe(fit_z: np.ndarray, test_z: np.ndarray, **options) -> float:
        return probes.accuracy(key_probe, fit_z, fit_actions, test_z, test_actions, classes, **options)

    return {
        "fdm_ratio": float(errors["fdm_mse"] / errors["copy_last_mse"]),
        "probe": probe(fit_z, test_z),
        "untrained_probe": probe(infer(untrained, fit), infer(untrained, test)),
        "still_probe": probe(infer(untrained, still(fit)), infer(untrained, still(test))),
        "majority": probes.majority_accuracy(fit_actions, test_actions),
        "linear_probe": probe(fit_z, test_z, hidden=()),
        "perplexity": float(perplexity(errors["code_counts"]).mean()),
        "used_codes": float((errors["code_counts"] > 0).sum(-1).mean()),
        "nmi": agreement["code_nmi"],
        "nmi_shuffled": agreement["code_nmi_shuffled"],
    }


@functools.partial(jax.jit, static_argnames=("config", "env"))
def decode_online(
    key: jax.Array, config: OnlineConfig, policy: CloningState, model: DynamicsState, env: VectorEnv
) -> tuple[dict, dict[str, jax.Array]]:
    """Parameters and metrics of `jitted.decode_online`, whose agent is not an array."""
    return jitted.decode_online(key, config, policy, model, env)[1:]


def cloning_ratio(key: jax.Array, policy: CloningState, model: DynamicsState, held_out: Trajectories) -> float:
    """Stage 2's squared error on held-out latents over their variance."""
    windows, _, _ = draw_windows(key, held_out, PROBE_TEST)
    target, prediction = infer(model, windows), np.asarray(_predict_latents(policy, jnp.asarray(windows[:, 1])))
    return float(np.square(prediction - target).mean() / np.square(target - target.mean(0)).mean())


def decoded_return(
    key: jax.Array, config: RunConfig, policy: CloningState, train: Trajectories, labels: int, env: VectorEnv
) -> float:
    """The mean return of the latent policy, decoded from `labels` labels, over two episodes in each environment."""
    key_labels, key_fit, key_play = jax.random.split(key, 3)
    labelled, actions = windows(key_labels, train, labels)
    network, params = jitted.decode_offline(key_fit, config.offline, policy, labelled[:, 1], actions, env.num_actions)
    return float(evaluate(key_play, env, network, params, 2).mean())


@functools.partial(jax.jit, static_argnames=("config", "space", "decays"))
def clone_actions(
    key: jax.Array,
    config: CloningConfig,
    obs: jax.Array,
    actions: jax.Array,
    space: ActionSpace | int,
    stats: ObsStats,
    *,
    decays: bool,
) -> dict:
    """The parameters of a policy cloned from observations ``[L, *obs_shape]`` and actions ``[L]``.

    As in a run, the learning rate stays at its peak for a few true labels, and decays as stage 2's for pseudo-labels of
    all windows.
    """
    key_init, key_rows = jax.random.split(key)
    state = behaviour_cloning.init(key_init, config, space, obs.shape[1:], decays, stats)

    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key_rows, jnp.arange(config.steps))
    rows = jax.vmap(lambda key: jax.random.randint(key, (config.batch_size,), 0, len(obs)))(keys)
    return jax.lax.scan(lambda s, _: labelled_step(s, obs, actions, rows), state, length=config.steps)[0].policy_params


def clone_pseudo_labels(
    keys: Sequence[jax.Array],
    config: RunConfig,
    model: DynamicsState,
    train: Trajectories,
    count: int,
    labels: tuple[jax.Array, jax.Array],
    space: ActionSpace | int,
) -> dict:
    """The parameters of a policy cloned from pseudo-labels of training windows (LAPO+).

    Args:
      keys: keys for the decoder, for the windows, and for the policy.
      config: the settings.
      model: stage 1.
      train: the recording.
      count: how many of its windows get a pseudo-label.
      labels: windows ``[L, 3, *obs_shape]`` and their actions ``[L]``, which the decoder is fitted on.
      space: the action space, or the number of actions.
    """
    key_fit, key_windows, key_clone = keys
    z = jnp.asarray(infer(model, np.asarray(labels[0])))
    decoder, _ = offline.fit(key_fit, z, jnp.asarray(labels[1]), config.offline, space)
    windows, _, _ = draw_windows(key_windows, train, count)
    actions = _pseudo_labels(decoder, jnp.asarray(infer(model, windows)), config.offline, space)
    obs, stats = jnp.asarray(windows[:, 1]), jitted.stats(train)
    return clone_actions(key_clone, config.cloning, obs, actions, space, stats, decays=True)
