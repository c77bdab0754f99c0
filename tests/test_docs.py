"""The documentation's numbers are those of committed runs, its links lead somewhere, and its code runs."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from benchmarks.settings import ROWS

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("make_results", ROOT / "docs" / "make_results.py")
make_results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_results)


@pytest.mark.parametrize("page", make_results.TABLES, ids=lambda page: page.stem)
def test_tables_say_what_the_committed_files_say(page):
    text = page.read_text()
    for name, content in make_results.TABLES[page].items():
        before, after = make_results.marks(name)
        assert f"{before}\n{content()}\n{after}" in text
    assert make_results.written(page) == text


def test_the_overview_has_a_row_for_each_run():
    header, _, *lines = make_results.overview().splitlines()
    summaries = [json.loads(path.read_text()) for path in sorted((ROOT / "docs" / "results").glob("*.json"))]
    assert len(lines) == len(summaries)
    for line, summary in zip(lines, summaries, strict=True):
        row = dict(zip(header.strip("| ").split(" | "), line.strip("| ").split(" | "), strict=True))
        online, scratch = (summary["stages"][stage] for stage in ("decode_online", "ppo_scratch"))
        assert row["environment"] == f"`{summary['env']}`"
        assert row["online"] == f"{online['return_mean']:.2f} ± {online['return_stderr']:.2f}"
        assert row["PPO, same frames"] == f"{scratch['return_mean']:.2f} ± {scratch['return_stderr']:.2f}"
        labels, mean, stderr = next(point for point in summary["stages"]["decode_offline"]["curve"] if point[0] == 256)
        assert row[f"offline, {labels} labels"] == f"{mean:.2f} ± {stderr:.2f}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_table_holds_every_return_beside_its_null(path):
    summary = json.loads(path.read_text())
    table = make_results.table(summary)
    curve = summary["stages"]["decode_offline"]["curve"]
    for n, mean, stderr in curve:
        assert f"| return, decoded from {n} labels | {mean:.2f} ± {stderr:.2f} | cloning them " in table
    failed = [stage["verdict"] for stage in summary["stages"].values() if not stage.get("ok", True)]
    assert ("No better than its baseline" in table) == bool(failed)


@pytest.mark.parametrize("path", sorted(make_results.SPEEDS.glob("[!l]*.json")), ids=lambda path: path.stem)
def test_the_tables_of_speed_say_what_was_measured(path):
    result = json.loads(path.read_text())
    table = make_results.speed_table(result)
    assert table in (ROOT / "docs" / "performance.md").read_text()
    lines = table.splitlines()[4:]
    measured = [row for row in result["rows"] if "error" not in row]
    assert len(lines) == len(measured)
    readme = (ROOT / "README.md").read_text()
    for line, row in zip(lines, measured, strict=True):
        _, part, batch, rate, ms, ratio, *_ = (cell.strip() for cell in line.split("|"))
        assert part.startswith(f"{make_results.PARTS[row['name']]}, `{row['size']}`")
        assert ("bfloat16" in part) == (row["dtype"] == "bfloat16")
        assert batch.replace(",", "") == str(row["batch"])
        assert float(rate.split()[0].replace(",", "")) == pytest.approx(row["rate"], rel=0.01)
        assert float(ms.split()[0].replace(",", "")) == pytest.approx(row["step_ms"]["median"], abs=0.06)
        assert ratio == (f"{row['ratio']:.2f}" if row["ratio"] else "")
        assert f" CPU cores | {part} | {rate} | {ratio} |" in readme


def test_a_measurement_that_is_not_there_is_not_shown():
    row = {"name": "loader", "size": "cpu", "batch": 64, "rate": 1e5, "unit": "frames/s", "ratio": None}
    row |= {"step_ms": {"p10": 1.0, "median": 2.0, "p90": 3.0}, "compile_s": 1.4, "roofline_fraction": None}
    device = {"platform": "gpu", "kind": "a GPU", "matmul_gflops": {"float32": 5e4}, "copy_gb_per_s": 3000.0}
    table = make_results.speed_table({"device": device, "versions": {"jax": "1", "torch": None}, "rows": [row]})
    assert table.startswith("**a GPU** (jax 1; matrix products 50,000 GFLOP/s in float32, copies 3,000 GB/s)")
    assert table.endswith("| drawing windows, `cpu` | 64 | 100,000 frames/s | 2.0 (1.0 to 3.0) |  |  | 1 |")


def test_a_row_that_failed_is_left_out_and_a_type_is_said():
    row = {"name": "stage1", "size": "paper", "batch": 128, "dtype": "bfloat16"}
    figures = {"rate": 2e4, "unit": "windows/s", "ratio": None, "roofline_fraction": 0.3, "compile_s": 60.0}
    figures |= {"step_ms": {"p10": 6.0, "median": 6.4, "p90": 7.0}, "details": {}}
    device = {"platform": "gpu", "kind": "a GPU", "matmul_gflops": {"float32": 5e4}, "copy_gb_per_s": 3000.0}
    rows = [row | {"error": "RuntimeError: out of memory"}, row | figures]
    table = make_results.speed_table({"device": device, "versions": {"jax": "1"}, "rows": rows})
    assert len(table.splitlines()) == 5
    assert table.endswith("| stage 1, `paper`, bfloat16 | 128 | 20,000 windows/s | 6.4 (6.0 to 7.0) |  | 30% | 60 |")


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for part in page.read_text().split("](")[1:]:
        target, _, heading = part.partition(")")[0].partition("#")
        if target.startswith("http"):
            continue
        path = page.parent / target if target else page
        assert path.exists(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M) if heading else []
        assert not heading or heading in [h.lower().replace(" ", "-") for h in headings], heading


# Code that another test runs: README's snippets by tests of the front door, and two guides from end to end.
ELSEWHERE = {"README.md", "docs/custom_environment.md", "docs/own_video.md"}
EXAMPLES = [page for page in PAGES if "```python" in page.read_text() and str(page.relative_to(ROOT)) not in ELSEWHERE]


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        exec(code, names)
    if page.stem == "own_data":
        assert (names["store"].num_frames, len(names["store"].episodes)) == (400, 8)
    if page.stem == "first_run":
        assert names["longer"].dynamics.steps == 4000 and names["longer"].cloning == names["preset"].cloning


def test_every_row_of_the_benchmark_has_a_name_in_the_table():
    assert set(make_results.PARTS) >= set(ROWS)
