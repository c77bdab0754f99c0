"""Thresholds at which a linear latent action model turns from actions to noise, for isotropic worlds.

They hold for unit action effects, other agents of scale s_exo whose directions are orthogonal to the actions', and
S_o = I. An action direction then has the eigenvalue `action_eigenvalue`, a direction of the others s_exo^2, and the
larger ones get the latents.
"""

import numpy as np

from lamjax.linear.world import check, check_choice


def action_eigenvalue(chi: float, kappa: float, action_weight: float = 0.0) -> float:
    """The eigenvalue of an action direction: ``(1 - chi)^2 + chi^2 kappa^2 / (1 + kappa^2) + lam``.

    o predicts the policy's deterministic part, which drops out; augmentation brings it back. The action weight adds to
    the eigenvalue for chi = 0.
    """
    check(0 <= chi <= 1, f"chi must lie in [0, 1], not {chi}.")
    return (1 - chi) ** 2 + chi**2 * kappa**2 / (1 + kappa**2) + action_weight


def critical_kappa(s_exo: float, chi: float) -> float:
    """The smallest augmentation with which actions are learned under a policy: action eigenvalue = s_exo^2.

    Returns:
      kappa; 0 if none is needed, infinity if no augmentation suffices.
    """
    check(0 <= chi <= 1, f"chi must lie in [0, 1], not {chi}.")
    missing = s_exo**2 - (1 - chi) ** 2
    if missing <= 0:
        return 0.0
    share = missing / chi**2 if chi > 0 else np.inf
    return float(np.sqrt(share / (1 - share))) if share < 1 else float("inf")


def critical_action_weight(s_exo: float) -> float:
    """The smallest action weight with which actions beat the others: ``lam* = s_exo^2 - 1`` in sum units.

    Paper, Proposition 4.4.
    """
    return max(s_exo**2 - 1, 0.0)


def critical_cleaning(s_exo: float) -> float:
    """The fraction of the noise to remove before training, ``c* = 1 - 1 / s_exo``."""
    check(s_exo > 0, f"s_exo must be positive, not {s_exo}.")
    return max(1 - 1 / s_exo, 0.0)


def sample_overlap(n: int, d_o: int, s_iid: float, *, fix_a: bool = False) -> float:
    """The mean squared cosine between an action direction and its estimate from n transitions.

    ``(1 - g / l^2) / (1 + g / l)`` if ``l > sqrt(g)``, else 0, with g = O / m and l = 1 / s_iid^2 (Baik, Ben Arous,
    Péché). With A = I, m is n. A free A is fitted to the same transitions and uses up O of them: m = n - O.

    Args:
      n: transitions.
      d_o: O.
      s_iid: standard deviation of the iid noise.
      fix_a: whether A is fixed to the identity.
    """
    check(n >= 1, f"n must be at least 1, not {n}.")
    check(s_iid > 0, f"s_iid must be positive, not {s_iid}.")
    left, strength = n if fix_a else n - d_o, 1 / s_iid**2
    if left <= 0 or strength <= np.sqrt(d_o / left):
        return 0.0
    g = d_o / left
    return (1 - g / strength**2) / (1 + g / strength)


def effective_action_weight(
    action_weight: float, units: str, label_fraction: float, batch: int, d_o: int, d_a: int
) -> float:
    """The effective action weight of training with few labels, lam in sum units.

    Args:
      action_weight: the weight in `units`.
      units: "sum": the loss is ``|o' - o^|^2 + weight |a^ - a|^2`` with sums over coordinates, as in the paper; "code":
        with means over coordinates, as in the authors' code, which makes the weight O / A times larger.
      label_fraction: p, the probability that a transition is labelled.
      batch: N. The head's loss is a mean over the labelled ones of a batch, and 0 when it has none.
      d_o: O.
      d_a: A.

    Returns:
      ``weight * (O / A if units == "code" else 1) * (1 - (1 - p)^N)``.
    """
    check_choice("units", units, "sum", "code")
    check(0 <= label_fraction <= 1, f"label_fraction must lie in [0, 1], not {label_fraction}.")
    scale = d_o / d_a if units == "code" else 1.0
    return action_weight * scale * (1 - (1 - label_fraction) ** batch)
