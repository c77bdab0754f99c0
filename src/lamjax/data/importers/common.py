"""Code that all importers share: reading blocks of rows, splitting into episodes, and resuming an interrupted import.

A source is a list of files in time order, read in blocks of rows. Nothing larger than a few blocks is held in memory.

Dimension keys: R rows of a block.
"""

import collections
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from lamjax.data.format import StoreError, split_of_level
from lamjax.data.importers.errors import DamagedFileError, ImportDataError, RowError
from lamjax.data.importers.files import list_of
from lamjax.data.importers.values import as_actions, as_flags, as_rewards, as_vectors
from lamjax.data.writer import StoreWriter

Reader = Callable[["SourceFile", int], Iterator["Rows"]]  # (file, row) -> blocks of rows from that row on
Done = Literal["auto", "first", "last"]
Item = TypeVar("Item")
File = TypeVar("File", bound="SourceFile")

BLOCK = 256  # rows to read at once: 3 MB for frames of 64 x 64 pixels
_BLOCK_BYTES = 2**24
CHECKPOINT_FRAMES = 65_536  # frames between two checkpoints of an import
MARKS = 128  # marks that `find_meaning` looks at


@dataclasses.dataclass(frozen=True)
class Rows:
    """A block of consecutive rows of one file.

    Attributes:
      obs: uint8 ``[R, H, W, C]``.
      action: integers ``[R]``, or numbers ``[R, A]``.
      reward: numbers ``[R]``.
      done: bool, or 0 and 1, ``[R]``; marks where an episode begins or where it ends, depending on the source.
      truncated: the same type and shape; marks where a time limit ended the episode. All False if the source does not
        say.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.obs)

    def __getitem__(self, rows: slice) -> "Rows":
        return Rows(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file of a source, or a part of one.

    Attributes:
      path: where it is.
      rows: number of rows.
      split: "train" or "test"; None if the source does not say.
      part: which part of the file this is, such as "episode 3"; empty if it is the whole file.
      ending: how the last episode ends if it is not marked (`lamjax.data.format.ENDINGS`).
      held_out: the row from which the file is held out for testing, while earlier rows are for training; None if
        `split` applies to all rows.
      bounds: ``[2, A]``, the minimum and maximum of its actions if they are vectors; None if they are integers.
    """

    path: Path
    rows: int
    split: str | None
    part: str = dataclasses.field(default="", kw_only=True)
    ending: str = dataclasses.field(default="cut", kw_only=True)
    held_out: int | None = dataclasses.field(default=None, kw_only=True)
    bounds: np.ndarray | None = dataclasses.field(default=None, kw_only=True)

    def name(self, root: Path) -> str:
        """The path relative to `root`, followed by the part."""
        return " ".join([str(self.path.relative_to(root)), *([self.part] if self.part else [])])

    def split_at(self, row: int) -> str | None:
        """The split of the episode that contains a row."""
        if self.held_out is None:
            return self.split
        return "test" if row >= self.held_out else "train"

    def begins(self, row: int, count: int) -> np.ndarray:
        """Marks the row where the held-out episode begins: bool ``[count]``, for the rows from `row` on."""
        return np.arange(row, row + count) == (-1 if self.held_out is None else self.held_out)


@dataclasses.dataclass(frozen=True)
class Source:
    """Files to import.

    Attributes:
      root: the folder of all files.
      files: in time order.
      read: maps ``(file, first row)`` to checked blocks of rows.
      hidden: files and folders that were left out because they are hidden.
      skipped: the reason why each damaged file was left out, by name.
      unit: what messages call the rows, in the plural.
    """

    root: Path
    files: Sequence[SourceFile]
    read: Reader
    hidden: Sequence[Path] = ()
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unit: str = "rows"

    @property
    def rows(self) -> int:
        """Number of rows in all files."""
        return sum(file.rows for file in self.files)

    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify the files by name, number of rows, size in bytes and split."""
        lines = (f"{f.name(self.root)} {f.rows} {f.path.stat().st_size} {f.split}" for f in self.files)
        return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:16]

    def sentence(self) -> str:
        """A sentence that lists the files to import and those left out."""
        by_split: dict[str, dict[Path, None]] = {}  # a file with several parts is listed once
        for file in self.files:
            by_split.setdefault(file.split or "undivided", {})[file.path] = None
        parts = [f"{split}: {list_of(list(paths), self.root)}" for split, paths in by_split.items()]
        if self.hidden:
            parts.append(f"left out as hidden: {list_of(list(self.hidden), self.root)}")
        if self.skipped:
            parts.append(f"left out as damaged: {list_of([self.root / name for name in self.skipped], self.root)}")
        count = len({file.path for file in self.files})
        files = f"{count} file{'s' * (count != 1)} of {self.root} with {self.rows} {self.unit}"
        episodes = f" in {len(self.files)} episodes" if any(file.part for file in self.files) else ""
        return f"Importing {files}{episodes}; {'; '.join(parts)}."


def block_rows(shape: tuple[int, ...]) -> int:
    """How many frames of a shape to read at once: `BLOCK`, or fewer if frames are large."""
    return max(1, min(BLOCK, _BLOCK_BYTES // int(np.prod(shape))))


def choose_camera(cameras: Sequence[str], camera: str | None, source: Path) -> str:
    """Chooses a camera by its name, or by the last part of its name.

    Args:
      cameras: the names of all cameras, at least one.
      camera: a name, or its last part, such as "top" for "observation.images.top"; None if there is only one camera.
      source: the file or folder that has the cameras, for error messages.

    Raises:
      ImportDataError: if no camera matches, or several do; the message lists them.
    """
    if camera in cameras:
        return camera
    meant = [name for name in cameras if camera is None or re.split(r"[./]", name)[-1] == camera]
    if len(meant) == 1:
        return meant[0]
    if not meant:
        raise ImportDataError(f"{source} has no camera {camera!r}, only {', '.join(cameras)}: choose with --camera.")
    raise ImportDataError(f"{source} has several cameras: choose one with --camera {' | '.join(meant)}.")


def summed(rewards: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Sums the rewards ``[R]`` from each chosen row up to the next one, or to the end: float64 ``[T]``."""
    with np.errstate(invalid="ignore"):  # NaN and inf stay as they are, and `checked` rejects them
        before = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
        return np.diff(before[np.append(chosen, len(rewards))])


def checked(read: Reader, names: Mapping[str, str], num_actions: int | None) -> Reader:
    """Wraps a reader so that it rejects files that end early and values that a store cannot hold.

    Its errors name the file, the row and the column.

    Args:
      read: reads a file's blocks as they are.
      names: the source's names for the fields of `Rows`.
      num_actions: integer actions lie in ``[0, num_actions)``; None if all actions must be vectors.

    Returns:
      A reader whose blocks have bool marks, int32 actions or finite float32 vectors, and finite float32 rewards.
    """

    def read_checked(file: SourceFile, start: int) -> Iterator[Rows]:
        row = start
        for block in read(file, start):
            try:
                done, truncated = (as_flags(getattr(block, name), names[name]) for name in ("done", "truncated"))
                if num_actions is None or block.action.ndim > 1:
                    action = as_vectors(block.action, names["action"])
                else:
                    action = as_actions(block.action, names["action"], num_actions)
                reward = as_rewards(block.reward, names["reward"])
            except RowError as error:
                raise error.located(file.path, row, file.part) from None
            yield Rows(block.obs, action, reward, done, truncated)
            row += len(block)
        if row != file.rows:
            raise DamagedFileError(file.path, f"it has {row} rows instead of {file.rows}")

    return read_checked


def describe(
    items: Sequence[Item],
    root: Path,
    look: Callable[[Item], Sequence[File]],
    read: Reader,
    skip_damaged: bool,
    name: Callable[[Item], str] | None = None,
) -> tuple[list[File], dict[str, str]]:
    """Inspects the files of a source before anything is written.

    Args:
      items: what to inspect, in time order: paths of files, or whatever `look` and `name` understand.
      root: the folder of all files.
      look: opens a file and returns its parts: one, unless it holds several episodes.
      read: the reader that `checked` returns.
      skip_damaged: reads each file to its end, and leaves out damaged files, or only their damaged parts.
      name: maps an item to its name; by default its path relative to `root`.

    Returns:
      The files, or parts of files, that have rows; and what is wrong with each damaged one, by name.

    Raises:
      ImportDataError: if a file does not fit, if one is damaged and `skip_damaged` is False, or if all are damaged or
        empty.
    """
    names = [name(item) if name else str(item.relative_to(root)) for item in items]
    files: list[File] = []
    skipped: dict[str, str] = {}

    def keep(label: str, path: Path, error: DamagedFileError) -> None:
        if not skip_damaged:
            raise error
        skipped[label] = error.reason if error.path == path else f"{error.path.relative_to(root)}: {error.reason}"

    for item, label in zip(items, names, strict=True):
        try:
            parts = look(item)
        except DamagedFileError as error:
            keep(label, root / label, error)
            continue
        for part in parts:
            try:
                if skip_damaged:
                    collections.deque(read(part, 0), maxlen=0)
                files.append(part)
            except DamagedFileError as error:
                keep(part.name(root), part.path, error)
    if skipped and not files:
        first = next(iter(skipped))
        raise ImportDataError(f"All {len(items)} files are damaged, for example {root / first} ({skipped[first]}).")
    if not any(file.rows for file in files):
        others = f", and neither do the other {len(items) - 1} files" if len(items) > 1 else ""
        raise ImportDataError(f"{root / names[0]} holds no rows{others}: check the path.")
    return [file for file in files if file.rows], skipped


def bounds_of(blocks: Iterable[np.ndarray]) -> np.ndarray | None:
    """The minimum and maximum ``[2, A]`` of blocks of vectors ``[R, A]``; None if there are no rows."""
    bounds = None
    for block in blocks:
        if len(block):
            seen = [block] if bounds is None else [bounds, block]
            bounds = np.stack([np.concatenate(seen).min(0), np.concatenate(seen).max(0)])
    return bounds


def action_bounds(files: Sequence[SourceFile]) -> tuple[list[float], list[float]] | None:
    """The bounds of the actions of all files, A numbers each; None if they are integers.

    If a number is the same in all actions, its upper bound is slightly enlarged, because an action space needs an
    interval.

    Raises:
      ImportDataError: if the actions of some file differ from those of the first in length or type.
    """
    shapes = ["integers" if file.bounds is None else f"vectors of {file.bounds.shape[1]} numbers" for file in files]
    for file, shape in zip(files, shapes, strict=True):
        if shape != shapes[0]:
            raise ImportDataError(f"{file.path} does not fit: its actions are {shape}, and others are {shapes[0]}.")
    if files[0].bounds is None:
        return None
    low, high = bounds_of(file.bounds for file in files).astype(np.float64)
    return low.tolist(), np.maximum(high, low + 1e-3 * np.maximum(1, np.abs(low))).tolist()


def find_meaning(source: Source) -> tuple[Literal["first", "last"], str]:
    """Decides whether ``done`` marks the first or the last frame of an episode.

    A new episode starts with a new scene. So its first frame differs more from the frame before it than from the frame
    after it, and for the last frame of an episode it is the other way round. Every mark with a frame on both sides has
    one vote.

    Args:
      source: the files.

    Returns:
      "first" or "last", and a sentence that says why.

    Raises:
      ImportDataError: if fewer than three quarters of the votes agree.
    """
    before, after = [], []
    for file in source.files:
        tail: Rows | None = None  # the last two rows of the previous block
        for block in source.read(file, 0):
            joined = block if tail is None else join([tail, block])
            for i in np.flatnonzero((joined.done | joined.truncated)[1:-1]) + 1:
                frames = joined.obs[i - 1 : i + 2].astype(np.int16)
                steps = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)) / 255
                before.append(steps[0]), after.append(steps[1])
            tail = joined[-2:]
            if len(before) >= MARKS:
                break
        if len(before) >= MARKS:
            break
    if not before:
        return "last", "there is no mark with a frame on both sides, so the frames cannot decide"
    changes = np.array([before, after])
    first, last = int((changes[0] > changes[1]).sum()), int((changes[1] > changes[0]).sum())
    sizes = "on average the image changes by {:.4f} from the frame before and by {:.4f} to the frame after"
    sizes = sizes.format(*changes.mean(1))
    for meaning, votes, side in (("first", first, "from the frame before"), ("last", last, "to the frame after")):
        if votes >= 0.75 * len(before):
            return meaning, f"at {votes} of {len(before)} marks the image changes more {side}; {sizes}"
    raise ImportDataError(
        f"The frames do not show what done marks (of {len(before)} marks, {first} look like first frames and {last} "
        f"like last ones; {sizes}): choose with --done first or --done last."
    )


def join(blocks: Sequence[Rows]) -> Rows:
    """Joins blocks of rows into one."""
    if len(blocks) == 1:
        return blocks[0]
    fields = [field.name for field in dataclasses.fields(Rows)]
    return Rows(*(np.concatenate([getattr(block, name) for block in blocks]) for name in fields))


def write_store(
    out: Path,
    source: Source,
    *,
    description: Mapping[str, Any],
    env: str,
    obs_shape: tuple[int, ...],
    num_actions: int | None,
    split: str,
    done: Done | None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    announce: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Writes a trajectory store from a source. Calling it again continues an interrupted import.

    Args:
      out: folder of the store; it must not exist.
      source: the files.
      description: further entries of the manifest about the source, such as its "format".
      env: name of the environment.
      obs_shape: shape of a frame.
      num_actions: integer actions lie in ``[0, num_actions)``; None if all actions must be vectors. The bounds of
        vectors are those of the files.
      split: how the split was decided, in words for the manifest.
      done: what ``done`` marks: the "first" frame of an episode, its "last" one, or "auto" to decide from the frames.
        None if the source has no such column: each file or part is then an episode, unless the importer marks where
        another one begins.
      progress: called with ``(rows done, total rows)``.
      say: called with the decision that "auto" leads to.
      announce: called with the list of files before the first one is read.

    Raises:
      ImportDataError: if a file is damaged or its values do not fit the store; the message names the file.
      StoreError: if the store exists or the disk is full.
    """
    announce(source.sentence())
    meaning, why = (done or "first", "the user said so") if done != "auto" else find_meaning(source)
    if done == "auto":
        say(f"done marks the {meaning} frame of an episode: {why}.")
    bounds = action_bounds(source.files)
    splits = [file.split or "undivided" for file in source.files]
    with StoreWriter(
        out,
        env=env,
        obs_shape=obs_shape,
        num_actions=num_actions if bounds is None else None,
        action_dim=None if bounds is None else len(bounds[0]),
        action_bounds=bounds,
        env_params={"levels": "unknown", "split": split},
        policy={
            "kind": "imported",
            "files": {name: splits.count(name) for name in splits},
            "digest": source.digest(),
            **({"done": meaning, "done_because": why} if done else {}),
            **description,
            **({"skipped_as_damaged": dict(source.skipped)} if source.skipped else {}),
        },
        resumable=True,
    ) as writer:
        write_episodes(writer, source, meaning, progress and (lambda rows: progress(rows, source.rows)))


def write_episodes(
    writer: StoreWriter,
    source: Source,
    done: Literal["first", "last"],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Splits a source into episodes and appends them, starting where an interrupted import stopped.

    No episode spans two files, because it is unknown whether files are contiguous in time. An episode that is still
    running at the end of a file is marked as cut, unless the file says how it ends.

    Args:
      writer: a resumable writer, inside its ``with`` block.
      source: the files.
      done: what a mark means.
      progress: called with the number of rows done.

    Raises:
      ImportDataError: if a file is damaged or its values do not fit the store; the message names the file.
    """
    start_file, start_row = writer.position or (0, 0)
    saved = writer.num_frames
    before = sum(file.rows for file in source.files[:start_file])
    for number, file in enumerate(source.files[start_file:], start_file):
        row = start_row if number == start_file else 0
        running = False  # whether an episode has begun

        def end(ending: str, last: int, file: SourceFile = file) -> None:
            split = file.split_at(last) or split_of_level(writer.num_episodes)
            writer.end_episode(None, ending, split=split)

        for block in source.read(file, row):
            begin = 0
            for mark in np.flatnonzero(block.done | block.truncated):
                stop = mark + (done == "last")
                if stop > begin:
                    _append(writer, block[begin:stop], file)
                if running or stop > begin:
                    end("truncated" if block.truncated[mark] else "terminated", row + int(stop) - 1)
                begin, running = stop, False
                if writer.num_frames - saved >= CHECKPOINT_FRAMES:
                    writer.checkpoint([number, row + int(stop)])
                    saved = writer.num_frames
            if begin < len(block):
                _append(writer, block[begin:], file)
                running = True
            row += len(block)
            if progress:
                progress(before + row)
        if running:
            end(file.ending, row - 1)
        before += file.rows
        if number + 1 < len(source.files) and writer.num_frames - saved >= CHECKPOINT_FRAMES // 4:
            writer.checkpoint([number + 1, 0])
            saved = writer.num_frames


def _append(writer: StoreWriter, rows: Rows, file: SourceFile) -> None:
    try:
        writer.append_frames(rows.obs, rows.action, rows.reward)
    except StoreError:
        raise
    except ValueError as error:
        raise ImportDataError(f"{file.path} does not fit: {error}.") from error
