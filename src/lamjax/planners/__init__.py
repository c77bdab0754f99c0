"""Planners: demonstrators that need no training, since they read the game's own state and know its rules.

A planner chooses among the ordinary actions, changes nothing in the game, and reads no random generator: it does not
know what will appear any more than a player does. `Planner` is the policy (`lamjax.policies.Policy`) of all games that
have a planner. Inside a rollout it calls the host, which reads the state of every environment, finds the game's planner
from the state, and returns the actions.
"""

import dataclasses
import json
import weakref
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback

from lamjax.envs.native_state import Scene, read
from lamjax.envs.procgen import BATCHES, Procgen, over_environments
from lamjax.envs.registry import make
from lamjax.planners import bigfish, bossfight, dodgeball, fruitbot, heist, leaper, maze, miner, plunder, starpilot
from lamjax.spaces import Discrete

VERSION = 1  # of the planners' play: with another version, the same key records other trajectories


class Plan(Protocol):
    """A game's planner: a function of what one environment shows, and of its own memory."""

    def __call__(self, scene: Scene, memory: Any) -> tuple[int, Any]:
        """Chooses the next action.

        Args:
          scene: the environment now.
          memory: what the planner returned for this environment's previous step; None at the first.

        Returns:
          The action, and what to remember.
        """
        ...


PLANS: dict[str, Plan] = {
    "bigfish": bigfish.plan,
    "bossfight": bossfight.plan,
    "dodgeball": dodgeball.plan,
    "fruitbot": fruitbot.plan,
    "heist": heist.plan,
    "leaper": leaper.plan,
    "maze": maze.plan,
    "miner": miner.plan,
    "plunder": plunder.plan,
    "starpilot": starpilot.plan,
}

# The planners' memory of each environment, by native batch. It is freed with the batch.
_MEMORIES: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Planner:
    """The policy of a planner: certain of its action, whatever the parameters. It plays every game of `PLANS`.

    Attributes:
      space: Procgen's actions.
    """

    space: Discrete = Procgen.action_space

    reads_state: ClassVar[bool] = True  # see `lamjax.acting.respond`

    def __call__(self, params: Any, obs: jax.Array, env_state: Any) -> jax.Array:
        """Outputs float32 ``[N, K]`` at the state of N environments of Procgen, wrapped or not."""
        del params, obs
        while hasattr(env_state, "env"):
            env_state = env_state.env
        return self.space.certain(_actions(env_state.handle, env_state.level_seed))


@custom_vmap
def _actions(handle: jax.Array, level_seed: jax.Array) -> jax.Array:
    """The planned actions int32 ``[N]`` of the environments that play these levels, int32 ``[N]``."""
    return io_callback(_host_actions, jax.ShapeDtypeStruct(level_seed.shape, jnp.int32), handle)


@_actions.def_vmap
def _side_by_side(copies: int, is_batched: list[bool], handle: jax.Array, level_seed: jax.Array):
    """Copies of a rollout share one native batch of all their environments, as in `one_batch_under_vmap`."""
    actions = _actions(handle[0] if is_batched[0] else handle, level_seed.reshape(-1))
    return actions.reshape(copies, -1), True


def check_layout(game: str) -> None:
    """Reads one state of a game before a rollout, in which errors of the host come with pages of traceback.

    Raises:
      StateLayoutError: if the installed Procgen writes its states in another layout.
    """
    env = make(game, 1, num_threads=0, groups=1)
    try:
        read(env.get_state(env.reset(jax.random.key(0))[1])["native"].tobytes())
    finally:
        env.close()


def _host_actions(handle: np.ndarray) -> np.ndarray:
    return np.concatenate([_plan_batch(batch) for batch in BATCHES[int(handle)]])


def _plan_batch(batch: Any) -> np.ndarray:
    """The planned actions int32 ``[N]`` of a native batch; keeps what the planners remember."""
    memories = _MEMORIES.setdefault(batch, [None] * batch.num)

    def plan(number: int, state: bytes) -> int:
        scene = read(state)
        action, memories[number] = PLANS[scene.game](scene, memories[number])
        return action

    return np.array(over_environments(batch, plan), np.int32)


RETURNS = Path(str(resources.files(__name__))) / "returns.json"


def returns() -> dict[str, dict[str, Any]]:
    """The measured returns of planners and of random play, by game: what ``lamjax experts --measure`` wrote."""
    return json.loads(RETURNS.read_text())
