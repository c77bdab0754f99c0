"""Makes environments by name, and holds the facts about each Procgen game that affect results.

The returns come from the LAPO paper's data: "random" is a uniform policy's mean return, "expert" the mean return of its
demonstrations. The time-outs and the effect of each action come from the Procgen engine.
"""

import dataclasses
import difflib
import functools
from typing import Any

from lamjax.checks import check_path_name
from lamjax.envs.api import VectorEnv
from lamjax.envs.gymnax import Gymnax
from lamjax.envs.procgen import Procgen
from lamjax.envs.wrappers import Distracted, Distractor, check_distractor

ACTION_NAMES = (
    *("left-down", "left", "left-up", "down", "noop", "up", "right-down", "right", "right-up"),
    *(f"special-{key}" for key in "DAWSQE"),
)


def _aliases(moves: str, specials: str = "444444") -> tuple[int, ...]:
    """Maps each of the 15 actions to the first action with the same effect, its representative.

    `moves` holds the representatives of actions 0 to 8, and `specials` those of 9 to 14, one hexadecimal digit each.
    """
    return tuple(int(digit, 16) for digit in moves + specials)


# Which moves a game distinguishes.
_ALL = "012345678"
_NO_DOWN = "112445778"  # the down-component is dropped
_FOUR_WAY = "111345777"  # horizontal wins over vertical
_SIDEWAYS = "111444777"  # vertical is ignored
_FIRE = "944444"  # one special does something


@dataclasses.dataclass(frozen=True)
class Game:
    """Facts about a Procgen game (distribution mode "easy").

    Attributes:
      random_return: mean return of a uniform policy, in raw reward.
      expert_return: mean return of the paper's demonstrations.
      aliases: the representative of each of the 15 actions.
      time_limit: steps after which the engine ends an episode.
    """

    random_return: float
    expert_return: float
    aliases: tuple[int, ...]
    time_limit: int = 1000


PROCGEN_GAMES: dict[str, Game] = {
    "bigfish": Game(0.8742888, 36.336166, _aliases(_ALL), 6000),
    "bossfight": Game(0.04618272, 11.634365, _aliases(_ALL, _FIRE), 4000),
    "caveflyer": Game(2.5970738, 9.183605, _aliases(_ALL, _FIRE)),
    "chaser": Game(0.6632482, 9.955711, _aliases(_ALL)),
    "climber": Game(2.2242901, 10.233627, _aliases(_NO_DOWN)),
    # "Down" matters only on crates, which are rare, so it is merged away.
    "coinrun": Game(2.704834, 9.93251, _aliases(_NO_DOWN)),
    "dodgeball": Game(0.612983, 13.486584, _aliases(_ALL, _FIRE)),
    "fruitbot": Game(-2.5330205, 29.925259, _aliases(_SIDEWAYS, _FIRE)),
    "heist": Game(3.0758767, 9.685265, _aliases(_ALL)),
    "jumper": Game(3.4105318, 8.460201, _aliases(_NO_DOWN)),
    "leaper": Game(2.5105245, 7.4082565, _aliases(_FOUR_WAY), 500),
    "maze": Game(4.2726293, 9.969294, _aliases(_FOUR_WAY), 500),
    "miner": Game(1.2513667, 11.892558, _aliases(_FOUR_WAY)),
    "ninja": Game(2.5599792, 9.474582, _aliases(_NO_DOWN, "9abc99")),
    "plunder": Game(4.3207445, 11.460528, _aliases(_SIDEWAYS, _FIRE), 4000),
    "starpilot": Game(1.5251881, 66.98625, _aliases(_ALL, "9a9999")),
}

PROCGEN_SHAPE = (64, 64, 3)

GYMNAX_ENVS: dict[str, str] = {
    "cartpole": "CartPole-v1",
    "minatar/asterix": "Asterix-MinAtar",
    "minatar/breakout": "Breakout-MinAtar",
    "minatar/freeway": "Freeway-MinAtar",
    "minatar/seaquest": "Seaquest-MinAtar",
    "minatar/space_invaders": "SpaceInvaders-MinAtar",
    "pendulum": "Pendulum-v1",
}


# Mean returns of random and expert policies for which no paper gives any: a uniform policy (4096 episodes, +- 4.6), and
# the expert that the preset trains.
_REFERENCE_RETURNS = {name: (game.random_return, game.expert_return) for name, game in PROCGEN_GAMES.items()}
_REFERENCE_RETURNS["pendulum"] = (-1228.9, -156.4)


class UnknownEnvError(ValueError):
    """Raised for an unknown name; the message lists similar names."""


def env_names() -> list[str]:
    """All names that `make` knows."""
    return sorted(PROCGEN_GAMES) + sorted(GYMNAX_ENVS) + sorted(_REGISTERED)


def is_known(name: str) -> bool:
    """Whether `make` knows a name; for other names there may be trajectories, but nobody can play them."""
    return name in PROCGEN_GAMES or name in GYMNAX_ENVS or name in _REGISTERED


def check_name(name: str) -> str:
    """Returns `name`, or raises `UnknownEnvError` with the most similar names."""
    if is_known(name):
        return name
    near = difflib.get_close_matches(name, env_names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(env_names())}."
    raise UnknownEnvError(f"There is no environment called {name!r}: {hint}")


def make(
    name: str, num_envs: int, *, distractor: Distractor = "none", distractor_strength: float = 0.1, **params: Any
) -> VectorEnv:
    """Makes N copies of an environment.

    Args:
      name: a Procgen game (``coinrun`` ... ``starpilot``), ``minatar/breakout`` ..., ``cartpole``, or ``pendulum``
        (continuous actions).
      num_envs: N.
      distractor: what to draw over the frames (see `Distracted`); "none" leaves them as they are.
      distractor_strength: in (0, 1].
      **params: for Procgen ``num_levels``, ``start_level``, ``distribution_mode``, ``num_threads``, ``groups``.

    Raises:
      UnknownEnvError: if there is no such environment.
      ProcgenNotInstalledError: if the ``procgen`` extra is absent.
      ValueError: if a parameter is out of range, or the observations are not frames that can have a distractor.
    """
    check_name(name)
    check_distractor(distractor, distractor_strength)
    env = _make(name, num_envs, **params)
    return env if distractor == "none" else Distracted(env, distractor, distractor_strength)


def _make(name: str, num_envs: int, **params: Any) -> VectorEnv:
    if name in PROCGEN_GAMES:
        return Procgen(name, num_envs, time_limit=PROCGEN_GAMES[name].time_limit, **params)
    env, env_params = _REGISTERED[name] if name in _REGISTERED else _gymnax(name, **params)
    return Gymnax(env, num_envs, params=env_params, name=name)


_REGISTERED: dict[str, tuple[Any, Any]] = {}


def register(env: Any, *, name: str | None = None, params: Any = None) -> str:
    """Registers an environment object for `make` and everything that takes a name, and returns its name.

    The object has gymnax's ``reset``, ``step`` and spaces (see `Gymnax`). Its name, by
    default its own, becomes part of paths. Registering a name again replaces the object.

    Raises:
      ValueError: if the name belongs to an environment of the package or cannot name a folder, or `Gymnax` rejects the
        environment.
    """
    name = check_path_name("An environment's name", name or getattr(env, "name", None), nested=True)
    if name in PROCGEN_GAMES or name in GYMNAX_ENVS:
        raise ValueError(f"{name!r} is an environment of the package: register yours under another name.")
    _REGISTERED[name] = env, Gymnax(env, 1, params=params, name=name).params
    return name


@functools.cache
def _gymnax(name: str, **params: Any) -> tuple[Any, Any]:
    """Makes an environment object and its parameters, once, so that all its batches are equal."""
    import gymnax  # slow to import (it pulls in plotting), and only these names need it

    return gymnax.make(GYMNAX_ENVS[name], **params)


def obs_shape(name: str) -> tuple[int, ...]:
    """The shape of an environment's observations; Procgen need not be installed."""
    return PROCGEN_SHAPE if check_name(name) in PROCGEN_GAMES else make(name, 1).obs_shape


def representatives(name: str, num_actions: int) -> tuple[int, ...]:
    """Maps each action to one that has the same effect; outside Procgen, each of the `num_actions` to itself."""
    return PROCGEN_GAMES[name].aliases if name in PROCGEN_GAMES else tuple(range(num_actions))


def merged_actions(name: str, num_actions: int) -> tuple[int, ...]:
    """Maps each action to its class ``0 ... k-1``; actions of one class have the same effect.

    Outside Procgen each of the `num_actions` actions has its own class.
    """
    aliases = representatives(name, num_actions)
    classes = {representative: index for index, representative in enumerate(sorted(set(aliases)))}
    return tuple(classes[representative] for representative in aliases)


def merged_action_names(name: str, num_actions: int) -> tuple[str, ...]:
    """The name of each class of `merged_actions`, which is its representative's."""
    if name not in PROCGEN_GAMES:
        return tuple(str(action) for action in range(num_actions))
    return tuple(ACTION_NAMES[representative] for representative in sorted(set(PROCGEN_GAMES[name].aliases)))


def normalised_return(name: str, mean_return: float) -> float | None:
    """``(R - R_random) / (R_expert - R_random)``, or None if these returns are unknown.

    They are the paper's for Procgen, and our own for Pendulum: 0 is uniform play, 1 the preset's expert.
    """
    if name not in _REFERENCE_RETURNS:
        return None
    random, expert = _REFERENCE_RETURNS[name]
    return (mean_return - random) / (expert - random)
