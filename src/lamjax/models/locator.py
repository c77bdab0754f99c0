"""Finds the agent in a frame, from frames alone: no actions and no labels.

Three facts about an agent are enough:

1. *It changes its pace.* It does so at almost every step, and other things seldom do. `motion_evidence` measures it
   everywhere in a frame. On its own it points at the agent in half of the frames of a game like Starpilot.
2. *It does not jump.* Of all the paths through an episode that move by a cell per frame at most, `track` takes the one
   along which there is the most evidence (Viterbi's algorithm).
3. *It looks like itself.* What else lies on such paths looks different every time. A small network that learns to point
   at the tracks in single frames therefore points at the agent more often than the tracks do. Its own evidence gives
   better tracks, from which it learns once more (`LocatorConfig.rounds`).

Dimension keys: B batch, F frames of a recording, G and K rows and columns of cells.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from lamjax import parallel
from lamjax.checks import check_fields
from lamjax.models.impala import depth_to_space, pad_to_multiple, space_to_depth
from lamjax.models.layers import Conv
from lamjax.optim import grads_as, unpack_groups
from lamjax.preprocess import unsteadiness

_FLOOR = 1e-3  # of the most evidence in a frame: less counts as this, so that an agent may pause
_LEAST = -8.0  # the least that a network's log-probability counts
_SPREAD = 1.0  # deviation of the target around a track, in cells
_NEIGHBOURS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))


@dataclasses.dataclass(frozen=True)
class LocatorConfig:
    """The settings of the network that finds the agent.

    Attributes:
      rounds: how often tracks are found and learned: first from motion, then from what the network has learned.
      steps: optimizer steps in each round.
      batch_size: frames in a step.
      learning_rate: Adam's peak, which falls to 0 along a cosine in each round.
      channels: width of the convolutions; an even number.
      layers: how many convolutions follow the first one, on blocks of 2 x 2 cells.
      cell: side in pixels of a cell, the unit of places, and the furthest that an agent moves in a frame.
      frames: how many frames of the recording it learns from.
    """

    convolves: ClassVar[bool] = True  # see `lamjax.training.driver`

    rounds: int = 2
    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 4e-3
    channels: int = 32
    layers: int = 3
    cell: int = 2
    frames: int = 20_480

    def __post_init__(self):
        names = ("rounds", "steps", "batch_size", "channels", "cell", "frames")
        check_fields(self, "locator", at_least_1=names, at_least_0=("layers",), above_0=("learning_rate",))
        if self.channels % 2:
            raise ValueError(f"locator.channels must be even, not {self.channels}.")


class LocatorState(struct.PyTreeNode):
    """Everything that training the network carries.

    Attributes:
      params: float32.
      opt_state: the optimizer's moments, float32.
      step: int32 ``[]``, steps done in this round.
      config: the settings (static).
    """

    params: Any
    opt_state: Any
    step: jax.Array
    config: LocatorConfig = struct.field(pytree_node=False)


class _Network(nn.Module):
    """How likely the agent is in each cell: normalised frames ``[B, H, W, C]`` to logits float32 ``[B, G, K]``."""

    config: LocatorConfig

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        x = _cells(frames, self.config.cell)
        x = space_to_depth(nn.relu(Conv(self.config.channels // 2, (3, 3))(x)), 2)
        for _ in range(self.config.layers):
            x = nn.relu(Conv(self.config.channels, (3, 3))(x))
        return depth_to_space(Conv(4, (3, 3))(x), 2)[..., 0]


def _cells(images: jax.Array, side: int) -> jax.Array:
    """Folds cells of images ``[B, H, W, C]`` into channels; repeats the edges until there is an even number of them."""
    return space_to_depth(pad_to_multiple(images, 2 * side), side)


def init(key: jax.Array, config: LocatorConfig, obs_shape: tuple[int, ...]) -> LocatorState:
    """Starts training.

    Args:
      key: a typed PRNG key.
      config: the settings.
      obs_shape: ``(H, W, C)``.
    """
    return begin_round(_Network(config).init(key, jnp.zeros((1, *obs_shape)))["params"], config)


def begin_round(params: Any, config: LocatorConfig) -> LocatorState:
    """A new round, which starts with these parameters."""
    return LocatorState(params, _optimizer(config).init(params), jnp.zeros((), jnp.int32), config)


def _optimizer(config: LocatorConfig) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))


def motion_evidence(windows: jax.Array, config: LocatorConfig, side: int) -> jax.Array:
    """How much each cell looks as if something in it changed its pace (`preprocess.unsteadiness`).

    Args:
      windows: float32 ``[B, T, H, W, C]``, the last three of them o_{t-1}, o_t, o_{t+1}.
      config: the settings.
      side: side in pixels of a box that holds the agent.

    Returns:
      float32 ``[B, G, K]``, the logarithm of the evidence; the best cell of a window has 0.
    """
    cells = _cells(unsteadiness(windows, side)[..., None], config.cell).max(-1)
    return jnp.log(cells / (cells.max((1, 2), keepdims=True) + 1e-9) + _FLOOR)


def network_evidence(params: Any, config: LocatorConfig, frames: jax.Array) -> jax.Array:
    """The network's log-probabilities float32 ``[B, G, K]`` in normalised frames ``[B, H, W, C]``, from -8 to 0."""
    return jnp.maximum(_log_probs(params, config, frames), _LEAST)


def _log_probs(params: Any, config: LocatorConfig, frames: jax.Array) -> jax.Array:
    logits = _Network(config).apply({"params": params}, frames)
    return jax.nn.log_softmax(logits.reshape(len(logits), -1)).reshape(logits.shape)


def track(evidence: jax.Array, is_first: jax.Array) -> jax.Array:
    """The path through each episode with the most evidence, among those that move by one cell per frame at most.

    Args:
      evidence: float32 ``[F, G, K]``, of the frames of a recording, in order.
      is_first: bool ``[F]``, where an episode begins.

    Returns:
      int32 ``[F, 2]``, row and column of a cell in each frame.
    """
    _, rows, columns = evidence.shape

    def forward(total: jax.Array, frame: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        here, begins = frame
        padded = jnp.pad(total, 1, constant_values=-jnp.inf)
        from_each = jnp.stack([padded[1 + y : 1 + y + rows, 1 + x : 1 + x + columns] for y, x in _NEIGHBOURS])
        total = here + jnp.where(begins, 0.0, from_each.max(0))
        return total, (from_each.argmax(0).astype(jnp.int8), total.argmax().astype(jnp.int32))

    start = jnp.zeros((rows, columns), jnp.float32)
    _, (came_from, best) = jax.lax.scan(forward, start, (evidence, is_first))
    neighbours = jnp.array(_NEIGHBOURS, jnp.int32)

    def backward(after: tuple[jax.Array, jax.Array, jax.Array], frame: tuple[jax.Array, ...]):
        place, origin, was_first = after
        ends_at, begins, origin_here = frame
        before = place + neighbours[origin[place[0], place[1]]]
        place = jnp.where(was_first, jnp.stack([ends_at // columns, ends_at % columns]), before)
        return (place, origin_here, begins), place

    after = (jnp.zeros(2, jnp.int32), came_from[0], jnp.array(True))  # the last frame ends an episode
    return jax.lax.scan(backward, after, (best, is_first, came_from), reverse=True)[1]


def train_step(
    state: LocatorState, frames: jax.Array, places: jax.Array, *, axis_name: str | None = None
) -> tuple[LocatorState, dict[str, jax.Array]]:
    """One step of pointing at tracks in single frames, a pure function.

    The target is a Gaussian around the place, with a deviation of one cell.

    Args:
      state: the training state.
      frames: float32 ``[B, H, W, C]``, normalised.
      places: int32 ``[B, 2]``, as `track` gives them.
      axis_name: devices over which gradients and metrics are reduced.

    Returns:
      The new state and metrics, float32 ``[]``: ``loss``, the cross-entropy in nats.
    """

    def loss_fn(params: Any) -> jax.Array:
        log_probs = _log_probs(params, state.config, frames)
        at = [jnp.square(jnp.arange(n)[None] - places[:, i, None]) for i, n in enumerate(log_probs.shape[1:])]
        distance = (at[0][:, :, None] + at[1][:, None]).reshape(len(frames), -1)
        target = jax.nn.softmax(-distance / (2 * _SPREAD**2))
        return -jnp.sum(target * log_probs.reshape(len(frames), -1), -1).mean()

    loss, grads = jax.value_and_grad(loss_fn)(parallel.vary(unpack_groups(state.params), axis_name))
    loss, grads = parallel.pmean((loss, grads_as(state.params, grads)), axis_name)
    updates, opt_state = _optimizer(state.config).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, opt_state=opt_state, step=state.step + 1), {"loss": loss}


def find(params: Any, config: LocatorConfig, frames: jax.Array) -> jax.Array:
    """The likeliest place of the agent in normalised frames ``[B, H, W, C]``: pixels int32 ``[B, 2]``, row and column.

    It is the middle of a cell, counted from the frame's upper left corner.
    """
    log_probs = _log_probs(params, config, frames)
    _, rows, columns = log_probs.shape
    place = log_probs.reshape(len(frames), -1).argmax(-1)
    cell, (height, width) = config.cell, frames.shape[1:3]
    padding = jnp.array([(rows * cell - height) // 2, (columns * cell - width) // 2])
    return jnp.stack([place // columns, place % columns], -1) * cell + cell // 2 - padding[None]
