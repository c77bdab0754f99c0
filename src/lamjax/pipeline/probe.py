"""Judges the latents of a file by actions in another file or a store, and a model by what it predicts of a store."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamjax.analysis import judge
from lamjax.analysis.action_probes import ActionProbe, ContinuousActions, DiscreteActions, action_probe
from lamjax.analysis.judge import Examples
from lamjax.analysis.open_loop import HORIZON, open_loop
from lamjax.config import AnalysisConfig, RunConfig
from lamjax.data import latent_files
from lamjax.data.format import MANIFEST, SPLITS, Split
from lamjax.data.labels import evaluation_actions
from lamjax.data.latent_files import LatentFileError, LatentRows
from lamjax.data.reader import Store, open_store, split_mask
from lamjax.data.stream import EvaluationWindows, evaluation_starts
from lamjax.loading import LoadedRun
from lamjax.pipeline.label import store_for
from lamjax.pipeline.windows import HELD_OUT_BATCH
from lamjax.spaces import Box
from lamjax.training.run_folder import stage_key

HELD_OUT = 0.2  # of the episodes, or of the only one's end
_FRAMES = 8192  # on whose o_t a probe is fitted
_CLIPS, _CLIP_BATCH = 512, 64  # whose frames a model predicts
_SHOWN = (1, 2, 4, 8)  # frames ahead
_CLIP_BYTES = 2**28  # of all these clips at most


def probe_file(
    path: Path,
    actions: Path,
    run: LoadedRun | None = None,
    merged: Sequence[int] = (),
    frames: Path | None = None,
) -> tuple[ActionProbe, dict[str, Any]]:
    """Judges a file of latents.

    Args:
      path: a file of latents (`lamjax.data.latent_files`), of any model.
      actions: the store that was labelled, or a file with a column ``action``; and with ``episode`` and ``t``, unless
        it has a row for each row of `path`.
      run: the run that labelled its own store: the probes see the windows, and draw the random numbers, that those of
        the run itself did.
      merged: the class of each discrete action, where several do the same.
      frames: the store that was labelled, for the probe that sees o_t alone; `actions` if that is a store.

    Returns:
      How the actions were scored, and the results of `lamjax.analysis.judge.judge`.

    Raises:
      LatentFileError: if a file is damaged or lacks a column, or the files do not fit together.
    """
    rows, about = latent_files.read(path)
    config = run.config if run else RunConfig()
    if (actions / MANIFEST).exists():
        store = open_store(actions)
        space = store.action_space
        if space is None or not store.has_actions or len(rows) != store.num_frames:
            raise LatentFileError(
                f"{actions} has {store.num_frames} frames and {store.action_space or 'no actions'}, and {path} has "
                f"{len(rows)} rows: label this store, which must have actions."
            )
        probe = _with_classes(action_probe(store.env, space), merged)
        length = run.window if run else 3
        fit, test = (_of_store(rows, store, config.analysis, split, length) for split in SPLITS)
    else:
        labels, known = _labels(actions, rows)
        env = (about.get("model") or {}).get("env", "")
        probe = _with_classes(_probe_of(env, labels[known & rows.mask]), merged)
        held_out, labelled = _held_out(rows), _labelled_store(frames, path, rows) if frames else None
        fit, test = (_of_rows(rows, labels, known & rows.mask & part, labelled) for part in (~held_out, held_out))
    for name, part in (("fit probes on", fit), ("test them on", test)):
        if len(part) < 2:
            raise LatentFileError(f"{path} has {len(part)} latents with actions to {name}: label more episodes.")
    return probe, judge.judge(stage_key(config.seed, "probe"), probe, fit, test, config.seed)


def _with_classes(probe: ActionProbe, merged: Sequence[int]) -> ActionProbe:
    if not merged:
        return probe
    if isinstance(probe, ContinuousActions) or len(merged) != probe.num_actions:
        raise LatentFileError(f"--merged needs one class for each discrete action, and got {len(merged)} numbers.")
    return DiscreteActions(probe.env, probe.num_actions, tuple(merged))


def _probe_of(env: str, labels: np.ndarray) -> ActionProbe:
    """Scores for actions of unknown space: as many discrete ones as occur, or bounds that hold all continuous ones."""
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        return DiscreteActions(env if len(labels) and env else "", int(labels.max(initial=0)) + 1)
    low, high = labels.min(0), labels.max(0)
    return ContinuousActions(Box(tuple(low.tolist()), tuple(np.maximum(high, low + 1e-3).tolist())))


def _labels(path: Path, rows: LatentRows) -> tuple[np.ndarray, np.ndarray]:
    """The actions of the rows, and which rows have one, bool ``[R]``."""
    columns, _ = latent_files.read_columns(path)
    if "action" not in columns:
        raise LatentFileError(f"{path} has no column 'action': rename the column that holds the actions.")
    action = columns["action"]
    action = action if action.dtype.kind in "iu" else np.asarray(action, np.float32).reshape(len(action), -1)
    if not {"episode", "t"} <= columns.keys():
        if len(action) != len(rows):
            raise LatentFileError(f"{path} has {len(action)} rows and no columns 'episode' and 't', not {len(rows)}.")
        places = np.arange(len(rows))
        present = np.ones(len(rows), bool)
    else:
        theirs, ours = ((each["episode"].astype(np.int64) << 32) + each["t"] for each in (columns, rows.columns))
        order = np.argsort(theirs, kind="stable")
        places = order[np.minimum(np.searchsorted(theirs, ours, sorter=order), len(theirs) - 1)]
        present = theirs[places] == ours
    labels = action[places]
    known = labels >= 0 if labels.ndim == 1 else np.isfinite(labels).all(1)
    return labels, present & known


def _held_out(rows: LatentRows) -> np.ndarray:
    """Which rows are held out, bool ``[R]``: those of a fifth of the episodes, or the end of a single one."""
    episodes = np.unique(rows.episode)
    if len(episodes) == 1:
        return rows.t >= (1 - HELD_OUT) * (rows.t.max() + 1)
    order = sorted(episodes.tolist(), key=lambda number: hashlib.sha256(b"episode %d" % number).digest())
    return np.isin(rows.episode, order[: max(1, round(HELD_OUT * len(order)))])


def _labelled_store(frames: Path, path: Path, rows: LatentRows) -> Store:
    store = open_store(frames)
    if len(rows) != store.num_frames:
        raise LatentFileError(f"{frames} has {store.num_frames} frames, and {path} has {len(rows)} rows: label it.")
    return store


def _of_rows(rows: LatentRows, labels: np.ndarray, chosen: np.ndarray, store: Store | None) -> Examples:
    codes = rows.codes[chosen] if rows.codes is not None else None
    places, frames = np.flatnonzero(chosen), None
    if store is not None and len(places):  # as vectors, because the frames of all rows may not fit into the memory
        blocks = range(0, len(places), _FRAMES)
        frames = np.concatenate([judge.pooled(store.observations_at(places[i : i + _FRAMES])) for i in blocks])
    return Examples(rows.z[chosen], labels[chosen], rows.episode[chosen], codes, frames)


def _of_store(rows: LatentRows, store: Store, settings: AnalysisConfig, split: Split, length: int) -> Examples:
    """The windows that a run's own probes see (`lamjax.pipeline.dynamics.examine_on_recording`)."""
    count = settings.probe_train if split == "train" else settings.probe_test
    batch = 1 if split == "train" else min(HELD_OUT_BATCH, count)
    _, starts = evaluation_starts(store, count, batch, split=split, length=length, mask_boundaries=settings.mask_probes)
    places = starts + length - 2
    if not rows.mask[places].all():
        starts, places = starts[rows.mask[places]], places[rows.mask[places]]
    frames = store.observations_at(places if split == "test" else places[:_FRAMES])
    codes = rows.codes[places] if rows.codes is not None else None
    episodes = store.episodes.holding(starts)
    return Examples(rows.z[places], evaluation_actions(store, starts, length), episodes, codes, frames)


def probe_predictions(run: LoadedRun, path: Path) -> dict[str, Any]:
    """Measures how far ahead a model predicts the held-out episodes of a store (`lamjax.analysis.open_loop`).

    Args:
      run: the model.
      path: a store of observations as the model learned from. Clips are shorter where episodes are.

    Raises:
      ModelError: if the observations are others.
      StoreError: if the store is damaged, or no held-out episode is long enough for a window.
    """
    store = store_for(run, path)
    longest = int(store.episodes.length[split_mask(store.episodes, "test")].max(initial=0))
    length = max(min(run.window - 1 + HORIZON, longest), run.window)
    frame = int(np.prod(store.obs_shape)) * store.obs_dtype.itemsize
    count = max(min(_CLIPS, _CLIP_BYTES // (length * frame)), 2)
    clips = EvaluationWindows(store, num_windows=count, batch_size=min(_CLIP_BATCH, count), length=length)
    return open_loop(run.stage_1, clips.batches, store.episodes.holding(clips.starts))


def predictions_table(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What `probe_predictions` returns in words, as in `table`."""
    rows = []
    for t, model, error, copied, copied_error in results["psnr"]:
        if t in _SHOWN:
            frames = f"{t} frame{'s' * (t != 1)} ahead"
            rows.append((f"PSNR of the prediction {frames}", f"{model:.2f} ± {error:.2f} dB"))
            rows.append(("  the last true frame instead", f"{copied:.2f} ± {copied_error:.2f} dB"))
    for t, delta, error in results["controllability"]:
        if t in _SHOWN:
            frames = f"{t} frame{'s' * (t != 1)} ahead"
            rows.append((f"PSNR lost under another clip's latents, {frames}", f"{delta:.2f} ± {error:.2f} dB"))
    return rows


def table(probe: ActionProbe, results: dict[str, Any]) -> list[tuple[str, str]]:
    """The results in words: what was measured, and its score with the standard error."""
    measure = "R²" if isinstance(probe, ContinuousActions) else "accuracy"
    names = {
        "": "a probe on the latents",
        "linear_": "a linear probe on the latents",
        "still_": "the first probe on o_t alone",
        "shuffled_": "the first probe, fitted on shuffled actions",
        "constant_": "a constant guess",
    }
    rows = [
        (f"{label} ({measure})", f"{results[f'{name}score']:.3f} ± {results[f'{name}stderr']:.3f}")
        for name, label in names.items()
        if f"{name}score" in results
    ]
    for name, label in (("code_nmi_merged", "mutual information of codes and actions"), ("code_r2", "R² of the codes")):
        if name in results:
            rows.append((f"{label} (shuffled actions)", f"{results[name]:.3f} ({results[f'{name}_shuffled']:.3f})"))
    curve = results["curve"]
    return rows + [(f"a decoder from {n} labels ({measure})", f"{mean:.3f} ± {error:.3f}") for n, mean, error in curve]
