"""Transfer: the latent policy of one game, decoded by PPO in a changed game, against PPO from scratch there."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import COLOURS, Experiment, Row, grid, style, table
from lamjax import cloning, envs
from lamjax.cloning import CloningState
from lamjax.decoding import online
from lamjax.dynamics import DynamicsState
from lamjax.envs.api import VectorEnv
from lamjax.envs.wrappers import Disobedient, Wrapper
from lamjax.statistics import mean_and_stderr

CLAIM = "A latent policy is a head start where actions or dynamics change, as long as frames look alike."
EXPECTED = "ahead of PPO from scratch in the same, the sticky and the reversed game; no help where channels are new."
GAME, STEPS, FRAMES = "minatar/breakout", 512, 131_072
CONFIG = stages.GRID
GAMES = {
    "same": "the game that was recorded",
    "sticky": "a quarter of the actions repeat the one before",
    "reversed": "left and right exchanged",
    "permuted": "channels exchanged",
}
METHODS = {
    "latents": "latent policy, decoded by PPO",
    "untrained": "untrained, decoded by PPO",
    "scratch": "PPO from scratch",
    "all layers": "latent policy, PPO on all layers",
    "all layers, untrained": "untrained, PPO on all layers",
}
LEVELS = dict.fromkeys(METHODS, tuple(GAMES)) | {"all layers, untrained": ("same",)}
PARTS = 8  # of the frames, each with its mean return


class Changed(Wrapper):
    """An environment where left and right are exchanged, or whose frames look different and mean the same."""

    def __init__(self, env: VectorEnv, how: str):
        super().__init__(env, how=how)
        self.how = how

    def show(self, obs: jax.Array) -> jax.Array:
        return jnp.roll(obs, 1, axis=-1) if self.how == "permuted" else obs

    def reset(self, key: jax.Array, params: Any = None):
        obs, state = self.env.reset(key, params)
        return self.show(obs), state

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any = None):
        if self.how == "reversed":
            action = jnp.array([0, 2, 1], action.dtype)[action]  # stay, left, right
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        final = self.show(info["final_observation"])
        return self.show(obs), state, reward, terminated, truncated, {**info, "final_observation": final}


@functools.cache  # one object each: programs are compiled for it
def changed_game(how: str, num_envs: int) -> VectorEnv:
    """Breakout as one of `GAMES`."""
    env = envs.make(GAME, num_envs)
    if how == "sticky":
        return Disobedient(env, sticky=0.25)
    return env if how == "same" else Changed(env, how)


@functools.lru_cache(maxsize=2)
def models(seed: int, trained: bool) -> tuple[DynamicsState, CloningState]:
    """Stages 1 and 2 on the demonstrator's game, or before their first step: the baseline of online decoding."""
    train, _ = stages.recordings(GAME, "expert", STEPS, seed)
    if trained:
        return stages.train_models(seed, CONFIG, train)
    _, key_dynamics, key_cloning, *_ = stages.keys(seed)
    model = stages.untrained_dynamics(key_dynamics, CONFIG.dynamics, train)
    return model, cloning.init(key_cloning, CONFIG.cloning, train.obs.shape[2:], model.config.latent_dim)


def finite_mean(returns: np.ndarray) -> float:
    """The mean of the finite returns, NaN if there are none: an update in which no episode ended has no return."""
    return mean_and_stderr(returns[np.isfinite(returns)])[0]


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    keys = stages.keys(seed)
    config = stages.with_ppo(CONFIG.scratch if variant == "scratch" else CONFIG.online, total_frames=FRAMES)
    env = changed_game(level, config.ppo.num_envs)
    if variant == "scratch":
        network = config.agent(env.action_space)
        params, metrics = stages.learn(keys[3], env, config)
    else:
        model, policy = models(seed, "untrained" not in variant)
        config = dataclasses.replace(config, train="all" if "all" in variant else "head")
        network = online.make_agent(policy, config, env.num_actions)
        params, metrics = stages.decode_online(keys[3], config, policy, model, env)
    returns = stages.evaluate(keys[4], changed_game(level, stages.NUM_ENVS), network, params, 2)
    course = np.asarray(metrics["episode_return"])
    accuracy = np.asarray(metrics.get("decoder_accuracy", np.nan))
    accuracy = accuracy[np.isfinite(accuracy)]
    return {
        "return": float(returns.mean()),
        "first_quarter": finite_mean(np.array_split(course, 4)[0]),
        "whole_course": finite_mean(course),
        "decoder_accuracy": float(accuracy[-1]) if len(accuracy) else float("nan"),
        "expert_return": stages.expert_return(GAME, seed),
        **{f"part_{n}": finite_mean(part) for n, part in enumerate(np.array_split(course, PARTS))},
    }


def draw(rows: Sequence[Row]) -> Figure:
    fig, axes = common.panels(len(GAMES), width=3.0)
    frames = (np.arange(PARTS) + 0.5) / PARTS * FRAMES / 1000
    titles = ("The same game", "Sticky actions", "Left and right exchanged", "Channels exchanged")
    for ax, game, title in zip(axes, GAMES, titles, strict=True):
        for colour, (method, name) in enumerate(METHODS.items()):
            parts = [common.values(rows, method, game, f"part_{n}") for n in range(PARTS)]
            means, errors = np.transpose([mean_and_stderr(returns) for returns in parts])
            look = {"capsize": 3, "linewidth": 1.4, "markersize": 4}
            ax.errorbar(frames, means, np.nan_to_num(errors), fmt="-o", color=COLOURS[colour], label=name, **look)
            # One dot for each seed: the episodes after the last update.
            after = common.values(rows, method, game, "return")
            ax.plot(np.full(len(after), FRAMES / 1000), after, ".", color=COLOURS[colour], markersize=4, alpha=0.6)
        style(ax, title, "thousand frames", "return")
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(0, top)
    axes[1].legend(fontsize=7, frameon=False, loc="upper left")
    return fig


def sections(rows: Sequence[Row]) -> dict[str, str]:
    heads = ("method", "game", "return, first quarter", "return, all of training", "return after", "decoder's accuracy")
    columns = {"first_quarter": 2, "whole_course": 2, "return": 2, "decoder_accuracy": 2}
    games = "; ".join(f"{name}: {what}" for name, what in GAMES.items())
    expert = common.overall(rows, "expert_return")
    text = f"{table(rows, heads, columns, METHODS)}\n\nGames: {games}. The recorded expert's return is {expert:.2f}."
    return {"transfer": text}


EXPERIMENT = Experiment("transfer", CLAIM, EXPECTED, lambda: grid(LEVELS), measure, draw, sections)
