"""The settings of the benchmark's command line."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, get_args

import jax
import tyro

from lamjax.config import RunConfig
from lamjax.presets import presets_for, with_dtype
from lamjax.training import driver

Row = Literal["stage1", "stage2", "stage3", "ppo", "loader", "ring", "ppo_cartpole", "ppo_breakout", "linear", "import"]
ROWS: tuple[Row, ...] = get_args(Row)
SCALED: tuple[Row, ...] = ("stage1", "stage2")  # rows that are measured at each of several batches
OBS = (64, 64, 3)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measures throughput; the sizes are those of a preset.

    Attributes:
      size: cpu, paper or smoke, the preset whose networks are measured.
      only: rows to measure.
      dtype: type of the activations in all stages; by default the preset's.
      batches: windows in a batch of stages 1 and 2, one row for each; by default the preset's, 32 for the paper's
        networks on a CPU, and for those on an accelerator also 512 and 1024. Other rows use the first.
      samples: dispatches behind each figure; by default 30, and 5 for the paper's networks on a CPU.
      host_devices: how many devices to split a CPU into.
      torch: False leaves PyTorch out, even where it is installed.
      out: the JSON file.
      profile: a folder for traces of three more dispatches of stages 1 and 2, to open in TensorBoard or Perfetto.
    """

    size: Literal["cpu", "paper", "smoke"] = "cpu"
    dtype: Annotated[Literal["float32", "bfloat16"] | None, tyro.conf.arg(metavar="float32|bfloat16")] = None
    only: tuple[Row, ...] = ROWS
    batches: tuple[int, ...] = ()
    samples: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    host_devices: int = 2
    torch: bool = True
    out: Path = Path(__file__).parent / "results" / "latest.json"
    profile: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None

    @property
    def preset(self) -> RunConfig:
        """The networks and their settings."""
        preset = presets_for(OBS)[self.size]
        return preset if self.dtype is None else with_dtype(preset, self.dtype)

    @property
    def slow(self) -> bool:
        """True for the paper's networks on a CPU, where a step takes seconds."""
        return self.size == "paper" and jax.default_backend() == "cpu"

    @property
    def batch_size(self) -> int:
        """Windows in a step of stages 1 and 2."""
        if self.batches:
            return self.batches[0]
        return 32 if self.slow else self.preset.dynamics.batch_size

    def scaled(self, row: Row) -> "list[Settings]":
        """These settings for each batch that a row is measured at."""
        batches = self.batches
        if not batches:
            scale = self.size == "paper" and jax.default_backend() != "cpu"
            batches = (self.batch_size, *((512, 1024) if scale else ()))
        return [dataclasses.replace(self, batches=(batch,)) for batch in (batches if row in SCALED else batches[:1])]

    @property
    def repeats(self) -> int:
        """Dispatches behind each figure."""
        return self.samples or (5 if self.slow else 30)

    @property
    def fused(self) -> int:
        """Optimizer steps in a dispatch."""
        config = self.preset.dynamics
        return driver.steps_per_dispatch(config.idm, config.fdm)
