"""Action spaces, `Discrete(n)` and `Box(low, high)`, and the distributions of policies over them.

A policy head gives K numbers for an observation, its *outputs* ``[B, K]``, and only the space knows what they mean. For
discrete actions they are the logits of a categorical distribution (K = A). For continuous actions they are the means
and log-deviations of a Gaussian with D independent components (K = 2 D), in *half-ranges*: units in which the box is
``[-1, 1]^D``. A Gaussian's samples may leave the box. Probabilities are those of the unbounded sample, and `clip`
returns the action that the environment executes and a store keeps.

Dimension keys: B batch, A discrete actions, D numbers of a continuous action, K outputs.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Soft bounds of log-deviations, in half-ranges. Without them a fit on few labels would become ever more certain.
MIN_LOG_STD, MAX_LOG_STD = -4.0, 2.0

Blend = Literal["mean", "sum"]  # of two heads' logits

_NEVER = -1e9  # the logit of an action that is never taken


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions int32 ``[]`` in ``[0, n)``.

    Attributes:
      n: A.
    """

    n: int

    shape: ClassVar[tuple[int, ...]] = ()
    dtype: ClassVar[Any] = jnp.int32
    score_name: ClassVar[str] = "accuracy"

    def __str__(self) -> str:
        return f"{self.n} actions"

    @property
    def num_outputs(self) -> int:
        """K."""
        return self.n

    @property
    def size(self) -> int:
        """How many numbers encode an action: A logits."""
        return self.n

    def uniform(self, batch: int) -> jax.Array:
        """Outputs ``[B, K]`` of the policy that takes every action equally often."""
        return jnp.zeros((batch, self.n), jnp.float32)

    def certain(self, action: jax.Array) -> jax.Array:
        """Outputs ``[B, K]`` of the policy that always takes these actions ``[B]``."""
        return jnp.where(jax.nn.one_hot(action, self.n, dtype=jnp.bool_), 0.0, _NEVER)

    def sample(self, key: jax.Array, outputs: jax.Array) -> jax.Array:
        """Draws actions ``[B]``."""
        return jax.random.categorical(key, outputs).astype(jnp.int32)

    def mode(self, outputs: jax.Array | np.ndarray) -> jax.Array:
        """The likeliest actions ``[B]``."""
        return jnp.argmax(outputs, -1).astype(jnp.int32)

    def clip(self, action: jax.Array) -> jax.Array:
        """The action that an environment executes for a sample: the sample."""
        return action

    def log_prob(self, outputs: jax.Array, action: jax.Array) -> jax.Array:
        """Log-probabilities float ``[B]`` of actions ``[B]``, in nats."""
        return jnp.take_along_axis(jax.nn.log_softmax(outputs), action[:, None], axis=-1)[:, 0]

    def entropy(self, outputs: jax.Array) -> jax.Array:
        """Entropies float ``[B]``, in nats."""
        log_p = jax.nn.log_softmax(outputs)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def blend(self, decoded: jax.Array, head: jax.Array, how: Blend = "mean") -> jax.Array:
        """The logits of a decoder and of an RL head that acts on top of it, together.

        Their mean is LAPO's: while the head is zero it halves the decoder's logits, so the decoder acts at a
        temperature of 2. Their sum keeps its probabilities.
        """
        return head + decoded if how == "sum" else (head + decoded) / 2

    def loss(self, outputs: jax.Array, action: jax.Array, smoothing: float = 0.0) -> jax.Array:
        """Cross-entropy float ``[B]`` in nats; `smoothing` is the share of a label that all actions have equally."""
        if not smoothing:
            return optax.softmax_cross_entropy_with_integer_labels(outputs, action)
        return optax.softmax_cross_entropy(outputs, optax.smooth_labels(jax.nn.one_hot(action, self.n), smoothing))

    def point_loss(self, encoded: jax.Array, action: jax.Array) -> jax.Array:
        """The loss float ``[B]`` of a head that encodes actions in `size` numbers: cross-entropy in nats."""
        return self.loss(encoded, action)

    def score(self, guess: jax.Array | np.ndarray, action: jax.Array | np.ndarray) -> jax.Array:
        """1 where the action ``[B]`` was guessed, else 0: float32 ``[B]``, whose mean is the accuracy."""
        return (guess == action).astype(jnp.float32)

    def known(self, action: jax.Array) -> jax.Array:
        """Which labels ``[B]`` are known, bool ``[B]``: -1 means unknown."""
        return action >= 0

    def balance(self, action: jax.Array, counts: jax.Array) -> jax.Array:
        """Weights float32 ``[B]`` under which all actions that occur have the same total weight.

        Only rows where `counts`, bool ``[B]``, is true count; the mean of their weights is 1.
        """
        label = jax.nn.one_hot(action, self.n) * counts[:, None]
        times = label.sum(0)
        share = jnp.where(times > 0, counts.sum() / jnp.maximum(times, 1), 0) / jnp.maximum((times > 0).sum(), 1)
        return (label * share[None]).sum(-1)


@dataclasses.dataclass(frozen=True)
class Box:
    """Actions float32 ``[D]`` between two bounds.

    Attributes:
      low, high: the bounds, D finite numbers each, in the environment's units.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    dtype: ClassVar[Any] = jnp.float32
    score_name: ClassVar[str] = "mse"

    def __post_init__(self):
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        vectors = low.ndim == 1 and low.shape == high.shape and low.size > 0
        if not (vectors and np.isfinite([low, high]).all() and (low < high).all()):
            raise ValueError(
                f"A box needs finite bounds [D], the lower ones below the upper ones, not {self.low} and {self.high}."
            )

    def __str__(self) -> str:
        return f"continuous actions between {list(self.low)} and {list(self.high)}"

    @property
    def shape(self) -> tuple[int, ...]:
        """``(D,)``."""
        return (len(self.low),)

    @property
    def num_outputs(self) -> int:
        """K."""
        return 2 * len(self.low)

    @property
    def size(self) -> int:
        """How many numbers encode an action: D, in half-ranges."""
        return len(self.low)

    @property
    def _bounds(self) -> jax.Array:
        return jnp.array([self.low, self.high], jnp.float32)

    def _scaled(self, action: jax.Array | np.ndarray) -> jax.Array:
        low, high = self._bounds
        return (action - (low + high)[None] / 2) / ((high - low)[None] / 2)

    def _unscaled(self, x: jax.Array | np.ndarray) -> jax.Array:
        low, high = self._bounds
        return x * ((high - low)[None] / 2) + (low + high)[None] / 2

    def _gaussian(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Means and log-deviations ``[B, D]`` in half-ranges, the latter within their bounds."""
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        log_std = MIN_LOG_STD + jax.nn.softplus(log_std - MIN_LOG_STD)
        return mean, MAX_LOG_STD - jax.nn.softplus(MAX_LOG_STD - log_std)

    def uniform(self, batch: int) -> jax.Array:
        """Outputs ``[B, K]`` of the uniform policy, which is not Gaussian: infinite deviations stand for it."""
        return jnp.concatenate([jnp.zeros((batch, self.size)), jnp.full((batch, self.size), jnp.inf)], -1, jnp.float32)

    def sample(self, key: jax.Array, outputs: jax.Array) -> jax.Array:
        """Draws actions ``[B, D]``, which may lie outside the box."""
        mean, log_std = self._gaussian(outputs)
        key_normal, key_uniform = jax.random.split(key)
        drawn = mean + jnp.exp(log_std) * jax.random.normal(key_normal, mean.shape, jnp.float32)
        anywhere = jax.random.uniform(key_uniform, mean.shape, jnp.float32, -1.0, 1.0)
        return self._unscaled(jnp.where(jnp.isposinf(outputs[..., self.size :]), anywhere, drawn))

    def mode(self, outputs: jax.Array | np.ndarray) -> jax.Array:
        """The means ``[B, D]``, in the environment's units, from outputs of `size` numbers or of K."""
        return self._unscaled(outputs[..., : self.size])

    def clip(self, action: jax.Array) -> jax.Array:
        """The action that an environment executes for a sample ``[B, D]``: the nearest one in the box."""
        low, high = self._bounds
        return jnp.clip(action, low[None], high[None])

    def log_prob(self, outputs: jax.Array, action: jax.Array) -> jax.Array:
        """Log-densities float ``[B]`` of actions ``[B, D]``, per half-range, in nats."""
        mean, log_std = self._gaussian(outputs)
        z = (self._scaled(action) - mean) * jnp.exp(-log_std)
        return -jnp.sum(0.5 * jnp.square(z) + log_std + 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self, outputs: jax.Array) -> jax.Array:
        """Differential entropies float ``[B]`` of the unbounded samples, per half-range, in nats."""
        _, log_std = self._gaussian(outputs)
        return jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def blend(self, decoded: jax.Array, head: jax.Array, how: Blend = "mean") -> jax.Array:
        """The outputs of a decoder and an RL head that acts on top of it, together: their sum, whatever `how` says.

        The mean of two logits keeps the likeliest action where the head is zero. The mean of two means would not: it
        would halve the decoded action. So the head is a residual of both the mean and the log-deviation.
        """
        return head + decoded

    def loss(self, outputs: jax.Array, action: jax.Array, smoothing: float = 0.0) -> jax.Array:
        """Negative log-likelihood float ``[B]`` in nats, per half-range.

        `smoothing` is the share of each label that is spread over the whole box, as it is over all actions of a
        discrete space. The loss is its expectation, which keeps the deviation from shrinking to nothing.
        """
        nats = -self.log_prob(outputs, action)
        if not smoothing:
            return nats
        mean, log_std = self._gaussian(outputs)
        square = jnp.square(mean) + 1 / 3  # the expected squared distance from a uniform draw
        anywhere = 0.5 * square * jnp.exp(-2 * log_std) + log_std + 0.5 * math.log(2 * math.pi)
        return (1 - smoothing) * nats + smoothing * jnp.sum(anywhere, axis=-1)

    def point_loss(self, encoded: jax.Array, action: jax.Array) -> jax.Array:
        """The loss float ``[B]`` of a head that encodes actions in `size` numbers: their mean squared error."""
        return self.score(self._unscaled(encoded), action)

    def score(self, guess: jax.Array | np.ndarray, action: jax.Array | np.ndarray) -> jax.Array:
        """How badly actions ``[B, D]`` were guessed, float32 ``[B]``: the mean squared error in half-ranges."""
        return jnp.mean(jnp.square(self._scaled(guess) - self._scaled(action)), axis=-1)

    def known(self, action: jax.Array) -> jax.Array:
        """Which labels ``[B, D]`` are known, bool ``[B]``: NaN means unknown."""
        return jnp.all(jnp.isfinite(action), axis=-1)

    def balance(self, action: jax.Array, counts: jax.Array) -> jax.Array:
        """Weights float32 ``[B]``, all 1: continuous actions are not balanced."""
        del counts
        return jnp.ones(action.shape[:1], jnp.float32)


ActionSpace = Discrete | Box


def as_space(actions: "ActionSpace | int") -> ActionSpace:
    """The space itself; a number n stands for `Discrete(n)`."""
    return actions if isinstance(actions, Discrete | Box) else Discrete(int(actions))
