"""Do the latents tell the actions? Probes on frozen latents, held out by level, each beside its nulls.

Dimension keys: S training windows, E test windows, Z latent size, A actions, K merged actions, N codebooks, H latents
of a codebook, J different joint codes.
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
SHUFFLES = 8  # of the actions, for the null of agreement: its mean over them is known to a few thousandths


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


def joint_codes(codes: np.ndarray) -> np.ndarray:
    """One number for each joint code: codes int ``[E, N, H]`` to int64 ``[E]`` in ``[0, J)``, in lexical order."""
    return np.unique(codes.reshape(len(codes), -1), axis=0, return_inverse=True)[1].reshape(-1)


def _contingency(codes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How often each code met each class: ints ``[E]`` and ``[E]`` to int64 ``[J, A]``."""
    counts = np.zeros((codes.max() + 1, classes.max() + 1), np.int64)
    np.add.at(counts, (codes, classes), 1)
    return counts


def _entropy(share: np.ndarray) -> float:
    share = share[share > 0]
    return float(-np.sum(share * np.log(share)))


def normalised_mutual_information(codes: np.ndarray, classes: np.ndarray) -> float:
    """How much codes and classes tell of each other, as a share of what there is to tell.

    ``NMI = 2 I(c; a) / (H(c) + H(a))`` from the windows' frequencies: 1 where each is a function of the other, 0 where
    they are independent, and 0 where there is nothing to tell because both are constant. Frequencies of few windows
    agree by chance, the more so the more codes there are: read it beside shuffled classes (`agreement`).

    Args:
      codes: int ``[E]``, not negative.
      classes: int ``[E]``, not negative.
    """
    joint = _contingency(codes, classes) / len(codes)
    h_codes, h_classes = _entropy(joint.sum(1)), _entropy(joint.sum(0))
    if h_codes + h_classes == 0:
        return 0.0
    information = h_codes + h_classes - _entropy(joint)
    return min(max(2 * information / (h_codes + h_classes), 0.0), 1.0)  # rounding leaves the range by 1e-16


def purity(codes: np.ndarray, classes: np.ndarray) -> float:
    """Accuracy of naming, for each code, the class that it met most often: ``sum_c max_a n(c, a) / E``.

    At least the share of the most frequent class, and 1 where each code met one class only, as it does by itself where
    every window has a code of its own: read it beside shuffled classes (`agreement`).

    Args:
      codes: int ``[E]``, not negative.
      classes: int ``[E]``, not negative.
    """
    return float(_contingency(codes, classes).max(1).sum() / len(codes))


def agreement(codes: np.ndarray, actions: np.ndarray, merged: Sequence[int], seed: int) -> dict[str, float]:
    """Do codes match actions? Both measures, raw and merged, each beside its null.

    Both are taken from the joint code of a window, all codebooks and latents together, and both are biased upwards by
    the number of joint codes. The null is the same measure with the actions dealt to the windows at random, the mean
    of `SHUFFLES` deals: what is above it was learned.

    Args:
      codes: int ``[E, N, H]`` of held-out windows.
      actions: int ``[E]``, their true actions.
      merged: the class of each action, length A.
      seed: of the shuffles.

    Returns:
      ``code_nmi``, ``code_purity``, the same with ``_merged``, and each of the four with ``_shuffled``; all in [0, 1].
    """
    joint = joint_codes(codes)
    found = {}
    for suffix, classes in (("", np.asarray(actions)), ("_merged", np.asarray(merged)[actions])):
        rng = np.random.default_rng(seed)
        shuffled = [rng.permutation(classes) for _ in range(SHUFFLES)]
        for name, measure in (("code_nmi", normalised_mutual_information), ("code_purity", purity)):
            found[name + suffix] = measure(joint, classes)
            found[f"{name}{suffix}_shuffled"] = float(np.mean([measure(joint, deal) for deal in shuffled]))
    return found
