"""What the importers share: blocks of rows, where episodes begin, and resuming an interrupted import.

A source is a list of files in time order, read in blocks of rows. Nothing larger than an episode is held in memory.

Dimension keys: R rows of a block.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lamjax.data.format import split_of_level
from lamjax.data.writer import StoreWriter

Reader = Callable[["SourceFile", int], Iterator["Rows"]]  # (file, first row) to the blocks from that row on
Done = Literal["auto", "first", "last"]

BLOCK = 256  # rows that are read at once: 3 MB of 64 x 64 pixels
CHECKPOINT_FRAMES = 65_536  # between checkpoints of an import
MARKS = 128  # marks that `find_meaning` looks at


class ImportDataError(ValueError):
    """Raised where a source is missing, damaged or of another layout; one sentence that names the file."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """A block of consecutive rows of one file.

    Attributes:
      obs: uint8 ``[R, H, W, C]``.
      action: integers ``[R]``.
      reward: floats ``[R]``.
      done: bool ``[R]``, where an episode begins or ends, whichever it means.
      truncated: bool ``[R]``, the same where a time limit ended the episode; all False where the source does not say.
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
    """One file of a source.

    Attributes:
      path: where it is.
      rows: how many rows it has.
      split: "train" or "test"; None where the source does not say.
    """

    path: Path
    rows: int
    split: str | None


def digest_of(files: Sequence[SourceFile], root: Path) -> str:
    """Sixteen hexadecimal digits that identify a list of files: their names, and their sizes in rows and bytes."""
    lines = [f"{f.path.relative_to(root)} {f.rows} {f.path.stat().st_size} {f.split}" for f in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def find_meaning(files: Sequence[SourceFile], read: Reader) -> tuple[Literal["first", "last"], str]:
    """Whether ``done`` marks the first frame of an episode or the last one.

    A new episode shows another picture. So the frame that begins one differs more from the frame before it than from
    the one after it; the frame that ends one, the other way round. Every mark with two neighbours has a vote.

    Args:
      files: the source.
      read: ``(file, first row)`` to its blocks.

    Returns:
      "first" or "last", and a sentence that says why.

    Raises:
      ImportDataError: if the votes do not agree by three quarters.
    """
    before, after = [], []
    for file in files:
        tail: Rows | None = None  # the last two rows of the block before
        for block in read(file, 0):
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
    files: Sequence[SourceFile],
    root: Path,
    read: Reader,
    *,
    source: Mapping[str, Any],
    env: str,
    obs_shape: tuple[int, ...],
    num_actions: int,
    split: str,
    done: Done,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Writes a trajectory store from a source; the same call continues an interrupted import.

    Args:
      out: folder of the store; it must not exist.
      files: the source.
      root: the folder of all files.
      read: ``(file, first row)`` to its blocks.
      source: what the manifest says of the source besides, such as its "format".
      env: name of the environment.
      obs_shape: shape of a frame.
      num_actions: actions lie in ``[0, num_actions)``.
      split: what decided the split, in words for the manifest.
      done: what ``done`` marks: the "first" frame of an episode, its "last" one, or "auto" to decide by the frames.
      progress: called with ``(rows done, rows in all)``.
      say: called with the decision of "auto".

    Raises:
      ImportDataError: if a file is damaged or its values do not fit the store; the file is named.
      StoreError: if the store exists or the disk is full.
    """
    meaning, why = (done, "the user said so") if done != "auto" else find_meaning(files, read)
    if done == "auto":
        say(f"done marks the {meaning} frame of an episode: {why}.")
    splits = [file.split or "undivided" for file in files]
    with StoreWriter(
        out,
        env=env,
        obs_shape=obs_shape,
        num_actions=num_actions,
        env_params={"levels": "unknown", "split": split},
        policy={
            "kind": "imported",
            "files": {name: splits.count(name) for name in splits},
            "digest": digest_of(files, root),
            "done": meaning,
            "done_because": why,
            **source,
        },
        resumable=True,
    ) as writer:
        total = sum(file.rows for file in files)
        write_episodes(writer, files, read, meaning, progress and (lambda rows: progress(rows, total)))


def write_episodes(
    writer: StoreWriter,
    files: Sequence[SourceFile],
    read: Reader,
    done: Literal["first", "last"],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Cuts a source into episodes and appends them, from where an interrupted import stopped.

    No episode crosses from one file to the next: whether files follow each other in time is not known, so what runs
    on at the end of a file is marked as cut.

    Args:
      writer: a resumable writer, entered.
      files: the source.
      read: ``(file, first row)`` to its blocks.
      done: what a mark means.
      progress: called with the number of rows done.

    Raises:
      ImportDataError: if a file is damaged or its values do not fit the store; the file is named.
    """
    start_file, start_row = writer.position or (0, 0)
    before = sum(file.rows for file in files[:start_file])
    saved = writer.num_frames
    for number in range(start_file, len(files)):
        file = files[number]
        row = start_row if number == start_file else 0  # the first row that is not in the store yet
        running: list[Rows] = []

        def append(ending: str, file: SourceFile = file, running: list[Rows] = running) -> int:
            """Writes the running episode; returns its length."""
            rows = join(running)
            running.clear()
            split = file.split or split_of_level(writer.num_episodes)
            try:
                writer.append_episode(rows.obs, rows.action, rows.reward, None, ending, split=split)
            except ValueError as error:
                raise ImportDataError(f"{file.path} does not fit: {error}.") from error
            return len(rows)

        for block in read(file, row):
            begin = 0
            for mark in np.flatnonzero(block.done | block.truncated):
                end = mark + (done == "last")
                if end > begin:
                    running.append(block[begin:end])
                begin = end
                if running:
                    row += append("truncated" if block.truncated[mark] else "terminated")
            if begin < len(block):
                running.append(block[begin:])
            if writer.num_frames - saved >= CHECKPOINT_FRAMES:
                writer.checkpoint([number, row])
                saved = writer.num_frames
            if progress:
                progress(before + row + sum(map(len, running)))
        if running:
            row += append("cut")
        if row != file.rows:
            raise ImportDataError(f"{file.path} is damaged: it has {row} rows instead of {file.rows}; copy it again.")
        before += file.rows
        if number + 1 < len(files) and writer.num_frames - saved >= CHECKPOINT_FRAMES // 4:
            writer.checkpoint([number + 1, 0])
            saved = writer.num_frames
