"""Imports LeRobot data sets of versions 2 and 3: the frames of one camera, and the actions as vectors.

Each episode becomes an episode of the store. Its frames are those that the video shows at the time stamps of the data
set's rows, so a video with another frame rate, or with several episodes in it, is no special case. In some data sets
the frames are images in the Parquet files instead.

Dimension keys: T kept frames of an episode, F frames of a video, R rows, A numbers of an action.
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamjax.data.importers.clips import (
    Clip,
    ClipConfig,
    as_json,
    converter,
    frame_of,
    read_frames,
    shown_at,
    time_stamps,
)
from lamjax.data.importers.common import Rows, Source, block_rows, bounds_of, checked, describe, summed, write_store
from lamjax.data.importers.errors import DamagedFileError, ImportDataError, RowError
from lamjax.data.importers.frames import plain, read_vectors, refuse_nulls
from lamjax.data.importers.lerobot_meta import Info, Planned, camera_of, check_present, plan, read_info
from lamjax.data.importers.parquet import opened, read_batches
from lamjax.data.importers.pictures import PictureError, read_picture
from lamjax.data.importers.splits import split_by_hash
from lamjax.data.importers.values import as_vectors

REWARD, DONE = "next.reward", "next.done"  # optional features
_DEFAULTS = ClipConfig()


@dataclasses.dataclass(frozen=True)
class Episode(Clip):
    """An episode of a LeRobot data set.

    Attributes:
      index: its number.
      data: the Parquet file with its actions, time stamps and rewards.
      span: its rows in that file.
      chosen: int64 ``[T]``, ascending, which of these rows are kept.
      pictures: the column that holds the frames, if they are images in the Parquet file, which is then also `path`;
        None if the frames are in a video.
    """

    index: int
    data: Path
    span: slice
    chosen: np.ndarray
    pictures: str | None


def read_numbers(
    path: Path, names: Sequence[str], action: str, start: int = 0
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Reads columns of a Parquet file in blocks.

    Args:
      path: the file.
      names: columns with one number per row.
      action: the column of actions.
      start: the first block is the one that contains this row.

    Yields:
      The number of the block's first row, and arrays ``[R]`` by name; actions are float32 ``[R, A]``.

    Raises:
      ImportDataError: if the file is damaged, lacks a column, or has invalid values; the message names row and column.
    """
    check_present(path)
    with opened(path) as file:
        present = file.schema_arrow.names
    for name in (*names, action):
        if name not in present:
            raise ImportDataError(f"{path} has no column {name!r}, only {', '.join(present)}.")
    for first, batch in read_batches(path, [*names, action], start):
        try:
            columns = {name: _scalars(batch.column(name), name) for name in names}
            columns[action] = as_vectors(read_vectors(batch.column(action), action), action)
        except RowError as error:
            raise error.located(path, first) from None
        yield first, columns


def _scalars(array: Any, name: str) -> np.ndarray:
    """Reads a column of numbers, or of lists with one number each, as ``[R]``."""
    import pyarrow as pa

    array = plain(array)
    if pa.types.is_boolean(array.type):
        refuse_nulls(array, name)
        return array.to_numpy(zero_copy_only=False)
    values = read_vectors(array, name)
    if len(values) and values.shape[1] != 1:
        raise RowError(0, f"column {name!r} has {values.shape[1]} numbers per row instead of one")
    return values.reshape(len(values))


class Viewer:
    """Inspects episodes one after the other; caches what it read from the last video and the last data file."""

    def __init__(self, info: Info, config: ClipConfig, camera: str, action: str):
        """Takes the data set's description, which frames to keep, and the features that hold frames and actions."""
        self.info, self.config, self.camera, self.action = info, config, camera, action
        self._frames = functools.lru_cache(1)(self._read_frames)
        self._rows = functools.lru_cache(1)(self._read_rows)

    def look_at(self, planned: Planned) -> Episode:
        """Chooses the frames of an episode.

        Raises:
          DamagedFileError: if a file is missing or damaged, or the video ends before the episode does.
          ImportDataError: if a file does not fit.
        """
        index, config = planned.index, self.config
        rows = self._rows(planned.data)
        span = _span(planned, rows["episode_index"])
        seconds = rows["timestamp"][span].astype(np.float64)
        if (np.diff(seconds) <= 0).any():
            raise DamagedFileError(planned.data, f"the time stamps of episode {index} do not ascend")
        chosen = shown_at(seconds, config.fps) if config.fps else np.arange(planned.length)
        chosen = chosen[:: config.stride]
        path, places, expected = planned.data, chosen, None
        if planned.video is not None:
            path, (places, expected) = planned.video, self._places(planned, seconds[chosen])
        return Episode(
            *(path, len(chosen), planned.split, config, places, seconds[chosen], expected),
            *(index, planned.data, span, chosen, None if planned.video else self.camera),
            part=f"episode {index}",
            ending="terminated" if DONE in rows and rows[DONE][span][-1] else "cut",
            bounds=bounds_of([rows[self.action][span]]),
        )

    def _places(self, planned: Planned, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the video of the frames at some seconds after the episode's start; and all positions."""
        places, times, middles = self._frames(planned.video)
        wanted = planned.begin + seconds
        nearest = np.searchsorted(middles, wanted)
        missing = np.abs(times[nearest] - wanted) > 0.5 / self.info.fps
        if missing.any():
            reason = f"episode {planned.index} needs a frame at {wanted[missing][0]:.3f} s, but it has none"
            raise DamagedFileError(planned.video, reason)
        return places[nearest], places

    def _read_frames(self, video: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions and times ``[F]`` of a video's frames, and the midpoints ``[F - 1]`` between their times."""
        check_present(video)
        places, times, has_times = time_stamps(video)
        if not has_times:
            raise ImportDataError(f"{video} does not say when its frames are shown: convert it to mp4.")
        return places, times, (times[1:] + times[:-1]) / 2

    def _read_rows(self, data: Path) -> dict[str, np.ndarray]:
        """All rows of a data file: episode numbers, time stamps, actions, and ``next.done`` if there is any."""
        names = ["episode_index", "timestamp", *([DONE] if DONE in self.info.features else [])]
        blocks = [columns for _, columns in read_numbers(data, names, self.action)]
        if not blocks:
            raise DamagedFileError(data, "it holds no rows")
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _span(planned: Planned, owners: np.ndarray) -> slice:
    """The rows of an episode in its data file; `owners` is the episode number of each row."""
    data = planned.data
    rows = np.flatnonzero(owners == planned.index)
    if not planned.length or len(rows) != planned.length:
        raise DamagedFileError(data, f"it has {len(rows)} rows of episode {planned.index} instead of {planned.length}")
    if rows[-1] - rows[0] + 1 != len(rows):
        raise ImportDataError(f"{data} does not fit: the rows of episode {planned.index} are not contiguous.")
    return slice(int(rows[0]), int(rows[-1]) + 1)


def read_rows(episode: Episode, start: int, action: str, reward: str | None) -> Iterator[Rows]:
    """Yields the frames of an episode from row `start` on, with their actions and the rewards up to the next frame."""
    span = episode.span
    actions, rewards = [], []
    for first, columns in read_numbers(episode.data, [reward] if reward else [], action, span.start):
        inside = slice(max(span.start - first, 0), span.stop - first)
        actions.append(columns[action][inside])
        rewards.append(columns[reward][inside] if reward else np.zeros(len(actions[-1])))
        if first + len(columns[action]) >= span.stop:
            break
    action_of, reward_of = np.concatenate(actions)[episode.chosen], summed(np.concatenate(rewards), episode.chosen)
    row = start
    for frames in read_frames(episode, start) if episode.pictures is None else _read_pictures(episode, start):
        rows = slice(row, row + len(frames))
        begins = episode.begins(row, len(frames))
        yield Rows(frames, action_of[rows], reward_of[rows], begins, begins)
        row += len(frames)


def _read_pictures(episode: Episode, start: int) -> Iterator[np.ndarray]:
    """Yields frames that are images in a Parquet file, from row `start` on, in blocks uint8 ``[R, H, W, 3]``."""
    convert = converter(episode.config, episode.path)
    rows = episode.span.start + episode.chosen[start:]  # of the Parquet file
    most = block_rows(episode.config.shape)
    if not len(rows):
        return
    for first, batch in read_batches(episode.data, [episode.pictures], int(rows[0])):
        inside = rows[(rows >= first) & (rows < first + len(batch))] - first
        for block in (inside[begin : begin + most] for begin in range(0, len(inside), most)):
            try:
                pictures = [_picture(batch.column(episode.pictures), row, episode.pictures) for row in block]
            except RowError as error:
                raise error.located(episode.path, first) from None
            yield np.stack([convert(frame_of(each)) for each in pictures])
        if first + len(batch) > rows[-1]:
            return


def _picture(array: Any, row: int, name: str) -> np.ndarray:
    """Decodes one image of an Arrow array, whose entries are structs of bytes and a path, or plain bytes."""
    value = array[int(row)].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise RowError(row, f"column {name!r} has no image, perhaps only a path: save the file with the images in it")
    try:
        return read_picture(io.BytesIO(content))
    except PictureError as error:
        sentence = f"has an image that is damaged ({error})" if error.damaged else str(error)
        raise RowError(row, f"column {name!r} {sentence}", error.damaged) from None


def import_lerobot(
    folder: Path,
    out: Path,
    *,
    env: str,
    camera: str | None = None,
    action: str = "action",
    config: ClipConfig = _DEFAULTS,
    skip_damaged: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    announce: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Writes a trajectory store from a LeRobot data set on disk.

    Calling it again continues an interrupted import. Memory holds a few blocks of frames, the numbers of one data file,
    and the time stamps of all frames.

    Args:
      folder: the data set, with ``meta``, ``data`` and perhaps ``videos`` in it.
      out: folder of the store; it must not exist.
      env: a name for the data, stored in place of an environment's name.
      camera: the camera's feature, by its name or the last part of it; None if there is only one.
      action: the feature that holds the actions.
      config: which frames to keep, and at which size. If frames are left out, each kept frame has its own action and
        the rewards up to the next kept frame.
      skip_damaged: leaves out damaged and missing files, and episodes in damaged parts of files, and lists them in the
        manifest; every file is read twice.
      progress: called with ``(frames done, total frames)``.
      say: not called; all importers have it.
      announce: called with the list of files before the first one is read.

    Raises:
      ImportError: if PyAV or pyarrow is not installed.
      ImportDataError: if a file is missing, damaged or in another layout; the message names it.
      StoreError: if the store exists or the disk is full.
    """
    del say
    info = read_info(folder)
    camera = camera_of(info, camera)
    if action not in info.features:
        raise ImportDataError(
            f"{folder} has no feature {action!r}, only {', '.join(info.features)}: choose one with --action."
        )
    reward = REWARD if REWARD in info.features else None
    names = {"action": action, "reward": REWARD, "done": DONE, "truncated": DONE}
    read = checked(lambda episode, start: read_rows(episode, start, action, reward), names, None)
    viewer, planned = Viewer(info, config, camera, action), plan(info, camera)
    episodes, skipped = describe(
        planned, folder, lambda each: [viewer.look_at(each)], read, skip_damaged, lambda each: f"episode {each.index}"
    )
    split = "the data set's splits"
    if episodes[0].split is None:
        episodes, split = split_by_hash(episodes, lambda episode: episode.index), "a hash of the episode's number"
    write_store(
        out,
        Source(folder, episodes, read, (), skipped, "frames"),
        description={
            **{"format": "lerobot", "version": info.version, "camera": camera, "action": action, "fps": info.fps},
            **{"video": config.as_json(), "clips": as_json(episodes, folder)},
        },
        env=env,
        obs_shape=config.shape,
        num_actions=None,
        split=split,
        done=None,
        progress=progress,
        announce=announce,
    )
