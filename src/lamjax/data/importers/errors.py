"""What can be wrong with a source: that a file is damaged, or that it holds something else than a store can keep."""

from pathlib import Path


class ImportDataError(ValueError):
    """Raised where a source is missing, damaged or of another layout; one sentence that names the file."""


class DamagedFileError(ImportDataError):
    """Raised where a file is not what was written, such as one that was cut short: ``--skip-damaged`` leaves it out.

    Attributes:
      path: the file.
      reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str):
        """Makes the sentence of a file and a reason."""
        self.path, self.reason = path, reason
        super().__init__(f"{path} is damaged ({reason}): copy it again, or leave it out with --skip-damaged.")


class RowError(Exception):
    """Raised where rows do not fit, by what looks at a block of rows and does not know from where it is.

    Attributes:
      row: the first row that does not fit, counted from the beginning of the block.
      damaged: whether that is damage, rather than something that a store does not keep.
    """

    def __init__(self, row: int, sentence: str, damaged: bool = False):
        """Keeps the row; the sentence says what is wrong with it, and names the column."""
        super().__init__(sentence)
        self.row, self.damaged = int(row), damaged

    def located(self, path: Path, first: int, part: str = "") -> ImportDataError:
        """The error for a block that begins at row `first` of a file, or of a part of it."""
        reason = f"{part + ', ' if part else ''}row {first + self.row}: {self}"
        return DamagedFileError(path, reason) if self.damaged else ImportDataError(f"{path} does not fit: {reason}.")
