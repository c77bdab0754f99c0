"""The optimum of a linear latent action model in closed form (arXiv 2506.15691, section 4, and beyond).

    z = C o + D o',   o^ = A o + B z,   a^ = E z
    L = E|o' - o^|^2 + kappa^2 |A - I|^2 + kappa^2 |B (C + D)|^2 + lam (E|a - a^|^2 + kappa^2 |E (C + D)|^2)

The kappa terms are what augmentation amounts to: one draw ~ N(0, kappa^2 I) is added to both inputs of the inverse
model, another to the input and the target of the forward model. With Delta = o' - o, P = E[o' o^T] E[o o^T]^-1 and
K = P - I, the model does PCA of the *innovation* r = o' - P o, the part of the change that o does not predict:

    S_eff = S_r + kappa^2 K S_o (S_o + kappa^2 I)^-1 K^T,   B D = U U^T,   L* = sum of the discarded eigenvalues

with U the top eigenvectors of S_eff. For changes that are uncorrelated with o this is PCA of q + eps, the paper's
Propositions 4.1 and 4.2. Losses are sums over coordinates. All arrays are float64.

Dimension keys: O observation, A action, Z latent.
"""

import dataclasses
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np

from lamjax.linear.world import Moments, check, check_choice

# Relative to the largest eigenvalue: below these an eigenvalue is rounding, and two eigenvalues are equal.
_RANK, _TIE = 1e-12, 1e-9


class TieWarning(UserWarning):
    """Eigenvalues on both sides of the cut are equal, so the optimal latent is not unique."""


class LAM(NamedTuple):
    """A linear latent action model; numpy or JAX arrays.

    Attributes:
      A: ``[O, O]``, forward model, observation.
      B: ``[O, Z]``, forward model, latent.
      C: ``[Z, O]``, inverse model, observation.
      D: ``[Z, O]``, inverse model, next observation.
      E: ``[A, Z]``, action head.
      bias_o: ``[O]``, of the forward model.
      bias_a: ``[A]``, of the action head.
    """

    A: Any
    B: Any
    C: Any
    D: Any
    E: Any
    bias_o: Any
    bias_a: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Optimum:
    """The result of `optimum`.

    Attributes:
      loss: L*, the smallest loss.
      lam: a model that has it, in the gauge C = -D wherever that is optimal; unused latents are zero.
      eigenvalues: ``[O]`` descending: of S_eff, or with an action loss of the stacked target.
      gap: difference of the eigenvalues on both sides of the cut, relative to the largest.
      attained: False where L* is an infimum that no finite C reaches; `lam` then has a larger loss.
    """

    loss: float
    lam: LAM
    eigenvalues: np.ndarray
    gap: float
    attained: bool = True


def _inverse(S: np.ndarray) -> np.ndarray:
    return np.linalg.pinv(S, rcond=1e-12, hermitian=True)


def _descending(S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first, and eigenvectors in columns, of a symmetric matrix."""
    values, vectors = np.linalg.eigh((S + S.T) / 2)
    return values[::-1], vectors[:, ::-1]


def check_settings(d_o: int, d_z: int, kappa: float, action_weight: float) -> None:
    """Raises ValueError, which names the argument, for settings out of range."""
    check(1 <= d_z <= d_o, f"d_z must lie in [1, d_o = {d_o}], not {d_z}.")
    for name, value in (("kappa", kappa), ("action_weight", action_weight)):
        check(0 <= value < np.inf, f"{name} must be finite and not negative, not {value}.")


def optimum(
    moments: Moments,
    d_z: int,
    *,
    kappa: float = 0.0,
    action_weight: float = 0.0,
    bias: bool = False,
    fix_a: bool = False,
    ties: Literal["warn", "ignore"] = "warn",
) -> Optimum:
    """The global optimum (Propositions 4.1 to 4.4 of the paper, for any moments).

    Args:
      moments: of the world or of a data set.
      d_z: Z, size of the latent.
      kappa: standard deviation of the augmentation. Above 0 the gauge C = -D is forced.
      action_weight: lam, weight of the action loss in units of sums over coordinates. If o predicts the change or the
        action, the closed form holds for kappa = 0 and d_z >= d_a only.
      bias: the forward model and the action head have biases, so the means drop out. Without, a large mean of the
        noise takes a latent of its own.
      fix_a: A = I, as in some of the authors' runs: PCA of o' - o, the limit of a large kappa.
      ties: whether to warn where the latent is not unique.

    Raises:
      ValueError: if an argument is out of range, if there is nothing to encode (o determines o', as with chi = 1 and
        no noise), or if there is no closed form.
    """
    m, d_o, d_a = moments, moments.d_o, moments.d_a
    check_settings(d_o, d_z, kappa, action_weight)
    check_choice("ties", ties, "warn", "ignore")
    o, delta, a = m.select(o=1.0), m.select(delta=1.0), m.select(a=1.0)
    S_o, S_do, S_d = (m.product(u, v, centred=bias) for u, v in ((o, o), (delta, o), (delta, delta)))
    S_ao, S_ad, S_a = (m.product(a, v, centred=bias) for v in (o, delta, a))
    identity = np.eye(d_o)
    K, M = S_do @ _inverse(S_o), S_ao @ _inverse(S_o)
    follows = max(np.abs(K).max(), np.abs(M).max()) > 1e-9
    if action_weight > 0 and follows:
        check(kappa == 0 and not fix_a, "action_weight: no closed form with kappa or fix_a if o predicts the action.")
        check(d_z >= d_a, f"action_weight: no closed form for d_z < d_a ({d_z} < {d_a}) if o predicts the action.")

    if fix_a:
        S_eff, predicted = S_d, 0 * S_o
    else:
        predicted = K @ S_o @ _inverse(S_o + kappa**2 * identity)
        S_eff = S_d - K @ S_do.T + kappa**2 * predicted @ K.T
    # W stacks, on the change, the action as it is predicted from the change.
    S_ar = S_ad - M @ S_do.T
    W = np.concatenate([identity, np.sqrt(action_weight) * S_ar @ _inverse(S_eff)]) if action_weight > 0 else identity
    S = W @ S_eff @ W.T
    total = np.trace(S_eff) + action_weight * np.trace(S_a - M @ S_ao.T)
    empty = np.trace(S_eff) <= _RANK * max(np.trace(S_d), np.finfo(float).tiny)
    check(not empty, "moments: the innovation is empty: o determines o' (chi = 1 without noise), nothing to encode.")
    values, vectors = _descending(S)
    values = np.maximum(values, 0)
    gap = (values[d_z - 1] - values[d_z]) / values[0] if d_z < len(values) else values[d_z - 1] / values[0]
    if ties == "warn" and gap < _TIE and values[d_z - 1] > _RANK * values[0]:
        warnings.warn(
            f"Eigenvalues {d_z} and {d_z + 1} are equal ({values[d_z]:.6g}): the optimal latent is not unique.",
            TieWarning,
            stacklevel=2,
        )

    V = vectors[:, :d_z] * (values[:d_z] > _RANK * values[0])
    D, B, E = V.T @ W, V[:d_o], np.zeros((d_a, d_z))
    attained = True
    if action_weight > 0:
        E = V[d_o:] / np.sqrt(action_weight)
    if action_weight > 0 and follows:
        # The latent's part in o is free for the reconstruction; the head needs E (C + D P) = M.
        left, strengths, right = np.linalg.svd(E, full_matrices=False)
        known = strengths > 1e-9 / np.sqrt(action_weight)
        C_free = (right[known].T / strengths[known]) @ left[:, known].T @ M
        attained = bool(np.abs(E @ C_free - M).max() <= 1e-9 * np.abs(M).max())
        C = C_free - D @ (identity + K)
        A = (identity - B @ D) @ (identity + K) - B @ C
    else:
        C, A = -D, identity + (identity - B @ D) @ predicted
    bias_o, bias_a = np.zeros(d_o), np.zeros(d_a)
    if bias:
        mean_o, mean_delta, mean_a = (x @ m.mean for x in (o, delta, a))
        mean_z = (C + D) @ mean_o + D @ mean_delta
        bias_o, bias_a = mean_o + mean_delta - A @ mean_o - B @ mean_z, mean_a - E @ mean_z
    loss = float(total - values[:d_z].sum())
    return Optimum(max(loss, 0.0), LAM(A, B, C, D, E, bias_o, bias_a), values[:d_o], float(gap), attained)


def population_loss(lam: LAM, moments: Moments, *, kappa: float = 0.0, action_weight: float = 0.0) -> float:
    """The loss of any model on exact moments, augmentation included (the module's L)."""
    m, identity = moments, np.eye(moments.d_o)
    through = lam.C + lam.D
    residual = m.select(o=identity - lam.A - lam.B @ through, delta=identity - lam.B @ lam.D)
    loss = _power(m, residual, lam.bias_o)
    loss += kappa**2 * (np.sum((lam.A - identity) ** 2) + np.sum((lam.B @ through) ** 2))
    if action_weight > 0:
        residual = m.select(o=-lam.E @ through, delta=-lam.E @ lam.D, a=1.0)
        head = _power(m, residual, lam.bias_a) + kappa**2 * np.sum((lam.E @ through) ** 2)
        loss += action_weight * head
    return float(loss)


def _power(m: Moments, residual: np.ndarray, bias: np.ndarray) -> float:
    """``E|residual v - bias|^2``."""
    return np.sum((residual @ m.second) * residual) - 2 * bias @ residual @ m.mean + bias @ bias


def excess(lam: LAM, best: Optimum, moments: Moments, *, kappa: float = 0.0, action_weight: float = 0.0) -> float:
    """``(L - L*) / tr S_{q + eps}``: how far a model is from the optimum, the measure of convergence."""
    delta = moments.select(delta=1.0)
    loss = population_loss(lam, moments, kappa=kappa, action_weight=action_weight)
    return (loss - best.loss) / float(np.trace(moments.product(delta, delta)))


def shifted(lam: LAM, shift: np.ndarray) -> LAM:
    """Another model with the same loss (without augmentation): C + shift and A - B shift, shift ``[Z, O]``."""
    return lam._replace(A=lam.A - lam.B @ shift, C=lam.C + shift)


def angle(lam: LAM, best: Optimum, d_z: int) -> float:
    """The largest principal angle, in degrees, between the columns of ``B D`` and those of the optimum's."""

    def basis(G: np.ndarray) -> np.ndarray:
        return np.linalg.svd(G)[0][:, :d_z]

    cosines = np.linalg.svd(basis(lam.B @ lam.D).T @ basis(best.lam.B @ best.lam.D), compute_uv=False)
    return float(np.degrees(np.arccos(np.clip(cosines.min(), 0, 1))))
