"""Measures how well actions can be read from latents in a file, of any model, and compares with baselines.

Probes are fitted on some episodes and tested on others. The baselines are a constant guess, the same probe fitted on
shuffled actions, and, if there are frames, a probe that sees only o_t.

Dimension keys: N windows, Z latent size, A numbers of a continuous action, K codes of a latent.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lamjax.analysis.action_probes import ActionProbe
from lamjax.decoding import offline
from lamjax.decoding.offline import OfflineConfig
from lamjax.statistics import stderr_over_groups

LABELS = (16, 64, 256, 1024, 4096)  # points of the label-efficiency curve
DECODER = OfflineConfig(steps=1000, learning_rate=1e-3).program
POOLED = 16  # height and width to which frames are averaged for the probe that sees only o_t


@dataclasses.dataclass(frozen=True)
class Examples:
    """Latents with the actions that should be predictable from them.

    Attributes:
      z: float32 ``[N, Z]``.
      actions: int ``[N]`` or float32 ``[N, A]``.
      episodes: int ``[N]``, the episode of each latent.
      codes: int ``[N, K]``, or None.
      frames: uint8 ``[N, H, W, C]`` or float ``[N, C]``, o_t of each latent, or None.
    """

    z: np.ndarray
    actions: np.ndarray
    episodes: np.ndarray
    codes: np.ndarray | None = None
    frames: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.z)


def judge(
    key: jax.Array,
    probe: ActionProbe,
    fit: Examples,
    test: Examples,
    seed: int = 0,
    labels: Sequence[int] = LABELS,
) -> dict[str, Any]:
    """Scores latents by how well a probe predicts the actions from them.

    Args:
      key: a typed PRNG key, for the probes.
      probe: how actions are scored.
      fit: examples to fit the probes on.
      test: examples from held-out episodes.
      seed: draws the shuffles, and the labels of the label-efficiency curve.
      labels: the numbers of labels of that curve; those above the number of examples are left out.

    Returns:
      The scores of `probe` and of its constant guess, and with codes those of `ActionProbe.codes`.
      ``score``: of the MLP probe on the targets of `ActionProbe.targets`; ``linear_score``: of a linear probe.
      ``constant_score``, ``shuffled_score`` and, with frames, ``still_score``: of the baselines.
      Each of these has a ``stderr`` over held-out episodes, such as ``linear_stderr``.
      ``curve``: rows of a number of labels, and the score and standard error of a decoder fitted on that many.
      ``fit`` and ``windows``: how many latents the probes were fitted and tested on.
    """
    results: dict[str, Any] = probe.probe(key, fit.z, fit.actions, test.z, test.actions)
    results |= probe.constant(fit.actions, test.actions)
    if test.codes is not None:
        results |= probe.codes(test.codes[:, :, None], test.actions, seed)
    targets, test_targets = probe.targets(fit.actions), probe.targets(test.actions)
    rng = np.random.default_rng(seed)
    guesses = {
        "score": probe.guess(key, fit.z, targets, test.z),
        "linear_score": probe.guess(key, fit.z, targets, test.z, ()),
        "constant_score": probe.constant_guess(targets, len(test)),
        "shuffled_score": probe.guess(key, fit.z, rng.permutation(targets), test.z),
    }
    if fit.frames is not None and test.frames is not None:
        guesses["still_score"] = probe.guess(key, pooled(fit.frames), targets[: len(fit.frames)], pooled(test.frames))
    for name, guess in guesses.items():
        scores = probe.scores(guess, targets, test_targets)
        results |= {
            name: float(scores.mean()),
            f"{name.removesuffix('score')}stderr": stderr_over_groups(scores, test.episodes),
        }
    curve = label_curve(key, probe, fit, test, rng.permutation(len(fit)), labels)
    return results | {"curve": curve, "fit": len(fit), "windows": len(test)}


def label_curve(
    key: jax.Array,
    probe: ActionProbe,
    fit: Examples,
    test: Examples,
    order: np.ndarray,
    labels: Sequence[int],
) -> list[list[float]]:
    """For each number of labels, scores a decoder that is fitted on the first examples of `order`, int ``[N]``."""
    counts = [n for n in labels if n <= len(fit)]
    if not counts:
        return []
    space, most = probe.target_space, counts[-1]
    targets, test_targets = probe.targets(fit.actions), probe.targets(test.actions)
    z, known = fit.z[order[:most]], targets[order[:most]]
    stack = lambda x: np.stack([x] * len(counts))  # noqa: E731
    keys = jax.random.split(key, len(counts))
    params, _ = offline.fit_all(keys, stack(z), stack(known), DECODER, space, np.array(counts, np.int32))
    rows = []
    for place, n in enumerate(counts):
        outputs = offline.decode_batch(jax.tree.map(lambda x, place=place: x[place], params), test.z, DECODER, space)
        scores = probe.scores(np.asarray(space.mode(outputs)), targets, test_targets)
        rows.append([n, float(scores.mean()), stderr_over_groups(scores, test.episodes)])
    return rows


def pooled(frames: np.ndarray) -> np.ndarray:
    """Converts frames to vectors float32 ``[N, F]``; images are averaged over at most 16 x 16 blocks."""
    if frames.ndim == 2:
        return frames.astype(np.float32)
    rows, columns = (-(-size // POOLED) for size in frames.shape[1:3])
    height, width = (size // block * block for size, block in zip(frames.shape[1:3], (rows, columns), strict=True))
    n, channels = len(frames), frames.shape[-1]
    blocks = frames[:, :height, :width].reshape(n, height // rows, rows, width // columns, columns, channels)
    return blocks.mean((2, 4), dtype=np.float32).reshape(n, -1) / 255
