"""Wrappers that make environments harder to learn from: distractors over their frames, and disobeyed actions.

`Distracted` puts exogenous noise over the frames of any environment that shows pixels. A latent action model explains
whatever changes unpredictably between frames. A distractor changes unpredictably and has nothing to do with the
actions, so it tests whether latents learned the action or the noise. It does not affect the game: with the same keys
and actions the game plays out as it does without a distractor. `Disobedient` does not affect the frames but changes the
actions: the environment does not always execute the action that the agent chose.

Dimension keys: N environments, H, W, C frame, D numbers that describe a distractor's state.
"""

import copy
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lamjax.envs.api import Comparable, VectorEnv, stepper
from lamjax.spaces import Discrete

Distractor = Literal["none", "overlay", "noise", "jitter"]

MAX_SPEED = 1 / 16  # of the overlay, in frame sides per step: 4 pixels of 64
TURN = 0.25  # probability of a new velocity at a step; without it two frames would predict the next, without a latent
# Derives the distractor's key (and, less one, that of disobedience) from the environment's; no split of it coincides.
_TAG = 2**31 - 1
_SAVED = "distractor_"


class DistractorState(struct.PyTreeNode):
    """The state of a distractor at one step, in each environment. Fields that a kind does not use stay zero.

    Attributes:
      position: float32 ``[N, 2]``, y and x of the overlay's upper left corner, in pixels.
      velocity: float32 ``[N, 2]``, how far the overlay moves at the next step, in pixels.
      colour: uint8 ``[N, C]``, the overlay's colour, constant for an episode.
      shift: float32 ``[N, C]``, what jitter adds to the channels, in levels of 255.
      seed: uint32 ``[N]``, the seed of the pixels' noise.
    """

    position: jax.Array
    velocity: jax.Array
    colour: jax.Array
    shift: jax.Array
    seed: jax.Array


@struct.dataclass
class DistractedState:
    """The state of a distracted environment.

    Attributes:
      env: the state of the environment underneath.
      distractor: the state of the distractor in the current frame.
      clean: uint8 ``[N, H, W, C]``, the current frame without the distractor, which a demonstrator sees.
    """

    env: Any
    distractor: DistractorState
    clean: jax.Array

    @property
    def level_seed(self) -> jax.Array:
        """The levels being played, int32 ``[N]``; without levels the environment lacks this attribute."""
        return self.env.level_seed


class Wrapper(Comparable):
    """An environment around another one, with everything of `VectorEnv`; subclasses change `reset` and `step`.

    Two wrappers are equal if their class, environments and settings are.
    """

    def __init__(self, env: VectorEnv, **settings: Any):
        """Wraps `env`; the settings become part of `env_params`."""
        self.env = env
        self.name, self.num_envs, self.action_space = env.name, env.num_envs, env.action_space
        self.obs_shape, self.obs_dtype = env.obs_shape, env.obs_dtype
        self.env_params = {**env.env_params, **settings}
        self._settings = tuple(settings.values())

    @property
    def identity(self) -> tuple[Any, ...]:
        """See `Comparable`."""
        return type(self), self.env, self._settings, self.obs_shape, self.action_space

    @property
    def stepper(self) -> Self:
        """See `lamjax.envs.api.stepper`."""
        alike = copy.copy(self)
        alike.env = stepper(self.env)
        return alike

    def close(self) -> None:
        """Closes the environment underneath."""
        self.env.close()


class Distracted(Wrapper):
    """An environment whose frames carry a distractor.

    The strength s in (0, 1] means, on frames of uint8 levels:

    - ``overlay``: an opaque square of side ``s H`` (at least one pixel) in a colour that is drawn for each episode. It
      moves by at most ``H / 16`` pixels per step along each axis, bounces at the borders, and gets a new random
      velocity with probability `TURN` at each step.
    - ``noise``: adds to every pixel and channel its own normal noise of deviation ``255 s``, new at each step.
    - ``jitter``: adds to every channel one normal shift of deviation ``255 s``, new at each step.

    ``info["distractor"]`` is the distractor's state in the frame that ``step`` returned, float32 ``[N, D]``: position
    and velocity of the overlay in pixels (D = 4), or the shift of the channels (D = C); noise has no state worth
    reading (D = 0). ``info["final_observation"]`` carries the distractor too: if the environment returns the last
    frame that the agent saw, as Procgen does, it is that frame exactly.

    The keys of ``reset`` and ``step`` determine everything random; a state that `get_state` saved continues bit-equally
    under the same keys.
    """

    def __init__(self, env: VectorEnv, kind: Distractor, strength: float):
        """Wraps `env`.

        Args:
          env: N environments that show uint8 frames ``[N, H, W, C]``.
          kind: "overlay", "noise" or "jitter".
          strength: s.

        Raises:
          ValueError: if the kind or strength is invalid, or the environment shows no such frames.
        """
        check_distractor(kind, strength)
        if kind == "none":
            raise ValueError("A distractor of kind 'none' is no distractor: use the environment as it is.")
        if len(env.obs_shape) != 3 or np.dtype(env.obs_dtype) != np.uint8:
            raise ValueError(
                f"A distractor needs uint8 frames, and {env.name} shows {np.dtype(env.obs_dtype)} of shape "
                f"{env.obs_shape}: use a Procgen or MinAtar game."
            )
        super().__init__(env, distractor=kind, distractor_strength=float(strength))
        self.kind, self.strength = kind, float(strength)

    @property
    def _side(self) -> int:
        """The overlay's side in pixels."""
        return max(1, round(self.strength * self.obs_shape[0]))

    @property
    def _room(self) -> jax.Array:
        """The largest position of the overlay's corner, float32 ``[2]``."""
        h, w, _ = self.obs_shape
        return jnp.array([h - self._side, max(w - self._side, 0)], jnp.float32)

    def _velocity(self, key: jax.Array) -> jax.Array:
        fastest = self.obs_shape[0] * MAX_SPEED
        return jax.random.uniform(key, (self.num_envs, 2), minval=-fastest, maxval=fastest)

    def _redrawn(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws what changes at every step: the channels' shift and the pixels' seed."""
        n, c = self.num_envs, self.obs_shape[-1]
        key_shift, key_seed = jax.random.split(key)
        shift, seed = jnp.zeros((n, c)), jnp.zeros(n, jnp.uint32)
        if self.kind == "jitter":
            shift = 255 * self.strength * jax.random.normal(key_shift, (n, c))
        if self.kind == "noise":
            seed = jax.random.bits(key_seed, (n,), jnp.uint32)
        return shift, seed

    def _begin(self, key: jax.Array) -> DistractorState:
        """The distractors of N new episodes."""
        n, c = self.num_envs, self.obs_shape[-1]
        key_position, key_velocity, key_colour, key_redrawn = jax.random.split(key, 4)
        position, velocity, colour = jnp.zeros((n, 2)), jnp.zeros((n, 2)), jnp.zeros((n, c), jnp.uint8)
        if self.kind == "overlay":
            position = self._room[None] * jax.random.uniform(key_position, (n, 2))
            velocity = self._velocity(key_velocity)
            colour = jax.random.bits(key_colour, (n, c), jnp.uint8)
        return DistractorState(position, velocity, colour, *self._redrawn(key_redrawn))

    def _advance(self, key: jax.Array, state: DistractorState) -> DistractorState:
        """The distractors one step later in the same episode."""
        key_turn, key_velocity, key_redrawn = jax.random.split(key, 3)
        shift, seed = self._redrawn(key_redrawn)
        state = state.replace(shift=shift, seed=seed)
        if self.kind != "overlay":
            return state
        moved = state.position + state.velocity
        outside = (moved < 0) | (moved > self._room[None])
        # A border mirrors the path; the clip is for squares that have almost no room.
        position = jnp.clip(jnp.where(moved < 0, -moved, jnp.where(outside, 2 * self._room[None] - moved, moved)), 0)
        position = jnp.minimum(position, self._room[None])
        velocity = jnp.where(outside, -state.velocity, state.velocity)
        turns = jax.random.bernoulli(key_turn, TURN, (self.num_envs, 1))
        return state.replace(position=position, velocity=jnp.where(turns, self._velocity(key_velocity), velocity))

    def _draw(self, frames: jax.Array, state: DistractorState) -> jax.Array:
        """Draws the distractor over frames uint8 ``[N, H, W, C]``."""
        h, w, _ = self.obs_shape
        if self.kind == "overlay":
            corner = jnp.round(state.position).astype(jnp.int32)

            def covered(size: int, first: jax.Array) -> jax.Array:
                place = jnp.arange(size)[None]
                return (place >= first[:, None]) & (place < first[:, None] + self._side)

            mask = covered(h, corner[:, 0])[:, :, None, None] & covered(w, corner[:, 1])[:, None, :, None]
            return jnp.where(mask, state.colour[:, None, None, :], frames)
        if self.kind == "noise":
            keys = jax.vmap(jax.random.key)(state.seed)
            added = 255 * self.strength * jax.vmap(lambda key: jax.random.normal(key, self.obs_shape))(keys)
        else:
            added = state.shift[:, None, None, :]
        return jnp.clip(jnp.round(frames.astype(jnp.float32) + added), 0, 255).astype(jnp.uint8)

    def _readable(self, state: DistractorState) -> jax.Array:
        """The state of the distractor in ``info``, float32 ``[N, D]``."""
        if self.kind == "overlay":
            return jnp.concatenate([state.position, state.velocity], axis=-1)
        return state.shift if self.kind == "jitter" else jnp.zeros((self.num_envs, 0))

    @property
    def distractor_dim(self) -> int:
        """How many numbers `distractor_state` returns for each environment."""
        return {"overlay": 2, "jitter": self.obs_shape[-1], "noise": 0}[self.kind]

    def distractor_state(self, state: DistractedState) -> jax.Array:
        """Returns the distractor's state in the current frame, which a probe may try to read from latents.

        Returns:
          float32 ``[N, distractor_dim]``: the overlay's corner in whole pixels (y, x), or the channels' shift; nothing
          for noise, which has a separate state for every pixel.
        """
        if self.kind == "overlay":
            return jnp.round(state.distractor.position)
        return state.distractor.shift[:, : self.distractor_dim]

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, DistractedState]:
        """See `VectorEnv.reset`."""
        clean, state = self.env.reset(key, params)
        distractor = self._begin(jax.random.fold_in(key, _TAG))
        return self._draw(clean, distractor), DistractedState(state, distractor, clean)

    def step(self, key: jax.Array, state: DistractedState, action: jax.Array, params: Any = None):
        """See `VectorEnv.step`; ``info`` also has ``distractor``."""
        clean, inner, reward, terminated, truncated, info = self.env.step(key, state.env, action, params)
        key_advance, key_begin = jax.random.split(jax.random.fold_in(key, _TAG))
        advanced = self._advance(key_advance, state.distractor)
        distractor = _where(terminated | truncated, self._begin(key_begin), advanced)
        # An exact last frame is one step later than the last frame that was seen, and so is its distractor.
        exact = jnp.broadcast_to(info["final_is_exact"], terminated.shape)
        final = self._draw(info["final_observation"], _where(exact, advanced, state.distractor))
        info = {**info, "final_observation": final, "distractor": self._readable(distractor)}
        obs = self._draw(clean, distractor)
        return obs, DistractedState(inner, distractor, clean), reward, terminated, truncated, info

    def get_state(self, state: DistractedState) -> dict[str, np.ndarray]:
        """Returns the state of the environment underneath, together with the distractor's."""
        own = {"clean": state.clean, **vars(state.distractor)}
        return self.env.get_state(state.env) | {
            _SAVED + name: np.asarray(value) for name, value in jax.device_get(own).items()
        }

    def set_state(self, saved: dict[str, np.ndarray]) -> DistractedState:
        """See `VectorEnv.set_state`."""
        own = {name.removeprefix(_SAVED): jnp.asarray(x) for name, x in saved.items() if name.startswith(_SAVED)}
        inner = self.env.set_state({name: x for name, x in saved.items() if not name.startswith(_SAVED)})
        clean = own.pop("clean")
        return DistractedState(inner, DistractorState(**own), clean)


@struct.dataclass
class DisobedientState:
    """The state of a disobedient environment.

    Attributes:
      env: the state of the environment underneath.
      executed: int32 ``[N]``, the actions that led to this state; -1 at the start of an episode.
    """

    env: Any
    executed: jax.Array


class Disobedient(Wrapper):
    """An environment that sometimes executes a different action from the chosen one.

    At each step each of the N environments repeats, with probability `sticky`, the action that it executed before
    (sticky actions; never at an episode's first step). Otherwise it executes, with probability `random`, a uniform draw
    from all actions, and otherwise the chosen one. ``info["executed_action"]``, int32 ``[N]``, and the state
    (`executed`) hold the executed action. If both probabilities are 0, the game is the one underneath.
    """

    def __init__(self, env: VectorEnv, *, sticky: float = 0.0, random: float = 0.0):
        """Wraps `env`.

        Args:
          env: N environments.
          sticky: probability in [0, 1].
          random: probability in [0, 1], if the action is not repeated.

        Raises:
          ValueError: if either is not a probability, or the actions are continuous.
        """
        for name, value in (("sticky", sticky), ("random", random)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability, between 0 and 1, not {value}.")
        if not isinstance(env.action_space, Discrete):
            raise ValueError(f"Only discrete actions can be disobeyed, and {env.name} takes {env.action_space}.")
        super().__init__(env, sticky=float(sticky), random=float(random))
        self.sticky, self.random = float(sticky), float(random)

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, DisobedientState]:
        """See `VectorEnv.reset`."""
        obs, state = self.env.reset(key, params)
        return obs, DisobedientState(state, jnp.full(self.num_envs, -1, jnp.int32))

    def step(self, key: jax.Array, state: DisobedientState, action: jax.Array, params: Any = None):
        """See `VectorEnv.step`; ``info`` also has ``executed_action``."""
        key_sticks, key_strays, key_drawn = jax.random.split(jax.random.fold_in(key, _TAG - 1), 3)
        n = self.num_envs
        drawn = jax.random.randint(key_drawn, (n,), 0, self.num_actions, jnp.int32)
        executed = jnp.where(jax.random.bernoulli(key_strays, self.random, (n,)), drawn, action.astype(jnp.int32))
        sticks = jax.random.bernoulli(key_sticks, self.sticky, (n,)) & (state.executed >= 0)
        executed = jnp.where(sticks, state.executed, executed)
        obs, inner, reward, terminated, truncated, info = self.env.step(key, state.env, executed, params)
        after = DisobedientState(inner, jnp.where(terminated | truncated, -1, executed))
        return obs, after, reward, terminated, truncated, {**info, "executed_action": executed}

    def get_state(self, state: DisobedientState) -> dict[str, np.ndarray]:
        """Returns the state of the environment underneath, together with the executed actions."""
        return self.env.get_state(state.env) | {"disobedient_executed": np.asarray(state.executed)}

    def set_state(self, saved: dict[str, np.ndarray]) -> DisobedientState:
        """See `VectorEnv.set_state`."""
        inner = {name: x for name, x in saved.items() if name != "disobedient_executed"}
        return DisobedientState(self.env.set_state(inner), jnp.asarray(saved["disobedient_executed"]))


def check_distractor(kind: str, strength: float) -> None:
    """Raises `ValueError` unless `kind` is one of `Distractor` and `strength` is in (0, 1]."""
    if kind not in get_args(Distractor):
        raise ValueError(f"distractor must be one of {', '.join(get_args(Distractor))}, not {kind!r}.")
    if not 0 < strength <= 1:
        raise ValueError(f"distractor_strength must be above 0 and at most 1, not {strength}.")


def _where(mask: jax.Array, ours: DistractorState, theirs: DistractorState) -> DistractorState:
    """Selects one state or the other for each of the N environments."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), ours, theirs)
