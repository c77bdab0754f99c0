"""What works with every verb: ``--quiet`` and ``--verbose``, and a shell's completions."""

import json
import logging
import shutil
import subprocess
import sys

import pytest

from lamjax.cli import main
from lamjax.training.logging import LOGGER, shows

EVAL = ["eval", "--env", "cartpole", "--checkpoint", "random", "--episodes", "1", "--json"]


@pytest.fixture(autouse=True)
def _levels():
    """Every test leaves the loggers as they were."""
    absl = logging.getLogger("absl")
    levels = LOGGER.level, absl.level
    yield
    LOGGER.setLevel(levels[0])
    absl.setLevel(levels[1])


@pytest.mark.parametrize("argv", [["--quiet", *EVAL], [*EVAL, "--quiet"]])
def test_quiet_prints_results_alone(capsys, argv):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["episodes"] == 1 and err == ""


def test_progress_comes_back_without_quiet(capsys):
    assert main(["--quiet", *EVAL]) == main(EVAL) == 0
    assert "evaluating random" in capsys.readouterr().err


def test_quiet_shows_errors(capsys):
    assert main(["eval", "--env", "coinrum", "--quiet"]) == 2
    assert "did you mean coinrun" in capsys.readouterr().err


def test_verbose_shows_debug_messages_and_tracebacks():
    with pytest.raises(ValueError, match="coinrum"):
        main(["eval", "--env", "coinrum", "--verbose"])
    assert shows(logging.DEBUG)


def test_quiet_and_verbose_exclude_each_other(capsys):
    assert main(["experts", "--quiet", "--verbose"]) == 2
    assert capsys.readouterr().err == "lamjax: --quiet and --verbose exclude each other.\n"


def write_completions(shell, path):
    with pytest.raises(SystemExit) as exit:
        main(["--tyro-write-completion", shell, str(path)])
    assert not exit.value.code
    return path


def test_a_service_that_is_not_installed_is_a_sentence_before_anything_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["train", "--env", "cartpole", "--preset", "smoke", "--track", "wandb"]) == 2
    assert capsys.readouterr().err == 'lamjax: --track wandb needs a package: pip install "lamjax[wandb]".\n'
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_know_verbs_and_options(tmp_path, shell):
    script = write_completions(shell, tmp_path / "completions").read_text()
    assert "--dynamics.steps" in script and "import-parquet" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"), [("lamjax tr", ["train"]), ("lamjax train --dynamics.st", ["--dynamics.steps"])]
)
def test_bash_completes(tmp_path, words, expected):
    path = write_completions("bash", tmp_path / "completions")
    program = f"source {path}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _tyro_lamjax"
    program += '; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected
