"""Reads the metadata of a LeRobot data set: its cameras and features, and which files hold each episode.

A camera's frames are in videos, or images in the Parquet files.

Version 2 (and 2.1) has one file per episode. Version 3 stores several episodes in a file, and states the second of the
video at which each begins:

    meta/info.json          features, frame rate, splits, and the patterns of paths
    meta/episodes.jsonl                                              2: one line per episode
    meta/episodes/*/*.parquet                                        3: one row per episode
    data/chunk-000/episode_000000.parquet                            2: one row per frame
    data/chunk-000/file-000.parquet                                  3
    videos/chunk-000/observation.images.top/episode_000000.mp4       2
    videos/observation.images.top/chunk-000/file-000.mp4             3
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lamjax.archives import brief
from lamjax.data.importers.common import choose_camera
from lamjax.data.importers.errors import DamagedFileError, ImportDataError
from lamjax.data.importers.files import find_files
from lamjax.data.importers.parquet import opened, read_batches

INFO = "meta/info.json"
_PATHS = {
    2: {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    },
    3: {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
}
_HELD_OUT = ("test", "val", "eval")  # prefixes of the names of held-out splits


@dataclasses.dataclass(frozen=True)
class Info:
    """The content of ``meta/info.json``.

    Attributes:
      root: the folder of the data set.
      version: as written in the file, such as "v2.1".
      fps: frames per second.
      features: the features of a frame by name; each is a dict with ``dtype`` and ``shape``.
      splits: ranges of episodes by name, such as ``{"train": "0:50"}``.
      content: the whole file.
    """

    root: Path
    version: str
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    splits: Mapping[str, str]
    content: Mapping[str, Any]

    @property
    def major(self) -> int:
        """The major version, 2 or 3."""
        return int(self.version[1])

    def is_video(self, camera: str) -> bool:
        """Whether the frames of a camera are in video files, not images in the Parquet files."""
        return self.features[camera]["dtype"] == "video"


@dataclasses.dataclass(frozen=True)
class Planned:
    """Where an episode is stored.

    Attributes:
      index: its number.
      length: number of frames.
      data: the Parquet file with its actions, time stamps and rewards.
      video: the video file with its frames; None if they are images in the Parquet file.
      begin: the second of the video at which it begins.
      split: "train" or "test"; None if the data set has no held-out split.
    """

    index: int
    length: int
    data: Path
    video: Path | None
    begin: float
    split: str | None


def read_info(root: Path) -> Info:
    """Reads ``meta/info.json``.

    Raises:
      ImportDataError: if it is missing, damaged or has another version.
    """
    path = root / INFO
    if not path.is_file():
        raise ImportDataError(f"{root} is not a LeRobot data set: it has no {INFO}.")
    content = _json(path, path.read_text(encoding="utf-8", errors="replace"))
    version = str(content.get("codebase_version"))
    if not re.match(r"v[23](\.|$)", version):
        raise ImportDataError(
            f"{path} has version {version}, but only versions 2 and 3 can be read: convert it with LeRobot."
        )
    try:
        features = {name: dict(feature) for name, feature in content["features"].items()}
        fps, splits = float(content["fps"]), dict(content.get("splits") or {})
        dtypes = [feature["dtype"] for feature in features.values()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"it lacks features or fps: {brief(error)}") from None
    if not (fps > 0 and all(isinstance(each, str) for each in dtypes)):
        raise _damaged(path, "its features or its fps are invalid")
    return Info(root, version, fps, features, splits, content)


def camera_of(info: Info, camera: str | None) -> str:
    """The feature that holds the frames of a camera (`lamjax.data.importers.common.choose_camera`).

    Raises:
      ImportDataError: if no camera matches, or several do; the message lists them.
    """
    cameras = [name for name, feature in info.features.items() if feature["dtype"] in ("video", "image")]
    if not cameras:
        raise ImportDataError(f"{info.root} has no camera: none of its features is a video or an image.")
    return choose_camera(cameras, camera, info.root)


def plan(info: Info, camera: str) -> list[Planned]:
    """Returns where each episode is stored, in order.

    Raises:
      ImportDataError: if the list of episodes is missing or damaged, or a path points outside the data set.
    """
    entries = list(_lines(info) if info.major == 2 else _rows(info, camera))
    if not entries:
        raise ImportDataError(f"{info.root} lists no episodes: check the path.")
    held_out = [each for name, each in info.splits.items() if name.lower().startswith(_HELD_OUT)]
    test = {index for each in held_out for index in _range(info, each)}
    planned = []
    for entry in entries:
        index = entry["episode_index"]
        chunk = index // max(int(info.content.get("chunks_size") or 1000), 1)
        numbers = {"episode_index": index, "episode_chunk": chunk, "video_key": camera}
        data = _path(info, "data_path", numbers | _file_of(entry, "data"))
        video = None
        if info.is_video(camera):
            video = _path(info, "video_path", numbers | _file_of(entry, f"videos/{camera}"))
        begin = entry.get(f"videos/{camera}/from_timestamp", 0.0)
        split = None if not test else "test" if index in test else "train"
        planned.append(Planned(index, entry["length"], data, video, begin, split))
    return planned


def check_present(path: Path) -> None:
    """Raises a `DamagedFileError` if a file was not downloaded, or if only its Git LFS pointer was."""
    if not path.is_file():
        raise DamagedFileError(path, "it is missing")
    with open(path, "rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise DamagedFileError(path, "it is a Git LFS pointer, not the file itself: run git lfs pull")


def _damaged(path: Path, reason: str) -> ImportDataError:
    """Returns the error for a damaged file that the whole import depends on."""
    return ImportDataError(f"{path} is damaged ({reason}): copy it again.")


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON: {brief(error)}") from None
    if not isinstance(content, dict):
        raise _damaged(path, "it is not a JSON object")
    return content


def _lines(info: Info) -> Iterator[Mapping[str, Any]]:
    """Yields the entries of ``meta/episodes.jsonl``."""
    path = info.root / "meta" / "episodes.jsonl"
    if not path.is_file():
        raise _damaged(path, "it is missing")
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            entry = _json(path, line)
            if not all(isinstance(entry.get(name), int) for name in ("episode_index", "length")):
                raise _damaged(path, f"line {number} lacks the number or the length of an episode")
            yield entry


def _rows(info: Info, camera: str) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of ``meta/episodes``, without their statistics."""
    folder = info.root / "meta" / "episodes"
    paths = find_files([folder], ".parquet")[0] if folder.is_dir() else []
    if not paths:
        raise ImportDataError(f"{folder} holds no .parquet files, so the episodes are unknown: download all of it.")
    places = ("chunk_index", "file_index", "from_timestamp")
    names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    names += [f"videos/{camera}/{name}" for name in places if info.is_video(camera)]
    for path in paths:
        with opened(path) as file:
            missing = [name for name in names if name not in file.schema_arrow.names]
        if missing:
            raise ImportDataError(f"{path} has no column {missing[0]!r}, so it is unknown where episodes are stored.")
        for _, batch in read_batches(path, names):
            for row in batch.to_pylist():
                if None in row.values():
                    raise _damaged(path, f"an episode has no {next(key for key in row if row[key] is None)}")
                yield row


def _file_of(entry: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The numbers in the path of an episode's data or video file in version 3."""
    return {name: entry.get(f"{kind}/{name}") for name in ("chunk_index", "file_index")}


def _path(info: Info, key: str, numbers: Mapping[str, Any]) -> Path:
    """Fills in the data set's pattern for a path."""
    pattern = info.content.get(key) or _PATHS[info.major][key]
    try:
        path = Path(pattern.format(**numbers))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(info.root / INFO, f"{key} {pattern!r} is not a valid pattern: {brief(error)}") from None
    if path.is_absolute() or ".." in path.parts:
        raise ImportDataError(f"{info.root / INFO} has the {key} {pattern!r}, which points outside the data set.")
    return info.root / path


def _range(info: Info, text: Any) -> range:
    """The episodes of a split, written as "40:50"."""
    match = re.fullmatch(r"(\d+):(\d+)", str(text))
    if not match:
        raise _damaged(info.root / INFO, f"the split {text!r} is not a range of episodes such as 0:50")
    return range(int(match[1]), int(match[2]))
