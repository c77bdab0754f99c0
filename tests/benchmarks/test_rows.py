import gzip
import json

import pytest

from benchmarks.__main__ import MEASURED
from benchmarks.settings import Settings


@pytest.mark.parametrize("name", ["stage2", "stage3", "loader", "import"])
def test_a_row_is_measured(name):
    row = MEASURED[name](Settings(samples=1), None)
    ms = row["step_ms"]
    assert row["name"] == name and row["size"] == "cpu" and row["ratio"] is None
    assert 0 < ms["p10"] <= ms["median"] <= ms["p90"]
    assert row["rate"] > 0


def test_a_stage_is_traced(tmp_path):
    MEASURED["stage2"](Settings(samples=1, profile=tmp_path), None)
    (trace,) = (tmp_path / "stage2-64").glob("**/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sum("Execute" in event.get("name", "") for event in events) >= 2
