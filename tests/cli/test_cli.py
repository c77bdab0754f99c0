"""The command line: a user's mistake is one sentence on stderr and exit code 2, never a traceback."""

import dataclasses
import errno
import importlib
import json
import logging
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from lamjax import budget, cli, pipeline
from lamjax.cli import main
from lamjax.config import RecordConfig, RunConfig
from lamjax.data import StoreWriter, open_store
from lamjax.envs import PROCGEN_GAMES
from lamjax.experts import available
from lamjax.pipeline.record import recording_name
from lamjax.planners import PLANS, VERSION
from lamjax.policies import load_policy, save_policy
from lamjax.ppo import ActorCriticAgent
from lamjax.presets import GRID_PRESETS, OWN_PRESETS, PRESETS, VECTOR_PRESETS
from lamjax.training import checkpoint, run_folder

SMOKE = PRESETS["smoke"]
# In sequence, no stage beside the failing one shows its progress before the error.
TRAIN = ["train", "--env", "coinrun", "--preset", "smoke", "--policy", "random", "--in-sequence"]
STORE = f"random-{SMOKE.record.frames}-s0"  # where `TRAIN` looks for trajectories


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every command runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAMJAX_TRACEBACK", raising=False)
    return tmp_path


@pytest.fixture
def fails(capfd):
    """Runs a command that must fail; returns its sentence."""

    def call(*argv):
        capfd.readouterr()
        assert main(list(argv)) == 2
        out, err = capfd.readouterr()
        assert out == ""
        return one_sentence(err)

    return call


def one_sentence(err):
    """The sentence, without the program's name."""
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lamjax: "), err
    return lines[0].removeprefix("lamjax: ")


def write_store(path, frames=2048, length=64):
    """Synthetic trajectories of the size that the smoke preset records."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with StoreWriter(path, env="coinrun", obs_shape=(64, 64, 3), num_actions=15) as writer:
        for level in range(frames // length):
            noise = rng.integers(0, 256, (length, 64, 64, 3), np.uint8)
            writer.append_episode(noise, rng.integers(0, 15, length), np.zeros(length), level, "terminated")
    return path


# Words


def test_an_unknown_verb_names_the_verbs(fails):
    assert fails("trian") == f"there is no verb 'trian': choose one of {', '.join(cli.VERBS)}."


@pytest.mark.parametrize("verb", ["train", "record", "expert", "eval"])
def test_an_unknown_game_lists_near_names(fails, verb):
    assert fails(verb, "--env", "coinrum").startswith("There is no environment called 'coinrum': did you mean coinrun")
    assert "bigfish" in fails(verb, "--env", "qqqqqq")


def test_a_bad_preset_lists_the_presets(fails):
    for argv in (["train", "--preset", "huge"], ["expert", "--preset=huge"]):
        assert fails(*argv) == "There is no preset called 'huge': choose one of paper, reference, cpu, smoke."
    sentence = "There is no preset called 'paper' for observations of shape (4,): choose one of cpu, smoke."
    assert fails("train", "--env", "cartpole", "--preset", "paper") == sentence


@pytest.mark.parametrize("verb", ["record", "eval"])
def test_levels_and_distractors_are_honoured(verb, fails, monkeypatch):
    made = []

    def make_env(name, num_envs, config):
        made.append((name, num_envs, config.record))
        raise ValueError("enough")

    monkeypatch.setattr(pipeline.evaluation, "make_env", make_env)
    levels = ["--num-levels", "5", "--start-level", "7", "--distribution-mode", "hard"]
    distractor = ["--distractor", "overlay", "--distractor-strength", "0.25"]
    assert fails(verb, "--env", "maze", "--num-envs", "3", *levels, *distractor) == "enough"
    ((name, num_envs, played),) = made
    assert (name, num_envs) == ("maze", 3)
    assert (played.num_levels, played.start_level, played.distribution_mode) == (5, 7, "hard")
    assert (played.distractor, played.distractor_strength) == ("overlay", 0.25)
    assert recording_name("random", dataclasses.replace(played, frames=64), 2) == (
        "random-64-s2-hard5from7-overlay0.25"
    )
    assert recording_name("random", RecordConfig(frames=64), 2) == "random-64-s2"
    assert recording_name("planner-v1", RecordConfig(frames=64, random_share=0.25), 2) == "planner-v1-64-s2-random0.25"
    assert fails(verb, "--distractor", "noise", "--distractor-strength", "2").endswith("at most 1, not 2.0.")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_each_verb(verb, capsys):
    with pytest.raises(SystemExit) as exit:
        main([verb, "--help"])
    assert exit.value.code == 0
    out, err = capsys.readouterr()
    assert f"lamjax {verb}" in out and err == ""
    for field in dataclasses.fields(cli.VERBS[verb][0]):
        if field.name in ("source", "folder", "clips"):
            assert " PATH" in out  # without a name
        elif field.name not in ("config", "columns"):
            assert f"--{field.name.replace('_', '-')}" in out


PLAYED = "num-envs num-levels start-level distribution-mode distractor distractor-strength"


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("record", f"help env policy out seed runs data frames random-share {PLAYED}"),
        ("eval", f"help env checkpoint episodes seed greedy no-greedy json no-json runs {PLAYED}"),
    ],
)
def test_the_options_of_verbs_that_play(verb, words, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\W*--?[a-z]", line)]
    assert {word for line in lines for word in re.findall(r"--([a-z-]+)", line)} == {*words.split()}


def test_the_defaults_of_verbs_that_play():
    record, played = cli.parse("record", []).config, cli.parse("eval", []).config
    assert (record.frames, record.num_envs, played.num_envs) == (65_536, 64, 50)


def test_the_last_of_repeated_options_counts():
    args = cli.parse("train", ["--env", "coinrun", "--env=cartpole", "--preset", "smoke"])
    assert (args.env, args.config) == ("cartpole", VECTOR_PRESETS["smoke"])


def test_help_names_every_verb_and_preset(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {word} " in out for word in (*cli.VERBS, *PRESETS))
    assert main([]) == 2


@pytest.mark.parametrize("argv", [["--nope", "1"], ["--seeds", "many"], ["--offline.episodes", "7"]])
def test_bad_options_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*TRAIN, *argv])
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert argv[0].lstrip("-").split(".")[0].replace("-", "_") in err.replace("-", "_")


def test_numbers_that_do_not_fit_are_refused_before_anything_runs(fails, folder):
    assert fails(*TRAIN, "--eval-episodes", "100") == "eval_episodes (100) must be a multiple of 64, or less."
    assert fails(*TRAIN, "--log-every", "0") == "log_every must be at least 1, not 0."
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("words", "option", "off"),
    [
        (["--offline.oracle", "false"], "--offline.oracle", "--offline.no-oracle"),
        (["--offline.oracle=True"], "--offline.oracle", "--offline.no-oracle"),
        (["--in-sequence", "true"], "--in-sequence", "--no-in-sequence"),
        (["--dynamics.quantizer.enabled", "false"], "--dynamics.quantizer.enabled", "--dynamics.quantizer.no-enabled"),
    ],
)
def test_a_value_for_an_option_that_is_on_or_off_is_refused(fails, words, option, off):
    assert fails(*TRAIN, *words) == f"{option} takes no value: write {option} or {off}."


def test_true_is_a_value_like_others_for_other_options():
    args = cli.parse("train", ["--name", "true", "--offline.no-oracle", "--in-sequence"])
    assert (args.name, args.config.offline.oracle, args.in_sequence) == ("true", False, True)


def test_the_preset_gives_the_defaults_and_options_override_them():
    args = cli.parse(
        "train", ["--preset", "smoke", "--dynamics.steps", "7", "--offline.labels", "16", "32", "--seed", "3"]
    )
    assert args.preset == "smoke"
    assert args.config == dataclasses.replace(
        SMOKE,
        seed=3,
        dynamics=dataclasses.replace(SMOKE.dynamics, steps=7),
        offline=dataclasses.replace(SMOKE.offline, labels=(16, 32)),
    )
    assert cli.parse("train", ["--preset=paper"]).config == PRESETS["paper"]
    assert cli.parse("expert", []).config == OWN_PRESETS["coinrun"]["cpu"]  # the default; these tests run on a CPU
    assert cli.parse("expert", ["--env", "maze"]).config == PRESETS["cpu"]


def test_one_option_sets_the_type_of_every_stage_and_theirs_override_it():
    config = cli.parse("train", ["--dtype", "bfloat16", "--cloning.dtype=float32"]).config
    parts = (config.dynamics, config.cloning, config.online, config.scratch, config.expert)
    assert [part.dtype for part in parts] == ["bfloat16", "float32", *["bfloat16"] * 3]
    assert cli.parse("expert", ["--preset", "paper", "--dtype=float32"]).config.expert.dtype == "float32"
    with pytest.raises(SystemExit):
        cli.parse("train", ["--dtype", "float16"])


def test_the_environment_decides_which_table_the_preset_is_from():
    args = cli.parse("train", ["--env", "minatar/freeway", "--dynamics.fdm.blocks", "3"])
    assert args.preset == "cpu" and args.config.dynamics.idm == GRID_PRESETS["cpu"].dynamics.idm
    assert args.config.dynamics.fdm == dataclasses.replace(GRID_PRESETS["cpu"].dynamics.fdm, blocks=3)
    assert cli.parse("expert", ["--env=cartpole", "--preset", "smoke"]).config == VECTOR_PRESETS["smoke"]


# Policies


def test_a_missing_policy_is_named(fails, folder):
    for verb, option in (("eval", "--checkpoint"), ("record", "--policy"), ("train", "--policy")):
        assert fails(verb, option, "no/such/policy") == (
            "There is no policy at no/such/policy: policy.json is missing."
        )
    assert not (folder / "runs").exists() and not (folder / "data").exists()


def test_a_missing_expert_says_how_to_train_one(fails):
    game = next(name for name in PROCGEN_GAMES if name not in available())
    assert f"train one with `lamjax expert --env {game}`" in fails("eval", "--env", game)


def test_a_planner_is_offered_where_there_is_one(fails, folder):
    hint = "No expert is shipped for maze, but there is a planner: say planner instead of expert, or train one with "
    assert fails("record", "--env", "maze") == hint + "`lamjax expert --env maze`."
    sentence = f"(there are: {', '.join(PLANS)}): use expert, random or a policy folder."
    for verb, option in (("eval", "--checkpoint"), ("record", "--policy"), ("train", "--policy")):
        assert fails(verb, "--env", "coinrun", option, "planner") == f"There is no planner for coinrun {sentence}"
    assert not (folder / "runs").exists() and not (folder / "data").exists()


def test_a_random_share_is_a_probability(fails):
    assert fails("record", "--random-share", "1.5") == ("record.random_share must lie in [0, 1], not 1.5.")


def test_a_planner_is_recorded_with_a_share_of_random_moves(capfd, folder):
    argv = ["record", "--env", "maze", "--policy", "planner", "--frames", "64", "--num-envs", "2"]
    assert main([*argv, "--random-share", "0.5"]) == 0
    out, _ = capfd.readouterr()
    assert out == "data/maze/planner-64-s0-random0.5\n"
    store = open_store(folder / "data" / "maze" / "planner-64-s0-random0.5")
    assert store.policy == {"kind": "planner", "planner": "maze", "version": VERSION, "random_share": 0.5}


def test_a_damaged_policy_is_named(fails, folder):
    agent = ActorCriticAgent(SMOKE.scratch.trunk, 15)
    params = jax.eval_shape(lambda: agent.init(jax.random.key(0), (64, 64, 3)))
    save_policy(folder / "p", agent, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), params), {})
    weights = (folder / "p" / "weights.npz").read_bytes()
    (folder / "p" / "weights.npz").write_bytes(weights[: len(weights) // 2])
    assert fails("eval", "--checkpoint", "p").startswith("p does not hold a policy of ours, or is damaged (")


# Models


def test_the_action_information_needs_a_model_and_an_environment_that_fits(fails, folder):
    assert fails("information", "mine") == (
        "mine has no config.json, so it does not say what it was trained on: give --env."
    )
    sentence = "There is no stage 1 in mine: give a run folder, or one that holds checkpoints/dynamics."
    assert fails("information", "mine", "--env", "coinrun") == sentence
    (folder / "mine").mkdir()
    run_folder.write_json(folder / "mine" / "config.json", {"env": "coinrun", **checkpoint.as_json(SMOKE)})
    assert fails("information", "mine") == sentence
    assert fails("information", "mine", "--env", "cartpole") == (
        "mine was trained on coinrun, whose observations have another shape than those of cartpole: choose another "
        "--env."
    )
    assert fails("information", "mine", "--env", "coinrum").startswith("There is no environment called 'coinrum'")


# Stores


def test_a_store_that_exists_is_not_overwritten(fails, folder):
    path = write_store(folder / "mine")
    before = sorted((p, p.stat().st_mtime_ns) for p in path.rglob("*"))
    sentence = fails("record", "--policy", "random", "--frames", "64", "--num-envs", "2", "--out", "mine")
    assert sentence == f"{path} already exists; remove it or choose another path"
    assert sorted((p, p.stat().st_mtime_ns) for p in path.rglob("*")) == before


def test_a_corrupt_manifest_is_named(fails, folder):
    path = write_store(folder / "data" / "coinrun" / STORE)
    (path / "manifest.json").write_text("{")
    assert fails(*TRAIN).startswith(f"data/coinrun/{STORE}/manifest.json cannot be read")


def test_a_corrupt_chunk_is_named(fails, folder):
    path = write_store(folder / "data" / "coinrun" / STORE)
    chunk = path / "observations" / "c.1.0.0.0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    sentence = fails(*TRAIN)
    assert sentence.startswith("chunk 1 of observations") and "is not what was written" in sentence


def test_a_store_that_is_too_small_says_so(fails, folder):
    write_store(folder / "data" / "coinrun" / STORE, frames=12, length=4)
    assert "too few for a batch of 16" in fails(*TRAIN)


# Runs


def open_run(folder, config, source="random"):
    return run_folder.Run(folder / "runs" / "coinrun" / "smoke-s0", "coinrun", config, {}, source)


def test_a_run_of_another_configuration_names_the_field(fails, folder):
    with open_run(folder, dataclasses.replace(SMOKE, log_every=7)):
        pass
    assert fails(*TRAIN).startswith(
        "runs/coinrun/smoke-s0 was started with another configuration: log_every is 7 there and 5 here. "
    )


def test_a_run_of_another_demonstrator_is_refused(fails, folder):
    with open_run(folder, SMOKE, "expert-01234567"):
        pass
    assert "source is 'expert-01234567' there and 'random' here" in fails(*TRAIN)


@pytest.fixture
def measured(monkeypatch):
    """Rates as if this machine had been measured, and no stages; returns the settings of each run that was started."""
    rates = budget.StageRates(1.0, 0.5, 0.1)
    times = dict.fromkeys(("decoder_step", "examine", "episode", "player", "labels", "fit", "bc_step"), 0.1)
    found = budget.Rates(10.0, 0.001, 1000, rates, rates, rates, rates, **times)
    started, calls = [], []
    module = importlib.import_module("lamjax.pipeline.train")  # the package exports a function of this name
    monkeypatch.setattr(pipeline.rehearsal, "measure", lambda *args: calls.append(args) or found)
    monkeypatch.setattr(module, "run_stages", lambda run, *_: run.write_summary() or started.append(run.config))
    return started, calls


def test_a_run_keeps_the_settings_that_fitted_into_its_time(measured, folder, fails, capfd):
    started, calls = measured
    command = [*TRAIN, "--within", "1m"]
    assert main(command) == 0 and main(command) == 0
    assert len(calls) == 1 and calls[0][3] == 60  # a resumed run does not measure again
    assert started[0] == started[1] and started[0].dynamics.steps <= SMOKE.dynamics.steps
    assert re.search(r"the run took \d+s of 1m00s", capfd.readouterr().err)
    place = folder / "runs" / "coinrun" / "smoke-s0"
    written = json.loads((place / "config.json").read_text())
    settings = {key: value for key, value in written.items() if key not in ("env", "source")}
    assert checkpoint.from_json(RunConfig, settings) == started[0]
    within = json.loads((place / "summary.json").read_text())["within"]
    assert within["seconds"] == 60 and within["rates"]["spent"] == 10
    assert sum(within["predicted"].values()) <= 60 and "decode_online" in within["predicted"]
    # Another time or another option is another run.
    assert "another configuration: within is 60.0 there and 120.0 here" in fails(*TRAIN, "--within", "2m")
    assert "another configuration: eval_episodes is 16 there and 8 here" in fails(*command, "--eval-episodes", "8")
    assert "another configuration: " in fails(*TRAIN, "--log-every", "4")


def test_a_run_without_a_time_does_not_get_one_later(measured, folder, fails):
    assert main(TRAIN) == 0
    assert "was started without --within" in fails(*TRAIN, "--within", "1m")


def test_a_time_is_not_for_training_an_expert(measured, fails):
    sentence = fails("train", "--env", "maze", "--preset", "smoke", "--expert-frames", "4096", "--within", "1m")
    assert sentence.startswith("There is no expert for maze yet") and "`lamjax expert --env maze`" in sentence
    assert measured == ([], [])


def test_a_time_that_is_none_or_too_short_is_a_sentence(measured, fails, capfd):
    assert fails(*TRAIN, "--within", "soon").startswith("--within soon is not a time: give seconds (600)")
    capfd.readouterr()
    assert main([*TRAIN, "--within", "12s"]) == 2
    assert "does not fit into 12s on this machine" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("backend", "given", "kept"), [("gpu", None, ".jax_cache"), ("cpu", None, None), ("gpu", "x", "x")]
)
def test_accelerators_keep_what_is_compiled(monkeypatch, backend, given, kept):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    try:
        jax.config.update("jax_compilation_cache_dir", given)
        cli.keep_compiled()
        assert jax.config.jax_compilation_cache_dir == kept
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_run_in_use_is_refused(fails, folder):
    with open_run(folder, SMOKE):
        assert fails(*TRAIN).startswith("runs/coinrun/smoke-s0 is in use by another process: ")


def test_a_checkpoint_of_another_configuration_names_the_field(fails, folder):
    write_store(folder / "data" / "coinrun" / STORE)
    stage = folder / "runs" / "coinrun" / "smoke-s0" / "checkpoints" / "dynamics"
    other = dataclasses.replace(SMOKE.dynamics, fdm=dataclasses.replace(SMOKE.dynamics.fdm, bottleneck=24))
    checkpoint.save(stage, 5, {"x": np.zeros(3)}, config=other)
    sentence = fails(*TRAIN)
    assert (
        f"{stage.relative_to(folder) / '5'} is of another configuration: fdm.bottleneck is 24 there and 16 here"
        in sentence
    )


def test_damaged_checkpoints_say_what_to_do(fails, folder):
    write_store(folder / "data" / "coinrun" / STORE)
    stage = folder / "runs" / "coinrun" / "smoke-s0" / "checkpoints" / "dynamics"
    checkpoint.save(stage, 5, {"x": np.zeros(3)}, config=SMOKE.dynamics)
    (stage / "5" / "note" / "metadata").write_text("{")
    logging.getLogger("lamjax.training.checkpoint").setLevel(logging.ERROR)  # its warnings are not the sentence
    try:
        assert fails(*TRAIN) == f"No checkpoint in {stage} is intact: delete the folder to start the stage anew."
    finally:
        logging.getLogger("lamjax.training.checkpoint").setLevel(logging.NOTSET)


def test_a_report_of_what_is_not_a_run(fails, folder):
    (folder / "empty").mkdir()
    assert fails("report", "--run", "empty") == "empty is not a run folder: it has no summary.json."
    assert fails("report", "--env", "maze") == (
        "There is no run in runs/maze: start one with `lamjax train --env maze`."
    )


def test_a_full_disk_is_a_sentence(fails, monkeypatch):
    def write_json(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(run_folder, "write_json", write_json)
    sentence = "The disk is full: free some space for runs/coinrun/smoke-s0/config.json, and start the command again."
    assert fails(*TRAIN) == sentence


def test_a_folder_that_cannot_be_made_is_a_sentence(fails, folder):
    (folder / "runs").write_text("a file")
    assert "runs" in fails(*TRAIN)


def test_a_traceback_can_be_had(monkeypatch):
    monkeypatch.setenv("LAMJAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="coinrum"):
        main(["eval", "--env", "coinrum"])


def test_procgen_absent_names_the_extra(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "procgen", None)
    assert 'pip install "lamjax[procgen]"' in fails(*TRAIN)


# Evaluation


def test_episodes_must_be_a_multiple(fails):
    assert fails("eval", "--checkpoint", "random", "--episodes", "10", "--num-envs", "4") == (
        "episodes (10) must be a multiple of the number of environments (4): ask for 8."
    )
    assert "at least 1" in fails("eval", "--checkpoint", "random", "--episodes", "0")


def strict_json(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_eval_prints_one_json_object(capfd):
    argv = ["eval", "--env", "coinrun", "--checkpoint", "random", "--json", "--episodes", "4", "--num-envs", "2"]
    assert main(argv) == 0
    out, _ = capfd.readouterr()
    assert len(out.splitlines()) == 1
    found = strict_json(out)
    assert found.keys() == {"return_mean", "return_stderr", "episodes", "normalised"}
    assert found["episodes"] == 4 and 0 <= found["return_mean"] <= 10 and found["return_stderr"] >= 0
    assert main(argv) == 0
    assert strict_json(capfd.readouterr().out) == found  # the same seed, the same episodes


def test_one_episode_has_no_standard_error(capfd):
    assert main(["eval", "--env", "cartpole", "--checkpoint", "random", "--json", "--episodes", "1"]) == 0
    found = strict_json(capfd.readouterr().out)
    assert found["return_stderr"] is None and found["episodes"] == 1 and found["return_mean"] >= 8
    assert found["normalised"] is None  # no constants are known for it


def test_experts_lists_what_is_shipped(capsys):
    assert main(["experts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        *([env, "expert"] for env in available()),
        *([env, "planner"] for env in PLANS),
    ]
    maze = next(line for line in lines if line.startswith("maze"))
    assert "return 10.00 +- 0.00 over " in maze and "random play " in maze
    assert maze.endswith("(the paper's expert: 9.97)")


def test_only_planners_that_exist_are_measured(fails):
    assert "There is no planner for coinrun (there are: bigfish, " in fails(
        "experts", "--measure", "64", "--env", "coinrun"
    )
    assert fails("experts", "--measure", "0") == "measure must be at least 1, not 0."


def test_expert_starts_from_a_policy(capfd, folder):
    agent = ActorCriticAgent(SMOKE.expert.trunk, 15)
    params = agent.init(jax.random.key(3), (64, 64, 3))
    save_policy(folder / "first", agent, params, {"note": "kept"})
    assert main(["expert", "--preset", "smoke", "--frames", "1024", "--start", "first"]) == 0
    _, trained, info = load_policy(folder / "runs" / "coinrun" / "expert" / "policies" / "expert")
    assert info["frames"] == 1024 and info["start"]["note"] == "kept"
    # Two steps of Adam at 5e-4 move no weight by more than about 1e-3; another draw differs by 0.1 and more.
    moves = jax.tree.map(lambda a, b: float(abs(a - b).max()), params, trained)
    assert 0 < max(jax.tree.leaves(moves)) < 5e-3


def test_expert_refuses_to_start_from_another_network(fails, folder):
    agent = ActorCriticAgent(dataclasses.replace(SMOKE.expert.trunk, features=16), 15)
    save_policy(folder / "first", agent, agent.init(jax.random.key(3), (64, 64, 3)), {})
    sentence = fails("expert", "--preset", "smoke", "--frames", "1024", "--start", "first")
    assert "is not an actor-critic with the trunk of --expert.trunk" in sentence


def test_record_writes_a_store_and_says_where(capfd, folder):
    argv = ["record", "--env", "cartpole", "--policy", "random", "--frames", "100", "--num-envs", "4"]
    assert main(argv) == 0
    out, _ = capfd.readouterr()
    assert out == "data/cartpole/random-100-s0\n"
    store = open_store(folder / "data" / "cartpole" / "random-100-s0")
    assert store.env == "cartpole" and store.num_frames >= 100 and store.policy["kind"] == "random"


# As a user calls it


def call(*argv):
    return subprocess.run([sys.executable, "-m", "lamjax", *argv], capture_output=True, text=True)


def test_the_program_fails_with_one_sentence():
    done = call("eval", "--env", "coinrum")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean coinrun" in one_sentence(done.stderr)


def test_the_program_prints_json_alone():
    done = call("eval", "--env", "coinrun", "--checkpoint", "random", "--episodes", "2", "--num-envs", "2", "--json")
    assert done.returncode == 0
    assert strict_json(done.stdout).keys() == {"return_mean", "return_stderr", "episodes", "normalised"}
    assert re.fullmatch(r"(evaluating random: .*\n)+", done.stderr)  # progress alone


# Trajectories that are there already


def test_train_on_a_store(fails, folder):
    write_store(folder / "mine")
    assert "exclude each other" in fails(*TRAIN, "--store", "mine")
    argv = ["train", "--preset", "smoke", "--store", "mine"]
    assert fails(*argv, "--env", "maze") == (
        "mine holds coinrun with 15 actions, not maze with 15 actions: use --env coinrun, or another store."
    )
    assert fails(*argv[:-1], "nothing") == "there is no trajectory store at nothing; record one or check the path"


def test_the_stages_see_the_store(folder):
    write_store(folder / "mine")
    source = pipeline.store_source("coinrun", folder / "mine", 15)
    digest = open_store(folder / "mine").manifest["sha256"][:8]
    assert (source.kind, source.name) == ("store", f"store-{digest}")
    with run_folder.Run(folder / "run", "coinrun", SMOKE, {}, source.name) as opened:
        store = pipeline.record_stage(opened, source, folder / "data")
        assert store.path == folder / "mine" and opened.summary["stages"]["record"]["frames"] == 2048
        assert not (folder / "data").exists()
        opened.summary["nulls"]["random_return"] = {}
        pipeline.baselines_stage(opened, source, 15)  # plays nothing: there is no policy
        assert opened.summary["nulls"].keys() == {"random_return"}
