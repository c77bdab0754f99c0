"""The experiments at tiny size: cells are computed once, and the page says what the committed results say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import common, stages
from experiments.decoding import run as decoding
from experiments.transfer import run as transfer
from lamjax.config import AnalysisConfig
from lamjax.ppo import ActorCriticAgent
from lamjax.presets import GRID_PRESETS, VECTOR_PRESETS
from lamjax.statistics import mean_and_stderr


def brief(preset):
    """A preset whose stages take four steps."""
    stages = {"dynamics": {"steps": 4}, "cloning": {"steps": 4}, "offline": {"steps": 4, "hidden": (8,)}}
    replaced = {name: dataclasses.replace(getattr(preset, name), **settings) for name, settings in stages.items()}
    return dataclasses.replace(preset, **replaced)


GRID, VECTOR = brief(GRID_PRESETS["smoke"]), brief(VECTOR_PRESETS["smoke"])
RAN = [name for name in common.NAMES if (common.RESULTS / name / "results.csv").exists()]


LEARN = stages.learn


def beginner(key, env, config, params=None):
    """A demonstrator before PPO's first update: the library's tests train some. A clone is trained."""
    if params is not None:
        return LEARN(key, env, config, params)
    params = ActorCriticAgent(config.trunk, env.num_actions).init(key, env.obs_shape)
    return params, {"episode_return": jnp.arange(4.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all: the demonstrators are trained once."""
    yield tmp_path_factory.mktemp("experiments")
    stages.recordings.cache_clear()
    transfer.models.cache_clear()
    decoding.models.cache_clear()
    decoding.expert_returns.cache_clear()


@pytest.fixture
def tiny(folder, monkeypatch):
    """Everything small, and everything that is written in a folder of its own. Compiled without optimisations."""
    for name in ("WORK", "RESULTS", "FIGURES"):
        monkeypatch.setattr(common, name, folder / name.lower())
    monkeypatch.setattr(common, "PAGE", folder / "page.md")
    monkeypatch.setattr(common, "SEEDS", range(1))
    monkeypatch.setattr(stages, "GRID", GRID)
    monkeypatch.setattr(stages, "VECTOR", VECTOR)
    monkeypatch.setattr(stages, "learn", beginner)
    for name, value in (("NUM_ENVS", 8), ("PROBE_TRAIN", 128), ("PROBE_TEST", 32)):
        monkeypatch.setattr(stages, name, value)
    jax.config.update("jax_disable_most_optimizations", True)
    yield folder
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def experiment(tiny, request, monkeypatch):
    """An experiment at the size that `SIZES` gives, with a page that has its marks."""
    name = request.param
    tiny_experiment = common.load_experiment(name)
    module = __import__(f"experiments.{name}.run", fromlist=["run"])
    for constant, value in SIZES[name].items():
        monkeypatch.setattr(module, constant, value)
    text = "".join(f"<!-- {mark} -->\n\n<!-- /{mark} -->\n" for mark in (name, f"{name}_cost"))
    common.PAGE.write_text(text)
    return tiny_experiment


SIZES = {
    "vq_ablation": {"CONFIG": GRID, "STEPS": 64, "LABELS": 16, "LEVELS": {"corrected": ("4",)}},
    "noise": {
        "CONFIG": dataclasses.replace(
            GRID.dynamics, quantizer=dataclasses.replace(GRID.dynamics.quantizer, codebooks=1, codes=4, revive=1.0)
        ),
        "STEPS": 64,
        "LABELS": 16,
        "LEVELS": {"labels": ("0.1",)},
        "STRENGTHS": ("0.1",),
        "REMEDY_NAMES": {"labels": "16 labels"},
    },
    "stochastic_dynamics": {"CONFIG": GRID.dynamics, "STEPS": 64, "LEVELS": {"sticky": ("0.5",), "random": ("0.5",)}},
    "cartpole_latents": {
        "CONFIG": VECTOR,
        "STEPS": 64,
        "LABELS": ("4", "8"),
        "LEVELS": {"structure": ("expert",), "named": ("4",)},
    },
    "data_scaling": {"CONFIG": GRID, "MOST": 8 * 64, "LEVELS": {"frames": ("10000",), "labels of 10000": ("8",)}},
    "failure_signatures": {
        "CONFIG": dataclasses.replace(GRID, analysis=AnalysisConfig(probe_train=128, probe_test=32, eval_every=4)),
        "LEVELS": {"none": ("healthy",)},
    },
    "transfer": {"CONFIG": GRID, "STEPS": 64, "FRAMES": 4096, "LEVELS": {"all layers": ("permuted",)}},
    "decoding": {
        "GAMES": ("breakout",),
        "CONFIG": GRID,
        "DEMONSTRATOR": GRID.expert,
        "STEPS": 64,
        "ROLLOUT": 8,
        "FRAMES": ("4096",),
        "LABELS": ("16",),
        "EPISODES": 1,
    },
}


def test_tables_keep_the_settings_that_they_were_measured_with():
    """The preset may change, but the committed tables of grids are valid for these settings only."""
    config = stages.MEASURED
    assert config.record.frames == 262_144
    dynamics, decoder = config.dynamics, config.online.decoder
    assert (dynamics.steps, dynamics.batch_size, dynamics.learning_rate) == (2000, 128, 2e-3)
    assert (dynamics.idm.channels, dynamics.fdm.channels, dynamics.fdm.blocks) == ((32,), 32, 2)
    assert dynamics.quantizer.enabled and (dynamics.quantizer.codes, dynamics.quantizer.latent_dim) == (16, 16)
    assert (dynamics.loss_scale, dynamics.decorrelation) == ("copy_last", 0.0)
    assert (config.cloning.steps, config.cloning.batch_size, config.cloning.learning_rate) == (16_000, 128, 1e-3)
    assert (config.offline.steps, config.offline.learning_rate, config.offline.balance) == (2000, 1e-3, False)
    assert (config.offline.hidden, config.offline.bc_steps) == ((192, 128, 64), 500)
    assert (decoder.dense_until, decoder.stop, decoder.every, decoder.label_smoothing) == (0.1, 0.5, 8, 0.05)
    assert (config.online.blend, config.online.train, config.online.ppo.total_frames) == ("mean", "all", 524_288)
    assert decoding.CONFIG is config and stages.GRID.online.decoder == decoder
    assert (config.scratch.ppo.total_frames, config.expert.ppo.total_frames) == (524_288, 8_388_608)


@pytest.mark.parametrize("experiment", SIZES, indirect=True)
def test_an_experiment_is_computed_once(experiment, tiny, monkeypatch):
    common.run(experiment)
    rows = common.load(tiny / "results" / experiment.name / "results.csv")
    assert [common.cell_of(row) for row in rows] == experiment.cells()
    for row in rows:
        measured = [float(value) for column, value in row.items() if column not in ("variant", "level", "seed")]
        assert not np.isinf(measured).any() and np.isfinite(measured).sum() >= 3
    figure = tiny / "figures" / f"{experiment.name}.png"
    assert figure.read_bytes()[:4] == b"\x89PNG" and figure.stat().st_size > 10_000
    page = common.PAGE.read_text()
    assert page.count("|") > 10 and f"{len(rows)} cells, 1 seeds" in page
    assert common.page_text(page, experiment) == page

    # Again: nothing; without its last row: that one alone.
    measured = []
    again = dataclasses.replace(
        experiment, measure=lambda *cell: measured.append(cell) or {column: 1.0 for column in list(rows[-1])[3:-1]}
    )
    before = (tiny / "work" / f"{experiment.name}.csv").read_text()
    common.compute(again)
    assert measured == [] and (tiny / "work" / f"{experiment.name}.csv").read_text() == before
    (tiny / "work" / f"{experiment.name}.csv").unlink()
    if rows[:-1]:
        common.store(tiny / "work" / f"{experiment.name}.csv", rows[:-1])
    assert len(common.compute(again)) == len(rows)
    assert measured == [common.cell_of(rows[-1])]


def test_cells_may_differ_in_what_is_measured(tiny):
    def measure(variant, level, seed):
        return {"a": 1.0} if variant == "x" else {"b": 2.0}

    cells = [("x", "1", 0), ("y", "1", 0)]
    small = common.Experiment("small", "", "", lambda: cells, measure, lambda rows: None, lambda rows: {})
    rows = common.compute(small)
    assert [(row["a"], row["b"]) for row in rows] == [("1", "nan"), ("nan", "2")]
    assert common.mean_text(rows, "x", "1", "a") == "1.00" and common.mean_text(rows, "x", "1", "b") == "-"


def test_changed_games_are_the_same_game():
    """Exchanged actions give the frames of the actions that they stand for, moved channels those of the same ones."""
    same, backwards, painted = (transfer.changed_game(how, 4) for how in ("same", "reversed", "permuted"))
    stay, left, right = (jnp.full(4, action, jnp.int32) for action in range(3))

    @jax.jit
    def play(key):
        def after(env, actions):
            obs, state = env.reset(key)
            frames = [obs]
            for index, action in enumerate(actions):
                obs, state, *_, info = env.step(jax.random.fold_in(key, index), state, action)
                frames += [obs, info["final_observation"]]
            return jnp.stack(frames)

        return after(same, (left, stay)), after(backwards, (right, stay)), after(painted, (left, stay))

    own, renamed, moved = play(jax.random.key(0))
    np.testing.assert_array_equal(own, renamed)
    np.testing.assert_array_equal(np.roll(own, 1, axis=-1), moved)
    assert not np.array_equal(own, moved) and not np.array_equal(own[0], own[1])


def test_means_and_errors_over_seeds():
    rows = [{"variant": "v", "level": "1", "seed": str(seed), "x": str(x)} for seed, x in enumerate((1, 2, 6))]
    mean, error = mean_and_stderr(common.values(rows, "v", "1", "x"))
    assert mean == 3 and error == pytest.approx(np.std([1, 2, 6], ddof=1) / np.sqrt(3))
    assert common.mean_text(rows, "v", "1", "x") == "3.00 ± 1.53"
    lines = common.table(rows, ("what", "level", "x"), {"x": 1}, {"v": "called so"}).splitlines()
    assert lines == ["| what | level | x |", "|---|---|---|", "| called so | 1 | 3.0 ± 1.5 |"]


def test_every_experiment_has_five_seeds_and_says_what_it_is():
    for name in common.NAMES:
        experiment = common.load_experiment(name)
        cells = experiment.cells()
        assert experiment.name == name and len(set(cells)) == len(cells)
        assert {seed for *_, seed in cells} == set(range(5)) and len({cell[:2] for cell in cells}) >= 3
        readme = (common.ROOT / "experiments" / name / "README.md").read_text()
        for part in ("**Claim.**", f"make experiment NAME={name}", "**Hardware.**", "**Expected.**", "**Result.**"):
            assert part in readme, (name, part)


@pytest.mark.parametrize("name", RAN)
def test_the_page_says_what_the_committed_results_say(name):
    text = common.PAGE.read_text()
    assert common.page_text(text, common.load_experiment(name)) == text
    assert f"experiments/{name}.png" in text and (common.FIGURES / f"{name}.png").exists()
    rows = common.load(common.RESULTS / name / "results.csv")
    assert [common.cell_of(row) for row in rows] == common.load_experiment(name).cells()


def test_the_first_frames_at_a_return():
    """A mean over 2 of 100 updates: at 3 from the eleventh update on, after 11 with the one before it."""
    curve = [1.0] * 10 + [5.0] * 90
    assert decoding.frames_to(3.0, curve, 1000) == 110
    assert decoding.frames_to(1.0, curve, 1000) == 20 and np.isnan(decoding.frames_to(5.1, curve, 1000))
