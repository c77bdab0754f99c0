"""Errors of the importers: a file is damaged, or contains something that a store cannot hold."""

from pathlib import Path


class ImportDataError(ValueError):
    """Raised if a source is missing, damaged or in another layout; the message is one sentence that names the file."""


class DamagedFileError(ImportDataError):
    """Raised if a file is damaged, for example cut short; ``--skip-damaged`` leaves such files out.

    Attributes:
      path: the file.
      reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str):
        """Builds the message from the file and the reason."""
        self.path, self.reason = path, reason
        super().__init__(f"{path} is damaged ({reason}): copy it again, or leave it out with --skip-damaged.")


class RowError(Exception):
    """Raised if rows do not fit, by code that sees a block of rows but does not know which file it comes from.

    Attributes:
      row: the first row that does not fit, counted from the start of the block.
      damaged: whether the data is damaged, rather than something that a store cannot hold.
    """

    def __init__(self, row: int, sentence: str, damaged: bool = False):
        """Stores the row; the sentence says what is wrong with it, and names the column."""
        super().__init__(sentence)
        self.row, self.damaged = int(row), damaged

    def located(self, path: Path, first: int, part: str = "") -> ImportDataError:
        """Returns the error for a block that begins at row `first` of a file, or of a part of it."""
        reason = f"{part + ', ' if part else ''}row {first + self.row}: {self}"
        return DamagedFileError(path, reason) if self.damaged else ImportDataError(f"{path} does not fit: {reason}.")
