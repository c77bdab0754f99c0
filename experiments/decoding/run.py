"""How many frames or labels it takes to reach the demonstrator's return: LAPO, PPO from scratch and cloning."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import COLOURS, Cell, Experiment, Row, curve, style
from lamjax import envs, jitted, policies
from lamjax.cloning import CloningState
from lamjax.decoding import online
from lamjax.dynamics import DynamicsState
from lamjax.envs.api import VectorEnv
from lamjax.envs.evaluate import play_all
from lamjax.jitted import Trajectories
from lamjax.ppo import ActorCriticAgent
from lamjax.statistics import mean_and_stderr

CLAIM = "A latent policy is at its demonstrator's return after a fifth of PPO's frames, at 0.8 with 256 labels."
EXPECTED = "Breakout: decoded online 0.4 and 0.6 of it, named by play 0.65 and 0.75; Space Invaders: 0.7 to 0.9."
GAMES = ("breakout", "space_invaders")
CONFIG = stages.MEASURED
DEMONSTRATOR = CONFIG.expert
STEPS = CONFIG.record.frames // stages.NUM_ENVS
FRAMES = ("524288", "1572864")  # the preset's, and three times as many
LABELS = ("16", "64", "256", "1024")
ONLINE = ("scratch", "online", "named-online")
EPISODES = 4  # in each environment
# In "named-online" the decoder is fitted on random play, which counts towards the budget of frames; PPO starts from the
# policy that is cloned from the video's pseudo-labels.
ROLLOUT = 128  # steps of random play
TUNING = {"entropy_coef": 0.003, "learning_rates": CONFIG.named.ppo.learning_rates}
NEAR = 0.95  # of the demonstrator's return
WINDOW = 1 / 50  # of the frames: the mean over which a training return counts

_play = jax.jit(play_all, static_argnames=("policy", "env", "per_env", "greedy"))


def environment(game: str, num_envs: int | None = None) -> VectorEnv:
    """A game, `stages.NUM_ENVS` times by default."""
    return envs.make(f"minatar/{game}", num_envs or stages.NUM_ENVS)


def returns(game: str, seed: int, network: policies.Network, params: dict) -> dict[str, float]:
    """Mean returns of a policy that samples its actions, and of its likeliest actions."""
    env, key = environment(game), stages.keys(seed)[7]
    modes = {"return": False, "greedy": True}
    return {
        name: float(_play(network, params, env, EPISODES, key, greedy=greedy)[0].mean())
        for name, greedy in modes.items()
    }


def frames_to(target: float, curve: Sequence[float], frames: int) -> float:
    """The frames after which the mean training return over the last `WINDOW` of them is at the target; NaN if never."""
    width = max(round(WINDOW * len(curve)), 1)
    mean = np.convolve(curve, np.ones(width) / width, "valid")
    above = np.flatnonzero(mean >= target)
    return float((above[0] + width) * frames / len(curve)) if len(above) else float("nan")


@functools.cache
def expert_returns(game: str, seed: int) -> dict[str, float]:
    """The demonstrator's `returns`."""
    return returns(game, seed, *stages.expert(f"minatar/{game}", seed, DEMONSTRATOR))


def progress(game: str, seed: int, curve: Sequence[float], frames: int, before: int = 0) -> dict[str, float]:
    """The demonstrator's return, and the frames until a training curve comes near it, after `before` frames."""
    target = expert_returns(game, seed)["return"]
    return {"expert_return": target, "near": before + frames_to(NEAR * target, np.nan_to_num(curve), frames)}


@functools.lru_cache(maxsize=1)
def models(game: str, seed: int) -> tuple[Trajectories, DynamicsState, CloningState]:
    """The demonstrator's recording, and stages 1 and 2 on it."""
    demonstrator = stages.expert(f"minatar/{game}", seed, DEMONSTRATOR)
    train, _ = jitted.split(stages.record(stages.keys(seed)[0], environment(game), *demonstrator, STEPS))
    return train, *stages.train_models(seed, CONFIG, train)


def clone_pseudo_labels(game: str, seed: int, key: jax.Array, labels: tuple[jax.Array, jax.Array]) -> dict:
    """The parameters of a policy cloned from pseudo-labels of all training windows (`stages.clone_pseudo_labels`)."""
    train, model, _ = models(game, seed)
    space = environment(game).action_space
    return stages.clone_pseudo_labels((key,) * 3, CONFIG, model, train, train.action.size, labels, space)


@functools.lru_cache(maxsize=1)
def clone_by_play(game: str, seed: int) -> dict:
    """`clone_pseudo_labels` with the labels of `ROLLOUT` steps of random play."""
    env, key = environment(game), stages.keys(seed)[6]
    play = stages.record(key, env, policies.UniformPolicy(env.action_space), {}, ROLLOUT)
    windows, actions, _ = stages.draw_windows(key, play, play.action.size)
    return clone_pseudo_labels(game, seed, key, (windows, actions))


def by_labels(method: str, game: str, labels: int, seed: int) -> dict[str, float]:
    """The returns of a policy by a method that needs labels."""
    space, key = environment(game).action_space, jax.random.fold_in(stages.keys(seed)[3], labels)
    train, _, policy = models(game, seed)
    windows, actions = stages.windows(key, train, labels)
    if method == "decoded":
        network, params = jitted.decode_offline(key, CONFIG.offline, policy, windows[:, 1], actions, space)
        return returns(game, seed, network, params)
    if method == "named":
        params = clone_pseudo_labels(game, seed, key, (windows, actions))
    else:
        config = dataclasses.replace(CONFIG.cloning, steps=CONFIG.offline.bc_steps)
        params = stages.clone_actions(key, config, windows[:, 1], actions, space, None, decays=False)
    return returns(game, seed, ActorCriticAgent(CONFIG.cloning.trunk, space), params)


def by_frames(method: str, game: str, frames: int, seed: int) -> dict[str, float]:
    """The returns of a policy by a method that needs environment frames, and its progress."""
    config = stages.with_ppo(CONFIG.online if method == "online" else CONFIG.scratch, total_frames=frames)
    env, keys = environment(game, config.ppo.num_envs), stages.keys(seed)
    before, start = 0, None
    if method == "online":
        _, model, policy = models(game, seed)
        network = online.make_agent(policy, config, env.action_space)
        params, metrics = stages.decode_online(keys[4], config, policy, model, env)
    else:
        if method == "named-online":
            before, start = ROLLOUT * stages.NUM_ENVS, clone_by_play(game, seed)
            config = stages.with_ppo(config, total_frames=frames - before, **TUNING)
        network = config.agent(env.action_space)
        params, metrics = stages.learn(keys[5], env, config, start)
    curve = np.asarray(metrics["episode_return"])
    return returns(game, seed, network, params) | progress(game, seed, curve, frames - before, before)


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    game, method = variant.split()
    if method == "expert":
        info, env = stages.expert_info(f"minatar/{game}", seed, DEMONSTRATOR), environment(game)
        uniform = _play(policies.UniformPolicy(env.action_space), {}, env, EPISODES, stages.keys(seed)[7])[0]
        results = expert_returns(game, seed) | {"random_return": float(uniform.mean())}
        return results | progress(game, seed, info["curve"], info["frames"])
    return (by_frames if method in ONLINE else by_labels)(method, game, int(level), seed)


def cells() -> list[Cell]:
    """All cells; those of a game and seed come together, because they share recordings and models."""
    methods = {"expert": (str(DEMONSTRATOR.ppo.total_frames),)} | dict.fromkeys(ONLINE, FRAMES)
    methods |= dict.fromkeys(("decoded", "named", "cloned"), LABELS)
    return [
        (f"{game} {method}", level, seed)
        for seed in common.SEEDS
        for game in GAMES
        for method, levels in methods.items()
        for level in levels
    ]


NAMES = {
    "expert": "PPO from scratch, the demonstrator",
    "scratch": "PPO from scratch",
    "online": "latent policy decoded online",
    "named-online": "named by random play, cloned, then PPO",
    "decoded": "latent policy decoded",
    "named": "actions named, then cloned",
    "cloned": "labels cloned",
}


def draw(rows: Sequence[Row]) -> Figure:
    fig, axes = common.panels(2 * len(GAMES))
    for place, game in enumerate(GAMES):
        frames, labels = axes[2 * place : 2 * place + 2]
        for colour, method in enumerate(ONLINE):
            curve(frames, rows, f"{game} {method}", "return", colour, NAMES[method])
        for colour, method in enumerate(("decoded", "named", "cloned"), start=3):
            curve(labels, rows, f"{game} {method}", "greedy", colour, NAMES[method])
        for ax, title, levels, column in (
            (frames, "online", FRAMES, "return"),
            (labels, "offline, likeliest actions", LABELS, "greedy"),
        ):
            expert = mean_and_stderr(common.values(rows, f"{game} expert", cells()[0][1], column))[0]
            unit = "frames" if ax is frames else "labels"
            style(ax, f"{game.replace('_', ' ').capitalize()}: {title}", unit, "return")
            ax.set_xscale("log")
            ax.set_xticks([int(level) for level in levels], [f"{int(level):,}" for level in levels])
            ax.minorticks_off()
            ax.set_xlim(int(levels[0]) / 1.3, int(levels[-1]) * 1.3)
            ax.set_ylim(0, max(1.6 * expert, ax.get_ylim()[1]))  # room for the legend
            ax.axhline(expert, color=COLOURS[6], linewidth=0.9, linestyle=":", label="demonstrator")
            ax.legend(fontsize=7, frameon=False, loc="upper left")
    return fig


def share(rows: Sequence[Row], variant: str, level: str, column: str) -> str:
    """Mean ± standard error of a return, as a share of the same seed's demonstrator that acts in the same mode."""
    game = variant.split()[0]
    expert = {row["seed"]: float(row[column]) for row in rows if row["variant"] == f"{game} expert"}
    shares = [
        float(row[column]) / expert[row["seed"]]
        for row in rows
        if (row["variant"], row["level"]) == (variant, level) and expert.get(row["seed"])  # a return of 0 has no share
    ]
    return common.with_error(np.array(shares))


def near(rows: Sequence[Row], variant: str, level: str) -> str:
    """The number of seeds whose curve comes near the demonstrator's return, and the mean frames until then."""
    frames = common.values(rows, variant, level, "near")
    count = len([row for row in rows if (row["variant"], row["level"]) == (variant, level)])
    return f"{len(frames)} of {count}" + (f", {frames.mean():,.0f}" if len(frames) else "")


def sections(rows: Sequence[Row]) -> dict[str, str]:
    shares = "return | of the demonstrator's | likeliest actions | of the demonstrator's"
    of_frames = [f"| game | | frames | {shares} | {NEAR:g} of it: seeds, after frames |", "|" + "---|" * 8]
    of_labels = [f"| game | | labels | {shares} |", "|" + "---|" * 7]
    randoms = []
    for variant, levels in common.levels_of(rows).items():
        game, method = variant.split()
        for level in levels:
            cells = [game.replace("_", " "), NAMES[method], f"{int(level):,}"]
            for column in ("return", "greedy"):
                cells += [common.mean_text(rows, variant, level, column, 1), share(rows, variant, level, column)]
            if method in ("expert", *ONLINE):
                of_frames.append(f"| {' | '.join([*cells, near(rows, variant, level)])} |")
            else:
                of_labels.append(f"| {' | '.join(cells)} |")
            if method == "expert":
                randoms.append(f"{game.replace('_', ' ')} {common.mean_text(rows, variant, level, 'random_return')}")
    text = ("\n".join(of_frames), "\n".join(of_labels), f"A random policy: {', '.join(randoms)}.")
    return {"decoding": "\n\n".join(text)}


EXPERIMENT = Experiment("decoding", CLAIM, EXPECTED, cells, measure, draw, sections)
