"""Reads the contents of a run folder for its report."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from lamjax import archives
from lamjax.analysis.drawing import Curve
from lamjax.training.logging import read_metrics
from lamjax.training.run_folder import check_summary


@dataclasses.dataclass(frozen=True)
class RunResults:
    """The contents of a run folder.

    Attributes:
        name: the run's name.
        config: the configuration, nested; empty if absent.
        summary: the machine-readable result; empty if absent.
        metrics: stage -> step -> row, steps in ascending order.
        arrays: the arrays of `analysis.npz`.
    """

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    metrics: dict[str, dict[int, dict[str, float]]]
    arrays: dict[str, np.ndarray]

    def stage(self, stage: str) -> dict[str, Any]:
        """The results of a stage; empty if it has not finished."""
        return (self.summary.get("stages") or {}).get(stage) or {}

    def reference_returns(self) -> tuple[float, float]:
        """Mean returns of the random policy and of the recorded one, NaN if unknown."""
        baselines = self.summary.get("nulls") or {}
        random, expert = ((baselines.get(name) or {}).get("mean") for name in ("random_return", "expert_return"))
        return number(random), number(expert)

    def curve(self, stage: str, metric: str, x: str = "step") -> Curve | None:
        """A metric over steps or frames (`finite_curve`)."""
        rows = self.metrics.get(stage, {}).values()
        return finite_curve([(number(row.get(x, row["step"])), number(row.get(metric))) for row in rows])

    def fields(self, *names: str) -> list[np.ndarray] | None:
        """Arrays of `analysis.npz`; None if one is absent or empty."""
        arrays = [self.arrays[name] for name in names if name in self.arrays and self.arrays[name].size]
        return arrays if len(arrays) == len(names) else None


def load(run_dir: Path) -> RunResults:
    """Reads a run folder; absent files stay empty."""
    summary = _read_json(run_dir / "summary.json")
    check_summary(run_dir / "summary.json", summary)
    return RunResults(
        name=summary.get("name") or run_dir.resolve().name,
        config=_read_json(run_dir / "config.json"),
        summary=summary,
        metrics=read_metrics(run_dir / "metrics.jsonl"),
        arrays=_read_arrays(run_dir / "analysis.npz"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        return content
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): remove it or run the stage that writes it again") from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        return archives.read(path)
    except (archives.ArchiveError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it or analyse the run again") from error


def number(value: Any) -> float:
    """The value as a float, NaN if it is not a number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def points_of(rows: Any, width: int) -> np.ndarray:
    """Rows of numbers as float [n, width]; short rows are filled with NaN, and rows without x and y are dropped."""
    filled = [[number(value) for value in [*row, *[None] * width][:width]] for row in rows or []]
    points = np.array(filled, float).reshape(-1, width)
    return points[np.isfinite(points[:, :2]).all(1)]


def finite_curve(points: Any) -> Curve | None:
    """The finite ones of (x, y) points as two arrays float [n]; None if there are none."""
    x, y = points_of(points, 2).T
    return (x, y) if len(x) else None
