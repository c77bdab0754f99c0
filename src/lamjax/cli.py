"""The command line: ``lamjax <verb> --help``. Parses, calls the library, turns a user's mistakes into a sentence."""

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from tyro.conf import Positional, arg

from lamjax import linear_cli
from lamjax.config import PRESET_NOTES, PRESETS, RecordConfig, RunConfig, with_dtype
from lamjax.data.importers.common import Done
from lamjax.data.importers.parquet import Columns
from lamjax.envs.wrappers import Distractor

Settings = Annotated[RunConfig, arg(name="")]
Dtype = Literal["float32", "bfloat16"]
_RUNS, _DATA = Path("runs"), Path("data")


@dataclasses.dataclass(frozen=True)
class Train:
    """Records or finds trajectories, trains the three stages, and writes a run folder with a report.

    Attributes:
      env: a Procgen game (coinrun ... starpilot), minatar/breakout ..., cartpole or pendulum.
      preset: paper, reference, cpu or smoke; by default cpu on a CPU and paper elsewhere. MinAtar, cartpole
        and pendulum have cpu and smoke.
      name: the run folder's name; by default <preset>-s<seed>.
      seeds: trains this many seeds, one run folder each, and writes an aggregate.
      policy: whom to record: expert, random, or a policy folder; by default the expert if there is one.
      store: trajectories to learn from, recorded or imported before, instead of recording a policy.
      expert_frames: where there is no expert, trains one with so many frames first.
      dtype: type of the activations in every stage, float32 or bfloat16; by default the preset's (paper: bfloat16 on
        an accelerator).
      within: how long the run may take, such as 10m, 600s or 1h30m; it measures this machine first and sets steps,
        frames and evaluations.
      runs: where run folders lie.
      data: where recorded trajectories lie.
      distributed: trains stages 1 and 2 together with the same command on other hosts; also where the environment
        has JAX_COORDINATOR_ADDRESS.
      config: the settings of the preset.
    """

    env: str = "coinrun"
    preset: str = "cpu"
    name: str | None = None
    seeds: int = 1
    policy: str | None = None
    store: Path | None = None
    expert_frames: int | None = None
    dtype: Dtype | None = None
    within: str | None = None
    runs: Path = _RUNS
    data: Path = _DATA
    distributed: bool = False
    config: Settings = PRESETS["cpu"]


@dataclasses.dataclass(frozen=True)
class Record:
    """Records a policy's trajectories into a store; actions and rewards lie apart from the frames.

    Attributes:
      env: the environment.
      policy: expert, random, or a policy folder.
      frames: frames to record.
      out: the store's folder; by default data/<env>/<policy>-<frames>-s<seed>.
      seed: of the recording.
      num_envs: environments that play together.
      num_levels: levels to play; 0 means all.
      start_level: the first level's seed.
      distribution_mode: Procgen's difficulty.
      distractor: exogenous noise over every frame that is recorded; the policy sees the frames without it.
      distractor_strength: in (0, 1].
      runs: where run folders (and experts trained here) lie.
      data: where recorded trajectories lie.
    """

    env: str = "coinrun"
    policy: str = "expert"
    frames: int = 65_536
    out: Path | None = None
    seed: int = 0
    num_envs: int = 64
    num_levels: int = 0
    start_level: int = 0
    distribution_mode: Literal["easy", "hard"] = "easy"
    distractor: Distractor = "none"
    distractor_strength: float = 0.1
    runs: Path = _RUNS
    data: Path = _DATA


@dataclasses.dataclass(frozen=True)
class Expert:
    """Trains a demonstrator by PPO from scratch, resumes, and evaluates it.

    Attributes:
      env: the environment.
      preset: whose network and PPO settings to use.
      name: the run folder's name; the policy "expert" means the one called so.
      frames: environment frames; by default the preset's.
      start: expert (the shipped one), or a policy folder, whose weights training starts from instead of from scratch.
      dtype: type of the activations, float32 or bfloat16; by default the preset's.
      runs: where run folders lie.
      config: the settings of the preset; --expert.* matters here.
    """

    env: str = "coinrun"
    preset: str = "cpu"
    name: str = "expert"
    frames: int | None = None
    start: str | None = None
    dtype: Dtype | None = None
    runs: Path = _RUNS
    config: Settings = PRESETS["cpu"]


@dataclasses.dataclass(frozen=True)
class Eval:
    """Plays a policy for a fixed number of episodes in each environment and prints its return.

    Attributes:
      env: the environment.
      checkpoint: expert, random, or a policy folder (runs/<env>/<name>/policies/...).
      episodes: how many, a multiple of --num-envs unless fewer.
      num_envs: environments that play together.
      seed: of levels and actions.
      greedy: takes the most likely action; otherwise samples.
      json: prints JSON alone.
      num_levels: levels to play; 0 means all.
      start_level: the first level's seed.
      distribution_mode: Procgen's difficulty.
      distractor: exogenous noise over every frame that the policy sees.
      distractor_strength: in (0, 1].
      runs: where run folders (and experts trained here) lie.
    """

    env: str = "coinrun"
    checkpoint: str = "expert"
    episodes: int = 100
    num_envs: int = 50
    seed: int = 0
    greedy: bool = False
    json: bool = False
    num_levels: int = 0
    start_level: int = 0
    distribution_mode: Literal["easy", "hard"] = "easy"
    distractor: Distractor = "none"
    distractor_strength: float = 0.1
    runs: Path = _RUNS


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes report.html and the figures of a run folder again.

    Attributes:
      run: the run folder; by default the newest of --env.
      env: the environment.
      runs: where run folders lie.
    """

    run: Path | None = None
    env: str = "coinrun"
    runs: Path = _RUNS


@dataclasses.dataclass(frozen=True)
class ImportLapo:
    """Turns a game of LAPO's published data set into a trajectory store; goes on where it was interrupted.

    Attributes:
      source: the folder of one game, with train/<number>.npz and perhaps test/<number>.npz in it.
      env: the environment; by default the folder's name.
      out: the store's folder; by default data/<env>/lapo.
      done: what "done" marks: an episode's first frame, its last, or auto, which looks at the frames and says so.
      max_files: of each split at most so many files, as the reference reads; 0 means all.
      data: where trajectories lie.
    """

    source: Positional[Path] = tyro.MISSING
    env: str | None = None
    out: Path | None = None
    done: Done = "auto"
    max_files: int = 80
    data: Path = _DATA


@dataclasses.dataclass(frozen=True)
class ImportParquet:
    """Turns transitions in Parquet files into a trajectory store; goes on where it was interrupted.

    Attributes:
      source: a Parquet file, or a folder with some in it; names that begin with train or test say the split.
      env: the environment; by default the folder's or file's name.
      out: the store's folder; by default data/<env>/parquet.
      done: what "done" marks: an episode's first frame, its last, or auto, which looks at the frames and says so.
      shape: height, width and channels of a frame.
      num_actions: how many actions there are.
      columns: what the columns are called.
      data: where trajectories lie.
    """

    source: Positional[Path] = tyro.MISSING
    env: str | None = None
    out: Path | None = None
    done: Done = "auto"
    shape: tuple[int, int, int] = (64, 64, 3)
    num_actions: int = 15
    columns: Columns = Columns()
    data: Path = _DATA


@dataclasses.dataclass(frozen=True)
class ImportTorch:
    """Turns checkpoints of LAPO's PyTorch code into a run folder; reads weights alone and runs nothing that is in them.

    Attributes:
      source: files of torch.save that hold the inverse and the forward model, the latent policy, or all.
      env: the environment that they were trained on.
      name: the run folder's name.
      preset: whose settings the run gets, with the sizes of the networks.
      runs: where run folders lie.
      config: the settings of the preset.
    """

    source: Positional[tuple[Path, ...]] = tyro.MISSING
    env: str = "coinrun"
    name: str = "imported"
    preset: str = "paper"
    runs: Path = _RUNS
    config: Settings = PRESETS["paper"]


@dataclasses.dataclass(frozen=True)
class ExportTorch:
    """Writes a run's networks by the names of LAPO's PyTorch code, for torch.load(..., weights_only=True).

    Attributes:
      source: the run folder; its networks must have the reference's form (presets paper and reference).
      out: the file; by default models.pt in the run folder.
    """

    source: Positional[Path] = tyro.MISSING
    out: Path | None = None


@dataclasses.dataclass(frozen=True)
class Experts:
    """Lists the experts that come with the package."""


def train(args: Train) -> None:
    """`lamjax train`."""
    import jax

    from lamjax import budget, pipeline, whole
    from lamjax.training.run_folder import read_json

    within = None if args.within is None else budget.parse_duration(args.within) / args.seeds
    folders = []
    for seed in range(args.config.seed, args.config.seed + args.seeds):
        folder = whole.train(
            args.env,
            preset=args.preset,
            config=dataclasses.replace(args.config, seed=seed),
            name=f"{args.name}-s{seed}" if args.name and args.seeds > 1 else args.name,
            policy=args.policy,
            store=args.store,
            expert_frames=args.expert_frames,
            within=within,
            runs=args.runs,
            data=args.data,
            command=_command(),
        )
        if jax.process_count() > 1:
            continue  # there is no report yet
        folders.append(folder)
        for stage, results in read_json(folder / "summary.json")["stages"].items():
            print(f"{stage:15s} {results.get('verdict', 'done')}")
        print(f"report: {folder / 'report.html'}")
    if len(folders) > 1:
        print(f"aggregate: {pipeline.aggregate(folders)}")


def record(args: Record) -> None:
    """`lamjax record`."""
    import jax

    from lamjax import pipeline
    from lamjax.data.record import record as write_store
    from lamjax.training.logging import Progress

    config = _played(args, frames=args.frames, num_envs=args.num_envs)
    env = pipeline.make_env(args.env, args.num_envs, RunConfig(record=config))
    source = pipeline.find_source(args.env, args.policy, args.runs, env.action_space)
    label = args.policy if source.kind != "checkpoint" else f"checkpoint-{source.digest}"
    path = args.out or args.data / args.env / pipeline.recording_name(label, config, args.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(f"recording {args.env} ({source.kind})", args.frames, unit="frame")
    try:
        write_store(
            path,
            env,
            source.logits_fn,
            source.params,
            args.frames,
            jax.random.key(args.seed),
            source={"kind": source.kind, **source.info},
            progress=lambda frames: progress.to(min(frames, args.frames)),
        )
    finally:
        progress.close()
        env.close()
    print(path)


def _played(args: Record | Eval, **others: Any) -> RecordConfig:
    """The levels and the distractor that a verb names."""
    names = ("num_levels", "start_level", "distribution_mode", "distractor", "distractor_strength")
    return RecordConfig(**{name: getattr(args, name) for name in names}, **others)


def expert(args: Expert) -> None:
    """`lamjax expert`."""
    from lamjax import envs, whole

    results = whole.train_expert(
        envs.check_name(args.env),
        args.config,
        preset=args.preset,
        name=args.name,
        frames=args.frames,
        start=args.start,
        runs=args.runs,
        command=_command(),
    )
    print(json.dumps({k: results[k] for k in ("return_mean", "return_stderr", "episodes", "normalised", "frames")}))
    print(f"policy: {results['policy']}", file=sys.stderr)


def evaluate(args: Eval) -> None:
    """`lamjax eval`."""
    import jax

    from lamjax import pipeline
    from lamjax.envs.evaluate import evaluate as play
    from lamjax.training.logging import Progress
    from lamjax.training.run_folder import finite

    num_envs = min(args.num_envs, args.episodes)
    env = pipeline.make_env(args.env, num_envs, RunConfig(record=_played(args)))
    source = pipeline.find_source(args.env, args.checkpoint, args.runs, env.action_space)
    progress = Progress(f"evaluating {args.checkpoint}", args.episodes, unit="episode")
    try:
        returns, lengths = play(
            source.logits_fn,
            source.params,
            env,
            args.episodes,
            jax.random.key(args.seed),
            greedy=args.greedy,
            progress=progress.to,
        )
        progress.to(args.episodes)
    finally:
        progress.close()
        env.close()
    found = pipeline.returns_summary(args.env, returns)
    if args.json:
        print(json.dumps(finite(found)))
        return
    normalised = "" if found["normalised"] is None else f", normalised {found['normalised']:.3f}"
    print(
        f"return {found['return_mean']:.2f} ± {found['return_stderr']:.2f} over {found['episodes']} episodes"
        f"{normalised}, mean length {lengths.mean():.0f}"
    )


def report(args: Report) -> None:
    """`lamjax report`."""
    from lamjax.analysis import report as page
    from lamjax.training.run_folder import RunError

    folder = args.run
    if folder is None:
        found = sorted((args.runs / args.env).glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise RunError(
                f"There is no run in {args.runs / args.env}: start one with `lamjax train --env {args.env}`."
            )
        folder = found[-1].parent
    if not (folder / "summary.json").exists():
        raise RunError(f"{folder} is not a run folder: it has no summary.json.")
    print(page.write(folder))


def import_lapo(args: ImportLapo) -> None:
    """`lamjax import-lapo`."""
    from lamjax.data.importers.lapo import import_lapo as write_store

    env = args.env or args.source.resolve().name
    out = args.out or args.data / env / "lapo"
    with _importing(out, f"importing {args.source}", "frame") as tell:
        write_store(args.source, out, env=env, done=args.done, max_files=args.max_files, **tell)
    print(out)


def import_parquet(args: ImportParquet) -> None:
    """`lamjax import-parquet`."""
    from lamjax.data.importers.parquet import import_parquet as write_store

    env = args.env or args.source.resolve().stem
    out = args.out or args.data / env / "parquet"
    options = {name: getattr(args, name) for name in ("columns", "shape", "num_actions", "done")}
    with _importing(out, f"importing {args.source}", "row") as tell:
        write_store(args.source, out, env=env, **options, **tell)
    print(out)


def import_torch(args: ImportTorch) -> None:
    """`lamjax import-torch`."""
    from lamjax import envs
    from lamjax.interop import torch_runs

    envs.check_name(args.env)
    folder = args.runs / args.env / args.name
    found = torch_runs.import_torch(args.source, folder, args.config)
    words = ["lamjax", "train", "--env", args.env, "--preset", args.preset, "--name", args.name]
    words += ["--runs", str(args.runs)] if args.runs != _RUNS else []
    words += torch_runs.options(found.config, PRESETS[args.preset])
    print(folder)
    print(
        f"found {', '.join(name.rstrip('.') for name in found.networks)}; go on with: {shlex.join(words)}",
        file=sys.stderr,
    )


def export_torch(args: ExportTorch) -> None:
    """`lamjax export-torch`."""
    from lamjax.interop import torch_runs

    out = args.out or args.source / "models.pt"
    if not out.parent.is_dir():
        raise ValueError(f"There is no folder {out.parent}: make it, or choose another --out.")
    found = torch_runs.export_torch(args.source, out)
    print(out)
    print(f"wrote {', '.join(found)}", file=sys.stderr)


@contextlib.contextmanager
def _importing(out: Path, label: str, unit: str) -> Iterator[dict[str, Callable]]:
    """Gives an import its `progress` and `say`; a signal stops it, and what is checkpointed stays."""
    from lamjax.training.logging import Progress
    from lamjax.training.run_folder import InterruptedRunError

    def stop(signum: int, _: Any) -> None:
        raise InterruptedRunError(signum)

    bar: list[Progress] = []

    def progress(position: int, total: int) -> None:
        if not bar:
            bar.append(Progress(label, total, position, unit))
        bar[0].to(position)

    out.parent.mkdir(parents=True, exist_ok=True)
    handlers = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield {"progress": progress, "say": lambda sentence: print(sentence, file=sys.stderr)}
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        for each in bar:
            each.close()


def list_experts(args: Experts) -> None:
    """`lamjax experts`."""
    from lamjax import envs
    from lamjax import experts as shipped

    for env, info in shipped.available().items():
        game = envs.PROCGEN_GAMES.get(env)
        paper = game.expert_return if game else float("nan")
        print(
            f"{env:12s} return {info['return_mean']:.2f} ± {info['return_stderr']:.2f} over {info['episodes']} "
            f"episodes, {info['frames']} frames (the paper's expert: {paper:.2f})"
        )


VERBS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "train": (Train, train),
    "record": (Record, record),
    "expert": (Expert, expert),
    "eval": (Eval, evaluate),
    "report": (Report, report),
    "import-lapo": (ImportLapo, import_lapo),
    "import-parquet": (ImportParquet, import_parquet),
    "import-torch": (ImportTorch, import_torch),
    "export-torch": (ExportTorch, export_torch),
    "experts": (Experts, list_experts),
    "linear": (linear_cli.Linear, linear_cli.run),
}


def _command() -> str:
    """The command as it was typed, to repeat it."""
    return shlex.join(["lamjax", *sys.argv[1:]])


def _usage() -> str:
    verbs = "\n".join(f"  {verb:14s} {cls.__doc__.splitlines()[0]}" for verb, (cls, _) in VERBS.items())
    presets = "\n".join(f"  {name:10s} {note}" for name, note in PRESET_NOTES.items())
    return f"usage: lamjax <verb> [options]; lamjax <verb> --help tells the options\n\n{verbs}\n\npresets:\n{presets}"


def _option(argv: list[str], name: str) -> str | None:
    """An option's value before the others are parsed: the defaults of all others depend on it."""
    for index, word in enumerate(argv):
        if word == name and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def parse(verb: str, argv: list[str]) -> Any:
    """The options of a verb; the preset and the environment that the command names give their defaults.

    Raises:
      RunError: if the preset is unknown.
      UnknownEnvError: if the environment is.
    """
    cls, _ = VERBS[verb]
    if cls is linear_cli.Linear:
        return linear_cli.parse(argv)
    default = cls()
    if hasattr(default, "preset"):
        from lamjax import whole

        asked = _option(argv, "--preset") or (default.preset if cls is ImportTorch else None)
        preset, config = whole.preset_of(_option(argv, "--env") or default.env, asked)
        dtype = _option(argv, "--dtype")
        if hasattr(default, "dtype") and dtype in get_args(Dtype):
            config = with_dtype(config, dtype)
        default = dataclasses.replace(default, preset=preset, config=config)
    return tyro.cli(
        cls,
        args=argv,
        default=default,
        prog=f"lamjax {verb}",
        config=(tyro.conf.AvoidSubcommands,),
    )


def _keep_compiled() -> None:
    """Keeps compiled programs between runs on an accelerator, and with them what XLA tuned (JAX does so by itself).

    In ``JAX_COMPILATION_CACHE_DIR`` where that is set, which counts on a CPU too; else in ``.jax_cache`` here.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None and jax.default_backend() != "cpu":
        jax.config.update("jax_compilation_cache_dir", ".jax_cache")


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 0, 2 for a user's mistake, 128 + n after signal n."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    verb, *rest = argv
    if verb not in VERBS:
        print(f"lamjax: there is no verb {verb!r}: choose one of {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every step of every save
    from lamjax import parallel
    from lamjax.training.run_folder import InterruptedRunError

    try:
        if verb == "train" and not {"-h", "--help"} & set(rest):
            parallel.join_hosts("--distributed" in rest)  # options have defaults that look at the devices
        args = parse(verb, rest)
        if verb in ("train", "expert"):
            _keep_compiled()
        VERBS[verb][1](args)
    except InterruptedRunError as stop:
        print(f"lamjax: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except (ValueError, ImportError) as error:
        if os.environ.get("LAMJAX_TRACEBACK"):
            raise
        print(f"lamjax: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if os.environ.get("LAMJAX_TRACEBACK"):
            raise
        print(f"lamjax: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
