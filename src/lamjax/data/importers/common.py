"""What the importers share: blocks of rows, where episodes begin, and resuming an interrupted import.

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

Reader = Callable[["SourceFile", int], Iterator["Rows"]]  # (file, first row) to the blocks from that row on
Done = Literal["auto", "first", "last"]
Item = TypeVar("Item")
File = TypeVar("File", bound="SourceFile")

BLOCK = 256  # rows that are read at once: 3 MB of 64 x 64 pixels
_BLOCK_BYTES = 2**24
CHECKPOINT_FRAMES = 65_536  # between checkpoints of an import
MARKS = 128  # marks that `find_meaning` looks at


@dataclasses.dataclass(frozen=True)
class Rows:
    """A block of consecutive rows of one file.

    Attributes:
      obs: uint8 ``[R, H, W, C]``.
      action: integers ``[R]``, or numbers ``[R, A]``.
      reward: numbers ``[R]``.
      done: bool or 0 and 1 ``[R]``, where an episode begins or ends, whichever it means.
      truncated: the same ``[R]``, where a time limit ended the episode; all False where the source does not say.
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
      rows: how many rows it has.
      split: "train" or "test"; None where the source does not say.
      part: which part of the file, in words, such as "episode 3"; empty if it is the whole file.
      ending: how the last episode ends if no mark says it (`lamjax.data.format.ENDINGS`).
      held_out: the row at which an episode begins that is held out for tests, where the others are for training;
        None if `split` holds for all rows.
      bounds: ``[2, A]``, the least and the largest of its actions if they are vectors; None if they are integers.
    """

    path: Path
    rows: int
    split: str | None
    part: str = dataclasses.field(default="", kw_only=True)
    ending: str = dataclasses.field(default="cut", kw_only=True)
    held_out: int | None = dataclasses.field(default=None, kw_only=True)
    bounds: np.ndarray | None = dataclasses.field(default=None, kw_only=True)

    def name(self, root: Path) -> str:
        """The path from `root`, and which part it is."""
        return " ".join([str(self.path.relative_to(root)), *([self.part] if self.part else [])])

    def split_at(self, row: int) -> str | None:
        """The split of the episode that row `row` is in."""
        if self.held_out is None:
            return self.split
        return "test" if row >= self.held_out else "train"

    def begins(self, row: int, count: int) -> np.ndarray:
        """Bool ``[count]``, True where the held-out episode begins, of the rows from `row` on."""
        return np.arange(row, row + count) == (-1 if self.held_out is None else self.held_out)


@dataclasses.dataclass(frozen=True)
class Source:
    """Files to import.

    Attributes:
      root: the folder of all files.
      files: in time order.
      read: ``(file, first row)`` to its blocks, checked.
      hidden: files and folders that were left out because their names are those of hidden ones.
      skipped: names of damaged files that were left out, with what is wrong with each.
      unit: what a row is called in sentences, in the plural.
    """

    root: Path
    files: Sequence[SourceFile]
    read: Reader
    hidden: Sequence[Path] = ()
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unit: str = "rows"

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify the files: their names, and their sizes in rows and bytes."""
        lines = (f"{f.name(self.root)} {f.rows} {f.path.stat().st_size} {f.split}" for f in self.files)
        return hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()[:16]

    def sentence(self) -> str:
        """The list of the files, and of what was left out."""
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
    """How many frames of a shape are read at once: at most `BLOCK`, and fewer of large ones."""
    return max(1, min(BLOCK, _BLOCK_BYTES // int(np.prod(shape))))


def choose_camera(cameras: Sequence[str], camera: str | None, source: Path) -> str:
    """The camera that is meant among several.

    Args:
      cameras: the names of all, at least one.
      camera: a name, or the last part of one, such as "top" for "observation.images.top"; None if there is but one.
      source: what has them.

    Raises:
      ImportDataError: if none or several may be meant; the message lists them.
    """
    if camera in cameras:
        return camera
    meant = [name for name in cameras if camera is None or re.split(r"[./]", name)[-1] == camera]
    if len(meant) == 1:
        return meant[0]
    if not meant:
        raise ImportDataError(f"{source} has no camera {camera!r} but {', '.join(cameras)}: name it with --camera.")
    raise ImportDataError(f"{source} has several cameras: name one with --camera {' | '.join(meant)}.")


def summed(rewards: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The sums float64 ``[T]`` of the rewards ``[R]`` from each chosen row until the next, or until the end."""
    with np.errstate(invalid="ignore"):  # what is not finite stays so, and `checked` refuses it
        before = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
        return np.diff(before[np.append(chosen, len(rewards))])


def checked(read: Reader, names: Mapping[str, str], num_actions: int | None) -> Reader:
    """A reader that refuses values that a store cannot keep, by file, row and column, and files that end early.

    Args:
      read: reads a file's blocks as they are.
      names: the source's names of a `Rows`' fields.
      num_actions: actions lie in ``[0, num_actions)``, unless they are vectors; None if all of them must be.

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
    """Looks at the files of a source before anything is written.

    Args:
      items: what to look at, in time order: paths of files, or whatever `look` and `name` understand.
      root: the folder of all files.
      look: opens a file and says what its parts are: one, unless it holds several episodes.
      read: as `checked` returns it.
      skip_damaged: read each file to its end, and leave out the damaged ones, or those of their parts that are.
      name: what an item is called; by default its path from `root`.

    Returns:
      The files, or their parts, that have rows; and names of the damaged ones with what is wrong with each.

    Raises:
      ImportDataError: if a file does not fit, or is damaged and must not be left out, or if all are damaged or empty.
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
        raise ImportDataError(f"All {len(items)} files are damaged, {root / first} for one ({skipped[first]}).")
    if not any(file.rows for file in files):
        others = f", and neither do the other {len(items) - 1} files" if len(items) > 1 else ""
        raise ImportDataError(f"{root / names[0]} holds no rows{others}: check the path.")
    return [file for file in files if file.rows], skipped


def bounds_of(blocks: Iterable[np.ndarray]) -> np.ndarray | None:
    """The least and the largest numbers ``[2, A]`` of blocks of vectors ``[R, A]``; None if there are no rows."""
    bounds = None
    for block in blocks:
        if len(block):
            seen = [block] if bounds is None else [bounds, block]
            bounds = np.stack([np.concatenate(seen).min(0), np.concatenate(seen).max(0)])
    return bounds


def action_bounds(files: Sequence[SourceFile]) -> tuple[list[float], list[float]] | None:
    """The bounds of the actions of all files, A numbers each; None if they are integers.

    Where all actions have the same number, the upper bound is a little larger, as a space of actions needs.

    Raises:
      ImportDataError: if the actions of some files have other lengths than those of the first, or are integers.
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
    """Whether ``done`` marks the first frame of an episode or the last one.

    A new episode shows another picture. So the frame that begins one differs more from the frame before it than from
    the one after it; the frame that ends one, the other way round. Every mark with two neighbours has a vote.

    Args:
      source: the files.

    Returns:
      "first" or "last", and a sentence that says why.

    Raises:
      ImportDataError: if the votes do not agree by three quarters.
    """
    before, after = [], []
    for file in source.files:
        tail: Rows | None = None  # the last two rows of the block before
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
        return "last", "there is no mark with a frame on both sides, so the two readings differ nowhere that tells"
    changes = np.array([before, after])
    first, last = int((changes[0] > changes[1]).sum()), int((changes[1] > changes[0]).sum())
    sizes = "the picture changes by {:.4f} on average from the frame before it and by {:.4f} to the frame after it"
    sizes = sizes.format(*changes.mean(1))
    for meaning, votes, side in (("first", first, "from the frame before"), ("last", last, "to the frame after")):
        if votes >= 0.75 * len(before):
            return meaning, f"at {votes} of {len(before)} marks the picture changes more {side}; {sizes}"
    raise ImportDataError(
        f"What done marks cannot be told from the frames (of {len(before)} marks {first} look like first frames and "
        f"{last} like last ones; {sizes}): say it with --done first or --done last."
    )


def join(blocks: Sequence[Rows]) -> Rows:
    """Blocks of rows as one."""
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
    """Writes a trajectory store from a source; the same call continues an interrupted import.

    Args:
      out: folder of the store; it must not exist.
      source: the files.
      description: what the manifest says of the source besides, such as its "format".
      env: name of the environment.
      obs_shape: shape of a frame.
      num_actions: actions lie in ``[0, num_actions)``, unless they are vectors: those lie in the files' bounds. None if
        all of them must be.
      split: what decided the split, in words for the manifest.
      done: what ``done`` marks: the "first" frame of an episode, its "last" one, or "auto" to decide by the frames.
        None where the source has no marks, and a file or part is an episode, unless the importer marks where
        another begins.
      progress: called with ``(rows done, rows in all)``.
      say: called with the decision of "auto".
      announce: called with the list of files, before the first is read.

    Raises:
      ImportDataError: if a file is damaged or its values do not fit the store; the file is named.
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
    """Cuts a source into episodes and appends them, from where an interrupted import stopped.

    No episode crosses from one file to the next: whether files follow each other in time is not known, so what runs
    on at the end of a file is marked as cut, unless the file says how it ends.

    Args:
      writer: a resumable writer, entered.
      source: the files.
      done: what a mark means.
      progress: called with the number of rows done.

    Raises:
      ImportDataError: if a file is damaged or its values do not fit the store; the file is named.
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
