"""Do the latents tell the actions? Probes on frozen latents, held out by level, each beside its nulls.

Dimension keys: S training windows, E test windows, Z latent size, A actions, K merged actions.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lamjax.models.mlp import MLP

HIDDEN = (128, 128)
EPOCHS = 5
BATCH = 128
LEARNING_RATE = 1e-3


@functools.partial(jax.jit, static_argnames=("num_classes", "hidden"))
def fit_probe(
    key: jax.Array,
    train_x: jax.Array,
    train_y: jax.Array,
    test_x: jax.Array,
    num_classes: int,
    hidden: tuple[int, ...] = HIDDEN,
) -> jax.Array:
    """Fits a classifier (LAPO's probe: 128-128 MLP, AdamW 1e-3) and predicts the test set.

    Args:
      key: a typed PRNG key.
      train_x: float32 ``[S, Z]``, standardised here with its own mean and deviation.
      train_y: int32 ``[S]``.
      test_x: float32 ``[E, Z]``.
      num_classes: A.
      hidden: widths of the hidden layers; none makes the probe linear.

    Returns:
      Predicted classes int32 ``[E]``.
    """
    mean, scale = train_x.mean(0), train_x.std(0) + 1e-6
    train_x, test_x = (train_x - mean[None]) / scale[None], (test_x - mean[None]) / scale[None]
    network = MLP((*hidden, num_classes))
    key_init, key_rows = jax.random.split(key)
    params = network.init(key_init, train_x[:1])
    batch = min(BATCH, train_x.shape[0])
    steps = EPOCHS * (train_x.shape[0] // batch)
    tx = optax.adamw(optax.linear_schedule(LEARNING_RATE, 0.0, steps), weight_decay=0.01)

    def step(carry, index):
        params, opt_state = carry
        rows = jax.random.randint(jax.random.fold_in(key_rows, index), (batch,), 0, train_x.shape[0])

        def loss_fn(params):
            logits = network.apply(params, train_x[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, train_y[rows]).mean()

        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
    return jnp.argmax(network.apply(params, test_x), axis=-1).astype(jnp.int32)


def accuracies(
    key: jax.Array,
    train_z: np.ndarray,
    train_actions: np.ndarray,
    test_z: np.ndarray,
    test_actions: np.ndarray,
    merged: Sequence[int],
    hidden: tuple[int, ...] = HIDDEN,
) -> tuple[float, float]:
    """Held-out accuracy of a probe, raw and after merging actions that do the same.

    One probe for each: a probe of 15 actions spreads its votes over aliases that cannot be told apart.

    Args:
      key: a typed PRNG key.
      train_z: float32 ``[S, Z]``.
      train_actions: int ``[S]``, true actions.
      test_z: float32 ``[E, Z]``, of other levels.
      test_actions: int ``[E]``.
      merged: the class of each action, length A.
      hidden: widths of the probe's hidden layers.
    """
    classes = np.asarray(merged)
    raw = fit_probe(key, train_z, train_actions, test_z, len(classes), hidden)
    joined = fit_probe(key, train_z, classes[train_actions], test_z, int(classes.max()) + 1, hidden)
    return float(np.mean(raw == test_actions)), float(np.mean(joined == classes[test_actions]))


def majority_accuracy(train_actions: np.ndarray, test_actions: np.ndarray) -> float:
    """Accuracy on the test set of always naming the training set's most frequent action."""
    return float(np.mean(test_actions == np.bincount(train_actions).argmax()))
