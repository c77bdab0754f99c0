"""Probes on frozen latents, tested on held-out levels: how well latents predict actions or a distractor.

Dimension keys: S training windows, E test windows, Z latent size, A actions, K merged actions, N codebooks, H latents
of a codebook, J different joint codes, D numbers that describe a distractor's state.
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
SHUFFLES = 8  # the mean over this many shuffles of the actions is accurate to a few thousandths


@functools.partial(jax.jit, static_argnames=("num_classes", "hidden"))
def fit_probe(
    key: jax.Array,
    train_x: jax.Array,
    train_y: jax.Array,
    test_x: jax.Array,
    num_classes: int,
    hidden: tuple[int, ...] = HIDDEN,
) -> jax.Array:
    """Fits a classifier (LAPO's probe: 128-128 MLP, AdamW 1e-3) and predicts the test set's classes.

    Args:
      key: a typed PRNG key.
      train_x: float32 ``[S, Z]``, standardised here with its own mean and deviation, as is `test_x`.
      train_y: int32 ``[S]``.
      test_x: float32 ``[E, Z]``.
      num_classes: A.
      hidden: widths of the hidden layers; none makes the probe linear.

    Returns:
      Predicted classes int32 ``[E]``.
    """
    loss = optax.softmax_cross_entropy_with_integer_labels
    logits = _fit_and_predict(key, train_x, train_y, test_x, (*hidden, num_classes), loss)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _fit_and_predict(
    key: jax.Array,
    train_x: jax.Array,
    train_y: jax.Array,
    test_x: jax.Array,
    sizes: tuple[int, ...],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Fits an MLP on standardised inputs; returns its outputs on the test set, float32 ``[E, sizes[-1]]``."""
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
    return _fit_and_predict(key, train_x, train_y, test_x, sizes, optax.squared_error)


def regress(
    key: jax.Array, train_z: np.ndarray, train_y: np.ndarray, test_z: np.ndarray, hidden: tuple[int, ...] = HIDDEN
) -> np.ndarray:
    """Fits a probe for numbers, which it scales by their deviations on the training set, and predicts the test set's.

    Args:
      key: a typed PRNG key.
      train_z: float32 ``[S, Z]``.
      train_y: float32 ``[S, D]``; the prediction of a number that does not vary is its mean.
      test_z: float32 ``[E, Z]``.
      hidden: widths of the probe's hidden layers; without any the probe is the exact least-squares fit.

    Returns:
      Predictions ``[E, D]`` in the units of `train_y`.
    """
    mean, scale = train_y.mean(0), train_y.std(0)
    varies = scale > 1e-6
    predicted = np.broadcast_to(mean, (len(test_z), len(mean))).astype(np.float64)
    if not varies.any():
        return predicted
    scaled = (train_y[:, varies] - mean[varies]) / scale[varies]
    if hidden:
        outputs = np.asarray(_regress(key, train_z, scaled, test_z, hidden))
    else:
        ones = lambda z: np.concatenate([z, np.ones((len(z), 1))], axis=1, dtype=np.float64)  # noqa: E731
        outputs = ones(test_z) @ np.linalg.lstsq(ones(train_z), scaled, rcond=1e-6)[0]
    predicted[:, varies] += outputs * scale[varies]
    return predicted


def r_squared(
    key: jax.Array,
    train_z: np.ndarray,
    train_y: np.ndarray,
    test_z: np.ndarray,
    test_y: np.ndarray,
    hidden: tuple[int, ...] = HIDDEN,
) -> float:
    """The share of the test set's variance that a probe on latents explains.

    ``R^2 = 1 - sum |y - y^|^2 / sum |y - mean y|^2``, over all numbers together, after each is divided by its deviation
    on the training set; numbers that do not vary there are left out. 1 is perfect, and 0 is as good as predicting the
    mean. Below 0 the probe generalises worse to other levels than the mean does.

    Args:
      key: a typed PRNG key.
      train_z: float32 ``[S, Z]``.
      train_y: float32 ``[S, D]``.
      test_z: float32 ``[E, Z]``, of other levels.
      test_y: float32 ``[E, D]``.
      hidden: widths of the probe's hidden layers; without any the probe is the exact least-squares fit.
    """
    scale = train_y.std(0)
    if not (scale > 1e-6).any():
        return 0.0
    return explained(regress(key, train_z, train_y, test_z, hidden), test_y, scale)


def explained(predicted: np.ndarray, true: np.ndarray, scale: np.ndarray) -> float:
    """``R^2 = 1 - sum |y - y^|^2 / sum |y - mean y|^2`` of predictions, after both are divided by `scale`.

    Args:
      predicted: float ``[E, D]``.
      true: float ``[E, D]``.
      scale: float ``[D]``, deviations; numbers with deviation 0 do not count.
    """
    return float(np.mean(explained_by_row(predicted, true, scale)))


def explained_by_row(predicted: np.ndarray, true: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Numbers float64 ``[E]`` whose mean is what `explained` returns: ``1 - |y - y^|^2 / mean |y - mean y|^2``."""
    weight = np.where(scale > 1e-6, 1 / np.maximum(scale, 1e-6), 0.0)
    error, spread = (np.square((true - other) * weight).sum(1) for other in (predicted, true.mean(0)))
    return 1 - error / max(spread.mean(), 1e-12)


def distractor_scores(
    key: jax.Array, train_z: np.ndarray, train_states: np.ndarray, test_z: np.ndarray, test_states: np.ndarray
) -> dict[str, float]:
    """How well latents predict a distractor: its change from o_t to o_{t+1}, and its state at o_t.

    Args:
      key: a typed PRNG key.
      train_z: float32 ``[S, Z]``.
      train_states: float32 ``[S, 2, D]``, the distractor's states at o_t and o_{t+1} (`evaluation_distractor`).
      test_z: float32 ``[E, Z]``, of other levels.
      test_states: float32 ``[E, 2, D]``.

    Returns:
      `r_squared` as ``distractor_change_r2`` and ``distractor_state_r2``; linear probes have the prefix ``linear_``.
    """
    targets = {"change": [x[:, 1] - x[:, 0] for x in (train_states, test_states)]}
    targets["state"] = [train_states[:, 0], test_states[:, 0]]
    return {
        f"{prefix}distractor_{name}_r2": r_squared(key, train_z, train_y, test_z, test_y, hidden)
        for name, (train_y, test_y) in targets.items()
        for prefix, hidden in (("", HIDDEN), ("linear_", ()))
    }


def accuracy(
    key: jax.Array,
    train_z: np.ndarray,
    train_y: np.ndarray,
    test_z: np.ndarray,
    test_y: np.ndarray,
    num_classes: int,
    hidden: tuple[int, ...] = HIDDEN,
) -> float:
    """Held-out accuracy of a probe; for the arguments see `fit_probe`. `test_y` is int32 ``[E]``."""
    return float(np.mean(fit_probe(key, train_z, train_y, test_z, num_classes, hidden) == test_y))


def accuracies(
    key: jax.Array,
    train_z: np.ndarray,
    train_actions: np.ndarray,
    test_z: np.ndarray,
    test_actions: np.ndarray,
    merged: Sequence[int] | np.ndarray,
    hidden: tuple[int, ...] = HIDDEN,
) -> tuple[float, float]:
    """Held-out accuracy of a probe, raw and with aliased actions merged.

    It fits a separate probe for each: a probe of 15 actions spreads its votes over aliases that cannot be told apart.
    `merged` is the class of each action, length A; the other arguments are those of `accuracy`.
    """
    classes = np.asarray(merged)
    raw = accuracy(key, train_z, train_actions, test_z, test_actions, len(classes), hidden)
    train_classes, test_classes = classes[train_actions], classes[test_actions]
    return raw, accuracy(key, train_z, train_classes, test_z, test_classes, int(classes.max()) + 1, hidden)


def head_scores(logits: np.ndarray, actions: np.ndarray, merged: Sequence[int] | np.ndarray) -> dict[str, float]:
    """How well stage 1's own action head predicts held-out actions; the baseline is `majority_accuracy`.

    Args:
      logits: float32 ``[E, A]``.
      actions: int ``[E]``, true actions.
      merged: the class of each action, length A; a class's probability is the sum over its actions.

    Returns:
      ``action_loss`` (nats), ``action_accuracy`` and ``action_accuracy_merged``.
    """
    classes = np.asarray(merged)
    logits = logits - logits.max(1, keepdims=True)
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    joined = share @ np.eye(classes.max() + 1)[classes]
    return {
        "action_loss": float(-np.log(share[np.arange(len(actions)), actions] + 1e-30).mean()),
        "action_accuracy": float(np.mean(share.argmax(1) == actions)),
        "action_accuracy_merged": float(np.mean(joined.argmax(1) == classes[actions])),
    }


def majority_accuracy(train_actions: np.ndarray, test_actions: np.ndarray) -> float:
    """Accuracy on the test set of always predicting the training set's most frequent action."""
    return float(np.mean(test_actions == np.bincount(train_actions).argmax()))


def joint_codes(codes: np.ndarray) -> np.ndarray:
    """Numbers the joint codes of windows in lexical order: int ``[E, N, H]`` to int64 ``[E]`` in ``[0, J)``."""
    return np.unique(codes.reshape(len(codes), -1), axis=0, return_inverse=True)[1].reshape(-1)


def _contingency(codes: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Counts how often each code occurs with each class: ints ``[E]`` and ``[E]`` to int64 ``[J, A]``."""
    counts = np.zeros((codes.max() + 1, classes.max() + 1), np.int64)
    np.add.at(counts, (codes, classes), 1)
    return counts


def _entropy(share: np.ndarray) -> float:
    share = share[share > 0]
    return float(-np.sum(share * np.log(share)))


def normalised_mutual_information(codes: np.ndarray, classes: np.ndarray) -> float:
    """Mutual information of codes and classes, both non-negative ints ``[E]``, normalised to [0, 1].

    ``NMI = 2 I(c; a) / (H(c) + H(a))`` from the windows' frequencies. It is 1 if each is a function of the other, and 0
    if they are independent or both constant. With few windows or many codes they agree by chance: compare with shuffled
    classes (`agreement`).
    """
    joint = _contingency(codes, classes) / len(codes)
    h_codes, h_classes = _entropy(joint.sum(1)), _entropy(joint.sum(0))
    if h_codes + h_classes == 0:
        return 0.0
    information = h_codes + h_classes - _entropy(joint)
    return min(max(2 * information / (h_codes + h_classes), 0.0), 1.0)  # rounding leaves the range by 1e-16


def purity(codes: np.ndarray, classes: np.ndarray) -> float:
    """Accuracy of predicting each code's most frequent class: ``sum_c max_a n(c, a) / E``, of ints ``[E]``.

    It is at least the share of the most frequent class, and 1 if each code occurs with only one class. That is always
    so if every window has its own code: compare with shuffled classes (`agreement`).
    """
    return float(_contingency(codes, classes).max(1).sum() / len(codes))


def agreement(
    codes: np.ndarray, actions: np.ndarray, merged: Sequence[int] | np.ndarray, seed: int
) -> dict[str, float]:
    """Mutual information and purity of codes and actions, raw and with aliases merged, and their baselines.

    Both use a window's joint code, of all codebooks and latents together, and both grow with the number of joint codes.
    The baseline is the same measure with shuffled actions, averaged over `SHUFFLES` shuffles: only what exceeds it was
    learned.

    Args:
      codes: int ``[E, N, H]`` of held-out windows.
      actions: int ``[E]``, their true actions.
      merged: the class of each action, length A.
      seed: draws the shuffles.

    Returns:
      ``code_nmi``, ``code_purity``, both with ``_merged``, and each of the four with ``_shuffled``; all in [0, 1].
    """
    joint = joint_codes(codes)
    scores = {}
    for suffix, classes in (("", np.asarray(actions)), ("_merged", np.asarray(merged)[actions])):
        rng = np.random.default_rng(seed)
        shuffled = [rng.permutation(classes) for _ in range(SHUFFLES)]
        for name, measure in (("code_nmi", normalised_mutual_information), ("code_purity", purity)):
            scores[name + suffix] = measure(joint, classes)
            scores[f"{name}{suffix}_shuffled"] = float(np.mean([measure(joint, other) for other in shuffled]))
    return scores


def variance_between(codes: np.ndarray, values: np.ndarray, seed: int) -> dict[str, float]:
    """The share of the variance of some numbers that lies between joint codes, and its baseline.

    ``1 - sum |y - mean y of its code|^2 / sum |y - mean y|^2`` is what the best function of the code explains, fitted
    on the same windows. Codes with few windows explain something by chance; the baseline is as in `agreement`.

    Args:
      codes: int ``[E, N, H]`` of held-out windows.
      values: float ``[E, D]``, their true actions.
      seed: draws the shuffles.

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
