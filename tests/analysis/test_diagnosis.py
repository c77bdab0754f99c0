"""Every verdict and every warning on both sides of its threshold."""

import copy

import pytest

from lamjax.analysis import diagnosis
from lamjax.analysis.diagnosis import (
    diagnose,
    judge_actions,
    judge_cloning,
    judge_dynamics,
    judge_information,
    judge_offline,
    judge_online,
)

DYNAMICS = {
    "fdm_mse": 0.004,
    "copy_last_mse": 0.01,
    "fdm_ratio": 0.4,
    "probe_accuracy_merged": 0.6,
    "majority_accuracy_merged": 0.3,
    "untrained_probe_accuracy_merged": 0.4,
    "still_probe_accuracy_merged": 0.35,
    "codebook_perplexity": [20.0, 30.0],
    "dead_codes": [10, 12],
    "num_codes": 64,
}
OFFLINE = {"curve": [[16, 3.0, 0.2], [256, 6.0, 0.3], [1024, 5.5, 0.3]], "bc_curve": [[16, 2.5, 0.2], [256, 4.0, 0.3]]}
BASELINES = {"random_return": {"mean": 2.7, "stderr": 0.1, "episodes": 128}}
ONLINE = {"return_mean": 7.0, "return_stderr": 0.5}


def failed(verdict):
    assert set(verdict) == {"ok", "verdict"}
    assert verdict["verdict"].startswith("failed: ") != verdict["ok"]
    return not verdict["ok"]


# Verdicts


@pytest.mark.parametrize(("mse", "fails"), [(0.0099, False), (0.01, True), (0.02, True)])
def test_stage_1_must_beat_copying(mse, fails):
    assert failed(judge_dynamics({**DYNAMICS, "fdm_mse": mse})) == fails


@pytest.mark.parametrize("baseline", ["majority", "untrained_probe", "still_probe"])
@pytest.mark.parametrize(("lead", "fails"), [(0.021, False), (0.019, True), (-0.1, True)])
def test_latents_must_beat_each_baseline(baseline, lead, fails):
    scores = dict.fromkeys(("majority", "untrained_probe", "still_probe"), 0.1) | {baseline: 0.6 - lead}
    assert failed(judge_dynamics(DYNAMICS | {f"{k}_accuracy_merged": v for k, v in scores.items()})) == fails
    assert diagnosis.MIN_PROBE_LEAD == 0.02


def test_stage_1_says_by_how_much():
    assert judge_dynamics(DYNAMICS)["verdict"] == "error 0.40 of copying; merged actions 20 points above baselines"


INFORMATION = {
    **{"share": 0.62, "share_stderr": 0.03, "untrained_share": 0.1, "windows": 4096},
    **{"trained": 0.67, "untrained": 0.563, "supervised": 0.746, "majority": 0.543},
}


@pytest.mark.parametrize(
    ("share", "untrained", "fails"),
    [(0.5, 0.1, False), (0.499, 0.1, True), (0.6, 0.539, False), (0.6, 0.541, True), (1.02, 0.9, False)],
)
def test_latents_must_hold_half_of_the_action_and_more_than_an_untrained_models(share, untrained, fails):
    information = INFORMATION | {"share": share, "untrained_share": untrained}
    results = DYNAMICS | {"action_information": information, "probe_accuracy_merged": 0.1}  # that probe is no judge now
    assert failed(judge_dynamics(results)) == failed(judge_information(information)) == fails
    messages = diagnose({"stages": {"dynamics": results}})
    assert [item["name"] for item in messages] == ["information"] * fails
    if fails:
        assert ("--dynamics.focus" in messages[0]["try"]) == (share < diagnosis.MIN_SHARE)
    assert failed(judge_dynamics(results | {"fdm_mse": 0.01}))


def test_the_verdict_says_how_much_the_latents_hold():
    held = "the latents hold 0.62 ± 0.03 of what the frames reveal about the action (untrained 0.10)"
    verdict = judge_dynamics(DYNAMICS | {"action_information": INFORMATION})["verdict"]
    assert verdict == f"error 0.40 of copying; {held}"
    assert judge_information(INFORMATION)["verdict"] == held


def test_actions_that_frames_do_not_show_cannot_be_known():
    information = INFORMATION | {"supervised": 0.562, "share": 0.0}
    (message,) = diagnose({"stages": {"dynamics": DYNAMICS | {"action_information": information}}})
    assert message["name"] == "unknowable" and "hardly better (merged actions: 0.56) than" in message["text"]


@pytest.mark.parametrize(
    ("oracle", "best", "expert", "names"),
    [
        (9.0, 6.5, 10.0, []),
        (9.0, 5.3, 10.0, ["latent_gap"]),  # from 2.7 the half of the way is 5.85, two standard errors above
        (9.0, 5.6, 10.0, []),
        (5.9, 5.9, 10.0, ["policy_gap"]),
        (6.1, 5.9, 10.0, []),
        (2.0, 2.8, 10.0, ["policy_gap"]),
        (5.9, 5.9, None, []),
    ],
)
def test_an_oracle_says_where_the_gap_is(oracle, best, expert, names):
    offline = {"ok": True, "verdict": "", "curve": [[16, best - 1, 0.3], [256, best, 0.3]]}
    offline |= {"oracle": {"return_mean": oracle, "return_stderr": 0.3, "episodes": 64}}
    baselines = BASELINES | ({"expert_return": {"mean": expert}} if expert else {})
    messages = diagnose({"stages": {"decode_offline": offline}, "nulls": baselines})
    assert [item["name"] for item in messages] == names
    assert diagnose({"stages": {"decode_offline": offline}}) == []  # nothing to hold it against
    assert judge_offline({**OFFLINE, "oracle": offline["oracle"]}, BASELINES)["verdict"].endswith(
        f"BC on the same labels 4.00, BC on all labels {oracle:.2f})"
    )


@pytest.mark.parametrize(("ratio", "fails"), [(0.99, False), (1.0, True), (1.3, True)])
def test_stage_2_must_beat_the_mean(ratio, fails):
    assert failed(judge_cloning({"ratio": ratio})) == fails


def test_stage_2_says_how_much_it_explains():
    assert judge_cloning({"ratio": 0.29})["verdict"] == "explains 71 % of the latents' variance"


@pytest.mark.parametrize(("mean", "fails"), [(3.01, False), (3.0, True), (2.0, True)])
def test_offline_must_lead_the_random_policy_by_a_standard_error(mean, fails):
    results = {"curve": [[16, mean, 0.3], [64, mean - 0.1, 0.0]], "bc_curve": []}
    assert failed(judge_offline(results, {"random_return": {"mean": 2.7}})) == fails


@pytest.mark.parametrize(("cloned", "fails"), [(5.99, False), (6.0, True), (7.0, True)])
def test_offline_must_beat_cloning_the_same_labels_where_it_is_best(cloned, fails):
    verdict = judge_offline({**OFFLINE, "bc_curve": [[16, 9.0, 0.2], [256, cloned, 0.3]]}, BASELINES)
    assert failed(verdict) == fails
    if fails:
        assert verdict["verdict"] == f"failed: 6.00 with 256 labels, BC on the same labels has {cloned:.2f}"


def test_offline_names_the_best_point_and_its_baselines():
    assert judge_offline(OFFLINE, BASELINES)["verdict"] == (
        "best 6.00 with 256 labels (random 2.70, BC on the same labels 4.00)"
    )
    assert judge_offline({**OFFLINE, "bc_curve": [[16, 2.5, 0.2]]}, BASELINES)["verdict"] == (
        "best 6.00 with 256 labels (random 2.70)"
    )


def summary_of(scratch=None, baselines=BASELINES):
    return {"nulls": baselines, "stages": {"ppo_scratch": {"return_mean": scratch}} if scratch is not None else {}}


@pytest.mark.parametrize("stage", ["decode_online", "ppo_scratch", "expert"])
@pytest.mark.parametrize(("mean", "fails"), [(3.21, False), (3.2, True), (1.0, True)])
def test_ppo_must_lead_the_random_policy_by_a_standard_error(stage, mean, fails):
    results = {"return_mean": mean, "return_stderr": 0.5}
    assert failed(judge_online(stage, results, summary_of())) == fails


@pytest.mark.parametrize("stage", ["decode_online", "decode_named"])
@pytest.mark.parametrize(("scratch", "fails"), [(6.99, False), (7.0, True), (9.0, True)])
def test_online_must_beat_ppo_from_scratch(stage, scratch, fails):
    assert failed(judge_online(stage, ONLINE, summary_of(scratch))) == fails
    assert not failed(judge_online("ppo_scratch", ONLINE, summary_of(scratch)))


def test_ppo_verdicts_name_both_figures():
    assert judge_online("decode_online", ONLINE, summary_of(5.0))["verdict"] == (
        "7.00, PPO from scratch 5.00 at the same frames"
    )
    assert judge_online("ppo_scratch", ONLINE, summary_of())["verdict"] == "7.00 (random 2.70)"
    assert judge_online("expert", ONLINE, summary_of(baselines={})) == {"ok": True, "verdict": "7.00"}


# Continuous actions

VALUES = {key: value for key, value in DYNAMICS.items() if "accuracy" not in key} | {
    "probe_r2": 0.9,
    "mean_r2": -0.01,
    "untrained_probe_r2": 0.3,
    "still_probe_r2": 0.1,
}


@pytest.mark.parametrize("baseline", ["mean_r2", "untrained_probe_r2", "still_probe_r2"])
@pytest.mark.parametrize(("lead", "fails"), [(0.021, False), (0.019, True)])
def test_continuous_latents_must_beat_each_baseline(baseline, lead, fails):
    assert failed(judge_dynamics(VALUES | {baseline: 0.9 - lead})) == fails


def test_a_verdict_on_continuous_actions_names_their_score():
    assert judge_dynamics(VALUES)["verdict"] == "error 0.40 of copying; R² of actions 60 points above baselines"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"probe_r2": 0.31}, "no better than those of an untrained model"),
        ({"still_probe_r2": 0.2}, "only o_t predicts 20 % of the actions' variance"),
        ({"code_r2": 0.32, "code_r2_shuffled": 0.3}, "share of variance 0.02 above shuffled"),
        ({"code_r2": 0.5, "code_r2_shuffled": 0.3}, None),
    ],
)
def test_messages_on_continuous_actions(changes, words):
    messages = diagnose({"stages": {"dynamics": VALUES | changes}})
    assert len(messages) == (words is not None)
    assert not messages or words in messages[0]["text"]


@pytest.mark.parametrize(
    ("first", "last", "stuck"),
    [(-1200.0, -961.0, True), (-1200.0, -959.0, False), (-300.0, -278.0, False), (-300.0, -280.0, True)],
)
def test_fine_tuning_where_returns_are_negative(first, last, stuck):
    online = {"ok": True, "verdict": "-200.00", "curve": [[1, first], [2, first], [3, last], [4, last]]}
    summary = {"stages": {"decode_online": online}, "nulls": {"expert_return": {"mean": -186.0}}}
    assert [item["name"] for item in diagnose(summary)] == ["not_started"] * stuck


# Warnings


@pytest.fixture
def summary():
    """A run in which nothing is wrong."""
    return {
        "stages": {
            "dynamics": copy.deepcopy(DYNAMICS),
            "cloning": {"ratio": 0.3},
            "decode_offline": {"ok": True, "verdict": "best 6.00"},
            "decode_online": {"ok": True, "verdict": "7.00"},
        }
    }


def test_nothing_wrong_says_nothing(summary):
    assert diagnose(summary) == [] == diagnose({"stages": {}}) == diagnose({})


def only(messages, stage):
    (warning,) = messages
    assert warning["stage"] == stage and warning["text"].endswith(".") and warning["try"]
    return warning["text"]


@pytest.mark.parametrize(("mse", "how"), [(0.01, "no"), (0.00999, "hardly"), (0.00981, "hardly"), (0.00979, None)])
def test_no_better_than_copying(summary, mse, how):
    summary["stages"]["dynamics"]["fdm_mse"] = mse
    assert [item["text"] for item in diagnose(summary)] == (
        [f"The forward model is {how} better than copying the last frame."] if how else []
    )


def test_a_collapsed_codebook(summary):
    summary["stages"]["dynamics"]["codebook_perplexity"] = [20.0, 3.1]
    summary["stages"]["dynamics"]["dead_codes"] = [10, 60]
    assert only(diagnose(summary), "dynamics") == ("Codebook 1 has collapsed: 4 of 64 codes in use, perplexity 3.1.")
    summary["stages"]["dynamics"]["codebook_perplexity"] = [20.0, 3.3]  # a twentieth of 64 is 3.2
    assert diagnose(summary) == []
    summary["stages"]["dynamics"]["codebook_perplexity"] = [2.0, 2.0]
    assert len(diagnose(summary)) == 2


@pytest.mark.parametrize(("codes", "perplexity", "collapsed"), [(4, 1.4, True), (4, 1.6, False), (1, 1.0, True)])
def test_a_small_codebook_collapses_above_a_twentieth(summary, codes, perplexity, collapsed):
    summary["stages"]["dynamics"] |= {"codebook_perplexity": [perplexity], "dead_codes": [0], "num_codes": codes}
    assert [item["name"] for item in diagnose(summary)] == ["collapsed"] * collapsed


@pytest.mark.parametrize(("swapped", "ignored"), [(0.00439, True), (0.00441, False), (0.003, True), (0.02, False)])
def test_a_forward_model_that_ignores_the_latents(summary, swapped, ignored):
    summary["stages"]["dynamics"]["fdm_swapped_mse"] = swapped
    assert [item["name"] for item in diagnose(summary)] == ["ignored"] * ignored
    summary["stages"]["dynamics"]["fdm_mse"] = 0.01  # no better than copying: that message comes instead
    assert [item["name"] for item in diagnose(summary)] == ["copying"]


@pytest.mark.parametrize(
    ("ratio", "linear", "state"), [(0.009, 0.49, True), (0.011, 0.49, False), (0.009, 0.51, False), (0.3, 0.2, False)]
)
def test_latents_that_follow_from_the_state(summary, ratio, linear, state):
    summary["stages"]["cloning"]["ratio"] = ratio
    summary["stages"]["dynamics"]["linear_probe_accuracy_merged"] = linear
    assert [item["name"] for item in diagnose(summary)] == ["state"] * state
    if state:
        assert "All but 0.9 % of the latents' variance follows from o_t" in only(diagnose(summary), "cloning")


def test_a_decoder_that_was_never_fitted(summary):
    for fits, names in ((0, ["never_fitted"]), (1, [])):
        summary["stages"]["decode_online"]["decoder_fits"] = fits
        assert [item["name"] for item in diagnose(summary)] == names


@pytest.mark.parametrize(
    ("last", "expert", "stuck"),
    [(1.19, 10, True), (1.21, 10, False), (0.5, 10, True), (1.0, 2.0, False), (1.0, 2.1, True), (1.0, None, False)],
)
def test_fine_tuning_that_does_not_start(summary, last, expert, stuck):
    summary["stages"]["decode_online"]["curve"] = [*([n, 1.0] for n in range(1, 7)), [7, last]]
    if expert is not None:
        summary["nulls"] = {"expert_return": {"mean": expert}}
    messages = diagnose(summary)
    assert [item["name"] for item in messages] == ["not_started"] * stuck
    if stuck:
        assert f"{1.0:.2f} in the first quarter" in only(messages, "decode_online")


def test_the_course_of_a_curve():
    assert diagnosis.course([[n, float(n)] for n in range(8)]) == (0.5, 6.5)
    assert diagnosis.course([[1, 3.0]]) == (3.0, 3.0)
    assert all(value != value for value in diagnosis.course([]))


def test_every_message_has_a_name(summary):
    summary["stages"]["dynamics"] |= {"fdm_mse": 0.02, "codebook_perplexity": [1.0, 1.0], "probe_accuracy_merged": 0.4}
    summary["stages"]["decode_online"] = {"ok": False, "verdict": "failed: x", "decoder_fits": 0}
    names = [item["name"] for item in diagnose(summary)]
    assert names == ["copying", "collapsed", "collapsed", "untrained", "never_fitted", "decode_online"]
    assert set(names) < set(diagnosis.NAMES) and len(set(diagnosis.NAMES)) == len(diagnosis.NAMES)


def test_latents_no_better_than_untrained_ones(summary):
    summary["stages"]["dynamics"]["untrained_probe_accuracy_merged"] = 0.581
    assert "untrained model" in only(diagnose(summary), "dynamics")
    summary["stages"]["dynamics"]["untrained_probe_accuracy_merged"] = 0.579
    assert diagnose(summary) == []


def test_a_recorded_policy_that_gives_its_actions_away(summary):
    summary["stages"]["dynamics"]["untrained_probe_accuracy_merged"] = 0.6
    summary["stages"]["dynamics"]["still_probe_accuracy_merged"] = 0.451
    assert "predicts 45 % of the actions" in only(diagnose(summary), "dynamics")
    summary["stages"]["dynamics"]["still_probe_accuracy_merged"] = 0.449
    assert "untrained model" in only(diagnose(summary), "dynamics")


def test_a_policy_that_explains_little(summary):
    summary["stages"]["cloning"]["ratio"] = 0.91
    assert "only 9 %" in only(diagnose(summary), "cloning")
    summary["stages"]["cloning"]["ratio"] = 0.9
    assert diagnose(summary) == []


@pytest.mark.parametrize("stage", ["decode_offline", "decode_online"])
def test_decoding_that_failed(summary, stage):
    verdict = "failed: no better than the random policy (2.70)"
    summary["stages"][stage] = {"ok": False, "verdict": verdict}
    assert only(diagnose(summary), stage) == "No better than the random policy (2.70)."
    summary["stages"][stage]["verdict"] = "failed: 6.56, PPO from scratch has 6.56"
    assert only(diagnose(summary), stage) == "6.56, PPO from scratch has 6.56."


def test_labels_of_stage_1_count_for_decoding(summary):
    summary["stages"]["decode_offline"]["curve"] = OFFLINE["curve"]
    for labels, warns in ((0, False), (16, False), (17, True)):
        summary["stages"]["dynamics"]["labels"] = labels
        messages = [item for item in diagnose(summary) if "labels" in item["text"]]
        assert bool(messages) == warns
    assert messages[0]["stage"] == "decode_offline" and "Stage 1 saw 17 labels" in messages[0]["text"]


@pytest.mark.parametrize(
    ("change", "untrained", "probe", "explains"),
    [(0.5, 0.4, 0.41, True), (0.49, 0.4, 0.41, False), (0.6, 0.7, 0.41, False), (0.9, 0.1, 0.43, False)],
)
def test_latents_that_explain_the_distractor(summary, change, untrained, probe, explains):
    summary["stages"]["dynamics"] |= {
        "distractor_change_r2": change,
        "untrained_distractor_change_r2": untrained,
        "probe_accuracy_merged": probe,
    }
    text = " ".join(item["text"] for item in diagnose(summary))
    assert ("explain the distractor, not the action" in text) == explains
    assert ("no better than those of an untrained model" in text) == (probe < 0.42 and not explains)


@pytest.mark.parametrize(
    ("nmi", "untrained", "quantized", "warns"),
    [(0.06, 0.4, True, True), (0.08, 0.4, True, False), (0.06, 0.51, True, False), (0.06, 0.4, False, False)],
)
def test_codes_that_tell_nothing_of_actions_that_latents_tell(summary, nmi, untrained, quantized, warns):
    summary["stages"]["dynamics"] |= {
        "code_nmi_merged": nmi,
        "code_nmi_merged_shuffled": 0.02,
        "untrained_probe_accuracy_merged": untrained,
        "quantized": quantized,
    }
    assert [item["name"] for item in diagnose(summary)] == ["codes"] * warns


# Without a simulator


def test_without_actions_the_forward_model_alone_is_judged():
    alone = {name: DYNAMICS[name] for name in DYNAMICS if "accuracy" not in name}
    assert judge_dynamics(alone) == {"ok": True, "verdict": "error 0.40 of copying; no actions to compare with"}
    assert failed(judge_dynamics(alone | {"fdm_mse": 0.011}))
    summary = {"stages": {"dynamics": alone, "cloning": {"ratio": 0.001}}}
    assert [message["name"] for message in diagnose(summary)] == []
    assert [message["name"] for message in diagnose({"stages": {"dynamics": alone | {"fdm_mse": 0.0099}}})] == [
        "copying"
    ]


@pytest.mark.parametrize(
    ("score", "decoded", "cloned", "constant", "fails"),
    [
        ("accuracy", 0.8, 0.6, 0.5, False),
        ("accuracy", 0.8, 0.9, 0.5, True),
        ("accuracy", 0.52, 0.4, 0.5, True),  # within the standard error
        ("mse", 0.2, 0.3, 0.4, False),
        ("mse", 0.2, 0.1, 0.4, True),
        ("mse", 0.39, 0.5, 0.4, True),
    ],
)
def test_decoded_actions_must_beat_cloning_and_a_constant_guess(score, decoded, cloned, constant, fails):
    worse = decoded - 0.1 if score == "accuracy" else decoded + 0.1
    curves = {
        "idm_curve": [[16, worse, 0.05], [64, decoded, 0.05]],
        "bc_curve": [[16, worse, 0.05], [64, cloned, 0.05]],
    }
    results = {"score": score, "constant": constant, **curves}
    assert failed(judge_actions(results)) == fails
    assert f"{score} {decoded:.3g} with 64 labels" in judge_actions(results)["verdict"]
