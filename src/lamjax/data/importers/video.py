"""Videos and folders of pictures as a trajectory store without actions.

Each file is an episode, and so is each folder of pictures, unless they are cut where the scene changes. Whole files are
held out: those whose name or folder begins with ``test`` if names say the split, else those that a hash of the name
chooses. Of a single file the end is held out.
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
    """Finds videos and folders of pictures.

    Args:
      paths: files, and folders that are searched at all depths. Links are followed; names that begin with a dot or an
        underscore are left out. Pictures that lie beside a video are taken for its thumbnails.

    Returns:
      The videos and the folders of pictures in the order of their paths, what was left out as hidden, and the folder
      that holds them all.

    Raises:
      ImportDataError: if there are none, or a file is none of these.
    """
    if not paths:
        raise ImportDataError("Give videos, or folders with videos or pictures in them.")
    for path in paths:
        if not path.exists():
            raise ImportDataError(f"There is no {path}: give videos, or folders with videos or pictures in them.")
        if path.is_file() and path.suffix.lower() not in VIDEOS:
            raise ImportDataError(f"{path} is no video by its name, which must end in {', '.join(VIDEOS)}.")
    folders = [path for path in paths if path.is_dir()]
    videos, hidden = find_files(folders, VIDEOS)
    videos += [path for path in paths if path.is_file()]
    pictures, hidden_pictures = find_files(folders, PICTURES)
    with_videos = {path.parent for path in videos}
    clips = sorted({*videos, *({path.parent for path in pictures} - with_videos)})
    hidden = sorted({*hidden, *hidden_pictures})
    if not clips:
        but = f" but hidden ones, {hidden[0]} for one" if hidden else ""
        raise ImportDataError(f"{', '.join(map(str, paths))} holds no videos and no pictures{but}: check the path.")
    root = Path(os.path.commonpath([os.path.abspath(path if path in folders else path.parent) for path in paths]))
    return [Path(os.path.abspath(path)) for path in clips], hidden, root


def read_rows(clip: Clip, start: int, scenes: float = 0.0) -> Iterator[Rows]:
    """The frames of a clip from row `start`, with the only action there is and without rewards.

    Args:
      clip: the clip.
      start: the first row.
      scenes: marks where a scene begins, by this threshold (`lamjax.data.importers.scenes`); 0 marks none.
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
    """Writes a trajectory store from videos and folders of pictures.

    The same call continues an interrupted import. Memory holds a few blocks of frames, whatever the lengths of videos.
    The store has one action, which says nothing; its manifest keeps the settings, and of each episode the source file
    and the time stamps.

    Args:
      paths: see `find_clips`.
      out: folder of the store; it must not exist.
      env: what the data is called, where others have the name of an environment.
      config: which frames, in which size.
      scenes: an episode ends where the scene changes, by this threshold in percent (`lamjax.data.importers.scenes`); 0
        keeps files whole.
      skip_damaged: leave out damaged files and say so in the manifest; every file is read twice.
      progress: called with ``(frames done, frames in all)``.
      say: not called; the other importers say how they understand their source.
      announce: called with the list of files, before the first is read.

    Raises:
      ImportError: if PyAV is absent.
      ImportDataError: if a file is missing, damaged or no video; it is named.
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
