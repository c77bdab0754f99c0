"""Measures what latents hold, by linear probes with exact least squares (arXiv 2506.15691, sections 3 and 5).

    NMSE_y = min over W, w of E|W z + w - y|^2 / tr Cov(y),   LLO = -NMSE_q + NMSE_eps + NMSE_o

A probe reads the frozen latent, without augmentation. LLO ("learning latent action objective") is at most 2, when the
latent tells the controllable change and neither the noise nor the observation. Without noise NMSE_eps is 1.

Probes are computed from moments, without sampling; `Moments.of_samples` gives least squares on a data set.
"""

import dataclasses
from typing import Literal

import numpy as np

from lamjax.linear.optimum import LAM
from lamjax.linear.world import VARIABLES, Moments, World, check, check_choice

LatentKind = Literal["true", "surrogate", "change"]
Probe = Literal["noisy", "noisy-clean", "clean"]

# Probes ignore latents weaker than this, relative to the strongest, which are rounding of the training.
_RANK = 1e-10


@dataclasses.dataclass(frozen=True)
class Scores:
    """Probe errors and the objective that they give.

    Attributes:
      nmse_q: NMSE of the controllable change q = X a, in [0, 1] where the probe is evaluated as it was fitted.
      nmse_a: of the action; equal to nmse_q if X has orthonormal columns.
      nmse_eps: of the noise; 1 if there is none.
      nmse_o: of the observation.
      llo: ``-nmse_q + nmse_eps + nmse_o``.
    """

    nmse_q: float
    nmse_a: float
    nmse_eps: float
    nmse_o: float
    llo: float


def latent_map(lam: LAM, moments: Moments, latent: LatentKind = "true") -> np.ndarray:
    """The latent as a linear map of (o, q, eps, a), ``[Z, V]`` (section 3 of the paper).

    Args:
      lam: the model.
      moments: whose sizes count.
      latent: "true" for z = C o + D o'; "surrogate" for the paper's z~ = B^+ (o^ - o), which does not depend on how C
        and A share the observation between them; "change" for o^ - o itself, ``[O, V]``, which the authors' code
        probes: under a policy it also holds what A predicts of the action.
    """
    check_choice("latent", latent, "true", "surrogate", "change")
    z = moments.select(o=lam.C + lam.D, delta=lam.D)
    if latent == "true":
        return z
    change = moments.select(o=lam.A - np.eye(moments.d_o)) + lam.B @ z
    return change if latent == "change" else np.linalg.pinv(lam.B, rcond=1e-6) @ change


def probe_errors(z: np.ndarray, fit: Moments, evaluate: Moments | None = None) -> dict[str, float]:
    """NMSE of linear probes with bias.

    Args:
      z: ``[Z, V]``, the latent as a map of the variables.
      fit: moments that the probe is fitted on.
      evaluate: moments that it is evaluated on; by default those of `fit`.

    Returns:
      NMSE of each of "o", "q", "eps", "a"; NaN where the variable does not vary.
    """
    evaluate = evaluate or fit
    inverse = np.linalg.pinv(fit.product(z, z, centred=True), rcond=_RANK, hermitian=True)
    errors = {}
    for name in VARIABLES:
        y = fit.select(**{name: 1.0})
        W = fit.product(y, z, centred=True) @ inverse
        offset = (y - W @ z) @ fit.mean
        variance = np.trace(evaluate.product(y, y, centred=True))
        residual = y - W @ z
        bias = residual @ evaluate.mean - offset
        error = np.trace(evaluate.product(residual, residual, centred=True)) + bias @ bias
        errors[name] = float(error / variance) if variance > 1e-15 * len(y) else float("nan")
    return errors


def score(
    lam: LAM, world: World, *, latent: LatentKind = "true", probe: Probe = "noisy", on_policy: bool = True
) -> Scores:
    """Probe errors of a model in a world, from exact moments.

    Args:
      lam: the model.
      world: the world; the probe does not care about the world's cleaning, so give the uncleaned one.
      latent: which latent, see `latent_map`.
      probe: the data that the probe is fitted and evaluated on: "noisy" both with noise, "noisy-clean" fitted with and
        evaluated without (Figure 3 middle as plotted), "clean" both without.
      on_policy: False evaluates under random actions what was fitted on-policy (Figure 4 left,
        which probes the change o^ - o).
    """
    check(probe in ("noisy", "noisy-clean", "clean"), f"probe must be noisy, noisy-clean or clean, not {probe!r}.")
    fit = world.variant(noise=probe != "clean").moments()
    evaluate = world.variant(noise=probe == "noisy", on_policy=on_policy).moments()
    errors = probe_errors(latent_map(lam, fit, latent), fit, evaluate)
    nmse_eps = 1.0 if np.isnan(errors["eps"]) else errors["eps"]
    q, o = errors["q"], errors["o"]
    return Scores(nmse_q=q, nmse_a=errors["a"], nmse_eps=nmse_eps, nmse_o=o, llo=-q + nmse_eps + o)


def mutual_information(z: np.ndarray, moments: Moments, variable: str) -> float:
    """I(z; y) of Gaussian variables, in nats: ``-1/2 log det(S_{y|z} S_y^-1)`` on the range of S_y.

    The paper's ``-1/2 log NMSE`` is this for one dimension; for d equal ones it is d times smaller.

    Args:
      z: ``[Z, V]``, the latent as a map of the variables.
      moments: of the world.
      variable: "o", "q", "eps" or "a".

    Returns:
      The information; infinite if z determines a direction of y.
    """
    check_choice("variable", variable, *VARIABLES)
    y = moments.select(**{variable: 1.0})
    values, vectors = np.linalg.eigh(moments.product(y, y, centred=True))
    varies = values > 1e-12 * max(values[-1], 1e-300)
    if not varies.any() or values[-1] <= 1e-15:
        return 0.0
    white = (vectors[:, varies] / np.sqrt(values[varies])).T @ y
    S_zz, S_yz = moments.product(z, z, centred=True), moments.product(white, z, centred=True)
    explained = S_yz @ np.linalg.pinv(S_zz, rcond=_RANK, hermitian=True) @ S_yz.T
    left = 1 - np.clip(np.linalg.eigvalsh(explained), 0, 1)
    return float("inf") if (left < 1e-10).any() else float(-0.5 * np.log(left).sum())


def information_objective(z: np.ndarray, moments: Moments) -> float:
    """``I(z; a) - I(z; eps) - I(z; o)`` in nats, which LLO approximates."""
    action, noise, observation = (mutual_information(z, moments, variable) for variable in ("a", "eps", "o"))
    return float(np.subtract(action, noise)) - observation
