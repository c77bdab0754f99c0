"""Each ablation is a field that one command sets, and the stages that it touches run with it."""

import json

import jax
import numpy as np
import pytest

from lamjax import cloning, dynamics, pipeline, policies
from lamjax.analysis import diagnosis, report, report_figures
from lamjax.cli import parse
from lamjax.data import open_store
from lamjax.presets import PRESETS
from lamjax.training import checkpoint, driver
from lamjax.training.run_folder import InterruptedRunError, Run, stage_key

SMOKE = PRESETS["smoke"]
SHORT = [
    *("--dynamics.steps", "2", "--cloning.steps", "4", "--log-every", "1", "--analysis.eval-every", "2"),
    *("--analysis.probe-train", "64", "--analysis.probe-test", "32", "--eval-episodes", "2"),
    *("--offline.labels", "16", "--offline.steps", "3", "--offline.bc-steps", "2", "--offline.compare-at"),
    *("--offline.episodes", "2", "--offline.num-envs", "2"),
]


def settings(*options):
    return parse("train", ["--preset", "smoke", *SHORT, *options]).config


# What each command changes, beside the default.
FIELDS = {
    ("--dynamics.quantizer.no-enabled",): lambda c: (c.dynamics.quantizer.enabled, False),
    ("--dynamics.quantizer.start", "reference"): lambda c: (c.dynamics.quantizer.start, "reference"),
    ("--dynamics.quantizer.codes", "8"): lambda c: (c.dynamics.quantizer.codes, 8),
    ("--dynamics.quantizer.commitment", "0.25"): lambda c: (c.dynamics.quantizer.commitment, 0.25),
    ("--dynamics.focus", "32"): lambda c: (c.dynamics.focus, 32),
    ("--dynamics.focus-at", "unsteady"): lambda c: (c.dynamics.focus_at, "unsteady"),
    ("--dynamics.focus-at", "agent"): lambda c: (c.dynamics.focus_at, "agent"),
    ("--dynamics.locator.steps", "50"): lambda c: (c.dynamics.locator.steps, 50),
    ("--dynamics.focus-rows", "0.75", "1"): lambda c: (c.dynamics.focus_rows, (0.75, 1.0)),
    ("--dynamics.decorrelation", "3"): lambda c: (c.dynamics.decorrelation, 3.0),
    ("--dynamics.context", "2"): lambda c: (c.dynamics.context, 2),
    ("--analysis.no-mask-boundaries",): lambda c: (c.analysis.mask_boundaries, False),
    ("--analysis.no-mask-probes",): lambda c: (c.analysis.mask_probes, False),
    ("--online.decoder.no-enabled",): lambda c: (c.online.decoder.enabled, False),
    ("--online.decoder.no-mask-boundaries",): lambda c: (c.online.decoder.mask_boundaries, False),
    ("--online.train", "all"): lambda c: (c.online.train, "all"),
    ("--offline.methods", "policy", "relabel"): lambda c: (c.offline.methods, ("policy", "relabel")),
    ("--offline.relabel-hidden",): lambda c: (c.offline.relabel_hidden, ()),
    ("--offline.play", "sampled"): lambda c: (c.offline.play, ("sampled",)),
    ("--offline.label-shares", "0.01", "0.1"): lambda c: (c.offline.label_shares, (0.01, 0.1)),
    ("--offline.seeds", "5"): lambda c: (c.offline.seeds, 5),
    ("--ring-frames", "4096"): lambda c: (c.ring_frames, 4096),
    ("--dynamics.dtype", "bfloat16"): lambda c: (c.dynamics.dtype, "bfloat16"),
    ("--cloning.dtype", "bfloat16"): lambda c: (c.cloning.dtype, "bfloat16"),
    ("--online.dtype", "bfloat16"): lambda c: (c.online.dtype, "bfloat16"),
    ("--scratch.dtype", "bfloat16"): lambda c: (c.scratch.agent(15).dtype.dtype.name, "bfloat16"),
}


@pytest.mark.parametrize("options", FIELDS, ids=" ".join)
def test_one_command_sets_it(options):
    field = FIELDS[options]
    found, expected = field(settings(*options))
    assert found == expected != field(settings())[0]


@pytest.fixture
def play_briefly(monkeypatch):
    """Evaluations of a moment: what policies are worth is not the question here."""

    def evaluate_all(policy, players, env, episodes, key, *, greedy, wide=None, **_):
        obs, _ = env.reset(key)
        assert (wide or env).num_envs == len(players) * env.num_envs
        for params in players:
            logits = np.asarray(policy(params, obs))
            assert logits.shape == (env.num_envs, env.num_actions) and np.isfinite(logits).all()
        draw, shape = float(jax.random.uniform(key)), (len(players), episodes)
        returns = np.array([[draw + mode] * episodes for mode in greedy], np.float32)
        return returns, np.ones(shape, np.int32)

    monkeypatch.setattr(pipeline.evaluation, "evaluate_all", evaluate_all)


METHODS = ("--offline.methods", "policy", "bc", "idm", "relabel", "--offline.seeds", "2")
CHAINS = {
    "no VQ": ("--dynamics.quantizer.no-enabled", *METHODS, "--offline.relabel-hidden", "8"),
    "context": (
        *("--dynamics.context", "2", "--dynamics.idm-input", "changes", "--analysis.no-mask-probes"),
        *("--offline.methods", "policy", "idm", "--offline.play", "sampled"),
        *("--online.ppo.total-frames", "2048", "--online.decoder.no-mask-boundaries"),
    ),
}


def train_stages(run, store):
    model = pipeline.dynamics_stage(run, store)
    return model, pipeline.cloning_stage(run, store, model)


@pytest.mark.parametrize("name", CHAINS)
def test_stages_1_and_2_and_offline_decoding(name, recorded, tmp_path, play_briefly, monkeypatch):
    drawn = ("perplexity", "code_usage", "strips", "return_by_labels")  # all of them take ten seconds
    monkeypatch.setattr(report_figures, "FIGURES", {figure: report_figures.FIGURES[figure] for figure in drawn})
    monkeypatch.setattr(
        report, "render", lambda run, embedded: repr({name: one.missing for name, one in embedded.items()})
    )
    monkeypatch.setattr(report_figures, "rollout_arrays", lambda run: None)
    config, store = settings(*CHAINS[name]), open_store(recorded)
    with Run(tmp_path, "coinrun", config, {"env": "coinrun", "diagnosis": []}) as run:
        model, policy = train_stages(run, store)
        run.summary["nulls"]["random_return"] = {"mean": 0.0, "stderr": 0.0, "episodes": 2}
        pipeline.offline_stage(run, store, model, policy, 15)
        learned, found = run.done("dynamics"), run.done("decode_offline")
        warned = diagnosis.diagnose({"stages": {"dynamics": {**learned, "codebook_perplexity": [0.1, 0.1]}}})
        assert any("collapsed" in warning["text"] for warning in warned) == (name != "no VQ")
    page = report.write(tmp_path).read_text()
    assert ("'code_usage': ''" in page) == (name != "no VQ")  # drawn, or left out: it is never missing
    assert ("code_usage" in page) == (name != "no VQ")
    for measure in ("code_nmi", "code_purity", "probe_accuracy_merged", "fdm_ratio"):
        assert np.isfinite(learned[measure])
    assert learned["quantized"] == (name != "no VQ")
    shapes = np.load(tmp_path / "analysis.npz")
    assert shapes["strip_context"].shape[1] == min(config.dynamics.context + 1, 2)
    assert shapes["rollout_frames"].shape[1] == 13
    if name == "context":
        assert found["stderr_over"] == "episodes" and found["seeds"] == 1
        with Run(tmp_path, "coinrun", config, {}) as run:
            pipeline.online_stage(run, model, policy)
        _, saved, _ = checkpoint.restore_arrays(tmp_path / "checkpoints" / "decode_online")
        # One update of 2048 frames feeds the decoder before it stops at 0.8 of the budget.
        assert saved["pairs.written"] == (config.online.ppo.num_steps - 3) * config.online.ppo.num_envs
        return
    # Two draws of the labels, each on levels of its own, the same for every method; greedy adds one (see above).
    draws = [float(jax.random.uniform(stage_key(config.seed, stage))) for stage in ("evaluation", "evaluation-1")]
    mean, error = np.mean(draws), np.abs(draws[0] - draws[1]) / 2
    for curve in ("curve", "bc_curve", "idm_curve", "relabel_curve"):
        assert found[curve] == [[16, pytest.approx(mean, abs=1e-6), pytest.approx(error, abs=1e-6)]]
        greedy = found[curve.replace("curve", "greedy_curve")]
        assert greedy == [[16, pytest.approx(mean + 1, abs=1e-6), pytest.approx(error, abs=1e-6)]]
    assert found["stderr_over"] == "seeds"
    assert {path.name for path in (tmp_path / "policies").iterdir()} == {"idm-16", "offline-16", "relabel-16"}
    assert policies.load_policy(tmp_path / "policies" / "relabel-16")[2]["return_mean"] == pytest.approx(draws[0])


def untrained_model(config, store):
    init = driver.jit_once(dynamics.init, static_argnums=(1, 2))
    return init(jax.random.key(0), config.dynamics, store.obs_shape)


def untrained_policy(config, store):
    init = driver.jit_once(cloning.init, static_argnums=(1, 2, 3))
    return init(jax.random.key(0), config.cloning, store.obs_shape, config.dynamics.latent_dim)


def test_offline_decoding_resumes_where_it_stopped(recorded, tmp_path, play_briefly, monkeypatch):
    """Stopped before every evaluation in turn, also inside the cloning of named actions, it ends with the same.

    And so it does where many policies are made and evaluated together.
    """
    config, store = settings(*METHODS, "--checkpoint-every", "0"), open_store(recorded)
    model = untrained_model(config, store)
    policy = untrained_policy(config, store)
    evaluate_all, seen, chunks = pipeline.evaluation.evaluate_all, [], []

    def stage(folder):
        with Run(folder, "coinrun", config, {}) as run:
            run.summary["nulls"]["random_return"] = {"mean": 0.0}
            pipeline.offline_stage(run, store, model, policy, 15)
        return run.done("decode_offline")

    def fingerprints(policy, players, env, episodes, key, **options):
        """Returns that depend on every weight of the policies."""
        obs = np.full((env.num_envs, *env.obs_shape), 100, np.uint8)
        values = [np.float32(np.asarray(policy(params, obs)).std()) for params in players]
        chunks.append(len(players))
        if stopping and not set(values) <= set(seen):
            seen.extend(values)
            raise InterruptedRunError(15)
        lengths = evaluate_all(policy, players, env, episodes, key, **options)[1]
        return np.repeat(np.array(values)[:, None], episodes, 1), lengths

    monkeypatch.setattr(pipeline.evaluation, "evaluate_all", fingerprints)
    stopping = False
    whole = stage(tmp_path / "whole")
    assert chunks == [1] + [2] * 8  # the oracle, then each policy sampled and greedy
    stopping = True
    for _ in range(9):
        with pytest.raises(InterruptedRunError):
            stage(tmp_path / "stopped")
    found = stage(tmp_path / "stopped")
    assert {**found, "seconds": 0} == {**whole, "seconds": 0}
    values = [row[2] for rows in found["by_seed"].values() for row in rows]
    assert len(set(values)) == 8  # four methods on two draws

    stopping = False
    chunks.clear()
    monkeypatch.setattr(pipeline.offline, "most_together", lambda num_envs: 4)
    together = stage(tmp_path / "together")
    assert chunks == [1] + [4] * 4  # of each draw the decoded policies, then the cloned ones
    assert together["by_seed"].keys() == whole["by_seed"].keys()
    for name, rows in together["by_seed"].items():
        np.testing.assert_allclose(rows, whole["by_seed"][name], rtol=1e-3)


def test_online_decoding_of_all_layers_by_rl_alone(recorded, tmp_path, play_briefly):
    config = settings("--online.train", "all", "--online.decoder.no-enabled", "--online.ppo.total-frames", "2048")
    store = open_store(recorded)
    model = untrained_model(config, store)
    policy = untrained_policy(config, store)
    convs = jax.device_get(policy.params["trunk_net"]["convs"])
    with Run(tmp_path, "coinrun", config, {}) as run:
        pipeline.online_stage(run, model, policy)
        assert run.done("decode_online")["frames"] == 2048
    _, params, _ = policies.load_policy(tmp_path / "policies" / "decode_online")
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params["params"]["convs"], convs)
    assert max(jax.tree.leaves(moved)) > 0 and "frozen" not in params
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows and not any("decoder_accuracy" in row for row in rows)
    _, saved, _ = checkpoint.restore_arrays(tmp_path / "checkpoints" / "decode_online")
    assert saved["pairs.written"] == 0


def test_every_preset_plays_what_it_compares():
    """The default protocol: both readings of the decoder, sampled and greedy, beside cloning the labels."""
    for preset in PRESETS.values():
        assert {"policy", "bc", "idm"} <= set(preset.offline.methods)
        assert set(preset.offline.play) == {"sampled", "greedy"}
    assert PRESETS["paper"].offline.label_shares == (0.01,) and not PRESETS["paper"].offline.compare_at
