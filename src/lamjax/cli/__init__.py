"""The command line, ``lamjax <verb> --help``: parses, calls the library, and turns a user's mistake into a sentence."""

import dataclasses
import functools
import io
import itertools
import logging
import operator
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import tyro

import lamjax
from lamjax.cli import doctor, files, information, linear, models, play, train
from lamjax.cli.options import Dtype, columns, summary_of
from lamjax.presets import PRESET_NOTES, with_dtype

VERBS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "train": (train.Train, train.train),
    "record": (play.Record, play.record),
    "expert": (play.Expert, play.expert),
    "eval": (play.Eval, play.evaluate),
    "information": (information.Information, information.information),
    "report": (files.Report, files.report),
    "label": (models.Label, models.label),
    "probe": (models.Probe, models.probe),
    "export": (models.Export, models.export),
    "import-lapo": (files.ImportLapo, files.import_lapo),
    "import-parquet": (files.ImportParquet, files.import_parquet),
    "import-video": (files.ImportVideo, files.import_video),
    "import-lerobot": (files.ImportLerobot, files.import_lerobot),
    "import-hdf5": (files.ImportHdf5, files.import_hdf5),
    "import-torch": (files.ImportTorch, files.import_torch),
    "export-torch": (files.ExportTorch, files.export_torch),
    "models": (models.Models, models.list_models),
    "experts": (play.Experts, play.list_experts),
    "linear": (linear.Linear, linear.run),
    "doctor": (doctor.Doctor, doctor.doctor),
}
WITHOUT_DEVICES = (
    *("models", "experts"),
    *("import-lapo", "import-parquet", "import-video", "import-lerobot", "import-hdf5"),
)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """The options that determine the defaults of all others."""

    env: str | None = None
    preset: str | None = None
    dtype: str | None = None
    store: Path | None = None


def _usage() -> str:
    verbs = columns({verb: summary_of(cls) for verb, (cls, _) in VERBS.items()})
    presets = columns(PRESET_NOTES)
    return (
        f"usage: lamjax <verb> [options]; lamjax <verb> --help lists the options\n\n{verbs}\n\npresets:\n{presets}\n\n"
        "with every verb:\n"
        "  --quiet    shows only results, warnings and errors: no progress, no notices\n"
        "  --verbose  also shows what is compiled, saved and restored, and tracebacks\n\n"
        "without a verb:\n"
        "  --version\n"
        "  --tyro-write-completion bash|zsh|fish PATH  writes completions for a shell"
    )


def parse(verb: str, argv: list[str]) -> Any:
    """Parses the options of a verb; the environment and the preset determine the defaults of the others.

    Raises:
      RunError: if the preset is unknown.
      UnknownEnvError: if the environment is unknown.
    """
    cls, _ = VERBS[verb]
    if cls is linear.Linear:
        return linear.parse(argv)
    prog = f"lamjax {verb}"
    default = cls()
    if hasattr(default, "preset"):
        from lamjax.pipeline import choose_preset, env_of

        words = [word for word in argv if word not in ("-h", "--help")]  # help lists all options
        choice, _ = tyro.cli(_Choice, args=words, prog=prog, return_unknown_args=True)
        preset = choice.preset or (default.preset if cls is files.ImportTorch else None)
        store = choice.store if hasattr(default, "store") else None
        env = env_of(choice.env or (None if store else default.env), store)
        preset, config = choose_preset(env, preset, store)
        if hasattr(default, "dtype") and choice.dtype in get_args(Dtype):
            config = with_dtype(config, cast(Dtype, choice.dtype))
        default = dataclasses.replace(default, env=env, preset=preset, config=config)
    _check_switches(default, argv)
    return tyro.cli(cls, args=argv, default=default, prog=prog, config=(tyro.conf.AvoidSubcommands,))


def _check_switches(default: Any, argv: list[str]) -> None:
    """Raises a ValueError if an option that is on or off is given a value, as in ``--offline.oracle false``."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in itertools.pairwise(words):
        if not option.startswith("--") or value.lower() not in ("true", "false"):
            continue
        group, dot, name = option[2:].rpartition(".")
        fields = option[2:].replace("-", "_").split(".")
        holders = (default, getattr(default, "config", None))
        if any(isinstance(functools.reduce(_field, fields, holder), bool) for holder in holders):
            raise ValueError(f"{option} takes no value: write {option} or --{group}{dot}no-{name}.")


def _field(holder: Any, name: str) -> Any:
    return getattr(holder, name, None)


def print_completion(argv: list[str]) -> None:
    """Prints or writes a shell's completions of all verbs and options: tyro's ``--tyro-*-completion``.

    Raises:
      SystemExit: always, as with help.
    """
    verbs: list[Any] = [Annotated[cls, tyro.conf.subcommand(verb, default=cls())] for verb, (cls, _) in VERBS.items()]
    any_verb = functools.reduce(operator.or_, verbs)
    tyro.cli(any_verb, args=argv, prog="lamjax", config=(tyro.conf.AvoidSubcommands, tyro.conf.OmitSubcommandPrefixes))


def set_verbosity(argv: list[str]) -> list[str]:
    """Applies ``--quiet`` and ``--verbose``, which may stand anywhere, and returns the other words.

    Raises:
      ValueError: if both are given.
    """
    quiet, verbose = "--quiet" in argv, "--verbose" in argv
    if quiet and verbose:
        raise ValueError("--quiet and --verbose exclude each other.")
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.NOTSET
    logging.getLogger("lamjax").setLevel(level)
    # orbax logs every step of a save, and its errors twice
    logging.getLogger("absl").setLevel(logging.WARNING if verbose else logging.CRITICAL)
    return [word for word in argv if word not in ("--quiet", "--verbose")]


def keep_compiled() -> None:
    """Keeps compiled programs between runs on an accelerator, together with what XLA tuned (JAX does so by itself).

    They go to ``JAX_COMPILATION_CACHE_DIR`` if it is set, on a CPU too, and otherwise to ``.jax_cache`` in this folder.
    """
    import jax

    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # JAX declares none of its settings
    if folder is None and jax.default_backend() != "cpu":
        jax.config.update("jax_compilation_cache_dir", ".jax_cache")


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 0, 2 for a user's mistake, 128 + n after signal n.

    If the reader of the output has closed it, as ``head`` does, the command ends silently, as if by SIGPIPE.
    """
    argv = sys.argv[1:] if argv is None else argv
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell (``>&-``)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter must not lose the result
            stream.reconfigure(errors="replace")
    from lamjax.training.run_folder import InterruptedRunError

    try:
        return run(set_verbosity(argv))
    except BrokenPipeError:
        return _end_of_pipe()
    except InterruptedRunError as stop:
        print(f"lamjax: {stop}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt as stop:
        print("lamjax: stopped at once; the same command continues from the last checkpoint", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        sentence = _sentence(error)
        verbose = logging.getLogger("lamjax").isEnabledFor(logging.DEBUG)
        if sentence is None or verbose or os.environ.get("LAMJAX_TRACEBACK"):
            raise
        print(f"lamjax: {sentence}", file=sys.stderr)
        return 2


def run(argv: list[str]) -> int:
    """Runs a verb, or an option that replaces it; returns the exit code, or raises an error."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"lamjax {lamjax.__version__}")
        return 0
    if argv[0].startswith("--tyro-"):
        print_completion(argv)
    verb, *rest = argv
    if verb not in VERBS:
        raise ValueError(f"there is no verb {verb!r}: choose one of {', '.join(VERBS)}.")
    from lamjax import parallel

    if verb == "train" and not {"-h", "--help"} & set(rest):
        parallel.join_hosts("--distributed" in rest)  # before parsing: some defaults depend on the devices
    if verb not in WITHOUT_DEVICES:
        parallel.devices()  # raises an error that says what to do if there are none
    args = parse(verb, rest)
    if verb in ("train", "expert"):
        keep_compiled()
    VERBS[verb][1](args)
    sys.stdout.flush()  # the last chance to notice that nobody reads it
    return 0


def _end_of_pipe() -> int:
    """Discards what is left in a broken pipe's buffer, about which Python would complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return 128 + signal.SIGPIPE


def _sentence(error: Exception) -> str | None:
    """What to tell the user about an error, and what to do; None for a fault that is not the user's mistake."""
    from lamjax.training.disk import FULL

    if isinstance(error, OSError):
        if error.errno in FULL:
            return f"The disk is full: free some space for {error.filename or 'the run'}, and start the command again."
        return f"{error.strerror or error}: {error.filename or 'no file named'}"
    if not isinstance(error, RuntimeError):
        return str(error)
    first = str(error).partition("\n")[0]
    if "RESOURCE_EXHAUSTED" in first:
        return f"The device has too little memory ({first}): lower batch sizes or numbers of environments."
    return None
