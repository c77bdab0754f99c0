"""Measures how much of the action information in frames the latents hold.

A probe on the recording cannot show it: an expert's actions follow from what it sees, so even latents that hold only
o_t predict them. Here the actions are those of *uniform random play*, which no single frame reveals. The measure runs
from what is known without looking (the majority class) to what the same inverse network predicts when it is trained on
the actions themselves:

    share = (S(probe on latents) - S(majority)) / (S(supervised) - S(majority))

S is the accuracy on held-out levels, with aliased actions merged, or R^2 for continuous actions. Random features of the
frames hold some of the information too, so the share of an untrained model is measured as well.

Dimension keys: E held-out windows.
"""

import dataclasses
from typing import Any

import numpy as np

from lamjax.statistics import stderr_over_groups

# A smaller lead of the ceiling over the majority class counts as this much. There is nothing to know there, and noise
# divided by noise could be any number.
MIN_KNOWABLE = 0.02


@dataclasses.dataclass(frozen=True)
class WindowScores:
    """Scores of held-out windows, float64 ``[E]``, whose means are accuracies or R^2.

    Attributes:
      trained: those of a probe on the latents.
      untrained: those of the same probe on an untrained model's latents.
      supervised: those of the inverse network that was trained on the actions.
      majority: those of the most frequent action, or of the mean of continuous ones.
    """

    trained: np.ndarray
    untrained: np.ndarray
    supervised: np.ndarray
    majority: np.ndarray


def share_of_knowable(
    scores: np.ndarray, supervised: np.ndarray, majority: np.ndarray, episodes: np.ndarray
) -> tuple[float, float]:
    """The share of the knowable that some scores hold, and its standard error.

    The share is a ratio of two means, ``mean(s - m) / mean(c - m)``. To first order a window changes it by

        phi_e = ((s_e - m_e) - share * (c_e - m_e)) / mean(c - m),

    so errors that the three scores have in common cancel. Windows of one episode are correlated: the sums of phi over
    the K episodes count as independent, not the windows,

        stderr = sqrt(K / (K - 1) * sum_k (sum_{e in k} phi_e)^2) / E.

    This is the error due to the finite number of held-out windows; neither the network nor the probe is trained again.
    If there is only one episode, its windows count as independent.

    Args:
      scores: s, float ``[E]``.
      supervised: c, float ``[E]``. If its mean is less than `MIN_KNOWABLE` above m's, `MIN_KNOWABLE` replaces the
        difference.
      majority: m, float ``[E]``.
      episodes: int ``[E]``, the episode of each window.
    """
    gain, knowable = scores - majority, supervised - majority
    ceiling = max(knowable.mean(), MIN_KNOWABLE)
    share = gain.mean() / ceiling
    influence = gain - gain.mean()
    if knowable.mean() > MIN_KNOWABLE:
        influence = influence - share * (knowable - knowable.mean())
    return float(share), stderr_over_groups(influence / ceiling, episodes)


def action_information(scores: WindowScores, episodes: np.ndarray) -> dict[str, Any]:
    """Computes the action information of stage 1.

    Args:
      scores: the scores of the held-out windows.
      episodes: int ``[E]``, the episode of each window.

    Returns:
      ``share`` and ``share_stderr`` of the trained model and the ``untrained_share`` (see `share_of_knowable`); the
      mean scores ``trained``, ``untrained``, ``supervised`` and ``majority``; and E as ``windows``.
    """
    share, stderr = share_of_knowable(scores.trained, scores.supervised, scores.majority, episodes)
    untrained_share, _ = share_of_knowable(scores.untrained, scores.supervised, scores.majority, episodes)
    return {
        "share": share,
        "share_stderr": stderr,
        "untrained_share": untrained_share,
        **{field.name: float(getattr(scores, field.name).mean()) for field in dataclasses.fields(scores)},
        "windows": len(episodes),
    }
