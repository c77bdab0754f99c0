"""Settings and names are refused where they are given, in a sentence that names the field."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from lamjax import cli, envs
from lamjax.checks import check_path_name
from lamjax.config import RunConfig
from lamjax.models.mlp import MLPConfig
from lamjax.ppo import PPOConfig
from lamjax.presets import GRID_PRESETS, PRESETS, VECTOR_PRESETS
from lamjax.training import checkpoint
from tests.envs.toys import Counter


def parts(value, *path):
    """Every config inside a value, with the names that lead to it."""
    yield path, value
    for field in dataclasses.fields(value):
        if dataclasses.is_dataclass(getattr(value, field.name)):
            yield from parts(getattr(value, field.name), *path, field.name)


def numbers(value):
    """How to put another number in place of each number of a value, tuples of tuples too."""
    if isinstance(value, tuple):
        for index, inner in enumerate(value):
            for change in numbers(inner):
                yield lambda x, index=index, change=change: (*value[:index], change(x), *value[index + 1 :])
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield lambda x: x


@pytest.mark.parametrize("preset", [PRESETS["paper"], GRID_PRESETS["cpu"], VECTOR_PRESETS["cpu"]])
def test_every_number_of_a_run_has_bounds(preset):
    tried = 0
    for path, config in parts(preset):
        for field in dataclasses.fields(config):
            for change in numbers(getattr(config, field.name)):
                for wrong in (-1, math.nan, "4"):
                    with pytest.raises(ValueError, match=rf"{field.name}|\*"):
                        dataclasses.replace(config, **{field.name: change(wrong)})
                        pytest.fail(f"{'.'.join(path)}.{field.name} takes {wrong}")
                    tried += 1
    assert tried > 300


@pytest.mark.parametrize("preset", [PRESETS["paper"], GRID_PRESETS["cpu"]])
def test_every_choice_is_one_of_those_that_exist(preset):
    for _, config in parts(preset):
        for field in dataclasses.fields(config):
            for wrong in ("sideways", 3) if isinstance(getattr(config, field.name), str | bool) else ():
                with pytest.raises(ValueError, match=rf"{field.name} must be"):
                    dataclasses.replace(config, **{field.name: wrong})


@pytest.mark.parametrize(
    ("stage", "field", "value", "message"),
    [
        ("dynamics", "batch_size", 0, "dynamics.batch_size must be at least 1, not 0."),
        ("dynamics", "batch_size", 2.5, "dynamics.batch_size must be a whole number, not 2.5."),
        ("dynamics", "learning_rate", math.inf, "dynamics.learning_rate must not be negative or infinite, not inf."),
        ("dynamics", "idm", 3, "dynamics.idm must be one of ImpalaConfig, GridConfig, MLPConfig, not 3."),
        ("offline", "labels", (16, 0), "offline.labels must be at least 1, not (16, 0)."),
        ("offline", "labels", 16, "offline.labels must be a tuple, not 16."),
        ("analysis", "probe_test", 0, "analysis.probe_test must be at least 1, not 0."),
        ("record", "start_level", -1, "record.start_level must not be negative, not -1."),
    ],
)
def test_the_message_names_field_and_value(stage, field, value, message):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(getattr(PRESETS["cpu"], stage), **{field: value})
    assert str(error.value) == message


def test_stages_without_labels_or_updates_are_refused():
    offline = dataclasses.replace(PRESETS["cpu"].offline, labels=(), label_shares=())
    with pytest.raises(ValueError, match="are both empty"):
        RunConfig(offline=offline)
    with pytest.raises(ValueError, match=r"total_frames \(100\) must hold an update"):
        PPOConfig(total_frames=100)
    with pytest.raises(ValueError, match="must leave at least 2 of num_envs \\* num_steps = 8 transitions to each"):
        PPOConfig(num_envs=4, num_steps=2, num_minibatches=8)
    with pytest.raises(ValueError, match="hidden must not be empty"):
        MLPConfig(hidden=())
    for points in ((), ((0.5, 1e-3), (0.1, 1e-3)), ((0.0, 1e-3), (2.0, 1e-3))):
        with pytest.raises(ValueError, match="points in order"):
            PPOConfig(learning_rates=(("", points),))


def test_what_other_libraries_and_json_hold_is_stored_as_python_holds_it():
    cpu = PRESETS["cpu"]
    dynamics = dataclasses.replace(cpu.dynamics, steps=np.float32(2e3), batch_size=np.int64(64), learning_rate=2e-3)
    offline = dataclasses.replace(cpu.offline, labels=list(cpu.offline.labels), label_shares=[])
    config = dataclasses.replace(cpu, dynamics=dynamics, offline=offline, seed=np.uint32(0))
    assert config == cpu and hash(config) == hash(cpu)
    assert json.dumps(checkpoint.as_json(config)) == json.dumps(checkpoint.as_json(cpu))


# Seeds


def refusal(capsys, *argv):
    """What a command says that must end with 2; some errors come from the parser of options, which draws a box."""
    try:
        code = cli.main(list(argv))
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
@pytest.mark.parametrize("verb", ["train", "eval", "record", "expert"])
def test_seeds_that_would_repeat_another_run_are_refused(verb, seed, capsys):
    said = refusal(capsys, verb, "--env", "cartpole", "--seed", str(seed))
    assert f"seed must lie in [0, {2**32 - 1}], not {seed}." in said


def test_the_largest_seed_is_a_run_of_its_own(capsys):
    largest = 2**32 - 1
    assert RunConfig(seed=largest).seed == largest
    data = [jax.random.key_data(jax.random.key(seed)).tolist() for seed in (0, 1, largest)]
    assert len(set(map(tuple, data))) == 3
    said = refusal(capsys, "train", "--env", "cartpole", "--seed", str(largest), "--seeds", "2")
    assert f"seed + seeds must be at most {2**32}" in said


@pytest.mark.parametrize(
    ("verb", "option"),
    [("train", "seeds"), ("train", "expert-frames"), ("expert", "frames"), ("eval", "episodes"), ("eval", "num-envs")],
)
def test_counts_of_the_command_line_are_at_least_1(verb, option, capsys):
    said = refusal(capsys, verb, "--env", "cartpole", f"--{option}", "0")
    assert f"{option.replace('-', '_')} must be at least 1, not 0." in said


# Names


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", ".hidden", "a/b", "/tmp/x", "a\\b", "a\nb", "", " ", "x" * 300, "a.", "a ", "\udcff"]
)
def test_names_that_are_no_folder_are_refused(name):
    with pytest.raises(ValueError, match="--name must be the name of a folder"):
        check_path_name("--name", name)


@pytest.mark.parametrize("name", ["cpu-s0", "a run", "läuft", "v1.2", "x", "é" * 100])
def test_names_of_folders(name):
    assert check_path_name("--name", name) == name


@pytest.mark.parametrize("verb", ["train", "expert", "import-torch"])
def test_runs_stay_in_their_folder(verb, tmp_path, capsys):
    source = [str(tmp_path)] if verb == "import-torch" else []
    said = refusal(capsys, verb, *source, "--env", "coinrun", "--name", "../../x", "--runs", str(tmp_path / "runs"))
    assert "--name must be the name of a folder" in said
    assert not list(tmp_path.iterdir())


def test_an_environments_name_becomes_folders():
    assert envs.register(Counter([3]), name="suite/counter") == "suite/counter"
    for name in ("../counter", "suite//counter", "suite/../counter", ""):
        with pytest.raises(ValueError, match="An environment's name must be the name of a folder"):
            envs.register(Counter([3]), name=name or "/")
