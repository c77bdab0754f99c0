"""Run folders of tiny untrained models, for what reads a run and trains none."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import cloning, dynamics
from lamjax.decoding import offline
from lamjax.models import locator
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig, MLPFDMConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.unet import UNetConfig
from lamjax.policies import DecodedPolicy, save_policy
from lamjax.preprocess import obs_stats
from lamjax.presets import PRESETS
from lamjax.spaces import as_space
from lamjax.training import checkpoint
from lamjax.training.driver import jit_once

IMAGE, VECTOR, ACTIONS = (16, 12, 3), (5,), 4
CODES = QuantizerConfig(codebooks=2, latents=1, dim=3, codes=8)
TRUNK = ImpalaConfig(channels=(4, 6), strides=(2, 2), blocks=0, features=16, stem=2, pool=False)
STAGE_1 = {
    IMAGE: {"idm": TRUNK, "fdm": UNetConfig(channels=(4, 6), bottleneck=8, stem=2, latent_input="bias")},
    VECTOR: {"idm": MLPConfig(hidden=(12,), features=9), "fdm": MLPFDMConfig(hidden=(10,))},
}
DECODER = offline.OfflineConfig(steps=5, hidden=(8,)).program

init_dynamics = jit_once(dynamics.init, static_argnums=(1, 2, 4))
init_locator = jit_once(locator.init, static_argnums=(1, 2))
init_cloning = jit_once(cloning.init, static_argnums=(1, 2, 3))


def stage_1(obs_shape=IMAGE, **settings):
    """Stage 1 with random weights, for images uint8 or vectors float32."""
    config = dynamics.DynamicsConfig(quantizer=CODES, **STAGE_1[obs_shape], **settings)
    stats = obs_stats(clip(obs_shape, 50)) if obs_shape == VECTOR else None
    space = as_space(ACTIONS) if config.action_weight else None
    network = init_locator(jax.random.key(1), config.locator, obs_shape).params if config.finds_agent else None
    return init_dynamics(jax.random.key(0), config, obs_shape, stats, space, network)


def clip(obs_shape=IMAGE, frames=20, seed=0):
    """A clip ``[T, *obs_shape]`` of noise."""
    rng = np.random.default_rng(seed)
    if obs_shape == VECTOR:
        return rng.normal(3, 2, (frames, *obs_shape)).astype(np.float32)
    return rng.integers(0, 256, (frames, *obs_shape), np.uint8)


def windows_of(frames, length=3):
    """All windows ``[T - length + 1, length, *obs_shape]`` of a clip."""
    return np.stack([frames[i : i + length] for i in range(len(frames) - length + 1)])


def decoder(state, seed=1):
    """A decoder of the latents with random weights."""
    zeros = jnp.zeros((1, state.config.latent_dim))
    net = offline.decoder(DECODER, ACTIONS).init(jax.random.key(seed), zeros)
    return {"mean": zeros[0], "scale": jnp.float32(0.5), "net": net}


def write_run(folder, obs_shape=IMAGE, *, labels=(16, 64), env="clips", summary=None, **settings):
    """Writes the folder of a run with both stages and offline policies for some numbers of labels; returns stage 1."""
    state = stage_1(obs_shape, **settings)
    config = dataclasses.replace(PRESETS["smoke"], dynamics=state.config)
    if obs_shape == VECTOR:
        config = dataclasses.replace(config, cloning=cloning.CloningConfig(trunk=MLPConfig(hidden=(8,), features=6)))
    policy = init_cloning(jax.random.key(2), config.cloning, obs_shape, state.config.latent_dim, state.obs_stats)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"env": env, **checkpoint.as_json(config)}))
    space = checkpoint.as_json(as_space(ACTIONS))
    record = {"obs_shape": list(obs_shape), "action_space": space, "frames": 640, "episodes": 10}
    summary = {"env": env, "seed": 0, **(summary or {})}
    summary["stages"] = {"record": record, **summary.get("stages", {})}
    (folder / "summary.json").write_text(json.dumps(summary))
    for name, each in (("dynamics", state), ("cloning", policy)):
        checkpoint.save(folder / "checkpoints" / name, 1, each, config=each.config)
    network = DecodedPolicy(policy.config.trunk, policy.latent_dim, ACTIONS, DECODER)
    for count in labels:
        params = network.init(policy, decoder(state, count))
        save_policy(folder / "policies" / f"offline-{count}", network, params, {"return_mean": 1.0})
    return state
