import gzip
import json

import pytest

from benchmarks.__main__ import MEASURED
from benchmarks.settings import Settings


@pytest.mark.parametrize("name", ["stage2", "stage3", "loader"])
def test_a_row_is_measured(name, tmp_path):
    row = MEASURED[name](Settings(samples=1, profile=tmp_path if name == "stage2" else None), None)
    ms = row["step_ms"]
    assert row["name"] == name and row["size"] == "cpu" and row["ratio"] is None
    assert 0 < ms["p10"] <= ms["median"] <= ms["p90"]
    assert row["rate"] > 0
    if name == "stage2":
        (trace,) = (tmp_path / "stage2-64").glob("**/*.trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        assert sum("Execute" in event.get("name", "") for event in events) >= 3
