"""What the verbs' options share."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from lamjax.config import RunConfig

Settings = Annotated[RunConfig, arg(name="")]
Dtype = Literal["float32", "bfloat16"]
RUNS, DATA = Path("runs"), Path("data")


def typed_command() -> str:
    """The command as the user typed it, to repeat it."""
    return shlex.join(["lamjax", *sys.argv[1:]])
