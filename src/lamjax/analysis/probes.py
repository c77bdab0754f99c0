"""Do the latents tell the actions, or a distractor? Probes on frozen latents, held out by level, beside their nulls.

Dimension keys: S training windows, E test windows, Z latent size, A actions, K merged actions, N codebooks, H latents
of a codebook, J different joint codes, D numbers that tell a distractor's state.
"""

import functools
from collections.abc import Callable, Sequence

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
    logits = _fitted(
        key,
        train_x,
        train_y,
        test_x,
        (*hidden, num_classes),
        lambda logits, y: optax.softmax_cross_entropy_with_integer_labels(logits, y),
    )
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _fitted(
    key: jax.Array,
    train_x: jax.Array,
    train_y: jax.Array,
    test_x: jax.Array,
    sizes: tuple[int, ...],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """What a network of these sizes, fitted on standardised inputs, says of the test set: ``[E, sizes[-1]]``."""
    mean, scale = train_x.mean(0), train_x.std(0) + 1e-6
    train_x, test_x = (train_x - mean[None]) / scale[None], (test_x - mean[None]) / scale[None]
    network = MLP(sizes)
    key_init, key_rows = jax.random.split(key)
    params = network.init(key_init, train_x[:1])
    batch = min(BATCH, train_x.shape[0])
    steps = EPOCHS * (train_x.shape[0] // batch)
    tx = optax.adamw(optax.linear_schedule(LEARNING_RATE, 0.0, steps), weight_decay=0.01)

    def step(carry, index):
        params, opt_state = carry
        rows = jax.random.randint(jax.random.fold_in(key_rows, index), (batch,), 0, train_x.shape[0])
        gradient = jax.grad(lambda params: loss(network.apply(params, train_x[rows]), train_y[rows]).mean())(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))
    return network.apply(params, test_x)


@functools.partial(jax.jit, static_argnames="hidden")
def _regress(
    key: jax.Array, train_x: jax.Array, train_y: jax.Array, test_x: jax.Array, hidden: tuple[int, ...]
) -> jax.Array:
    sizes = (*hidden, train_y.shape[-1])
    return _fitted(key, train_x, train_y, test_x, sizes, lambda found, y: jnp.square(found - y))


def r_squared(
    key: jax.Array,
    train_z: np.ndarray,
    train_y: np.ndarray,
    test_z: np.ndarray,
    test_y: np.ndarray,
    hidden: tuple[int, ...] = HIDDEN,
) -> float:
    """How well a probe reads numbers from latents: the share of their variance on the test set that it explains.

    ``R^2 = 1 - sum |y - y^|^2 / sum |y - mean y|^2``, over all numbers at once after each is divided by its deviation
    on the training set; numbers that do not vary there are left out. 1 is perfect, 0 what their mean gives; below 0
    the probe is worse on other levels than no probe.

    Args:
      key: a typed PRNG key.
      train_z: float32 ``[S, Z]``.
      train_y: float32 ``[S, D]``.
      test_z: float32 ``[E, Z]``, of other levels.
      test_y: float32 ``[E, D]``.
      hidden: widths of the probe's hidden layers; without any the probe is the exact least-squares one.
    """
    varies = train_y.std(0) > 1e-6
    if not varies.any():
        return 0.0
    mean, scale = train_y[:, varies].mean(0), train_y[:, varies].std(0)
    train_y, test_y = ((y[:, varies] - mean) / scale for y in (train_y, test_y))
    if hidden:
        found = np.asarray(_regress(key, train_z, train_y, test_z, hidden))
    else:
        ones = lambda z: np.concatenate([z, np.ones((len(z), 1))], axis=1, dtype=np.float64)  # noqa: E731
        found = ones(test_z) @ np.linalg.lstsq(ones(train_z), train_y, rcond=1e-6)[0]
    return explained(found, test_y, np.ones(1))


def explained(found: np.ndarray, true: np.ndarray, scale: np.ndarray) -> float:
    """``R^2 = 1 - sum |y - y^|^2 / sum |y - mean y|^2`` of guesses ``[E, D]``, after both are divided by `scale`.

    Args:
      found: float ``[E, D]``, the guesses.
      true: float ``[E, D]``.
      scale: float ``[D]``, deviations; numbers of deviation 0 do not count.
    """
    weight = np.where(scale > 1e-6, 1 / np.maximum(scale, 1e-6), 0.0)
    error, spread = ((true - other) * weight for other in (found, true.mean(0)))
    return float(1 - np.square(error).sum() / max(np.square(spread).sum(), 1e-12))


def read_distractor(
    key: jax.Array, train_z: np.ndarray, train_shown: np.ndarray, test_z: np.ndarray, test_shown: np.ndarray
) -> dict[str, float]:
    """How well latents tell a distractor: how it changed from o_t to o_{t+1}, and where it was at o_t.

    Args:
      key: a typed PRNG key.
      train_z: float32 ``[S, Z]``.
      train_shown: float32 ``[S, 2, D]``, its state at o_t and o_{t+1} (`evaluation_distractor`).
      test_z: float32 ``[E, Z]``, of other levels.
      test_shown: float32 ``[E, 2, D]``.

    Returns:
      `r_squared` as ``distractor_change_r2`` and ``distractor_state_r2``, and of linear probes the same with
      ``linear_`` in front.
    """
    found = {}
    for name, of in (("change", lambda shown: shown[:, 1] - shown[:, 0]), ("state", lambda shown: shown[:, 0])):
        for prefix, hidden in (("", HIDDEN), ("linear_", ())):
            score = r_squared(key, train_z, of(train_shown), test_z, of(test_shown), hidden)
            found[f"{prefix}distractor_{name}_r2"] = score
    return found


def accuracy(
    key: jax.Array,
    train_z: np.ndarray,
    train_y: np.ndarray,
    test_z: np.ndarray,
    test_y: np.ndarray,
    num_classes: int,
    hidden: tuple[int, ...] = HIDDEN,
) -> float:
    """Held-out accuracy of a probe; arguments as of `fit_probe`, and `test_y` int32 ``[E]``."""
    return float(np.mean(fit_probe(key, train_z, train_y, test_z, num_classes, hidden) == test_y))


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
    raw = accuracy(key, train_z, train_actions, test_z, test_actions, len(classes), hidden)
    train_classes, test_classes = classes[train_actions], classes[test_actions]
    return raw, accuracy(key, train_z, train_classes, test_z, test_classes, int(classes.max()) + 1, hidden)


def head_scores(logits: np.ndarray, actions: np.ndarray, merged: Sequence[int]) -> dict[str, float]:
    """How well stage 1's own action head names held-out actions; its null is `majority_accuracy`.

    Args:
      logits: float32 ``[E, A]``.
      actions: int ``[E]``, true actions.
      merged: the class of each action, length A; a class has the probability of all its actions.

    Returns:
      ``action_loss`` (nats), ``action_accuracy`` and ``action_accuracy_merged``.
    """
    classes = np.asarray(merged)
    logits = logits - logits.max(1, keepdims=True)
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    joined = np.zeros((len(share), classes.max() + 1))
    np.add.at(joined, (slice(None), classes), share)
    return {
        "action_loss": float(-np.log(share[np.arange(len(actions)), actions] + 1e-30).mean()),
        "action_accuracy": float(np.mean(share.argmax(1) == actions)),
        "action_accuracy_merged": float(np.mean(joined.argmax(1) == classes[actions])),
    }


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


def variance_between(codes: np.ndarray, values: np.ndarray, seed: int) -> dict[str, float]:
    """Do codes tell numbers? The share of their variance that lies between joint codes, beside its null.

    ``1 - sum |y - mean y of its code|^2 / sum |y - mean y|^2``: what the best function of the code alone explains, on
    the windows that it was found on. Codes of few windows explain by chance; the null is as in `agreement`.

    Args:
      codes: int ``[E, N, H]`` of held-out windows.
      values: float ``[E, D]``, their true actions.
      seed: of the shuffles.

    Returns:
      ``code_r2`` and ``code_r2_shuffled``, both in [0, 1].
    """
    joint, scale = joint_codes(codes), values.std(0)
    counts = np.bincount(joint)[:, None]

    def share(values: np.ndarray) -> float:
        sums = np.zeros((len(counts), values.shape[1]))
        np.add.at(sums, joint, values)
        return explained((sums / counts)[joint], values, scale)

    rng = np.random.default_rng(seed)
    shuffled = [share(rng.permutation(values)) for _ in range(SHUFFLES)]
    return {"code_r2": share(values), "code_r2_shuffled": float(np.mean(shuffled))}
