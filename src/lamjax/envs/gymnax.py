"""gymnax environments as a batch: ``vmap`` over an environment with the six-value ``step`` of gymnax 1.0."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Gymnax:
    """N copies of a gymnax-compatible environment, vmapped.

    Any object with gymnax's ``reset(key, params)`` and six-value ``step(key, state, action, params)`` will do.
    """

    def __init__(self, env: Any, num_envs: int, *, params: Any = None, name: str | None = None):
        """Wraps `env`.

        Args:
          env: the environment object.
          num_envs: N, copies to step together.
          params: the environment's parameters; None takes its ``default_params``.
          name: what reports call it; by default the environment's own name.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}.")
        self.env = env
        self.num_envs = num_envs
        self.params = env.default_params if params is None else params
        self.name = name or env.name
        self.env_params: dict[str, Any] = {}
        space = env.observation_space(self.params)
        self.obs_shape = tuple(space.shape)
        self.obs_dtype = jax.eval_shape(env.reset, jax.random.key(0), self.params)[0].dtype
        self.num_actions = int(env.action_space(self.params).n)

    def reset(self, key: jax.Array, params: Any = None):
        """See `VectorEnv.reset`."""
        params = self.params if params is None else params
        return jax.vmap(self.env.reset, in_axes=(0, None))(jax.random.split(key, self.num_envs), params)

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any = None):
        """See `VectorEnv.step`; here ``final_observation`` is the true last observation."""
        params = self.params if params is None else params
        keys = jax.random.split(key, self.num_envs)
        obs, state, reward, terminated, truncated, info = jax.vmap(self.env.step, in_axes=(0, 0, 0, None))(
            keys, state, action, params
        )
        info = {"final_observation": info["final_observation"], "final_is_exact": jnp.ones((), jnp.bool_)}
        return obs, state, reward.astype(jnp.float32), terminated, truncated, info

    def get_state(self, state: Any) -> dict[str, np.ndarray]:
        """The state's leaves on the host, by their position."""
        return {str(index): np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(jax.device_get(state)))}

    def set_state(self, saved: dict[str, np.ndarray]) -> Any:
        """Puts what `get_state` returned back into the state's structure."""
        structure = jax.tree.structure(jax.eval_shape(self.reset, jax.random.key(0))[1])
        return jax.tree.unflatten(structure, [jnp.asarray(saved[str(i)]) for i in range(structure.num_leaves)])

    def close(self) -> None:
        """Nothing is held outside JAX."""
