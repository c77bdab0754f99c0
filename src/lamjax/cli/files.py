"""``lamjax report``, the imports and the exports: commands that read and write files but train nothing."""

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from lamjax.checks import check_path_name
from lamjax.cli.options import DATA, RUNS, Settings
from lamjax.data.importers.clips import ClipConfig
from lamjax.data.importers.common import Done
from lamjax.data.importers.parquet import Columns
from lamjax.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Report:
    """Rewrites report.html and the figures of a run folder.

    Attributes:
      run: the run folder; by default the newest of --env.
      env: the environment.
      runs: the folder that holds the run folders.
    """

    run: Path | None = None
    env: str = "coinrun"
    runs: Path = RUNS


@dataclasses.dataclass(frozen=True)
class Import:
    """The options of all imports of trajectories.

    Attributes:
      env: the environment, or a name for the data; by default the name of the first file or folder.
      out: the store's folder; by default data/<env>/<what is imported>, such as data/coinrun/lapo.
      skip_damaged: leaves out damaged files, or the episodes in their damaged parts, and lists them in the manifest;
        every file is read twice.
      data: the folder that holds trajectories.
    """

    env: str | None = None
    out: Path | None = None
    skip_damaged: bool = False
    data: Path = DATA


@dataclasses.dataclass(frozen=True)
class ImportLapo(Import):
    """Turns a game of LAPO's published data set into a trajectory store; continues an interrupted import.

    Attributes:
      source: the folder of one game, with train/<number>.npz and perhaps test/<number>.npz in it.
      done: what "done" marks: an episode's first frame, its last, or auto, which looks at the frames and prints the
        answer.
      max_files: reads at most this many files of each split, as the reference does; 0 means all.
    """

    source: Positional[Path] = tyro.MISSING
    done: Done = "auto"
    max_files: int = 80


@dataclasses.dataclass(frozen=True)
class ImportParquet(Import):
    """Turns transitions in Parquet files into a trajectory store; continues an interrupted import.

    Attributes:
      source: a Parquet file, or a folder of them. Names that begin with train or test choose the split. Links are
        followed; files and folders whose names begin with a dot or an underscore are left out.
      done: what "done" marks: an episode's first frame, its last, or auto, which looks at the frames and prints the
        answer.
      shape: height, width and channels of a frame.
      num_actions: how many actions there are, if they are integers; lists of numbers become vectors.
      columns: the names of the columns.
    """

    source: Positional[Path] = tyro.MISSING
    done: Done = "auto"
    shape: tuple[int, int, int] = (64, 64, 3)
    num_actions: int = 15
    columns: Columns = Columns()


@dataclasses.dataclass(frozen=True)
class ImportVideo(Import):
    """Turns videos and folders of pictures into a trajectory store without actions; continues an interrupted import.

    Attributes:
      source: videos, and folders of videos or pictures. Each video is an episode, and so is each folder of pictures.
        Names that begin with train or test choose the split. Links are followed; files and folders whose names begin
        with a dot or an underscore are left out.
      config: which frames to keep, and at which size.
      scenes: also ends an episode at a scene change, where a frame differs from the previous one by more than this many
        percent, and by this much more than the previous change; 10 is a good value, 0 keeps files whole.
    """

    source: Positional[tuple[Path, ...]] = tyro.MISSING
    config: Annotated[ClipConfig, tyro.conf.arg(name="")] = ClipConfig()
    scenes: float = 0.0


@dataclasses.dataclass(frozen=True)
class ImportLerobot(Import):
    """Turns a LeRobot data set (version 2 or 3) into a trajectory store; continues an interrupted import.

    Attributes:
      source: the data set's folder, with meta, data and perhaps videos in it.
      camera: the camera whose frames are read, such as top or observation.images.top; by default the only one.
      action: the feature that holds the actions, which are kept as vectors.
      config: which frames to keep, and at which size.
    """

    source: Positional[Path] = tyro.MISSING
    camera: str | None = None
    action: str = "action"
    config: Annotated[ClipConfig, tyro.conf.arg(name="")] = ClipConfig()


@dataclasses.dataclass(frozen=True)
class ImportHdf5(Import):
    """Turns HDF5 files of LAOM, robomimic or Minari into a trajectory store; continues an interrupted import.

    Attributes:
      source: an HDF5 file, or a folder of them, such as a Minari data set. Names that begin with train or test choose
        the split, and so do robomimic's masks. Links are followed; files and folders whose names begin with a dot or an
        underscore are left out.
      camera: the observation that holds the frames, such as agentview_image; by default the only one with images.
      stride: keeps every n-th frame.
      size: height and width to scale frames to, or one number for both; by default they are not scaled.
    """

    source: Positional[Path] = tyro.MISSING
    camera: str | None = None
    stride: int = 1
    size: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class ImportTorch:
    """Turns checkpoints of LAPO's PyTorch code into a run folder; reads only weights and runs no code in the files.

    Attributes:
      source: torch.save files that hold the inverse and the forward model, the latent policy, or all of them.
      env: the environment that they were trained on.
      name: the run folder's name.
      preset: the preset whose settings the run gets; the sizes of the networks come from the files.
      runs: the folder that holds the run folders.
      config: the settings of the preset.
    """

    source: Positional[tuple[Path, ...]] = tyro.MISSING
    env: str = "coinrun"
    name: str = "imported"
    preset: str = "paper"
    runs: Path = RUNS
    config: Settings = PRESETS["paper"]


@dataclasses.dataclass(frozen=True)
class ExportTorch:
    """Writes a run's networks under the names of LAPO's PyTorch code, for torch.load(..., weights_only=True).

    Attributes:
      source: the run folder; its networks must have the reference's form (presets paper and reference).
      out: the file; by default models.pt in the run folder.
    """

    source: Positional[Path] = tyro.MISSING
    out: Path | None = None


def report(args: Report) -> None:
    """`lamjax report`."""
    from lamjax.analysis import report as page
    from lamjax.training.run_folder import RunError

    folder = args.run
    if folder is None:
        summaries = sorted((args.runs / args.env).glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
        if not summaries:
            raise RunError(
                f"There is no run in {args.runs / args.env}: start one with `lamjax train --env {args.env}`."
            )
        folder = summaries[-1].parent
    if not (folder / "summary.json").exists():
        raise RunError(f"{folder} is not a run folder: it has no summary.json.")
    print(page.write(folder))


def import_lapo(args: ImportLapo) -> None:
    """`lamjax import-lapo`."""
    from lamjax.data.importers.lapo import import_lapo as write_store

    _import(args, write_store, "lapo", _named(args.source).name, label=args.source)


def import_parquet(args: ImportParquet) -> None:
    """`lamjax import-parquet`."""
    from lamjax.data.importers.parquet import import_parquet as write_store

    _import(args, write_store, "parquet", _named(args.source).stem, label=args.source, unit="row")


def import_video(args: ImportVideo) -> None:
    """`lamjax import-video`."""
    from lamjax.data.importers.video import import_video as write_store

    _import(args, write_store, "video", _name_of(args.source[0] if args.source else Path()))


def import_lerobot(args: ImportLerobot) -> None:
    """`lamjax import-lerobot`."""
    from lamjax.data.importers.lerobot import import_lerobot as write_store

    _import(args, write_store, "lerobot", _named(args.source).name)


def import_hdf5(args: ImportHdf5) -> None:
    """`lamjax import-hdf5`."""
    from lamjax.data.importers.hdf5 import import_hdf5 as write_store

    _import(args, write_store, "hdf5", _name_of(args.source))


def _import(
    args: Any, write_store: Callable, kind: str, name: str, *, label: Path | None = None, unit: str = "frame"
) -> None:
    """Imports `args.source` into ``<data>/<env>/<kind>``, or `args.out`, and prints where.

    `args` are the options of an `Import`, and `name` is the environment's unless they have one. Progress shows `label`,
    by default the environment, and counts in `unit`.
    """
    env = check_path_name("--env", args.env or name, nested=True)
    out = args.out or args.data / env / kind
    options = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    for common in ("source", "env", "out", "data"):
        del options[common]
    with _importing(out, f"importing {label or env}", unit) as tell:
        write_store(args.source, out, env=env, **options, **tell)
    print(out)


def _name_of(source: Path) -> str:
    """The name of a folder, or of a file without its suffix."""
    source = _named(source)
    return source.name if source.is_dir() else source.stem


def _named(source: Path) -> Path:
    """Replaces paths such as "." and ".." by ones that end in a name; links are not resolved."""
    return Path(os.path.abspath(source))


@contextlib.contextmanager
def _importing(out: Path, label: str, unit: str) -> Iterator[dict[str, Any]]:
    """Provides an import with `progress`, `say` and `announce`; on a signal it stops, and checkpointed frames stay."""
    from lamjax.training.logging import say, shown_progress
    from lamjax.training.run_folder import InterruptedRunError
    from lamjax.training.signals import handled_by

    def stop(signum: int, _: Any) -> None:
        raise InterruptedRunError(signum)

    out.parent.mkdir(parents=True, exist_ok=True)
    with shown_progress(label, unit) as progress, handled_by(stop):
        yield {"progress": progress, "say": say, "announce": say}


def import_torch(args: ImportTorch) -> None:
    """`lamjax import-torch`."""
    from lamjax import envs
    from lamjax.interop import torch_runs
    from lamjax.training.logging import say
    from lamjax.training.run_folder import run_path

    envs.check_name(args.env)
    folder = run_path(args.runs, args.env, args.name)
    imported = torch_runs.import_torch(args.source, folder, args.config)
    words = ["lamjax", "train", "--env", args.env, "--preset", args.preset, "--name", args.name]
    words += ["--runs", str(args.runs)] if args.runs != RUNS else []
    words += torch_runs.options(imported.config, PRESETS[args.preset])
    print(folder)
    say(f"found {', '.join(name.rstrip('.') for name in imported.networks)}; continue with: {shlex.join(words)}")


def export_torch(args: ExportTorch) -> None:
    """`lamjax export-torch`."""
    from lamjax import loading
    from lamjax.interop import torch_runs
    from lamjax.training.logging import say

    out = args.out or args.source / "models.pt"
    if not out.parent.is_dir():
        raise ValueError(f"There is no folder {out.parent}: create it, or choose another --out.")
    model, policy = loading.load_dynamics(args.source), loading.load_cloning(args.source)
    networks = torch_runs.export_torch(model, policy, out)
    print(out)
    say(f"wrote {', '.join(networks)}")
