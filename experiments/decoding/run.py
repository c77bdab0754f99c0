"""How many frames, or labels, it takes to get back to the demonstrator: LAPO beside PPO from scratch and cloning."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import common, stages
from experiments.common import COLOURS, Cell, Experiment, Row, curve, style
from lamjax import envs, jitted, policies, ppo
from lamjax.config import ScratchConfig
from lamjax.decoding import behaviour_cloning, offline, online
from lamjax.dynamics import DynamicsState
from lamjax.envs.api import VectorEnv
from lamjax.envs.evaluate import play_all
from lamjax.ppo import ActorCriticAgent
from lamjax.presets import GRID_PRESETS
from lamjax.spaces import ActionSpace
from lamjax.statistics import mean_and_stderr

GAMES = ("breakout", "space_invaders")
CONFIG = GRID_PRESETS["cpu"]
DEMONSTRATOR = CONFIG.expert
STEPS = CONFIG.record.frames // stages.NUM_ENVS
FRAMES = ("524288", "1572864")  # the preset's, and three times as many
LABELS = ("16", "64", "256", "1024")
ONLINE = ("scratch", "online", "named-online")
EPISODES = 4  # in each environment
# Named online: so much random play has its actions decoded, out of the same budget of frames, and PPO goes on from the
# policy that is cloned from the video.
ROLLOUT = 128  # steps
TUNING = {"entropy_coef": 0.003, "learning_rates": CONFIG.named.ppo.learning_rates}
NEAR = 0.95  # of the demonstrator's return
WINDOW = 1 / 50  # of the frames: the mean over which a training return counts

_play = jax.jit(play_all, static_argnames=("policy", "env", "per_env", "greedy"))
_named = jax.jit(behaviour_cloning.pseudo_labels, static_argnames=("config", "space"))


def returns(game: str, seed: int, network: policies.Network, params: dict) -> dict[str, float]:
    """Mean returns of a policy that samples its actions, and of its likeliest ones."""
    env, key = envs.make(f"minatar/{game}", stages.NUM_ENVS), stages.keys(seed)[7]
    modes = {"return": False, "greedy": True}
    played = {name: _play(network, params, env, EPISODES, key, greedy=greedy)[0] for name, greedy in modes.items()}
    return {name: float(found.mean()) for name, found in played.items()}


def frames_to(target: float, curve: Sequence[float], frames: int) -> float:
    """The frames after which the mean training return over the last `WINDOW` of them is at the target; NaN if never."""
    width = max(round(WINDOW * len(curve)), 1)
    mean = np.convolve(curve, np.ones(width) / width, "valid")
    above = np.flatnonzero(mean >= target)
    return float((above[0] + width) * frames / len(curve)) if len(above) else float("nan")


@functools.cache
def expert_returns(game: str, seed: int) -> dict[str, float]:
    policy, params = stages.expert(f"minatar/{game}", seed, DEMONSTRATOR)
    return returns(game, seed, policy, params)


def progress(game: str, seed: int, curve: Sequence[float], frames: int, before: int = 0) -> dict[str, float]:
    """How far a curve of training returns got towards the demonstrator's, and when; `before` it were some frames."""
    target = expert_returns(game, seed)["return"]
    return {"expert_return": target, "near": before + frames_to(NEAR * target, np.nan_to_num(curve), frames)}


@functools.lru_cache(maxsize=1)
def learned(game: str, seed: int):
    """The recording and stages 1 and 2 on it."""
    env, keys = envs.make(f"minatar/{game}", stages.NUM_ENVS), stages.keys(seed)
    train, _ = jitted.split(stages.record(keys[0], env, *stages.expert(f"minatar/{game}", seed, DEMONSTRATOR), STEPS))
    model, _ = stages.train_dynamics(keys[1], CONFIG.dynamics, train)
    policy, _ = stages.train_cloning(keys[2], CONFIG.cloning, train, model)
    return train, model, policy


def named_actions(
    key: jax.Array,
    train: jitted.Trajectories,
    model: DynamicsState,
    labelled: jax.Array,
    taken: jax.Array,
    space: ActionSpace,
) -> tuple[jax.Array, jax.Array]:
    """All training windows' observations ``[E, *obs_shape]``, and their actions ``[E]`` as the labels tell them."""
    decoder, _ = offline.fit(key, jnp.asarray(stages.infer(model, labelled)), taken, CONFIG.offline, space)
    seen, _, _ = stages.drawn(key, train, train.action.size)
    pieces = np.array_split(seen, -(-len(seen) // 4096))
    named = [_named(model, decoder, piece, CONFIG.offline, space) for piece in pieces]
    return jnp.asarray(seen[:, 1]), jnp.concatenate(named)


def clone_named(
    key: jax.Array,
    train: jitted.Trajectories,
    model: DynamicsState,
    labelled: jax.Array,
    taken: jax.Array,
    space: ActionSpace,
) -> dict:
    """The parameters of a policy cloned from the training windows, named as the labels tell."""
    seen, said = named_actions(key, train, model, labelled, taken, space)
    return stages.clone_actions(key, CONFIG.cloning, seen, said, space, None, decays=True)


@functools.lru_cache(maxsize=1)
def named_by_play(game: str, seed: int) -> dict:
    """The same, its labels from random play of `ROLLOUT` steps."""
    env, key = envs.make(f"minatar/{game}", stages.NUM_ENVS), stages.keys(seed)[6]
    train, model, _ = learned(game, seed)
    own = stages.record(key, env, policies.UniformPolicy(env.action_space), {}, ROLLOUT)
    labelled, taken, _ = stages.drawn(key, own, own.action.size)
    return clone_named(key, train, model, jnp.asarray(labelled), jnp.asarray(taken), env.action_space)


@functools.partial(jax.jit, static_argnames=("env", "config"))
def tune(key: jax.Array, env: VectorEnv, config: ScratchConfig, params: dict) -> tuple[dict, dict[str, jax.Array]]:
    """As `jitted.learn`, from these parameters."""
    agent = ActorCriticAgent(config.trunk, env.action_space)
    state, metrics = ppo.learn(ppo.init(key, config.ppo, params, env), agent, env)
    return state.params, metrics


def by_labels(method: str, game: str, labels: int, seed: int) -> dict[str, float]:
    env, key = envs.make(f"minatar/{game}", stages.NUM_ENVS), jax.random.fold_in(stages.keys(seed)[3], labels)
    train, model, policy = learned(game, seed)
    labelled, taken = stages.windows(key, train, labels)
    if method == "decoded":
        network, params = jitted.decode_offline(key, CONFIG.offline, policy, labelled[:, 1], taken, env.action_space)
        return returns(game, seed, network, params)
    if method == "named":
        params = clone_named(key, train, model, labelled, taken, env.action_space)
    else:
        config = dataclasses.replace(CONFIG.cloning, steps=CONFIG.offline.bc_steps)
        params = stages.clone_actions(key, config, labelled[:, 1], taken, env.action_space, None, decays=False)
    return returns(game, seed, ActorCriticAgent(CONFIG.cloning.trunk, env.action_space), params)


def by_frames(method: str, game: str, frames: int, seed: int) -> dict[str, float]:
    config = CONFIG.online if method == "online" else CONFIG.scratch
    config = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, total_frames=frames))
    env, keys = envs.make(f"minatar/{game}", config.ppo.num_envs), stages.keys(seed)
    before = 0
    if method == "online":
        _, model, policy = learned(game, seed)
        network = online.make_agent(policy, config, env.action_space)
        params, metrics = stages.decode_online(keys[4], config, policy, model, env)
    elif method == "named-online":
        network, before = ActorCriticAgent(config.trunk, env.action_space), ROLLOUT * stages.NUM_ENVS
        frames -= before
        tuning = dataclasses.replace(config.ppo, total_frames=frames, **TUNING)
        params, metrics = tune(keys[5], env, dataclasses.replace(config, ppo=tuning), named_by_play(game, seed))
    else:
        network = ActorCriticAgent(config.trunk, env.action_space)
        params, metrics = stages.learn(keys[5], env, config)
    played = returns(game, seed, network, params)
    return played | progress(game, seed, np.asarray(metrics["episode_return"]), frames, before)


def measure(variant: str, level: str, seed: int) -> dict[str, float]:
    game, method = variant.split()
    if method == "expert":
        info = stages.expert_info(f"minatar/{game}", seed, DEMONSTRATOR)
        env = envs.make(f"minatar/{game}", stages.NUM_ENVS)
        uniform = _play(policies.UniformPolicy(env.action_space), {}, env, EPISODES, stages.keys(seed)[7])[0]
        played = expert_returns(game, seed) | {"random_return": float(uniform.mean())}
        return played | progress(game, seed, info["curve"], info["frames"])
    return (by_frames if method in ONLINE else by_labels)(method, game, int(level), seed)


def cells() -> list[Cell]:
    """Whole games and seeds together: what was learned for one cell is there for the next."""
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
    """Mean ± standard error of a return over the demonstrator's of the same seed, which acts in the same way."""
    game = variant.split()[0]
    expert = {row["seed"]: float(row[column]) for row in rows if row["variant"] == f"{game} expert"}
    found = [
        float(row[column]) / expert[row["seed"]]
        for row in rows
        if (row["variant"], row["level"]) == (variant, level) and expert.get(row["seed"])  # not of nothing
    ]
    return common.stated(np.array(found))


def near(rows: Sequence[Row], variant: str, level: str) -> str:
    """In how many seeds the curve came near the demonstrator's return, and the mean frames until then."""
    found = common.values(rows, variant, level, "near")
    count = len([row for row in rows if (row["variant"], row["level"]) == (variant, level)])
    return f"{len(found)} of {count}" + (f", {found.mean():,.0f}" if len(found) else "")


def sections(rows: Sequence[Row]) -> dict[str, str]:
    shares = "return | of the demonstrator's | likeliest actions | of the demonstrator's"
    of_frames = [f"| game | | frames | {shares} | {NEAR:g} of it: seeds, after frames |", "|" + "---|" * 8]
    of_labels = [f"| game | | labels | {shares} |", "|" + "---|" * 7]
    randoms = []
    for variant, levels in common.levels_of(rows).items():
        game, method = variant.split()
        for level in levels:
            cells = [
                game.replace("_", " "),
                NAMES[method],
                f"{int(level):,}",
            ]
            for column in ("return", "greedy"):
                cells += [common.shown(rows, variant, level, column, 1), share(rows, variant, level, column)]
            if method in ("expert", *ONLINE):
                of_frames.append(f"| {' | '.join([*cells, near(rows, variant, level)])} |")
            else:
                of_labels.append(f"| {' | '.join(cells)} |")
            if method == "expert":
                randoms.append(f"{game.replace('_', ' ')} {common.shown(rows, variant, level, 'random_return')}")
    text = ("\n".join(of_frames), "\n".join(of_labels), f"A random policy: {', '.join(randoms)}.")
    return {"decoding": "\n\n".join(text)}


EXPERIMENT = Experiment(
    name="decoding",
    claim="A latent policy is at its demonstrator's return after a fifth of PPO's frames, at 0.8 with 256 labels.",
    expected="Breakout: decoded online 0.4 and 0.6 of it, named by play 0.65 and 0.75; Space Invaders: 0.7 to 0.9.",
    cells=cells,
    measure=measure,
    draw=draw,
    sections=sections,
)
