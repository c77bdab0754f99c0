"""Imports videos and folders of images as a trajectory store without actions.

Each file and each folder of images is one episode, unless it is cut at scene changes. Whole files are held out: those
whose name or folder begins with ``test`` if names state the split, otherwise those chosen by a hash of the name. If
there is only one file, its end is held out.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lamjax.data.importers.clips import PICTURES, VIDEOS, Clip, ClipConfig, as_json, look_at, read_frames
from lamjax.data.importers.common import Rows, Source, describe, write_store
from lamjax.data.importers.errors import ImportDataError
from lamjax.data.importers.files import find_files
from lamjax.data.importers.scenes import CONTEXT, scene_finder
from lamjax.data.importers.splits import split_files

_DEFAULTS = ClipConfig()


def find_clips(paths: Sequence[Path]) -> tuple[list[Path], list[Path], Path]:
    """Finds videos and folders of images.

    Args:
      paths: files, and folders that are searched recursively. Links are followed; names that begin with a dot or an
        underscore are left out. Images in the same folder as a video are assumed to be thumbnails and ignored.

    Returns:
      The videos and folders of images, sorted by path; hidden files and folders that were left out; and the folder that
      contains them all.

    Raises:
      ImportDataError: if there are none, or a file is not a video.
    """
    if not paths:
        raise ImportDataError("Give videos, or folders of videos or images.")
    for path in paths:
        if not path.exists():
            raise ImportDataError(f"There is no {path}: give videos, or folders of videos or images.")
        if path.is_file() and path.suffix.lower() not in VIDEOS:
            raise ImportDataError(f"{path} is not a video by its name, which must end in {', '.join(VIDEOS)}.")
    folders = [path for path in paths if path.is_dir()]
    videos, hidden = find_files(folders, VIDEOS)
    videos += [path for path in paths if path.is_file()]
    pictures, hidden_pictures = find_files(folders, PICTURES)
    with_videos = {path.parent for path in videos}
    clips = sorted({*videos, *({path.parent for path in pictures} - with_videos)})
    hidden = sorted({*hidden, *hidden_pictures})
    if not clips:
        but = f" except hidden ones such as {hidden[0]}" if hidden else ""
        raise ImportDataError(f"{', '.join(map(str, paths))} holds no videos and no images{but}: check the path.")
    root = Path(os.path.commonpath([os.path.abspath(path if path in folders else path.parent) for path in paths]))
    return [Path(os.path.abspath(path)) for path in clips], hidden, root


def read_rows(clip: Clip, start: int, scenes: float = 0.0) -> Iterator[Rows]:
    """Yields the frames of a clip from row `start` on, with action 0 and reward 0.

    Args:
      clip: the clip.
      start: the first row.
      scenes: threshold in percent for marking where a scene begins (`lamjax.data.importers.scenes`); 0 marks none.
    """
    find = scene_finder(scenes)
    row = max(start - CONTEXT, 0) if scenes else start
    for frames in read_frames(clip, row):
        count = len(frames)
        begins = clip.begins(row, count)
        if scenes:
            begins |= find(frames)
        rows = Rows(frames, np.zeros(count, np.int32), np.zeros(count, np.float32), begins, begins)
        yield rows[max(start - row, 0) :]
        row += count


def import_video(
    paths: Sequence[Path],
    out: Path,
    *,
    env: str,
    config: ClipConfig = _DEFAULTS,
    scenes: float = 0.0,
    skip_damaged: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    announce: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Writes a trajectory store from videos and folders of images.

    Calling it again continues an interrupted import. Memory holds a few blocks of frames, however long the videos are.
    The store has a single dummy action. Its manifest records the settings, and the source file and time stamps of each
    episode.

    Args:
      paths: see `find_clips`.
      out: folder of the store; it must not exist.
      env: a name for the data, stored in place of an environment's name.
      config: which frames to keep, and at which size.
      scenes: threshold in percent for ending an episode where the scene changes (`lamjax.data.importers.scenes`); 0
        keeps files whole.
      skip_damaged: leaves out damaged files and lists them in the manifest; every file is read twice.
      progress: called with ``(frames done, total frames)``.
      say: not called; all importers have it.
      announce: called with the list of files before the first one is read.

    Raises:
      ImportError: if PyAV is not installed.
      ImportDataError: if a file is missing, damaged or not a video; the message names it.
      StoreError: if the store exists or the disk is full.
    """
    del say
    sources, hidden, root = find_clips(paths)
    if not 0 <= scenes <= 100:
        raise ImportDataError(f"--scenes must be a percentage from 0, which keeps files whole, to 100, got {scenes}.")
    read = functools.partial(read_rows, scenes=scenes)
    clips, skipped = describe(sources, root, lambda path: [look_at(path, config)], read, skip_damaged)
    clips = split_files(clips, root)
    write_store(
        out,
        Source(root, clips, read, hidden, skipped, "frames"),
        description={"format": "video", "video": config.as_json(), "scenes": scenes, "clips": as_json(clips, root)},
        env=env,
        obs_shape=config.shape,
        num_actions=1,
        split="the files, by their names" if len(sources) > 1 else "time: the end of the only file is held out",
        done=None,
        progress=progress,
        announce=announce,
    )
