"""What is measured, from the command line."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, get_args

import jax
import tyro

from lamjax import loops
from lamjax.config import PRESETS, RunConfig

Row = Literal["stage1", "stage2", "stage3", "ppo", "loader", "ring", "ppo_cartpole", "ppo_breakout", "linear"]
ROWS: tuple[Row, ...] = get_args(Row)
OBS = (64, 64, 3)
_FUSED = 25  # optimizer steps in a dispatch, as in the pipeline


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures throughput; the sizes are those of a preset.

    Attributes:
      size: cpu or paper, the preset whose networks are measured.
      only: rows to measure.
      batch: windows in a batch of stages 1 and 2; by default the preset's, and 32 for the paper's networks on a CPU.
      samples: dispatches behind each figure; by default 30, and 5 for the paper's networks on a CPU.
      host_devices: devices that a CPU is presented as.
      torch: False leaves PyTorch out, even where it is installed.
      out: the JSON file.
    """

    size: Literal["cpu", "paper"] = "cpu"
    only: tuple[Row, ...] = ROWS
    batch: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    samples: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    host_devices: int = 2
    torch: bool = True
    out: Path = Path(__file__).parent / "results" / "latest.json"

    @property
    def preset(self) -> RunConfig:
        """The networks and their settings."""
        return PRESETS[self.size]

    @property
    def slow(self) -> bool:
        """True for the paper's networks on a CPU, where a step takes seconds."""
        return self.size == "paper" and jax.default_backend() == "cpu"

    @property
    def batch_size(self) -> int:
        """Windows in a step of stages 1 and 2."""
        return self.batch or (32 if self.slow else self.preset.dynamics.batch_size)

    @property
    def repeats(self) -> int:
        """Dispatches behind each figure."""
        return self.samples or (5 if self.slow else 30)

    @property
    def fused(self) -> int:
        """Optimizer steps in a dispatch."""
        config = self.preset.dynamics
        return _FUSED if loops.fuses_steps(config.idm, config.fdm) else 1
