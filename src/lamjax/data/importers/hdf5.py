"""Imports HDF5 files in the layouts of LAOM, robomimic and Minari.

Each layout has one group per episode, and the content of the group shows which layout it is:

    LAOM        <name>/         obs                         actions
    robomimic   data/<name>/    obs/<camera>                actions  rewards  dones        mask/<split> lists names
    Minari      episode_<n>/    observations[/<camera>]     actions  rewards  terminations  truncations

Observations are uint8 ``[T, H, W, C]`` or ``[T, H, W]``. Minari has one more observation than actions: the last one,
which no action follows, is left out. HDF5 has no checksums by default, so damaged frames may go unnoticed.

Dimension keys: T frames of an episode, R rows of a block, H, W, C of a frame, A numbers of an action.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lamjax.archives import brief
from lamjax.checks import library
from lamjax.data.importers.clips import ClipConfig, converter, frame_of
from lamjax.data.importers.common import (
    Rows,
    Source,
    SourceFile,
    block_rows,
    bounds_of,
    checked,
    choose_camera,
    describe,
    summed,
    write_store,
)
from lamjax.data.importers.errors import DamagedFileError, ImportDataError, RowError
from lamjax.data.importers.files import files_of, natural
from lamjax.data.importers.splits import split_files
from lamjax.data.importers.values import as_vectors

SUFFIXES = (".hdf5", ".h5", ".he5")
MINARI = "main_data.hdf5"  # links to the episodes in all other files of its folder

_NAMES = {"action": "actions", "reward": "rewards", "done": "dones", "truncated": "truncations"}
_OBSERVATIONS = ("obs", "observations")
_HELD_OUT = ("valid", "test")  # masks of robomimic
_CACHE = 2**26  # bytes: a compressed chunk that does not fit is decompressed again for every block of frames
_ACTIONS = 2**16  # actions to read at once
_LONGEST = 1000  # characters: the manifest leaves out longer attributes
_CHANNELS = (1, 3, 4)  # numbers of channels that can be scaled


@dataclasses.dataclass(frozen=True)
class Episode(SourceFile):
    """An episode: a group in a file.

    Attributes:
      frames: the path of its observations within the file.
      stride: keeps every n-th row.
      size: height and width that frames are scaled to; empty if they are not scaled.
      shape: ``(H, W, C)`` of a frame in the store.
      largest: its largest action if actions are integers, else -1.
    """

    frames: str
    stride: int
    size: tuple[int, ...]
    shape: tuple[int, int, int]
    largest: int


def _h5py() -> Any:
    return library("h5py", 'Reading HDF5 files needs h5py: pip install "lamjax[hdf5]".')


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a file; turns errors that occur while it is read into ones that name it."""
    h5py = _h5py()
    try:
        with h5py.File(path, "r", rdcc_nbytes=_CACHE) as file:
            yield file
    except (ImportDataError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = brief(error).strip('"')  # a KeyError puts its message in quotes
        if "filter" in reason and ("not registered" in reason or "not available" in reason):
            raise ImportDataError(
                f"{path} uses a compression that h5py cannot read ({reason}): repack it with gzip."
            ) from None
        raise DamagedFileError(path, reason) from None


def find(path: Path) -> tuple[list[Path], list[Path], Path]:
    """The files of a source, such as a Minari data set, as `files_of` finds them; without files that others link to."""
    paths, hidden, root = files_of(path, "HDF5", SUFFIXES)
    linking = {each.parent for each in paths if each.name == MINARI}
    return [each for each in paths if each.parent not in linking or each.name == MINARI], hidden, root


def look_at(path: Path, camera: str | None, stride: int, size: tuple[int, ...]) -> list[Episode]:
    """Lists the episodes of a file, sorted by the numbers in their names.

    Args:
      path: the file.
      camera: the observation that holds the frames, by its name or the last part of it; None if there is only one.
      stride: keeps every n-th row.
      size: height and width to scale frames to, or one number for both; empty leaves them unscaled.

    Raises:
      ImportError: if h5py is not installed.
      DamagedFileError: if the file is damaged.
      ImportDataError: if it has another layout, or several cameras and none is chosen.
    """
    with _opened(path) as file:
        groups = {**_episodes(file), **(_episodes(file["data"]) if _is_group(file.get("data")) else {})}
        if not groups:
            raise ImportDataError(
                f"{path} has no episodes: groups with actions and with obs or observations, at the top or in data."
            )
        splits = _masked(file)
        episodes = []
        for name in sorted(groups, key=natural):
            split = splits and splits.get(name.rpartition("/")[2], "train")
            episodes.append(_look_at_group(path, name, groups[name], split, camera, stride, size))
        return episodes


def _is_group(item: Any) -> bool:
    return isinstance(item, _h5py().Group)


def _episodes(group: Any) -> dict[str, Any]:
    """The subgroups that are episodes, by their paths in the file."""
    episodes = {}
    for name in group:
        item = group[name]
        if _is_group(item) and "actions" in item and any(each in item for each in _OBSERVATIONS):
            episodes[f"{group.name}/{name}".lstrip("/")] = item
    return episodes


def _masked(file: Any) -> dict[str, str] | None:
    """The splits of episodes from the masks of robomimic; None if no episode is held out."""
    mask = file.get("mask")
    held_out = [name for name in _HELD_OUT if _is_group(mask) and name in mask]
    names = [np.asarray(mask[name]).astype(str).ravel().tolist() for name in held_out]
    return {name: "test" for each in names for name in each} or None


def _look_at_group(
    path: Path, part: str, group: Any, split: str | None, camera: str | None, stride: int, size: tuple[int, ...]
) -> Episode:
    pictures = _pictures(path, part, group)
    chosen = choose_camera(list(pictures), camera, path)
    frames = pictures[chosen]
    actions = group["actions"]
    if not isinstance(actions, _h5py().Dataset) or actions.dtype.kind not in "iuf" or actions.ndim not in (1, 2):
        raise ImportDataError(f"{path} does not fit: {part}/actions are neither integers nor vectors of numbers.")
    count = len(actions)
    for name in ("rewards", "dones", "terminations", "truncations"):
        if name in group and group[name].shape != (count,):
            raise ImportDataError(f"{path} does not fit: {part} has {count} actions but {len(group[name])} {name}.")
    if len(frames) not in (count, count + 1):
        raise ImportDataError(f"{path} does not fit: {part} has {count} actions but {len(frames)} observations.")
    shape = (*frames.shape[1:3], frames.shape[3] if frames.ndim == 4 else 1)
    if size and shape[2] not in _CHANNELS:
        raise ImportDataError(f"{path} has frames with {shape[2]} channels, which --size cannot scale: leave it out.")
    integers = actions.ndim == 1 and actions.dtype.kind in "iu"

    def ends(name: str) -> bool:
        return bool(count and name in group and group[name][-1])

    ending = "terminated" if ends("terminations") or ends("dones") else "truncated" if ends("truncations") else "cut"
    return Episode(
        *(path, -(-count // stride), split, f"{part}/{chosen}", stride, size),
        *((size[0], size[-1], 3) if size else shape, int(actions[:].max(initial=-1)) if integers else -1),
        part=part,
        ending=ending,
        bounds=None if integers else bounds_of(_vectors(path, part, actions)),
    )


def _pictures(path: Path, part: str, group: Any) -> dict[str, Any]:
    """The observations of an episode that can be images, uint8 of rank 3 or 4, by their paths in its group."""
    name = next(each for each in _OBSERVATIONS if each in group)
    pictures: dict[str, Any] = {}

    def visit(below: str, item: Any) -> None:
        if isinstance(item, _h5py().Dataset) and item.dtype == np.uint8 and item.ndim in (3, 4):
            pictures[f"{name}/{below}".rstrip("/")] = item

    if _is_group(group[name]):
        group[name].visititems(visit)
    else:
        visit("", group[name])
    if not pictures:
        raise ImportDataError(f"{path} has no images in {part}/{name}: they must be uint8 [T, H, W, C].")
    return pictures


def _vectors(path: Path, part: str, actions: Any) -> Iterator[np.ndarray]:
    """Yields actions in blocks float32 ``[R, A]``; A is 1 if each action is one number."""
    for first in range(0, len(actions), _ACTIONS):
        block = actions[first : first + _ACTIONS]
        try:
            yield as_vectors(block.reshape(len(block), -1), "actions")
        except RowError as error:
            raise error.located(path, first, part) from None


def read_rows(episode: Episode, start: int) -> Iterator[Rows]:
    """Yields the frames of an episode from row `start` on, with their actions and the rewards up to the next frame."""
    stride, rows = episode.stride, episode.rows
    with _opened(episode.path) as file:
        group, frames = file[episode.part], file[episode.frames]
        actions = group["actions"]
        chosen = np.arange(rows) * stride
        rewards = summed(group["rewards"][:], chosen) if "rewards" in group else np.zeros(rows)
        convert = _scaler(episode) if episode.size else lambda block: block.reshape(len(block), *episode.shape)
        most = block_rows(frames.shape[1:])
        for first in range(start, rows, most):
            stop = min(first + most, rows)
            kept = slice(first * stride, (stop - 1) * stride + 1, stride)
            action = actions[kept]
            if episode.bounds is not None:
                action = action.reshape(len(action), -1)
            begins = episode.begins(first, stop - first)
            yield Rows(convert(frames[kept]), action, rewards[first:stop], begins, begins)


def _scaler(episode: Episode) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that scales frames uint8 ``[R, H, W, C]`` or ``[R, H, W]`` and converts them to RGB."""
    convert = converter(ClipConfig(size=episode.size), episode.path)

    def scale(block: np.ndarray) -> np.ndarray:
        frames = block[..., 0] if block.ndim == 4 and block.shape[3] == 1 else block
        return np.stack([convert(frame_of(each)) for each in frames])

    return scale


def _attributes(path: Path) -> dict[str, Any]:
    """The metadata of a file: short attributes that JSON can hold, of the root and of robomimic's group ``data``."""
    kept: dict[str, Any] = {}
    with _opened(path) as file:
        for group in (file, *([file["data"]] if _is_group(file.get("data")) else [])):
            for name, value in group.attrs.items():
                value = value.decode(errors="replace") if isinstance(value, bytes) else value
                value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
                with contextlib.suppress(TypeError, ValueError):
                    if len(json.dumps(value, allow_nan=False)) <= _LONGEST:
                        kept[str(name)] = value
    return kept


def _num_actions(episodes: list[Episode]) -> int:
    """The number of integer actions: the one that Minari states, and at least the largest action plus 1."""
    needed = max(1, 1 + max(episode.largest for episode in episodes))
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        metadata = json.loads((episodes[0].path.parent / "metadata.json").read_text(encoding="utf-8"))
        space = metadata["action_space"]
        space = json.loads(space) if isinstance(space, str) else space
        if space["type"] == "Discrete":
            return max(int(space["n"]), needed)
    return needed


def import_hdf5(
    path: Path,
    out: Path,
    *,
    env: str,
    camera: str | None = None,
    stride: int = 1,
    size: tuple[int, ...] = (),
    skip_damaged: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    announce: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Writes a trajectory store from HDF5 files in the layout of LAOM, robomimic or Minari.

    Calling it again continues an interrupted import. Memory holds a few blocks of frames and the rewards of one
    episode.

    Args:
      path: see `find`.
      out: folder of the store; it must not exist.
      env: a name for the data, stored in place of an environment's name.
      camera: the observation that holds the frames, by its name or the last part of it; None if there is only one.
      stride: keeps every n-th frame; a frame keeps its own action, and the rewards up to the next frame kept.
      size: height and width to scale frames to, or one number for both; empty leaves them unscaled. Scaled frames are
        RGB.
      skip_damaged: leaves out damaged files and episodes and lists them in the manifest; every file is read twice.
      progress: called with ``(frames done, total frames)``.
      say: not called; all importers have it.
      announce: called with the list of files before the first one is read.

    Raises:
      ImportError: if h5py is not installed, or PyAV is not and frames are scaled.
      ImportDataError: if a file is missing, damaged or in another layout; the message names it.
      StoreError: if the store exists or the disk is full.
    """
    del say
    if stride < 1 or len(size) > 2 or min(size, default=1) < 1:
        raise ImportDataError(
            f"--stride and --size must be at least 1, and --size one or two numbers, got {stride} and {size}."
        )
    paths, hidden, root = find(path)
    read = checked(read_rows, _NAMES, 2**31)
    episodes, skipped = describe(paths, root, lambda each: look_at(each, camera, stride, size), read, skip_damaged)
    shape = episodes[0].shape
    for episode in episodes:
        if episode.shape != shape:
            raise ImportDataError(
                f"{episode.path} has frames of {list(episode.shape)} in {episode.part}, and others have {list(shape)}: "
                "scale them with --size."
            )
    masked = any(episode.split for episode in episodes)
    if not masked:
        episodes = split_files(episodes, root)
    write_store(
        out,
        Source(root, episodes, read, hidden, skipped, "frames"),
        description={
            **{"format": "hdf5", "camera": episodes[0].frames.removeprefix(f"{episodes[0].part}/"), "stride": stride},
            **{"size": list(shape[:2]), "attributes": _attributes(episodes[0].path)},
            "clips": [{"file": each.name(root), "frames": each.rows, "seconds": None} for each in episodes],
        },
        env=env,
        obs_shape=shape,
        num_actions=_num_actions(episodes),
        split="the files' masks" if masked else "the names of files and episodes",
        done=None,
        progress=progress,
        announce=announce,
    )
