"""A latent policy of one game, decoded by PPO in a changed one, against PPO from scratch there."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import Experiment, Row, bars, grid, style, table
from lamjax import envs, fused, policies
from lamjax.config import RunConfig
from lamjax.envs.api import VectorEnv
from lamjax.envs.wrappers import Disobedient
from lamjax.ppo.agent import ScratchAgent

GAME, STEPS, FRAMES = "minatar/breakout", 512, 131_072
CONFIG = stages.GRID
GAMES = {
    "same": "the game that was recorded",
    "sticky": "a quarter of the actions repeated",
    "reversed": "left and right exchanged",
    "permuted": "channels exchanged",
}
METHODS = {"latents": "latent policy, decoded by PPO", "scratch": "PPO from scratch"}
LEVELS = dict.fromkeys(METHODS, tuple(GAMES))


@dataclasses.dataclass(frozen=True)
class Changed:
    """An environment whose actions are renamed, and whose frames look different and mean the same."""

    env: VectorEnv
    how: str

    name = property(lambda self: self.env.name)
    num_envs = property(lambda self: self.env.num_envs)
    num_actions = property(lambda self: self.env.num_actions)
    obs_shape = property(lambda self: self.env.obs_shape)
    obs_dtype = property(lambda self: self.env.obs_dtype)

    def show(self, obs: jax.Array) -> jax.Array:
        return jnp.roll(obs, 1, axis=-1) if self.how == "permuted" else obs

    def reset(self, key: jax.Array, params: Any = None):
        obs, state = self.env.reset(key, params)
        return self.show(obs), state

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any = None):
        if self.how == "reversed":
            action = jnp.array([0, 2, 1])[action]  # stay, left, right
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        final = self.show(info["final_observation"])
        return self.show(obs), state, reward, terminated, truncated, {**info, "final_observation": final}


def changed(how: str, num_envs: int) -> VectorEnv:
    env = envs.make(GAME, num_envs)
    if how == "sticky":
        return Disobedient(env, sticky=0.25)
    return env if how == "same" else Changed(env, how)


def settings() -> RunConfig:
    """Both ways of learning get the same frames."""
    online, scratch = CONFIG.online, CONFIG.scratch
    return dataclasses.replace(
        CONFIG,
        online=dataclasses.replace(online, ppo=dataclasses.replace(online.ppo, total_frames=FRAMES)),
        scratch=dataclasses.replace(scratch, ppo=dataclasses.replace(scratch.ppo, total_frames=FRAMES)),
    )


@functools.lru_cache(maxsize=1)
def learned(seed: int):
    """Stages 1 and 2 on the demonstrator's game."""
    keys = stages.keys(seed)
    train, _ = stages.recorded(GAME, "expert", STEPS, seed)
    model, _ = stages.train_dynamics(keys[1], CONFIG.dynamics, train)
    return model, stages.train_cloning(keys[2], CONFIG.cloning, train, model)[0]


@functools.partial(jax.jit, static_argnames=("config", "env"))
def decode(key, config, policy, model, env):
    """Parameters and metrics of online decoding."""
    return fused.decode_online(key, config, policy, model, env)[1:]


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    keys, config = stages.keys(seed), settings()
    if variant == "latents":
        model, policy = learned(seed)
        env = changed(level, config.online.ppo.num_envs)
        params, metrics = decode(keys[3], config.online, policy, model, env)
        network = fused.online.make_agent(policy, config.online, env.num_actions)
    else:
        env = changed(level, config.scratch.ppo.num_envs)
        params, metrics = stages.learn(keys[3], env, config.scratch)
        network = ScratchAgent(config.scratch.trunk, env.num_actions)
    returns = stages.evaluate(keys[4], changed(level, stages.NUM_ENVS), policies.Logits(network), params, 2)
    course = np.asarray(metrics["episode_return"])
    quarter = np.array_split(course, 4)
    accuracy = np.asarray(metrics.get("decoder_accuracy", np.full(1, np.nan)))
    accuracy = accuracy[np.isfinite(accuracy)]
    return {
        "return": float(returns.mean()),
        "first_quarter": float(np.nanmean(quarter[0])),
        "whole_course": float(np.nanmean(course)),
        "decoder_accuracy": float(accuracy[-1]) if len(accuracy) else float("nan"),
        "expert_return": stages.expert_return(GAME, seed),
    }


def draw(rows: Sequence[Row]) -> Figure:
    fig, axes = common.panels(2, width=4.2)
    told = (
        ("first_quarter", f"While learning: the first quarter of {FRAMES:,} frames", "return of training episodes"),
        ("return", f"After {FRAMES:,} frames", "return"),
    )
    for ax, (column, title, unit) in zip(axes, told, strict=True):
        for place, (method, name) in enumerate(METHODS.items()):
            cells = [(method, game, game) for game in GAMES]
            bars(ax, rows, cells, column, place, first=0.4 * place - 0.2, width=0.36, label=name)
        style(ax, title, "", unit)
    expert = np.mean([float(row["expert_return"]) for row in rows])
    axes[1].axhline(expert, color="#333333", linewidth=0.9, linestyle=":", label="the recorded expert")
    axes[1].legend(fontsize=7, frameon=False)
    return fig


def sections(rows: Sequence[Row]) -> dict[str, str]:
    heads = ("method", "game", "return, first quarter", "return, all of training", "return after", "decoder's accuracy")
    columns = {"first_quarter": 2, "whole_course": 2, "return": 2, "decoder_accuracy": 2}
    games = "; ".join(f"{name}: {what}" for name, what in GAMES.items())
    return {"transfer": f"{table(rows, heads, columns, METHODS)}\n\nGames: {games}."}


EXPERIMENT = Experiment(
    name="transfer",
    claim="A latent policy is a head start where actions or dynamics change, as long as frames look alike.",
    expected="ahead of PPO from scratch in the same, the sticky and the reversed game; no help where channels are new.",
    cells=lambda: grid(LEVELS),
    measure=measure,
    draw=draw,
    sections=sections,
)
