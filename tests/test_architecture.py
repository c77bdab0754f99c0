"""Imports point one way: a module may import those of the lines above its own (docs/architecture.md)."""

import ast
from pathlib import Path

import lamjax

ROOT = Path(lamjax.__file__).parent
LAYERS = (
    "checks",
    "parallel optim schedules spaces preprocess statistics archives linear",
    "models training acting",
    "envs dynamics cloning",
    "data ppo planners",
    "decoding",
    "config policies analysis shared_folder training.steps",
    "presets experts pretrained budget interop sharing jitted",
    "loading",
    "pipeline",
    "cli",
    "__main__",
)
RANK = {part: rank for rank, line in enumerate(LAYERS) for part in line.split()}


def part_of(module):
    """The package or top-level module that a dotted name belongs to."""
    name = module.removeprefix("lamjax.")
    return "training.steps" if name.startswith("training.steps") else name.partition(".")[0]


def imports():
    """Pairs (importing file, imported module) of the whole package, imports inside functions too."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lamjax":
                for alias in node.names:
                    yield path, f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names if alias.name.startswith("lamjax."))


def test_imports_point_one_way():
    upwards = []
    for path, module in imports():
        ours = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        theirs = part_of(module)
        if ours != "__init__" and ours != theirs and RANK[theirs] >= RANK[ours]:
            upwards.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not upwards


def test_a_stage_of_a_run_fits_on_a_few_screens():
    assert {path.name for path in ROOT.glob("pipeline/*.py") if len(path.read_text().splitlines()) > 250} == set()


def test_the_linear_theory_stands_alone():
    for path, module in imports():
        if path.is_relative_to(ROOT / "linear"):
            assert part_of(module) == "linear", path


def test_the_page_on_architecture_shows_these_layers():
    page = (ROOT.parents[1] / "docs" / "architecture.md").read_text()
    assert "\n".join(LAYERS[:-1]) in page
