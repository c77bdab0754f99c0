"""``lamjax export``, ``label`` and ``probe``: what is done with a model that is trained."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes a run's models into a folder to share: weights as safetensors, all settings, and a model card.

    Attributes:
      source: the run folder.
      folder: the folder to write; it must not exist. It can be uploaded to a model hub as it is.
    """

    source: Positional[Path] = tyro.MISSING
    folder: Positional[Path] = tyro.MISSING


@dataclasses.dataclass(frozen=True)
class Label:
    """Writes the latent action of every frame of videos, or of a store, and the action that it decodes to.

    Attributes:
      source: a run folder, or a model that was shared.
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
    """Measures how well actions can be read from the latents of a file, of any model, beside baselines.

    Attributes:
      source: a file of latents, as `lamjax label` writes it: columns episode, t and z, and codes if there are some.
      actions: the store that was labelled, or a file with a column action, and episode and t if its rows are others.
      run: the run that labelled its own store: the same windows and random numbers as in the run's own probes.
      merged: the class of each action, where several do the same, such as 0 0 1 2.
      json: prints JSON alone.
    """

    source: Positional[Path] = tyro.MISSING
    actions: Path = tyro.MISSING
    run: Path | None = None
    merged: tuple[int, ...] = ()
    json: bool = False


def export(args: Export) -> None:
    """`lamjax export`."""
    load_run(args.source).export(args.folder)
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
    from lamjax.pipeline.probe import probe_file, table
    from lamjax.training.run_folder import finite

    run = load_run(args.run) if args.run else None
    actions, results = probe_file(args.source, args.actions, run, args.merged)
    if args.json:
        print(json.dumps(finite(results)))
        return
    print(f"{args.source}: probes fitted on {results['fit']:,} latents, tested on {results['windows']:,}\n")
    for label, value in table(actions, results):
        print(f"{label:60s}{value:>20s}")


def load_run(path: Path) -> Any:
    """Loads a run or a shared model as a `LoadedRun`; raises a `ModelError` if it is a policy alone."""
    from lamjax.loading import LoadedRun, load
    from lamjax.sharing import ModelError

    loaded = load(path)
    if not isinstance(loaded, LoadedRun):
        raise ModelError(f"{path} is a policy, and a policy has no latents: give the folder of its run.")
    return loaded
