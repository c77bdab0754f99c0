"""gymnax environments as a batch: ``vmap`` over an environment with the six-value ``step`` of gymnax 1.0."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax.envs.api import Comparable
from lamjax.spaces import ActionSpace, Box, Discrete


class Gymnax(Comparable):
    """N copies of a gymnax-compatible environment, vmapped.

    The environment is any object with gymnax's ``reset(key, params)`` and six-value ``step(key, state, action,
    params)``, or with the five-value ``step`` of older gymnax (`FiveValues`). Its actions are discrete, or vectors
    between finite bounds (`action_space` is then a `Box`, and there is no ``num_actions``). Its observations are images
    or grids ``[H, W, C]``, or vectors ``[D]``. Images of booleans, and images whose space is bounded by 0 and 1
    (MinAtar) or by 0 and 255, become uint8 pixels in [0, 255]; other observations become float32. Two batches of one
    environment object under one object of parameters are equal, so ``jit`` compiles once.
    """

    def __init__(self, env: Any, num_envs: int, *, params: Any = None, name: str | None = None):
        """Wraps `env`.

        Args:
          env: the environment object.
          num_envs: N, copies to step together.
          params: the environment's parameters; by default its ``default_params``.
          name: the name in reports; by default the environment's own.

        Raises:
          ValueError: if `num_envs` is not positive, or the environment cannot be used; the message says what to change.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}.")
        self.env = env
        self.num_envs = num_envs
        self.params = getattr(env, "default_params", None) if params is None else params
        self.name = name or env.name
        self.env_params: dict[str, Any] = {}
        interface = inspect(env, self.params, self.name)
        self.action_space, self.obs_shape = interface.action_space, interface.obs_shape
        self._six, self._pixel_scale = interface.env, interface.pixel_scale
        self.obs_dtype = self._show(jnp.zeros((), interface.obs_dtype)).dtype

    @property
    def identity(self) -> tuple[Any, ...]:
        """See `Comparable`."""
        return Gymnax, id(self.env), id(self.params), self.num_envs, self.name

    def _show(self, obs: jax.Array) -> jax.Array:
        if self._pixel_scale:
            # Environments leave their own bounds by a little, and a cast would wrap.
            return jnp.clip(jnp.round(self._pixel_scale * obs.astype(jnp.float32)), 0, 255).astype(jnp.uint8)
        return obs if obs.dtype == jnp.uint8 else obs.astype(jnp.float32)

    def reset(self, key: jax.Array, params: Any = None):
        """See `VectorEnv.reset`."""
        params = self.params if params is None else params
        obs, state = jax.vmap(self._six.reset, in_axes=(0, None))(jax.random.split(key, self.num_envs), params)
        return self._show(obs), state

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any = None):
        """See `VectorEnv.step`; here ``final_observation`` is the true last observation, except for `FiveValues`."""
        params = self.params if params is None else params
        keys = jax.random.split(key, self.num_envs)
        action = action.astype(_action_dtype(self.action_space))
        obs, state, reward, terminated, truncated, info = jax.vmap(self._six.step, in_axes=(0, 0, 0, None))(
            keys, state, action, params
        )
        final, exact = self._show(info["final_observation"]), not isinstance(self._six, FiveValues)
        info = {"final_observation": final, "final_is_exact": jnp.full((), exact)}
        ends = terminated.astype(jnp.bool_), truncated.astype(jnp.bool_)
        return self._show(obs), state, reward.astype(jnp.float32), *ends, info

    def get_state(self, state: Any) -> dict[str, np.ndarray]:
        """Returns the state's leaves on the host, by their position."""
        return {str(index): np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(jax.device_get(state)))}

    def set_state(self, saved: dict[str, np.ndarray]) -> Any:
        """Puts the leaves that `get_state` returned back into the state's structure."""
        structure = jax.tree.structure(jax.eval_shape(self.reset, jax.random.key(0))[1])
        return jax.tree.unflatten(structure, [jnp.asarray(saved[str(i)]) for i in range(structure.num_leaves)])

    def close(self) -> None:
        """Does nothing, because the environments hold nothing outside JAX."""


class FiveValues:
    """Gives an environment whose ``step`` returns ``(obs, state, reward, done, info)`` gymnax's six values.

    Five values do not distinguish a time-out from another end, so every end counts as termination. They do not show the
    last observation either, because the environment has reset itself; the one before replaces it, as in Procgen.
    """

    def __init__(self, env: Any):
        """Wraps `env`."""
        self.env = env

    def reset(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        """The first observation, and the state together with that observation."""
        obs, state = self.env.reset(key, params)
        return obs, (state, obs)

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any):
        """The six values."""
        inner, before = state
        obs, inner, reward, done, _ = self.env.step(key, inner, action, params)
        done = jnp.asarray(done)
        return obs, (inner, obs), reward, done, jnp.zeros_like(done), {"final_observation": before}


@dataclasses.dataclass(frozen=True)
class Interface:
    """The interface of an environment.

    Attributes:
      env: the environment, with six values.
      action_space: the environment's actions.
      obs_shape: the shape of an observation.
      obs_dtype: the dtype of an observation.
      pixel_scale: the factor that turns observations into uint8 pixels; 0 if they stay as they are.
    """

    env: Any
    action_space: ActionSpace
    obs_shape: tuple[int, ...]
    obs_dtype: Any
    pixel_scale: int


# Keyed by the identities of environment and parameters, which the entry keeps alive, and by the type of floats, which
# may change within a process: tracing a step can take a second.
_INTERFACES: dict[tuple[Any, ...], tuple[Any, Any, Interface]] = {}


def inspect(env: Any, params: Any, name: str) -> Interface:
    """Traces one step of an environment, without running it.

    Raises:
      ValueError: if `Gymnax` cannot use it; the message says what to change.
    """
    key = id(env), id(params), jnp.result_type(float)
    if key not in _INTERFACES:
        _INTERFACES[key] = env, params, _inspect(env, params, name)
    return _INTERFACES[key][2]


def _inspect(env: Any, params: Any, name: str) -> Interface:
    actions = _action_space(_space(env, "action_space", params, name), name)
    for method in ("reset", "step"):
        if not callable(getattr(env, method, None)):
            raise ValueError(f"{name} has no {method}: give it one, as gymnax's environments have.")
    first = _traced(name, "reset(key, params)", env.reset, jax.random.key(0), params)
    if not isinstance(first, tuple | list) or len(first) != 2:
        raise ValueError(f"{name}: reset must return an observation and a state.")
    obs, state = first
    _check_obs(obs, name)
    action = jax.ShapeDtypeStruct(actions.shape, _action_dtype(actions))
    values = _traced(name, "step(key, state, action, params)", env.step, jax.random.key(0), state, action, params)
    if not isinstance(values, tuple | list) or len(values) not in (5, 6):
        raise ValueError(
            f"{name}: step must return six values, (obs, state, reward, terminated, truncated, info), or five with one "
            "done."
        )
    following, after, reward, *ends, info = values
    _check_same(f"{name}: the observation that step returns", following, obs)
    _check_same(f"{name}: the state that step returns", after, state)
    words = ("reward", "terminated", "truncated") if len(values) == 6 else ("reward", "done")
    for word, value in zip(words, (reward, *ends), strict=True):
        if getattr(value, "shape", None) != () or not _is_real(value.dtype):
            raise ValueError(f"{name}: the {word} of a step must be one number, not {_words(value)}.")
    if len(values) == 6:
        if not isinstance(info, Mapping) or "final_observation" not in info:
            raise ValueError(
                f'{name}: the info of a step has no "final_observation": add the last observation of the episode, from '
                "before the reset; or return five values, and the one before stands for it."
            )
        _check_same(f'{name}: the "final_observation"', info["final_observation"], obs)
    scale = _pixel_scale(obs, _space(env, "observation_space", params, name))
    return Interface(env if len(values) == 6 else FiveValues(env), actions, tuple(obs.shape), obs.dtype, scale)


def _traced(name: str, call: str, function: Callable, *args: Any) -> Any:
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:  # an environment's code may raise any error
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"{name}: JAX cannot trace {call} ({reason}): write it with jax.numpy.") from error


def _space(env: Any, attribute: str, params: Any, name: str) -> Any:
    space = getattr(env, attribute, None)
    if space is None:
        raise ValueError(f"{name} has no {attribute}: give it one, as gymnax's environments have.")
    return space(params) if callable(space) else space


def _words(value: Any) -> str:
    """Describes a traced value."""
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value))}"
    if not hasattr(value, "shape"):
        return f"a {type(value).__name__}"
    return f"{value.dtype}{list(value.shape)}"


def _action_dtype(space: ActionSpace) -> Any:
    """The dtype of the actions that an environment gets: for continuous ones, that of its own floats.

    Pendulum keeps the last action in its state. With ``JAX_ENABLE_X64`` its floats are float64.
    """
    return jnp.result_type(float) if isinstance(space, Box) else space.dtype


def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))


def _check_obs(obs: Any, name: str) -> None:
    if not hasattr(obs, "shape"):
        raise ValueError(
            f"{name} shows {_words(obs)} as an observation: join its parts into one array in reset and step."
        )
    if not _is_real(obs.dtype) or 0 in obs.shape:
        raise ValueError(f"{name} shows observations {_words(obs)}: make them numbers, at least one.")
    if len(obs.shape) not in (1, 3):
        raise ValueError(
            f"{name} shows observations of shape {tuple(obs.shape)}: reshape them to vectors [D] or images [H, W, C]."
        )
    if len(obs.shape) == 3 and obs.shape[1] == obs.shape[2] >= 16 and 2 * obs.shape[0] < obs.shape[1]:
        raise ValueError(
            f"{name} shows observations of shape {tuple(obs.shape)}, which have the channels first: "
            "move them to the end."
        )


def _check_same(what: str, value: Any, like: Any) -> None:
    """Raises `ValueError` unless two traced trees have the same structure, shapes and dtypes."""
    ours, theirs = (jax.tree_util.tree_flatten_with_path(tree) for tree in (value, like))
    if ours[1] != theirs[1]:
        raise ValueError(f"{what} has another structure than that of reset: return the same one.")
    for (path, leaf), (_, first) in zip(ours[0], theirs[0], strict=True):
        if (leaf.shape, leaf.dtype) != (first.shape, first.dtype):
            place = jax.tree_util.keystr(path)
            raise ValueError(f"{what}{place and f' ({place})'} is {_words(leaf)}, but that of reset {_words(first)}.")


def _pixel_scale(obs: Any, space: Any) -> int:
    """255 for images in [0, 1], 1 for images in [0, 255] that are not uint8, else 0."""
    if len(obs.shape) != 3 or obs.dtype == np.uint8:
        return 0
    low, high = (np.asarray(getattr(space, bound, np.nan)) for bound in ("low", "high"))
    if obs.dtype == bool or ((low == 0).all() and (high == 1).all()):
        return 255
    return int((low == 0).all() and (high == 255).all())


def _action_space(space: Any, name: str) -> ActionSpace:
    """Converts an action space of gymnax.

    Raises:
      ValueError: if it is neither discrete nor a vector between finite bounds.
    """
    shape = getattr(space, "shape", None)
    if hasattr(space, "n") and not shape:
        if getattr(space, "start", 0):
            raise ValueError(f"{name} counts its actions from {space.start}: count them from 0.")
        if not space.n // 1 == space.n < 2**31:
            raise ValueError(f"{name} has {space.n} actions: make it a whole number of int32.")
        if int(space.n) < 2:
            raise ValueError(f"{name} has {int(space.n)} actions: there is nothing to infer below two.")
        return Discrete(int(space.n))
    if shape is None or len(shape) != 1 or not hasattr(space, "low") or hasattr(space, "n"):
        raise ValueError(f"{name} takes actions of shape {shape}: make them discrete, or vectors [D].")
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), shape) for bound in (space.low, space.high))
    if not (np.abs([low, high]) <= np.finfo(np.float32).max).all():
        raise ValueError(f"{name} takes actions without bounds: give its action space finite ones of float32.")
    try:
        return Box(tuple(low.tolist()), tuple(high.tolist()))
    except ValueError as error:
        raise ValueError(f"{name} takes actions that cannot be: {error}") from None
