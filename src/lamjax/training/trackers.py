"""Where metrics go besides ``metrics.jsonl``: TensorBoard events, and a tracking service on request (`--track`)."""

import functools
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

from tensorboardX import SummaryWriter

from lamjax.checks import library

Service = Literal["wandb", "trackio"]
PROJECT = "lamjax"


class Tracker(Protocol):
    """Receives a run's rows of metrics. A resumed run may write a step again."""

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Receives the metrics of a stage at one of its steps; they may be NaN or infinite."""

    def close(self) -> None:
        """Ends the session and sends what is left."""


class TensorBoard:
    """Event files with a scalar per ``<stage>/<metric>``."""

    def __init__(self, folder: Path):
        """Writes into `folder`."""
        self._writer = SummaryWriter(logdir=str(folder))

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the scalars and flushes them."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases. It starts with the first row, so a run that has nothing to do does not appear.

    In wandb a step may only grow, and each stage counts from 0, so each stage has its own axis: ``<stage>/step``.
    """

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        """Prepares a run called `name` with these settings, which keeps its files in `folder`.

        Raises:
          ImportError: if wandb is not installed.
        """
        self._wandb = service_module("wandb")
        self._folder, self._name, self._config = folder, name, dict(config)
        self._stages: set[str] = set()

    @functools.cached_property
    def _run(self) -> Any:
        # The id is drawn once and kept, so that a resumed run continues its curves.
        identity = self._folder / "wandb_id"
        if not identity.exists():
            identity.write_text(secrets.token_hex(8))
        return self._wandb.init(
            project=PROJECT,
            name=self._name,
            id=identity.read_text().strip(),
            config=self._config,
            resume="allow",
            dir=str(self._folder),
        )

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Logs ``<stage>/<metric>`` over ``<stage>/step``."""
        axis = f"{stage}/step"
        if stage not in self._stages:
            self._run.define_metric(f"{stage}/*", step_metric=axis)
            self._stages.add(stage)
        self._run.log({axis: step} | {f"{stage}/{metric}": value for metric, value in metrics.items()})

    def close(self) -> None:
        """Ends the run, which uploads what is left."""
        if self._stages:
            self._run.finish()


class Trackio:
    """A run of Trackio, which stays on this machine. It starts with the first row."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        """Prepares a run called `name` with these settings; Trackio chooses its own folder.

        Raises:
          ImportError: if trackio is not installed.
        """
        self._trackio = service_module("trackio")
        self._name, self._config = name, dict(config)
        self._started = False

    @functools.cached_property
    def _run(self) -> Any:
        self._started = True
        return self._trackio.init(project=PROJECT, name=self._name, config=self._config, resume="allow")

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Logs ``<stage>/<metric>`` at the stage's step."""
        self._run.log({f"{stage}/{metric}": value for metric, value in metrics.items()}, step=step)

    def close(self) -> None:
        """Ends the run."""
        if self._started:
            self._run.finish()


SERVICES: dict[Service, type[Wandb] | type[Trackio]] = {"wandb": Wandb, "trackio": Trackio}


def service_module(service: Service) -> ModuleType:
    """Imports the package of a tracking service.

    Raises:
      ImportError: if it is not installed; the message says what to install.
    """
    return library(service, f'--track {service} needs a package: pip install "lamjax[{service}]".')
