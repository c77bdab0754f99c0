"""The README's numbers are those of committed runs."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("make_results", ROOT / "docs" / "make_results.py")
make_results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_results)


def test_the_readme_says_what_the_committed_runs_say():
    text = (ROOT / "README.md").read_text()
    assert make_results.section() in text
    assert make_results.written(text) == text


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_table_holds_every_return_beside_its_null(path):
    summary = json.loads(path.read_text())
    table = make_results.table(summary)
    curve = summary["stages"]["decode_offline"]["curve"]
    for n, mean, stderr in curve:
        assert f"| return, decoded from {n} labels | {mean:.2f} ± {stderr:.2f} | cloning them " in table
    failed = [stage["verdict"] for stage in summary["stages"].values() if not stage.get("ok", True)]
    assert ("Failed against its null" in table) == bool(failed)


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    for part in text.split("](")[1:]:
        target, _, heading = part.partition(")")[0].partition("#")
        if target.startswith("http"):
            continue
        assert (ROOT / target).exists(), target
        headings = re.findall(r"^#+ (.*)$", (ROOT / target).read_text(), re.M) if heading else []
        assert not heading or heading in [h.lower().replace(" ", "-") for h in headings], heading
