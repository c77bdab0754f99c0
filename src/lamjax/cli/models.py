"""``lamjax models``, ``export``, ``label`` and ``probe``: commands that use a trained model."""

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
    """Writes a run's models, or a policy, to a folder to share: weights as safetensors, all settings, and a card.

    Attributes:
      source: the run folder, or a policy folder.
      folder: the folder to write; it must not exist. It can be uploaded to a model hub as it is.
      dtype: type of the weights, float32 or float16; float16 is half as large and nearly as exact.
    """

    source: Positional[Path] = tyro.MISSING
    folder: Positional[Path] = tyro.MISSING
    dtype: Literal["float32", "float16"] = "float32"


@dataclasses.dataclass(frozen=True)
class Label:
    """Writes the latent action of every frame of videos or of a store, and the action that it decodes to.

    Attributes:
      source: a run folder, a shared model, or the name of a model that comes with lamjax (`lamjax models`). If a folder
        with that name exists, it is used instead.
      clips: videos, folders of videos or pictures, or one trajectory store.
      out: the file to write; its name ends in .parquet, .npz or .safetensors. The first and last frames of a clip have
        no full window around them, so their entries are null; formats without nulls hold NaN or -1, and a mask.
      fps: frames to read per second of video; by default the rate that the model was trained at.
      stride: keeps every n-th of these frames; by default as in training.
      crop: top, left, height and width of the region to keep of a video; by default as in training.
      square: keeps the largest square in the middle; by default as in training.
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
    """Measures how well actions can be read from latents in a file, and how well a model predicts, with baselines.

    Attributes:
      source: a file of latents, as `lamjax label` writes it: columns episode, t and z, and optionally codes.
      actions: the store that was labelled, or a file with a column action. The file also needs episode and t unless it
        has the same rows as the latents. Without --actions, only predictions are measured.
      run: the run or model that computed the latents. On its own store, the probes use the same windows and random
        numbers as the run's own probes. With --frames, its predictions are measured as well.
      frames: the store that was labelled, if --actions is a file. It is used for a probe that sees only one frame, and
        for the predictions of --run.
      merged: the class of each action, if several have the same effect, such as 0 0 1 2.
      json: prints only JSON.
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
    from lamjax.training.logging import say, shown_progress

    latent_files.check_name(args.out)  # before anything is loaded
    run = load_run(args.source)
    settings = {name: getattr(args, name) for name in ("fps", "stride", "crop", "square")}
    footage = footage_of(run, args.clips, **settings)
    frames = sum(len(each.seconds) for each in footage)
    say(f"labelling {len(footage)} clip{'s' * (len(footage) != 1)} with {frames} frames")
    with shown_progress("labelling", "latent", initial=0) as progress:
        label(run, footage, args.out, progress)
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
        raise ValueError("There is nothing to measure: give --actions, or --run and --frames.")
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
    """Loads a run or a shared model as a `LoadedRun`; raises a `ModelError` if it is only a policy."""
    from lamjax.loading import LoadedRun, load
    from lamjax.sharing import ModelError

    loaded = load(path)
    if not isinstance(loaded, LoadedRun):
        raise ModelError(f"{path} is a policy, which has no latents: give the folder of its run.")
    return loaded
