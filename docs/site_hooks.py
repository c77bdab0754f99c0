"""What the site takes from the code while it is built: the help of each command."""

import os
import re
import subprocess
import sys

MARK = re.compile(r"<!-- help: (.*?) -->")


def _help(match: re.Match) -> str:
    """A command's help as a block of code."""
    command = [sys.executable, "-m", *match[1].split(), "--help"]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "JAX_PLATFORMS": "cpu"}
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return f"```text\n{text.rstrip()}\n```"


def on_page_markdown(markdown: str, **_) -> str:
    """Replaces each ``<!-- help: COMMAND -->`` by the help of ``python -m COMMAND``; keeps errors beside numbers."""
    return MARK.sub(_help, markdown).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
