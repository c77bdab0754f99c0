"""Shows notebooks as pages of the site, with the outputs that are saved in them."""

import json
import re
from pathlib import Path
from typing import Any

BESIDE = re.compile(r"\]\((\w+)\.ipynb\)")  # a link from one notebook to another
FROM_PAGE = re.compile(r"\]\(([./]*notebooks/\w+)\.ipynb\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each notebook; the notebook itself stays a file to download."""
    from mkdocs.structure.files import File

    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            notebook = json.loads(Path(file.abs_src_path).read_text())
            page = file.src_uri.removesuffix("ipynb") + "md"
            files.append(File.generated(config, page, content=as_markdown(notebook, Path(file.src_uri).name)))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """Lets links to a notebook, which lead to its file elsewhere, lead to its page."""
    return FROM_PAGE.sub(r"](\1.md)", markdown)


def as_markdown(notebook: dict[str, Any], name: str) -> str:
    """The notebook as Markdown: its text, its code, and the saved output of each cell."""
    title, *parts = [part for cell in notebook["cells"] for part in _cell(cell)]
    download = f"[Download this notebook]({name}){{ .md-button }}"
    heading, _, rest = title.partition("\n")
    return "\n\n".join([heading, download, rest, *parts])


def _cell(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [BESIDE.sub(r"](\1.md)", source)]
    return [f"```python\n{source}\n```", *map(_output, cell["outputs"])]


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _text(output["text"])
    data = output["data"]
    if "image/png" in data:
        return f"![Output of the cell above](data:image/png;base64,{''.join(data['image/png']).strip()})"
    return "".join(data["text/html"]).strip() if "text/html" in data else _text(data["text/plain"])


def _text(lines: list[str]) -> str:
    return f"```text\n{''.join(lines).rstrip()}\n```"
