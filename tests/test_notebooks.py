"""The notebooks run, at small sizes, and hold the outputs of a run at full size; the site shows both."""

import importlib.util
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from lamjax.training.logging import LOGGER

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
# What stands in a cell with the tag "parameters", in small.
SMALL = {
    "lapo_on_minatar": 'PRESET, PLAY_STEPS = "smoke", 64',
    "linear_theory": "SCALES = 3",
    "ppo_alone": "FRAMES, SEED_FRAMES, SEEDS = 16_384, 4_096, 2",
    "what_latents_know": "EXPERT_FRAMES, STEPS, WINDOWS = 4_096, 20, 256",
}


def read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_is_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == SMALL.keys()


@pytest.fixture
def _after():
    """Puts back what notebooks set for the whole process."""
    level = LOGGER.level
    yield
    LOGGER.setLevel(level)
    plt.close("all")


@pytest.mark.usefixtures("_after")
@pytest.mark.parametrize("name", SMALL)
def test_it_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters, *others = code_cells(read(name))
    assert parameters["metadata"]["tags"] == ["parameters"]
    names = {}
    exec("".join(parameters["source"]), names)
    settings = names.keys() - {"__builtins__"}
    exec(SMALL[name], names)
    assert names.keys() - {"__builtins__"} == settings
    for cell in others:
        exec("".join(cell["source"]), names)


@pytest.mark.parametrize("name", SMALL)
def test_it_holds_the_outputs_of_a_run(name):
    cells = code_cells(read(name))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)


def test_they_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2**20


def test_a_page_of_the_site_shows_text_code_and_outputs():
    spec = importlib.util.spec_from_file_location("notebook_hooks", ROOT / "docs" / "notebook_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    data = [{"image/png": "AAAA\n"}, {"text/html": ["<b>bold</b>"], "text/plain": ["x"]}, {"text/plain": ["3"]}]
    outputs = [{"output_type": "stream", "name": "stdout", "text": ["a\n", "b\n"]}]
    outputs += [{"output_type": "display_data", "data": each} for each in data]
    text = {"cell_type": "markdown", "source": ["# Title\n", "\n", "See [another](another.ipynb)."]}
    code = {"cell_type": "code", "source": ["1 + 2"], "outputs": outputs}
    assert hooks.as_markdown({"cells": [text, code]}, "this.ipynb") == (
        "# Title\n\n[Download this notebook](this.ipynb){ .md-button }\n\n\nSee [another](another.md).\n\n"
        "```python\n1 + 2\n```\n\n```text\na\nb\n```\n\n"
        "![Output of the cell above](data:image/png;base64,AAAA)\n\n<b>bold</b>\n\n```text\n3\n```"
    )
