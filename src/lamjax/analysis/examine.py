"""Examines stage 1 on levels that it was not trained on; every score comes with its baseline.

Dimension keys: E windows, L frames in a window, D numbers that describe a distractor's state.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import dynamics
from lamjax.analysis import latents, probes
from lamjax.analysis.action_probes import ActionProbe, NoActions
from lamjax.analysis.held_out import held_out_errors, swapped_error
from lamjax.dynamics import DynamicsState

SWAPPED = 8  # batches of held-out windows whose latents are swapped
STRIPS = {1: 256, 3: 8}  # held-out predictions that a report shows, by the rank of an observation
IMAGINED = 8  # latent actions whose imagined rollouts the report shows


class Examined(NamedTuple):
    """Windows in host memory ``[E, L, *obs_shape]`` and the actions at their o_t.

    `distractor` is the distractor's state at o_t and o_{t+1}, float32 ``[E, 2, D]``, or None without a distractor.
    """

    windows: np.ndarray
    actions: np.ndarray
    distractor: np.ndarray | None = None


def still(windows: np.ndarray) -> np.ndarray:
    """Windows ``[E, L, *obs_shape]`` with every frame replaced by o_t; a view."""
    return np.broadcast_to(windows[:, -2:-1], windows.shape)


def examine(
    key: jax.Array,
    state: DynamicsState,
    untrained: DynamicsState,
    fit: Examined,
    test: Examined,
    batches: jax.Array,
    actions: ActionProbe | NoActions,
    seed: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measures stage 1: prediction errors, codebook usage, and probes of actions and of a distractor.

    Args:
      key: a typed PRNG key, for the probes.
      state: stage 1, trained.
      untrained: stage 1 before its first step, the baseline of probes.
      fit: windows that probes are fitted on.
      test: windows that everything is tested on.
      batches: the windows of `test` in device memory, ``[M, B, L, *obs_shape]``.
      actions: how actions are scored.
      seed: draws the shuffled actions and the windows that figures show.

    Returns:
      Results by name: errors, ``codebook_perplexity``, ``dead_codes``, the scores of `actions`, the same with the
      prefixes ``untrained_`` and ``still_``, and those of `probes.distractor_scores`; and the arrays of a report's
      figures.
    """
    results: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    test_z, codes = latents.latents_of_batches(state, batches)
    views = {
        "": (latents.latents_of(state, fit.windows)[0], test_z),
        "untrained_": (
            latents.latents_of(untrained, fit.windows)[0],
            latents.latents_of_batches(untrained, batches)[0],
        ),
        # The untrained model sees only o_t: if it predicts the actions, the recorded policy gives them away by itself.
        "still_": tuple(latents.latents_of(untrained, still(windows))[0] for windows in (fit.windows, test.windows)),
    }
    for prefix, (fit_view, test_view) in views.items():
        scores = actions.probe(key, fit_view, fit.actions, test_view, test.actions)
        if prefix != "still_":
            if fit.distractor is not None and test.distractor is not None:
                scores |= probes.distractor_scores(key, fit_view, fit.distractor, test_view, test.distractor)
            arrays["latents_untrained" if prefix else "latents"] = test_view
        results |= {prefix + name: value for name, value in scores.items()}
    errors = held_out_errors(state, batches)
    counts = errors.pop("code_counts")
    results |= errors | {
        "fdm_swapped_mse": swapped_error(state, batches[:SWAPPED]),
        **actions.constant(fit.actions, test.actions),
        "codebook_perplexity": perplexity(counts).tolist(),
        "dead_codes": (counts == 0).sum(-1).tolist(),
        "num_codes": counts.shape[-1],
        "quantized": state.config.quantizer.enabled,
        **actions.codes(codes, test.actions, seed),
    }
    if state.config.action_weight:
        assert not isinstance(actions, NoActions)  # stage 1 was trained on actions
        outputs = np.asarray(dynamics.predict_actions(state, jnp.asarray(test_z)))
        results |= actions.head(outputs, test.actions)

    count = min(STRIPS[test.windows.ndim - 2], len(test.windows))
    rows = np.random.default_rng(seed).choice(len(test.windows), count, False)
    joint, first = latents.most_used(codes, IMAGINED)
    quantized = np.asarray(dynamics.infer_latents(state, jnp.asarray(test.windows[first])).quantized)
    return results, arrays | latents.strips(state, test.windows[rows]) | {
        **actions.arrays(test.actions),
        "code_counts": counts.astype(np.int64),
        "rollout_frames": latents.imagined_rollouts(state, test.windows[rows[0]][:-1], quantized),
        "rollout_labels": np.array([f"codes {' '.join(map(str, code.ravel()))}" for code in joint]),
    }


def perplexity(counts: np.ndarray) -> np.ndarray:
    """Effective number of codes in use: exp of the entropy of counts ``[N, codes]``, float64 ``[N]`` in [1, codes]."""
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    return np.exp(-np.sum(shares * np.log(shares + 1e-10), -1))
