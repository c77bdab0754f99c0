"""Labels the frames of clips, or of a store, with the latent actions that a model infers."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax.analysis.latents import BATCH
from lamjax.data import latent_files, timestamps
from lamjax.data.format import MANIFEST
from lamjax.data.importers import clips, video
from lamjax.data.latent_files import LatentRows
from lamjax.data.reader import Store, open_store
from lamjax.loading import LoadedRun
from lamjax.sharing import ModelError

_IN_FLIGHT = 2  # batches: the host reads the next frames while the device infers latents
_BLOCK = 512  # frames of a store that are read at a time


@dataclasses.dataclass(frozen=True)
class Footage:
    """Frames to label: those of one clip, or of one episode of a store.

    Attributes:
      name: the file's name; empty if there is none.
      seconds: float64 ``[T]``, when each frame is shown; NaN if unknown.
      blocks: reads the frames in order, in blocks ``[R, *obs_shape]``.
    """

    name: str
    seconds: np.ndarray
    blocks: Callable[[], Iterator[np.ndarray]]


def footage_of(run: LoadedRun, sources: Sequence[Path], **settings: Any) -> list[Footage]:
    """Opens a store, or clips, whose frames it chooses and scales as those that the model learned from.

    Args:
      run: the model.
      sources: one store, or videos and folders (see `lamjax.data.importers.video.find_clips`).
      **settings: fields of `ClipConfig` that replace the model's; None keeps the model's.

    Raises:
      ModelError: if the frames do not fit the model.
      ImportDataError: if a clip is missing, damaged or not a video.
      StoreError: if the store is damaged.
    """
    if len(sources) == 1 and (sources[0] / MANIFEST).exists():
        return _episodes(run, sources[0])
    config = clip_config(run, **settings)
    paths, _, root = video.find_clips(sources)
    opened = [clips.look_at(path, config) for path in paths]
    return [
        Footage(str(clip.path.relative_to(root)), clip.seconds, functools.partial(clips.read_frames, clip))
        for clip in opened
    ]


def clip_config(run: LoadedRun, **settings: Any) -> clips.ClipConfig:
    """How clips become frames for a model: as its own clips did, or scaled to its size; see `footage_of`."""
    trained_on = (run.summary.get("source") or {}).get("video") or {}
    shape = run.obs_shape or ()
    if len(shape) != 3 or shape[2] != clips.CHANNELS:
        raise ModelError(f"{run.folder} has observations of shape {list(shape)}, and a video's are [H, W, 3].")
    changes = {name: value for name, value in settings.items() if value is not None}
    if changes.keys() & {"crop", "square"}:  # one replaces the other
        trained_on = {name: value for name, value in trained_on.items() if name not in ("crop", "square")}
    return clips.ClipConfig(**{**trained_on, **changes, "size": shape[:2]})


def store_for(run: LoadedRun, path: Path) -> Store:
    """Opens a store; raises a `ModelError` if its observations have another shape than the model's."""
    store = open_store(path)
    if run.obs_shape is not None and store.obs_shape != run.obs_shape:
        raise ModelError(
            f"{path} holds observations of shape {store.obs_shape}, and {run.folder} takes {run.obs_shape}."
        )
    return store


def _episodes(run: LoadedRun, path: Path) -> list[Footage]:
    store = store_for(run, path)
    seconds, names = timestamps.seconds_of(store), timestamps.files_of(store)

    def blocks(start: int, stop: int) -> Iterator[np.ndarray]:
        return (store.observations(first, min(first + _BLOCK, stop)) for first in range(start, stop, _BLOCK))

    spans = zip(store.episodes.start.tolist(), (store.episodes.start + store.episodes.length).tolist(), strict=True)
    return [
        Footage(name, seconds[start:stop], functools.partial(blocks, start, stop))
        for name, (start, stop) in zip(names, spans, strict=True)
    ]


def label(
    run: LoadedRun,
    footage: Sequence[Footage],
    out: Path,
    progress: Callable[[int, int], None] = lambda position, total: None,
) -> None:
    """Writes a file of latents, one row per frame (`lamjax.data.latent_files`).

    The latent in a frame's row describes the action between this frame and the next. It needs k frames before and one
    after, so the first k rows of each clip and its last row have none.

    Args:
      run: the model; if it has a decoder, the file also holds the decoded actions.
      footage: from `footage_of`.
      out: the file; its suffix chooses the format.
      progress: called with ``(latents done, latents in all)``.

    Raises:
      ModelError: if every clip is too short for a window, or the run has no stage 1 yet.
      LatentFileError: if the file cannot have this name.
      DamagedFileError: if a frame cannot be decoded.
    """
    latent_files.check_name(out)
    model = run.stage_1
    quantizer = model.config.quantizer
    about = {
        "model": {"env": run.env, "folder": run.folder.name, "step": int(model.step)},
        "files": [each.name for each in footage],
        "latent": f"z and codes of a row say what is done from its frame to the next one; context {run.window - 2}",
        "codes": [quantizer.codebooks, quantizer.latents] if quantizer.enabled else None,
        "decoder": run.decoder,
    }
    latent_files.write(out, label_rows(run, footage, progress), about)


def label_rows(
    run: LoadedRun, footage: Sequence[Footage], progress: Callable[[int, int], None] = lambda position, total: None
) -> Iterator[LatentRows]:
    """Yields the rows of `label`, a clip at a time."""
    total = sum(max(len(each.seconds) - run.window + 1, 0) for each in footage)
    if not total:
        raise ModelError(
            f"No clip has the {run.window} frames that a latent needs: give longer clips, or a higher fps."
        )
    batches = _batches(_windows(footage, run.window), min(BATCH, total))
    latents = _Stream(_inferred(run, batches), lambda position: progress(position, total))
    for number, each in enumerate(footage):
        length = len(each.seconds)
        mask = np.zeros(length, bool)
        if length >= run.window:
            mask[run.window - 2 : -1] = True
        columns = {name: _spread(values, mask) for name, values in latents.take(int(mask.sum())).items()}
        frames = np.arange(length, dtype=np.int32)
        yield LatentRows(np.full(length, number, np.int32), frames, each.seconds, mask, **columns)


def _windows(footage: Sequence[Footage], length: int) -> Iterator[np.ndarray]:
    """All windows ``[n, length, *obs_shape]`` of each clip in order, as views."""
    for each in footage:
        tail: np.ndarray | None = None
        for block in each.blocks():
            frames = block if tail is None else np.concatenate([tail, block])
            if len(frames) >= length:
                yield np.moveaxis(np.lib.stride_tricks.sliding_window_view(frames, length, axis=0), -1, 1)
            tail = frames[1 - length :]


def _batches(pieces: Iterator[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Packs windows of all clips into batches of one size, so that one program suffices; the last one is padded."""
    batch, count = None, 0
    for piece in pieces:
        while len(piece):
            if batch is None:  # a new one each time: the device may still be reading the old one
                batch = np.empty((size, *piece.shape[1:]), piece.dtype)
            part = piece[: size - count]
            batch[count : count + len(part)] = part
            count, piece = count + len(part), piece[len(part) :]
            if count == size:
                yield batch, count
                batch, count = None, 0
    if batch is not None:
        batch[count:] = batch[:1]
        yield batch, count


def _inferred(run: LoadedRun, batches: Iterator[tuple[np.ndarray, int]]) -> Iterator[dict[str, np.ndarray]]:
    """The columns ``z``, ``codes`` and ``action`` of each batch; batches do not wait for each other."""
    decode = jax.jit(run.decode) if run.decoder else None
    quantized = run.stage_1.config.quantizer.enabled
    pending: collections.deque[tuple[dict[str, jax.Array], int]] = collections.deque()

    def oldest() -> dict[str, np.ndarray]:
        columns, count = pending.popleft()
        return {name: array[:count] for name, array in jax.device_get(columns).items()}

    for batch, count in batches:
        latents = run.infer(jnp.asarray(batch))
        columns = {"z": latents.continuous}
        if quantized:
            columns["codes"] = latents.codes.reshape(len(batch), -1)
        if decode:
            columns["action"] = decode(latents.continuous)
        pending.append((columns, count))
        if len(pending) > _IN_FLIGHT:
            yield oldest()
    while pending:
        yield oldest()


class _Stream:
    """Rows that arrive in batches and leave in pieces of any length."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], progress: Callable[[int], None]):
        self._batches, self._progress, self._position = batches, progress, 0
        self._rest = next(batches)

    def take(self, count: int) -> dict[str, np.ndarray]:
        """The next rows of each column."""
        parts = [self._rest]
        have = len(self._rest["z"])
        while have < count:
            parts.append(next(self._batches))
            have += len(parts[-1]["z"])
            self._progress(self._position + min(have, count))
        self._position += count
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._rest = {name: array[count:] for name, array in joined.items()}
        self._progress(self._position)
        return {name: array[:count] for name, array in joined.items()}


def _spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Puts values ``[mask.sum(), ...]`` where a mask ``[T]`` is true; elsewhere NaN, or -1 for integers."""
    rows = np.full((len(mask), *values.shape[1:]), -1 if values.dtype.kind == "i" else np.nan, values.dtype)
    rows[mask] = values
    return rows
