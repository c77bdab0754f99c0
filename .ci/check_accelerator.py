"""Checks what `make accelerator ARGS=--dry` left: every step and row, and no failure but those that are meant."""

import json
import sys
from pathlib import Path

STEPS = ["machine", "gradients", "stages", "procgen", "acting", "traces", "large_batches", "evaluation"]
STEPS += ["hangs", "fails", "expert", "expert_again"]
WHY = {"hangs": "timed out after 4 s", "fails": "RuntimeError: this step always fails"}
ROWS = {"stage1", "stage2", "procgen", "callback", "held_out"}
ROWS |= {"stage3_acting", "stage3_update", "ppo_acting", "ppo_update"}
FILES = {"results.json", "log.txt", "trace-stage1.json.gz", "trace-stage2.json.gz", "expert.tar.xz", "cache.tar"}


def check(folder: Path) -> None:
    """Raises AssertionError at what is not as it should be."""
    result = json.loads((folder / "results.json").read_text())
    assert [step["name"] for step in result["steps"]] == STEPS, result["steps"]
    for step in result["steps"]:
        assert step["why"] == WHY.get(step["name"]), step
    failed = [row for row in result["rows"] if "error" in row]
    assert not failed, failed
    assert {row["name"] for row in result["rows"]} == ROWS
    assert all(row["rate"] > 0 for row in result["rows"])
    assert set(result["gradients"]) == {"stage1", "stage2", "stage3", "ppo"}
    assert all(of["float32"]["all"]["cosine"] > 0.999 for of in result["gradients"].values()), result["gradients"]
    assert all(summary["operations"] for summary in result["traces"].values()), result["traces"]
    assert 0 < result["expert"]["frames"] <= result["expert_again"]["frames_before"], result["expert_again"]
    assert {path.name for path in folder.iterdir()} == FILES
    assert all(path.stat().st_size <= 16 * 2**20 for path in folder.iterdir())


if __name__ == "__main__":
    check(Path(sys.argv[1]))
    print(f"{sys.argv[1]}: every step is there")
