"""The interface of batched environments: gymnax's six-value ``step`` over a leading batch axis.

Dimension keys: N environments, then the observation's own shape (``H, W, C`` for pixels).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from lamjax.spaces import ActionSpace, Discrete


class VectorEnv(Protocol):
    """N environments stepped together inside ``jit``: vmapped JAX environments or one native batch.

    ``step`` resets a finished environment: the returned observation is then the first of the next episode, and
    ``info["final_observation"]`` is the last of the one that ended. Read ``info`` inside the rollout and reduce it
    there: stacking it over time keeps a second copy of every frame.

    If actions are discrete, ``num_actions`` is their number.
    """

    @property
    def name(self) -> str:
        """The name, as `make` accepts it."""
        ...

    @property
    def num_envs(self) -> int:
        """N."""
        ...

    @property
    def action_space(self) -> ActionSpace:
        """The action space."""
        ...

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """The shape of one observation."""
        ...

    @property
    def obs_dtype(self) -> Any:
        """The observations' dtype."""
        ...

    @property
    def env_params(self) -> dict[str, Any]:
        """Settings of the environment, for the manifest of a recording."""
        ...

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, Any]:
        """Starts N episodes.

        Args:
          key: a typed PRNG key ``[]``; it determines everything random in the environments.
          params: environment parameters, or None for the defaults.

        Returns:
          Observations ``[N, *obs_shape]`` and the environments' state (a pytree).
        """
        ...

    def step(
        self, key: jax.Array, state: Any, action: jax.Array, params: Any = None
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Takes one step in each environment.

        Args:
          key: a typed PRNG key ``[]``.
          state: what ``reset`` or ``step`` returned.
          action: ``[N, *action_space.shape]`` of `action_space`; continuous actions lie within its bounds.
          params: environment parameters, or None for the defaults.

        Returns:
          ``(obs [N, *obs_shape], state, reward float32 [N], terminated bool [N], truncated bool [N], info)``;
          ``info["final_observation"]`` is ``[N, *obs_shape]``.
        """
        ...

    def get_state(self, state: Any) -> dict[str, np.ndarray]:
        """Reads everything that ``set_state`` needs to continue bit-equally; call it between dispatches."""
        ...

    def set_state(self, saved: dict[str, np.ndarray]) -> Any:
        """Turns what ``get_state`` returned into a state that ``step`` accepts, also in a new process."""
        ...

    def close(self) -> None:
        """Frees what the environments hold outside JAX."""
        ...


class Comparable:
    """Base of environments that are equal if their `identity` is, so that ``jit`` compiles once for all of them."""

    name: str
    action_space: ActionSpace

    @property
    def identity(self) -> tuple[Any, ...]:
        """All that a step depends on, the class included; hashable."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Comparable) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def num_actions(self) -> int:
        """The number of actions, if they are discrete."""
        if not isinstance(self.action_space, Discrete):
            raise AttributeError(f"{self.name} takes vectors: there is no number of actions.")
        return self.action_space.n


def join_states(states: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins the saved states (`VectorEnv.get_state`) of several batches into that of one batch."""
    return {name: np.concatenate([state[name] for state in states]) for name in states[0]}


def split_state(saved: dict[str, np.ndarray], parts: int) -> list[dict[str, np.ndarray]]:
    """Splits the saved state of N environments into those of `parts` batches of N / `parts`: undoes `join_states`.

    An array has one entry for each environment. If there is an array ``<name>_lengths``, that one says how many
    entries of ``<name>`` each environment has.
    """

    def cut(name: str) -> list[np.ndarray]:
        lengths = saved.get(f"{name}_lengths")
        if lengths is None:
            return np.split(saved[name], parts)
        each = len(lengths) // parts
        return np.split(saved[name], np.cumsum(lengths)[each - 1 : -1 : each])

    pieces = {name: cut(name) for name in saved}
    return [{name: of_name[part] for name, of_name in pieces.items()} for part in range(parts)]


def stepper(env: VectorEnv) -> Any:
    """Returns the part of `env` that ``step`` depends on, for the static argument of a jitted rollout.

    It has ``step``, ``num_envs`` and ``action_space``. Environments that step in the same way have equal steppers, so
    ``jit`` compiles one rollout for all Procgen games. An environment without the attribute ``stepper`` is its own
    stepper.
    """
    return getattr(env, "stepper", env)


def takes_turns(env: Any) -> bool:
    """Whether a rollout steps a `stepper`'s halves in turn: the host steps one while the device acts for the other.

    Such an environment has ``groups == 2`` groups, the first and the second half of its N rows, and two more methods:

    - ``exchange(state, action [N / 2, ...], group)``: sends one group its actions, and receives the other's results.
    - ``receive(state, group)``: receives one group's results.

    Both return the values of ``step`` for the N / 2 environments that they receive, but the state of all N. Receiving
    twice from a group without sending it actions returns the same observations and does not change the state.
    """
    return getattr(env, "groups", 1) == 2


def one_batch_under_vmap(step: Callable[..., Any]) -> Callable[..., Any]:
    """Makes ``vmap`` of a native stepper's ``step`` over P states ``[P, N, ...]`` a single native call.

    All P states must hold the same handle: that of one native batch of P * N environments.

    Args:
      step: method of a frozen dataclass with the field ``num_envs``; it uses no key.
    """

    @functools.wraps(step)
    def alone(self, key: jax.Array, state: Any, action: jax.Array, params: Any = None):
        @custom_vmap
        def native(state, action):
            return step(self, key, state, action, params)

        @native.def_vmap
        def side_by_side(copies, is_batched, state, action):
            n = copies * self.num_envs

            def join(leaf, batched):
                if not batched:
                    return leaf if not leaf.ndim else jnp.tile(leaf, (copies, *(1,) * (leaf.ndim - 1)))
                return leaf[0] if leaf.ndim == 1 else leaf.reshape(n, *leaf.shape[2:])

            def separate(leaf):
                if not leaf.ndim:
                    return jnp.broadcast_to(leaf, (copies,))
                return leaf.reshape(copies, self.num_envs, *leaf.shape[1:])

            joined = jax.tree.map(join, (state, action), tuple(is_batched))
            results = step(dataclasses.replace(self, num_envs=n), None, *joined)
            return jax.tree.map(separate, results), jax.tree.map(lambda _: True, results)

        return native(state, action)

    return alone
