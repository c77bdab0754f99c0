"""gymnax environments as a batch: ``vmap`` over an environment with the six-value ``step`` of gymnax 1.0."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax.spaces import ActionSpace, Box, Discrete


class Gymnax:
    """N copies of a gymnax-compatible environment, vmapped.

    The environment is any object with gymnax's ``reset(key, params)`` and six-value ``step(key, state, action,
    params)``. Its actions are discrete, or vectors between finite bounds (`action_space` is then a `Box`, and there is
    no ``num_actions``). Its observations are images or grids ``[H, W, C]``, or vectors ``[D]``. Images of booleans, or
    of floats whose space is bounded by 0 and 1 (MinAtar), become uint8 pixels in [0, 255]; vectors become float32. Two
    batches of one environment object under one object of parameters are equal, so ``jit`` compiles once.
    """

    def __init__(self, env: Any, num_envs: int, *, params: Any = None, name: str | None = None):
        """Wraps `env`.

        Args:
          env: the environment object.
          num_envs: N, copies to step together.
          params: the environment's parameters; by default its ``default_params``.
          name: the name in reports; by default the environment's own.

        Raises:
          ValueError: if `num_envs` is not positive, or actions or observations have another shape.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}.")
        self.env = env
        self.num_envs = num_envs
        self.params = env.default_params if params is None else params
        self.name = name or env.name
        self.env_params: dict[str, Any] = {}
        space = env.observation_space(self.params)
        self.action_space = _action_space(env.action_space(self.params), self.name)
        obs = jax.eval_shape(env.reset, jax.random.key(0), self.params)[0]
        self.obs_shape = tuple(obs.shape)
        if len(self.obs_shape) not in (1, 3):
            raise ValueError(
                f"{self.name} shows observations of shape {self.obs_shape}: "
                "reshape them to vectors [D] or images [H, W, C]."
            )
        bounds = [np.asarray(getattr(space, name, np.nan)) for name in ("low", "high")]
        unit = obs.dtype == bool or all((bound == value).all() for bound, value in zip(bounds, (0, 1), strict=True))
        self._to_pixels = len(self.obs_shape) == 3 and obs.dtype != np.uint8 and unit
        self.obs_dtype = self._show(jnp.zeros((), obs.dtype)).dtype

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gymnax) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[Any, ...]:
        return id(self.env), id(self.params), self.num_envs, self.name

    @property
    def num_actions(self) -> int:
        """The number of actions, if they are discrete."""
        return self.action_space.n

    def _show(self, obs: jax.Array) -> jax.Array:
        if self._to_pixels:
            return jnp.round(255 * obs.astype(jnp.float32)).astype(jnp.uint8)
        return obs if obs.dtype == jnp.uint8 else obs.astype(jnp.float32)

    def reset(self, key: jax.Array, params: Any = None):
        """See `VectorEnv.reset`."""
        params = self.params if params is None else params
        obs, state = jax.vmap(self.env.reset, in_axes=(0, None))(jax.random.split(key, self.num_envs), params)
        return self._show(obs), state

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any = None):
        """See `VectorEnv.step`; here ``final_observation`` is the true last observation."""
        params = self.params if params is None else params
        keys = jax.random.split(key, self.num_envs)
        obs, state, reward, terminated, truncated, info = jax.vmap(self.env.step, in_axes=(0, 0, 0, None))(
            keys, state, action, params
        )
        final = self._show(info["final_observation"])
        info = {"final_observation": final, "final_is_exact": jnp.ones((), jnp.bool_)}
        return self._show(obs), state, reward.astype(jnp.float32), terminated, truncated, info

    def get_state(self, state: Any) -> dict[str, np.ndarray]:
        """Returns the state's leaves on the host, by their position."""
        return {str(index): np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(jax.device_get(state)))}

    def set_state(self, saved: dict[str, np.ndarray]) -> Any:
        """Puts the leaves that `get_state` returned back into the state's structure."""
        structure = jax.tree.structure(jax.eval_shape(self.reset, jax.random.key(0))[1])
        return jax.tree.unflatten(structure, [jnp.asarray(saved[str(i)]) for i in range(structure.num_leaves)])

    def close(self) -> None:
        """Does nothing: the environments hold nothing outside JAX."""


def _action_space(space: Any, name: str) -> ActionSpace:
    """Converts an action space of gymnax.

    Raises:
      ValueError: if it is neither discrete nor a vector between finite bounds.
    """
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    shape = getattr(space, "shape", None)
    if shape is None or len(shape) != 1 or not hasattr(space, "low"):
        raise ValueError(f"{name} takes actions of shape {shape}: make them discrete, or vectors [D].")
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), shape) for bound in (space.low, space.high))
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{name} takes actions without bounds: give its action space finite ones.")
    return Box(tuple(low.tolist()), tuple(high.tolist()))
