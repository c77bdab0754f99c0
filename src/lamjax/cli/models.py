"""``lamjax models``, ``export``, ``label`` and ``probe``: what is done with a model that is trained."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional


@dataclasses.dataclass(frozen=True)
class Models:
    """Lists the latent action models that come with the package, and how good they are."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a run's models, or a policy, into a folder to share: weights as safetensors, all settings, and a card.

    Attributes:
      source: the run folder, or a policy folder.
      folder: the folder to write; it must not exist. It can be uploaded to a model hub as it is.
      dtype: of the weights, float32 or float16; float16 is half as large and nearly as exact.
    """

    source: Positional[Path] = tyro.MISSING
    folder: Positional[Path] = tyro.MISSING
    dtype: Literal["float32", "float16"] = "float32"


@dataclasses.dataclass(frozen=True)
class Label:
    """Writes the latent action of every frame of videos, or of a store, and the action that it decodes to.

    Attributes:
      source: a run folder, a model that was shared, or the name of one that comes with lamjax (`lamjax models`). If a
        folder of that name exists, it is used instead.
      clips: videos, folders with videos or pictures in them, or one trajectory store.
      out: the file to write; its name ends in .parquet, .npz or .safetensors. The first and the last frames of a clip,
        around which no window fits, have nulls: NaN, -1 and a mask where the format has none.
      fps: so many frames of a video a second; by default as the model learned.
      stride: every so many of these; by default as the model learned.
      crop: top, left, height and width of the part to keep of a video; by default as the model learned.
      square: keeps the largest square in the middle; by default as the model learned.
    """

    source: Positional[Path] = tyro.MISSING
    clips: Positional[tuple[Path, ...]] = tyro.MISSING
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = tyro.MISSING
    fps: float | None = None
    stride: int | None = None
    crop: tuple[int, ...] | None = None
    square: bool | None = None


@dataclasses.dataclass(frozen=True)
class Probe:
    """Measures how well actions can be read from the latents of a file, and how well a model predicts, with baselines.

    Attributes:
      source: a file of latents, as `lamjax label` writes it: columns episode, t and z, and codes if there are some.
      actions: the store that was labelled, or a file with a column action, and episode and t if its rows are others.
        Without it, only predictions are measured.
      run: the run or model that labelled. On its own store the probes see the windows and random numbers that the run's
        own did; with --frames its predictions are measured, too.
      frames: the store that was labelled, if --actions is a file: for a probe that sees one frame alone, and for the
        predictions of --run.
      merged: the class of each action, where several do the same, such as 0 0 1 2.
      json: prints JSON alone.
    """

    source: Positional[Path] = tyro.MISSING
    actions: Path | None = None
    run: Path | None = None
    frames: Path | None = None
    merged: tuple[int, ...] = ()
    json: bool = False


def list_models(args: Models) -> None:
    """`lamjax models`."""
    from lamjax import pretrained

    del args
    for name, summary in pretrained.available().items():
        results = summary["fresh_levels"]
        stages = summary["stages"]
        share = f"{results['share']:.2f} ± {results['share_stderr']:.2f}"
        print(
            f"{name:12s} latents hold {share} of what the frames reveal about the action (untrained "
            f"{results['untrained_share']:.2f}); trained on {stages['record']['frames']:,} frames"
        )


def export(args: Export) -> None:
    """`lamjax export`."""
    from lamjax import loading

    loading.export(args.source, args.folder, args.dtype)
    print(args.folder)


def label(args: Label) -> None:
    """`lamjax label`."""
    from lamjax.data import latent_files
    from lamjax.pipeline.label import footage_of, label
    from lamjax.training.logging import Progress, say

    latent_files.check_name(args.out)  # before anything is loaded
    run = load_run(args.source)
    settings = {name: getattr(args, name) for name in ("fps", "stride", "crop", "square")}
    footage = footage_of(run, args.clips, **settings)
    frames = sum(len(each.seconds) for each in footage)
    say(f"labelling {len(footage)} clip{'s' * (len(footage) != 1)} with {frames} frames")
    bar: list[Progress] = []

    def progress(position: int, total: int) -> None:
        if not bar:
            bar.append(Progress("labelling", total, unit="latent"))
        bar[0].to(position)

    try:
        label(run, footage, args.out, progress)
    finally:
        for each in bar:
            each.close()
    print(args.out)


def probe(args: Probe) -> None:
    """`lamjax probe`."""
    from lamjax.data.format import MANIFEST
    from lamjax.pipeline.probe import predictions_table, probe_file, probe_predictions, table
    from lamjax.training.run_folder import finite

    run, frames = load_run(args.run) if args.run else None, args.frames
    if args.actions is not None and (args.actions / MANIFEST).exists():
        frames = args.actions
    if args.actions is None and (run is None or frames is None):
        raise ValueError("Nothing says what is to be measured: give --actions, or --run and --frames.")
    results: dict[str, Any] = {}
    rows: list[tuple[str, str]] = []
    if args.actions is not None:
        actions, results = probe_file(args.source, args.actions, run, args.merged, frames)
        rows += table(actions, results)
    if run is not None and frames is not None:
        results["predictions"] = probe_predictions(run, frames)
        rows += predictions_table(results["predictions"])
    if args.json:
        print(json.dumps(finite(results)))
        return
    if "fit" in results:
        print(f"{args.source}: probes fitted on {results['fit']:,} latents, tested on {results['windows']:,}\n")
    for label, value in rows:
        print(f"{label:60s}{value:>20s}")


def load_run(path: Path) -> Any:
    """Loads a run or a shared model as a `LoadedRun`; raises a `ModelError` if it is a policy alone."""
    from lamjax.loading import LoadedRun, load
    from lamjax.sharing import ModelError

    loaded = load(path)
    if not isinstance(loaded, LoadedRun):
        raise ModelError(f"{path} is a policy, and a policy has no latents: give the folder of its run.")
    return loaded
