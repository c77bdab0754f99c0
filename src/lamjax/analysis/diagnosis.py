"""Verdicts: whether each stage beats its baseline, what else looks wrong, and what to try.

This module holds every threshold and the sentence that it triggers.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

Verdict = dict[str, Any]

# Thresholds of accuracies hold for shares of variance (R^2) too.
MIN_PROBE_LEAD = 0.02  # lead of a probe over its baselines; smaller ones are noise with a few thousand windows
MIN_DISTRACTOR_R2 = 0.5  # above this the latents explain most of a distractor's change
# The action information, if it is measured: the share that latents must hold of what frames reveal about actions, and
# by how many standard errors it must lead an untrained model's share, which was 0.10 to 0.18 on coinrun.
MIN_SHARE, SHARE_STDERRS = 0.5, 2.0
# If an oracle falls below this share of the way from the random policy to the demonstrator, the policy cannot clone. If
# a decoded policy falls below this share of the way to the oracle, the latents lack the action.
MIN_WAY = 0.5
MAX_GIVEN_AWAY = 0.15  # lead of a probe that sees only o_t over the majority class
# A codebook below both has collapsed: for 64 codes the limit is 3.2, for few codes 1.5, and the minimum is 1
# (vq_ablation: healthy books of 4 codes ended at 2.9 to 3.9, collapsed ones below 1.2).
MIN_PERPLEXITY_SHARE, MIN_PERPLEXITY = 0.05, 1.5
MAX_CLONING_RATIO = 0.9  # held-out error over the latents' variance
# Below this ratio o_t predicts the latent, and the action is in the remainder, which stage 2 does not learn
# (vq_ablation: ten of ten runs below it got at most 14 % of the expert's return; those above 0.1 got 31 % on average).
# A gap between the linear probe and the MLP distinguishes this from a demonstrator whose actions follow from o_t.
MIN_CLONING_RATIO, MAX_LINEAR_GAP = 0.01, 0.1
# The latents predict the actions, but their codes do not (noise: 0.02 with labels at strength 0.1, where codes hold the
# noise; 0.76 and more at the strengths below, 0.3 and more without noise).
MIN_SURE_LEAD, MIN_CODE_NMI = 0.1, 0.05
# The next four come from failure_signatures, five seeds, and docs/measurements. Error over that of copying: at least
# 0.9995 for models that never learned, at most 0.24 for the others, 0.9 for real ones on games that hardly move.
MAX_COPY_RATIO = 0.98
# How much the error grows with other windows' latents: by 0.00 with one code, by 0.42 to 0.60 in healthy runs.
MIN_SWAP_HARM = 0.1
# Return of training episodes, the last quarter over the first: 0.94 to 1.08 without training, 1.9 and more in healthy
# runs. It does not count if the return has reached this share of the recorded policy's.
MIN_GROWTH, MAX_STUCK_SHARE = 1.2, 0.5
STDERRS = 1.0  # a return must lead by so many standard errors


# The names of the messages.
NAMES = (
    *("copying", "ignored", "collapsed", "distractor", "given_away", "codes", "untrained", "cloning", "state"),
    *("labels", "never_fitted", "not_started", "decode_offline", "decode_online"),
    *("unknowable", "information", "policy_gap", "latent_gap"),
)


@dataclasses.dataclass(frozen=True)
class ScoreNames:
    """The keys of the scores for reading actions from latents (more is better), and words for them.

    Attributes:
      probe: key of a probe's score.
      constant: key of the constant baseline's score.
      codes: key of the codes' score; ``<codes>_shuffled`` is its baseline.
      score: what the probe's score measures, in words.
      quantity: what the probe's score is a share of, in words.
      measure: what the codes' score measures, in words.
    """

    probe: str
    constant: str
    codes: str
    score: str
    quantity: str
    measure: str

    @property
    def baselines(self) -> tuple[str, str, str]:
        """The keys of the scores that a probe must beat."""
        return f"untrained_{self.probe}", f"still_{self.probe}", self.constant


DISCRETE = ScoreNames(
    *("probe_accuracy_merged", "majority_accuracy_merged", "code_nmi_merged"),
    *("merged actions", "actions", "mutual information"),
)
CONTINUOUS = ScoreNames(
    *("probe_r2", "mean_r2", "code_r2"),
    *("R² of actions", "actions' variance", "share of variance"),
)


def score_names(results: dict[str, Any]) -> ScoreNames:
    """Returns the score names for stage 1's results, which depend on the kind of actions."""
    return CONTINUOUS if CONTINUOUS.probe in results else DISCRETE


def judge_dynamics(results: dict[str, Any]) -> Verdict:
    """Stage 1 must predict better than copying, and its latents must hold the action.

    If the action information is measured, on random play, it must be `MIN_SHARE` or more and lead an untrained model's
    by `SHARE_STDERRS` standard errors. Without a simulator a probe on the recording must beat its baselines.
    """
    names = score_names(results)
    if results["fdm_mse"] >= results["copy_last_mse"]:
        return {"ok": False, "verdict": "failed: the forward model is no better than copying the last frame"}
    if names.probe not in results:
        return {"ok": True, "verdict": f"error {results['fdm_ratio']:.2f} of copying; no actions to compare with"}
    lead = results[names.probe] - max(results[name] for name in names.baselines)
    if information := results.get("action_information"):
        judged = judge_information(information)
        held = judged["verdict"]
        return judged | {"verdict": f"error {results['fdm_ratio']:.2f} of copying; {held}" if judged["ok"] else held}
    if lead < MIN_PROBE_LEAD:
        return {"ok": False, "verdict": "failed: the latents predict actions no better than the baselines"}
    verdict = f"error {results['fdm_ratio']:.2f} of copying; {names.score} {100 * lead:.0f} points above baselines"
    return {"ok": True, "verdict": verdict}


def judge_information(information: dict[str, Any]) -> Verdict:
    """The latents' share of what frames reveal must reach `MIN_SHARE`, and clearly exceed an untrained model's."""
    share, stderr, untrained = (information[name] for name in ("share", "share_stderr", "untrained_share"))
    held = (
        f"the latents hold {share:.2f} ± {stderr:.2f} of what the frames reveal about the action "
        f"(untrained {untrained:.2f})"
    )
    if share < MIN_SHARE:
        return {"ok": False, "verdict": f"failed: {held}; {MIN_SHARE} is needed"}
    if share < untrained + SHARE_STDERRS * stderr:
        return {"ok": False, "verdict": f"failed: {held}, which is no clear difference"}
    return {"ok": True, "verdict": held}


def judge_cloning(results: dict[str, Any]) -> Verdict:
    """Stage 2 must predict held-out latents better than their mean does."""
    if results["ratio"] >= 1:
        return {"ok": False, "verdict": "failed: the policy predicts latents no better than their mean"}
    return {"ok": True, "verdict": f"explains {100 * (1 - results['ratio']):.0f} % of the latents' variance"}


def judge_offline(results: dict[str, Any], baselines: dict[str, Any]) -> Verdict:
    """Offline decoding must beat the random policy, and behaviour cloning on the same labels, where it is best."""
    labels, mean, stderr = max(results["curve"], key=lambda row: row[1])
    random = baselines["random_return"]["mean"]
    if mean - STDERRS * stderr <= random:
        return {"ok": False, "verdict": f"failed: no better than the random policy ({random:.2f})"}
    bc = {n: value for n, value, _ in results["bc_curve"]}.get(labels)
    if bc is not None and mean <= bc:
        return {"ok": False, "verdict": f"failed: {mean:.2f} with {labels} labels, BC on the same labels has {bc:.2f}"}
    against = f", BC on the same labels {bc:.2f}" if bc is not None else ""
    if oracle := results.get("oracle"):
        against += f", BC on all labels {oracle['return_mean']:.2f}"
    return {"ok": True, "verdict": f"best {mean:.2f} with {labels} labels (random {random:.2f}{against})"}


def judge_actions(results: dict[str, Any]) -> Verdict:
    """A decoder of the inverse model's latents must predict held-out actions better than a guess, and than cloning."""
    sign = 1 if results["score"] == "accuracy" else -1  # less is better for errors
    labels, value, stderr = max(results["idm_curve"], key=lambda row: sign * row[1])
    constant, cloned = results["constant"], {n: mean for n, mean, _ in results["bc_curve"]}.get(labels)
    against = f"a constant guess {constant:.3g}" + ("" if cloned is None else f", cloning them {cloned:.3g}")
    score = f"{results['score']} {value:.3g} with {labels} labels ({against})"
    if sign * (value - constant) <= STDERRS * stderr or (cloned is not None and sign * (value - cloned) <= 0):
        return {"ok": False, "verdict": f"failed: no better than the baselines: {score}"}
    return {"ok": True, "verdict": score}


def judge_online(stage: str, results: dict[str, Any], summary: dict[str, Any]) -> Verdict:
    """PPO must beat the random policy. Decoding must also beat PPO from scratch at the same frames."""
    random = summary["nulls"].get("random_return", {}).get("mean")
    mean, stderr = results["return_mean"], results["return_stderr"]
    if random is not None and mean - STDERRS * stderr <= random:
        return {"ok": False, "verdict": f"failed: no better than the random policy ({random:.2f})"}
    scratch = summary["stages"].get("ppo_scratch")
    if stage in ("decode_online", "decode_named") and scratch:
        other = scratch["return_mean"]
        if mean <= other:
            return {"ok": False, "verdict": f"failed: {mean:.2f}, PPO from scratch has {other:.2f} at the same frames"}
        return {"ok": True, "verdict": f"{mean:.2f}, PPO from scratch {other:.2f} at the same frames"}
    return {"ok": True, "verdict": f"{mean:.2f}" + (f" (random {random:.2f})" if random is not None else "")}


def course(curve: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean returns of the first and of the last quarter of a curve of (frames, return); NaN without a curve."""
    returns = [value for _, value in curve]
    quarter = max(1, len(returns) // 4)
    first, last = returns[:quarter], returns[-quarter:]
    return sum(first) / len(first) if first else float("nan"), sum(last) / len(last) if last else float("nan")


def diagnose(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Returns what looks wrong in a run and what to try, from its summary.

    Returns:
      ``{"name", "stage", "text", "try"}`` for each message; the name is one of `NAMES`.
    """
    messages = {
        "dynamics": _dynamics_messages,
        "cloning": _cloning_messages,
        "decode_offline": _offline_messages,
        "decode_online": _online_messages,
    }
    return [
        {"name": name, "stage": stage, "text": text, "try": remedy}
        for stage, messages_of in messages.items()
        if summary.get("stages", {}).get(stage)
        for name, text, remedy in messages_of(summary)
    ]


Messages = Iterator[tuple[str, str, str]]  # (name, text, what to try)


def _dynamics_messages(summary: dict[str, Any]) -> Messages:
    results = summary["stages"]["dynamics"]
    names = score_names(results)
    quantized = results.get("quantized", True)
    if results["fdm_mse"] >= MAX_COPY_RATIO * results["copy_last_mse"]:
        worse = results["fdm_mse"] >= results["copy_last_mse"]
        yield (
            "copying",
            f"The forward model is {'no' if worse else 'hardly'} better than copying the last frame.",
            "--dynamics.fdm.predict change and --dynamics.loss-scale copy_last if they are off, or more steps",
        )
    elif (swapped := results.get("fdm_swapped_mse")) is not None:
        harm = swapped / results["fdm_mse"] - 1
        if harm < MIN_SWAP_HARM:
            yield (
                "ignored",
                "The forward model hardly uses the latents: with the latents of other windows its error changes by "
                f"{100 * harm:.0f} %.",
                "--dynamics.loss-scale copy_last if it is off, a higher --dynamics.learning-rate, more --dynamics.steps"
                + (", or more --dynamics.quantizer.codes" if quantized else ""),
            )
    codes = results["num_codes"]
    # Without a quantiser a codebook only follows the latents, so that it can be measured.
    for n, perplexity in enumerate(results["codebook_perplexity"] if quantized else ()):
        if perplexity < max(MIN_PERPLEXITY_SHARE * codes, MIN_PERPLEXITY):
            yield (
                "collapsed",
                f"Codebook {n} has collapsed: {codes - results['dead_codes'][n]} of {codes} codes in use, perplexity "
                f"{perplexity:.1f}.",
                "--dynamics.quantizer.start corrected, a lower --dynamics.quantizer.decay, or more --dynamics.steps",
            )
    if names.probe not in results:
        return
    lead = results[names.probe] - results[f"untrained_{names.probe}"]
    if quantized and names.codes in results and lead >= MIN_SURE_LEAD:
        agreement = results[names.codes] - results[f"{names.codes}_shuffled"]
        if agreement < MIN_CODE_NMI:
            yield (
                "codes",
                f"The latents predict the actions, but their codes do not: {names.measure} {agreement:.2f} above "
                "shuffled actions. The forward model sees only the codes.",
                "--dynamics.clean against noise, more --dynamics.quantizer.codes, or --dynamics.quantizer.no-enabled",
            )
    distractor = results.get("distractor_change_r2", 0.0)
    explains = distractor >= MIN_DISTRACTOR_R2 and distractor > results["untrained_distractor_change_r2"]
    if explains and lead < MIN_PROBE_LEAD:
        yield (
            "distractor",
            f"The latents explain the distractor, not the action: a probe reads {100 * distractor:.0f} % of the "
            "variance of the distractor's change from them, and the actions no better than from an untrained model's.",
            "--dynamics.action-weight with a few labels, or --dynamics.clean against noise and jitter",
        )
    if information := results.get("action_information"):
        yield from _information_messages(information, names, quantized)
        return
    still = results[f"still_{names.probe}"]
    if still - results[names.constant] > MAX_GIVEN_AWAY:
        yield (
            "given_away",
            f"An untrained network that sees only o_t predicts {100 * still:.0f} % of the {names.quantity}: "
            "the recorded policy gives them away, so the probe cannot show what the latents hold.",
            "random moves in the recording (--record.random-share 0.3), or a less predictable policy",
        )
    elif lead < MIN_PROBE_LEAD and not explains:
        yield (
            "untrained",
            "The latents predict the actions no better than those of an untrained model.",
            "more --dynamics.steps or frames, or a game whose frames show the agent's actions (maze, heist, miner)",
        )


def _information_messages(information: dict[str, Any], names: ScoreNames, quantized: bool) -> Messages:
    share, untrained = information["share"], information["untrained_share"]
    supervised, majority = information["supervised"], information["majority"]
    if supervised - majority < MIN_PROBE_LEAD:
        yield (
            "unknowable",
            "Even an inverse network that is trained on the actions of random play predicts them hardly better "
            f"({names.score}: {supervised:.2f}) than a constant guess ({majority:.2f}): the frames do not show them, "
            "or its training was too short.",
            "more --analysis.information.steps or --analysis.information.frames",
        )
    elif not judge_information(information)["ok"]:
        # Each remedy is measured in docs/latents.md.
        if share < MIN_SHARE:
            remedy = "--dynamics.decorrelation 3 if it is off, --dynamics.focus 16 where one small thing moves, or "
        else:  # fewer numbers hold less before training
            remedy = "a smaller --dynamics.quantizer.dim, together with "
        yield (
            "information",
            f"On random play the latents hold {share:.2f} of what the frames reveal about the action, an untrained "
            f"model's {untrained:.2f}; {MIN_SHARE} or more is needed, and more than the untrained model's.",
            ("--dynamics.quantizer.no-enabled, " if quantized else "")
            + remedy
            + "random play beside the recording (--dynamics.play-share 0.5)",
        )


def _cloning_messages(summary: dict[str, Any]) -> Messages:
    stages = summary["stages"]
    ratio, dynamics = stages["cloning"]["ratio"], stages.get("dynamics")
    if ratio > MAX_CLONING_RATIO:
        yield (
            "cloning",
            f"The latent policy explains only {100 * (1 - ratio):.0f} % of the latents' variance."
            if ratio < 1
            else "The latent policy predicts latents no better than their mean.",
            "more --cloning.steps, or a recorded policy that is closer to deterministic",
        )
    if not dynamics or ratio >= MIN_CLONING_RATIO:
        return
    probe = score_names(dynamics).probe
    if probe not in dynamics:
        return
    gap = dynamics[probe] - dynamics.get(f"linear_{probe}", dynamics[probe])
    if gap > MAX_LINEAR_GAP:
        yield (
            "state",
            f"All but {100 * ratio:.1f} % of the latents' variance follows from o_t: they hold the state "
            f"rather than the action, which a linear probe reads {100 * gap:.0f} points worse than an MLP.",
            ("--dynamics.quantizer.no-enabled, " if dynamics.get("quantized", True) else "")
            + "a smaller --dynamics.quantizer.dim, or more --dynamics.steps",
        )


def _offline_messages(summary: dict[str, Any]) -> Messages:
    stages = summary["stages"]
    results, labels = stages["decode_offline"], (stages.get("dynamics") or {}).get("labels", 0)
    if min((n for n, *_ in results.get("curve") or ()), default=labels) < labels:
        yield (
            "labels",
            f"Stage 1 saw {labels} labels, so decoding from fewer than {labels} still used {labels}.",
            f"compare with behaviour cloning on {labels} labels",
        )
    yield from _gap_messages(results, summary.get("nulls") or {})
    yield from _failure("decode_offline", results, "more --offline.labels or frames")


def _gap_messages(results: dict[str, Any], baselines: dict[str, Any]) -> Messages:
    """Says whether the policy or the latents limit the return, if the run has an oracle."""
    random, expert = ((baselines.get(name) or {}).get("mean") for name in ("random_return", "expert_return"))
    if not results.get("oracle") or random is None:
        return
    oracle, stderr = results["oracle"]["return_mean"], results["oracle"]["return_stderr"]
    if expert is not None and oracle + STDERRS * stderr < random + MIN_WAY * (expert - random):
        yield (
            "policy_gap",
            f"Cloning all true actions for as long as stage 2 takes returns {oracle:.2f}, the recorded policy "
            f"{expert:.2f} and the random one {random:.2f}: this gap is the policy's, whatever the latents hold.",
            "more --cloning.steps, or a larger --cloning.trunk",
        )
    best, error = max((row[1:] for row in results.get("curve") or ()), default=(oracle, 0.0))
    if oracle > random and best + STDERRS * error < random + MIN_WAY * (oracle - random):
        yield (
            "latent_gap",
            f"The best decoded policy returns {best:.2f}, cloning all true actions {oracle:.2f} and the random policy "
            f"{random:.2f}: this gap comes from the latents, or from too few labels.",
            "check the action information of stage 1 first, then more --offline.labels",
        )


def _online_messages(summary: dict[str, Any]) -> Messages:
    results = summary["stages"]["decode_online"]
    if results.get("decoder_fits") == 0:
        yield (
            "never_fitted",
            "The decoder was never fitted: no update falls between --online.decoder.start and --online.decoder.stop.",
            "a later --online.decoder.stop, a smaller --online.decoder.every, or more frames",
        )
    expert = summary.get("nulls", {}).get("expert_return", {}).get("mean")
    if expert is not None and results.get("curve"):
        first, last = course(results["curve"])
        # Shares of absolute values, because returns may be negative.
        missing, growth = (1 - MAX_STUCK_SHARE) * abs(expert), (MIN_GROWTH - 1) * abs(first)
        if last < expert - missing and last < first + growth:
            yield (
                "not_started",
                f"Fine-tuning did not start: training episodes returned {first:.2f} in the first quarter of the frames "
                f"and {last:.2f} in the last; the recorded policy returns {expert:.2f}.",
                "check stages 1 and 2 first, then an earlier rise of --online.ppo.learning-rates",
            )
    yield from _failure("decode_online", results, "more --online.ppo.total-frames")


def _failure(stage: str, results: dict[str, Any], remedy: str) -> Messages:
    if not results["ok"]:
        text = results["verdict"].removeprefix("failed: ")
        yield stage, f"{text[0].upper()}{text[1:]}.", f"check stages 1 and 2 first, then {remedy}"
