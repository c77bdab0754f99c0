"""Runs that end in a given time: what is shortened, what stays, and that the sum is right."""

import dataclasses
import itertools

import pytest

from lamjax import budget
from lamjax.budget import BudgetError, Rates, StageRates, fit_budget, format_duration, parse_duration, predict
from lamjax.decoding.online import refits
from lamjax.presets import GRID_PRESETS, OWN_PRESETS, PRESETS, VECTOR_PRESETS

TABLES = {"images": PRESETS, "grids": GRID_PRESETS, "vectors": VECTOR_PRESETS, **OWN_PRESETS}
ALL = {f"{kind}-{name}": preset for kind, table in TABLES.items() for name, preset in table.items()}
RATES = {
    "slow": Rates(
        spent=100.0,
        frame=1 / 3000,
        windows=10_000,
        dynamics=StageRates(2.0, 0.1, 1.5),
        cloning=StageRates(1.0, 0.04, 0.5),
        scratch=StageRates(1.0, 5.0),
        online=StageRates(1.0, 2.0),
        decoder_step=0.002,
        examine=10.0,
        episode=5.0,
        player=3.0,
        labels=1.0,
        fit=2.0,
        bc_step=0.05,
    ),
    "fast": Rates(
        spent=40.0,
        frame=1 / 40_000,
        windows=100_000,
        dynamics=StageRates(2.0, 0.006, 1.0),
        cloning=StageRates(1.0, 0.003, 0.3),
        scratch=StageRates(1.0, 0.2),
        online=StageRates(1.0, 0.1),
        decoder_step=0.0001,
        examine=5.0,
        episode=2.0,
        player=3.0,
        labels=0.5,
        fit=0.3,
        bc_step=0.004,
    ),
}
SECONDS = (400, 450, 600, 900, 1800, 3600, 24 * 3600)


@pytest.fixture(params=ALL)
def preset(request):
    return ALL[request.param]


@pytest.fixture(params=RATES)
def rates(request):
    return RATES[request.param]


def sizes(config):
    """Everything that a longer budget may only enlarge."""
    return (
        config.record.frames,
        config.dynamics.steps,
        config.cloning.steps,
        config.online.ppo.total_frames,
        config.eval_episodes,
        config.offline.seeds,
        len(config.offline.labels),
        config.offline.episodes,
    )


def budgets(preset, rates):
    """The settings at each budget that holds the shortest stages."""
    fitted = []
    for seconds in SECONDS:
        try:
            fitted.append((seconds, fit_budget(preset, rates, seconds)))
        except BudgetError:
            assert not fitted  # once it fits, more time fits as well
    assert fitted
    return fitted


def test_the_prediction_is_within_the_budget(preset, rates):
    for seconds, config in budgets(preset, rates):
        assert sum(predict(config, rates).values()) <= (1 - budget.RESERVE) * seconds + 1e-6


def test_more_time_never_makes_less(preset, rates):
    fitted = [sizes(config) for _, config in budgets(preset, rates)]
    for less, more in itertools.pairwise(fitted):
        assert all(a <= b for a, b in zip(less, more, strict=True))
    assert all(a <= b for a, b in zip(fitted[-1], sizes(preset), strict=True))  # never more than the preset


def test_a_day_is_enough_for_all_of_a_small_preset():
    preset = PRESETS["cpu"]
    config = fit_budget(preset, RATES["fast"], 24 * 3600)
    assert sizes(config) == sizes(preset) and config.dynamics.warmup_steps == preset.dynamics.warmup_steps
    assert config.analysis.eval_every == 800  # at most five evaluations of each stage


def test_settings_that_are_no_lengths_stay(preset, rates):
    for _, config in budgets(preset, rates):
        assert config.dynamics.program == preset.dynamics.program
        assert config.cloning.program == preset.cloning.program
        assert config.online.ppo.program == preset.online.ppo.program
        assert config.scratch.ppo.program == preset.scratch.ppo.program
        assert (config.expert, config.seed, config.log_every) == (preset.expert, preset.seed, preset.log_every)


def test_the_settings_fit_together(preset, rates):
    for _, config in budgets(preset, rates):
        ppo = config.online.ppo
        assert config.scratch.ppo.total_frames == ppo.total_frames
        assert ppo.total_frames % (ppo.num_envs * ppo.num_steps) == 0 or ppo == preset.online.ppo
        assert ppo.num_updates >= min(8, preset.online.ppo.num_updates)
        assert sum(refits(config.online, number + 1) for number in range(ppo.num_updates)) >= 2
        for stage in (config.dynamics, config.cloning):
            assert 0 < stage.warmup_steps < stage.steps and stage.steps >= 4 * config.log_every
        assert config.analysis.eval_every % config.log_every == 0
        assert config.record.frames % (32 * config.record.num_envs) == 0
        assert 0 < config.analysis.probe_test <= config.analysis.probe_train <= config.record.frames // 2
        offline = config.offline
        assert offline.labels and offline.episodes % offline.num_envs == 0
        assert set(offline.compare_at) <= set(offline.labels)
        assert offline.labels[-1] <= config.record.frames // 2


def test_warm_up_shrinks_with_the_steps():
    config = fit_budget(PRESETS["paper"], RATES["fast"], 600)
    assert config.cloning.steps < 60_000
    assert config.cloning.warmup_steps == 1000 * config.cloning.steps // 60_000


def test_cloning_pseudo_labels_shrinks_with_stage_2():
    preset = PRESETS["cpu"]
    assert (preset.cloning.steps, preset.offline.relabel_steps) == (4000, 1000)
    config = fit_budget(preset, RATES["slow"], 600)
    assert 0 < config.cloning.steps < 4000
    assert config.offline.relabel_steps == config.cloning.steps // 4
    scratch = dataclasses.replace(preset, offline=dataclasses.replace(preset.offline, relabel_steps=0))
    assert fit_budget(scratch, RATES["slow"], 600).offline.relabel_steps == 0


def test_a_store_needs_no_recording(rates):
    there = dataclasses.replace(rates, frame=0.0)
    config = fit_budget(PRESETS["cpu"], there, 700)
    assert (config.record, config.analysis.probe_train) == (PRESETS["cpu"].record, PRESETS["cpu"].analysis.probe_train)


def test_the_oracle_is_counted_and_has_the_time_that_nothing_else_needs(rates):
    config = PRESETS["cpu"]
    without = dataclasses.replace(config, offline=dataclasses.replace(config.offline, oracle=False))
    more = sum(predict(config, rates).values()) - sum(predict(without, rates).values())
    assert more == pytest.approx(config.cloning.steps * rates.cloning.step + rates.episode + rates.player)
    fitted = [fit.offline.oracle for _, fit in budgets(config, RATES["slow"])]
    assert fitted[0] is False and fitted[-1] is True
    assert not budgets(without, rates)[-1][1].offline.oracle


def test_each_windows_latent_is_counted_once(rates):
    slower = dataclasses.replace(rates, latent=rates.latent + 0.5)
    more = {
        name: seconds - predict(PRESETS["cpu"], rates)[name]
        for name, seconds in predict(PRESETS["cpu"], slower).items()
    }
    assert more.pop("cloning") == pytest.approx(0.5 * rates.windows) and not any(more.values())


def test_random_play_shrinks_with_the_recording():
    config = budget.with_frames(PRESETS["cpu"], 1 / 2048, 100)  # 20,480 frames, which are ten dispatches
    information, full = config.analysis.information, PRESETS["cpu"].analysis.information
    assert config.record.frames == 20_480
    assert (information.frames, information.steps) == (12_800, 313)
    assert (information.batch_size, information.num_envs) == (full.batch_size, full.num_envs)


def test_the_pseudo_label_stage_is_shortened_too():
    settings = dataclasses.replace(PRESETS["cpu"].named, frames=65_536)
    config = fit_budget(dataclasses.replace(PRESETS["cpu"], named=settings), RATES["slow"], 900)
    assert 0 < config.named.frames < 65_536 and config.named.ppo.total_frames < settings.ppo.total_frames
    assert "decode_named" in predict(config, RATES["slow"])


def test_a_budget_that_is_too_small_says_how_much_is_needed():
    with pytest.raises(BudgetError, match=r"does not fit into 1m30s .* took 1m40s: give it (\d+)m(\d+)s") as error:
        fit_budget(PRESETS["cpu"], RATES["slow"], 90)
    needed = str(error.value).split("give it ")[1].split(",")[0]
    fit_budget(PRESETS["cpu"], RATES["slow"], parse_duration(needed))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("600", 600), ("600s", 600), ("10m", 600), ("1h30m", 5400), ("1h", 3600), ("1m30s", 90), ("0.5h", 1800)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "10 minutes", "m", "10x", "5s3m"])
def test_text_that_is_no_duration_is_refused(text):
    with pytest.raises(BudgetError, match="is not a time: give seconds"):
        parse_duration(text)


def test_durations_are_shown_rounded_up():
    assert [format_duration(s) for s in (5.2, 60, 581, 3900)] == ["6s", "1m00s", "9m41s", "1h05m"]
