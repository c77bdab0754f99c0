"""What the verbs' options and usage texts share."""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from lamjax.config import RunConfig

Settings = Annotated[RunConfig, arg(name="")]
Dtype = Literal["float32", "bfloat16"]
RUNS, DATA = Path("runs"), Path("data")


def summary_of(options: type) -> str:
    """The first sentence about a verb: the first line of its options' docstring."""
    return (options.__doc__ or "").partition("\n")[0]


def columns(notes: Mapping[str, str]) -> str:
    """Names and what they mean in two columns, wrapped to the terminal's width."""
    indent = max(map(len, notes)) + 4
    width = max(shutil.get_terminal_size().columns, 60)
    return "\n".join(
        textwrap.fill(note, width, initial_indent=f"  {name}".ljust(indent), subsequent_indent=" " * indent)
        for name, note in notes.items()
    )


def typed_command() -> str:
    """The command as the user typed it, to repeat it."""
    return shlex.join(["lamjax", *sys.argv[1:]])
