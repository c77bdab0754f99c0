"""Verdicts: whether each stage beats its null, what else looks wrong, and what to try.

Every threshold stands here, beside the sentence that it triggers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

Verdict = dict[str, Any]

# Of accuracies, and alike of shares of variance (R^2).
MIN_PROBE_LEAD = 0.02  # of a probe over its nulls; smaller leads are noise at a few thousand windows
MIN_DISTRACTOR_R2 = 0.5  # of a distractor's change, read from latents: from here on they explain most of it
MAX_GIVEN_AWAY = 0.15  # lead over the majority of what o_t alone tells of the action
# A codebook below both has collapsed: of 64 codes at 3.2, of few codes at 1.5, where 1 is the least there is
# (vq_ablation: books of 4 codes that had left their start ended at 2.9 to 3.9, those that had not were below 1.2).
MIN_PERPLEXITY_SHARE, MIN_PERPLEXITY = 0.05, 1.5
MAX_CLONING_RATIO = 0.9  # held-out error over variance
# Below this ratio o_t tells the latent; the action is in a rest that stage 2 does not learn (vq_ablation: ten of ten
# runs below got at most 14 % of the expert's return, those above 0.1 got 31 % on average). A linear probe that misses
# what another finds tells this from a demonstrator whose actions follow from o_t.
MIN_CLONING_RATIO, MAX_LINEAR_GAP = 0.01, 0.1
# Codes tell nothing of actions that latents tell for sure (noise: 0.02 with labels at strength 0.1, where they hold the
# noise; 0.76 and more at the strengths below, 0.3 and more without noise).
MIN_SURE_LEAD, MIN_CODE_NMI = 0.1, 0.05
# The next four as failure_signatures shows them, over five seeds each. Error over that of copying: at least 0.9995 of
# models that never learned, at most 0.24 of the others, 0.9 of real ones on games that hardly move (docs/decisions.md).
MAX_COPY_RATIO = 0.98
# By which share the error grows with the latents of other windows: 0.00 with one code, 0.42 to 0.60 in healthy runs.
MIN_SWAP_HARM = 0.1
# Return of training episodes, the last quarter over the first: 0.94 to 1.08 where nothing was trained, 1.9 and more in
# healthy runs; unless it has reached this share of the recorded policy's.
MIN_GROWTH, MAX_STUCK_SHARE = 1.2, 0.5
STDERRS = 1.0  # by how many standard errors a return must lead


# What messages are called.
NAMES = (
    *("copying", "ignored", "collapsed", "distractor", "given_away", "codes", "untrained", "cloning", "state"),
    *("labels", "never_fitted", "not_started", "decode_offline", "decode_online"),
)


@dataclasses.dataclass(frozen=True)
class Names:
    """What the results are called that tell how well actions are read; of each, more is better.

    Attributes:
      probe: a probe's.
      constant: the null that looks at nothing.
      codes: that of the codes; beside it lies ``<codes>_shuffled``.
      scored: what the probe is scored by, in words.
      told: what it tells a share of.
      measure: what `codes` measures.
    """

    probe: str
    constant: str
    codes: str
    scored: str
    told: str
    measure: str

    @property
    def nulls(self) -> tuple[str, str, str]:
        """What a probe must beat."""
        return f"untrained_{self.probe}", f"still_{self.probe}", self.constant


CLASSES = Names(
    *("probe_accuracy_merged", "majority_accuracy_merged", "code_nmi_merged"),
    *("merged actions", "actions", "mutual information"),
)
VALUES = Names(
    *("probe_r2", "mean_r2", "code_r2"),
    *("R² of actions", "actions' variance", "share of variance"),
)


def names_in(results: dict[str, Any]) -> Names:
    """Those that stage 1's results go by: of discrete actions, or of continuous ones."""
    return VALUES if VALUES.probe in results else CLASSES


def judge_dynamics(results: dict[str, Any]) -> Verdict:
    """Stage 1 must predict better than copying, and its latents must tell actions better than their nulls do."""
    names = names_in(results)
    lead = results[names.probe] - max(results[name] for name in names.nulls)
    if results["fdm_mse"] >= results["copy_last_mse"]:
        return {"ok": False, "verdict": "failed: the forward model is no better than copying the last frame"}
    if lead < MIN_PROBE_LEAD:
        return {
            "ok": False,
            "verdict": "failed: the latents tell actions no better than the nulls do",
        }
    return {
        "ok": True,
        "verdict": f"error {results['fdm_ratio']:.2f} of copying; {names.scored} {100 * lead:.0f} points above nulls",
    }


def judge_cloning(results: dict[str, Any]) -> Verdict:
    """Stage 2 must predict held-out latents better than their mean does."""
    if results["ratio"] >= 1:
        return {"ok": False, "verdict": "failed: the policy predicts latents no better than their mean"}
    return {"ok": True, "verdict": f"explains {100 * (1 - results['ratio']):.0f} % of the latents' variance"}


def judge_offline(results: dict[str, Any], nulls: dict[str, Any]) -> Verdict:
    """Offline decoding must beat the random policy, and at best behaviour cloning on the same labels."""
    labels, mean, stderr = max(results["curve"], key=lambda row: row[1])
    random = nulls["random_return"]["mean"]
    if mean - STDERRS * stderr <= random:
        return {"ok": False, "verdict": f"failed: no better than the random policy ({random:.2f})"}
    bc = {n: value for n, value, _ in results["bc_curve"]}.get(labels)
    against = f", BC on the same labels {bc:.2f}" if bc is not None else ""
    return {"ok": True, "verdict": f"best {mean:.2f} with {labels} labels (random {random:.2f}{against})"}


def judge_online(stage: str, results: dict[str, Any], summary: dict[str, Any]) -> Verdict:
    """PPO must beat the random policy; either way of decoding must also beat PPO from scratch at the same frames."""
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
    """What looks wrong in a run and what to try, from its summary.

    Returns:
      ``{"name", "stage", "text", "try"}`` for each message; the name is one of `NAMES`.
    """
    found = []

    def say(name: str, stage: str, text: str, remedy: str) -> None:
        found.append({"name": name, "stage": stage, "text": text, "try": remedy})

    stages = summary.get("stages", {})
    if dynamics := stages.get("dynamics"):
        names = names_in(dynamics)
        if dynamics["fdm_mse"] >= MAX_COPY_RATIO * dynamics["copy_last_mse"]:
            worse = dynamics["fdm_mse"] >= dynamics["copy_last_mse"]
            say(
                "copying",
                "dynamics",
                f"The forward model is {'no' if worse else 'hardly'} better than copying the last frame.",
                "--dynamics.fdm.predict change --dynamics.loss-scale copy_last, or more steps",
            )
        elif (swapped := dynamics.get("fdm_swapped_mse")) is not None:
            harm = swapped / dynamics["fdm_mse"] - 1
            if harm < MIN_SWAP_HARM:
                say(
                    "ignored",
                    "dynamics",
                    f"The forward model hardly looks at the latents: with those of other windows its error changes by "
                    f"{100 * harm:.0f} %.",
                    "--dynamics.loss-scale copy_last, a higher --dynamics.learning-rate, more codes, or more steps",
                )
        codes = dynamics["num_codes"]
        # Without a quantiser a codebook follows the latents, for measures alone.
        for n, perplexity in enumerate(dynamics["codebook_perplexity"] if dynamics.get("quantized", True) else ()):
            if perplexity < max(MIN_PERPLEXITY_SHARE * codes, MIN_PERPLEXITY):
                used = codes - dynamics["dead_codes"][n]
                say(
                    "collapsed",
                    "dynamics",
                    f"Codebook {n} has collapsed: {used} of {codes} codes in use, perplexity {perplexity:.1f}.",
                    "--dynamics.quantizer.start corrected, a lower --dynamics.quantizer.decay, or more steps",
                )
        lead = dynamics[names.probe] - dynamics[f"untrained_{names.probe}"]
        if dynamics.get("quantized", True) and names.codes in dynamics and lead >= MIN_SURE_LEAD:
            told = dynamics[names.codes] - dynamics[f"{names.codes}_shuffled"]
            if told < MIN_CODE_NMI:
                say(
                    "codes",
                    "dynamics",
                    f"The latents tell the actions, their codes do not: {names.measure} {told:.2f} above shuffled "
                    "actions. What the forward model sees is something else.",
                    "--dynamics.clean against noise, more codes, or --dynamics.quantizer.no-enabled",
                )
        distractor = dynamics.get("distractor_change_r2", 0.0)
        still = dynamics[f"still_{names.probe}"]
        given_away = still - dynamics[names.constant]
        explains = distractor >= MIN_DISTRACTOR_R2 and distractor > dynamics["untrained_distractor_change_r2"]
        if explains and lead < MIN_PROBE_LEAD:
            say(
                "distractor",
                "dynamics",
                f"The latents explain the distractor, not the action: a probe reads {100 * distractor:.0f} % of the "
                "variance of the distractor's change from them, and the actions no better than from those of an "
                "untrained model.",
                "--dynamics.action-weight with a few labels, or --dynamics.clean against noise and jitter",
            )
        if given_away > MAX_GIVEN_AWAY:
            say(
                "given_away",
                "dynamics",
                f"An untrained network that sees o_t alone tells {100 * still:.0f} % of the {names.told}: "
                "the recorded policy gives them away, so the probe cannot show what the latents know.",
                "a less predictable recorded policy (--policy random, or a checkpoint trained with more entropy)",
            )
        elif lead < MIN_PROBE_LEAD and not explains:
            say(
                "untrained",
                "dynamics",
                "The latents tell the actions no better than those of an untrained model.",
                "more steps or frames, or a game whose frames the agent's actions explain (maze, heist, bigfish)",
            )
    if (cloning := stages.get("cloning")) and cloning["ratio"] > MAX_CLONING_RATIO:
        share = 1 - cloning["ratio"]
        say(
            "cloning",
            "cloning",
            f"The latent policy explains only {100 * share:.0f} % of the latents' variance."
            if share > 0
            else "The latent policy predicts latents no better than their mean.",
            "more cloning steps, or a recorded policy that is nearer to deterministic",
        )
    if cloning and dynamics and cloning["ratio"] < MIN_CLONING_RATIO and f"linear_{names.probe}" in dynamics:
        gap = dynamics[names.probe] - dynamics[f"linear_{names.probe}"]
        if gap > MAX_LINEAR_GAP:
            say(
                "state",
                "cloning",
                f"All but {100 * cloning['ratio']:.1f} % of the latents' variance follows from o_t: they are the state "
                f"rather than the action, which a linear probe reads {100 * gap:.0f} points worse than an MLP.",
                "--dynamics.quantizer.no-enabled, a smaller --dynamics.quantizer.dim, or more steps of stage 1",
            )
    given = (stages.get("dynamics") or {}).get("labels", 0)
    curve = (stages.get("decode_offline") or {}).get("curve")
    if curve and min(n for n, *_ in curve) < given:
        say(
            "labels",
            "decode_offline",
            f"Stage 1 saw {given} labels, so what is decoded from fewer than {given} is no result of few labels.",
            f"compare with behaviour cloning on {given} labels",
        )
    online = stages.get("decode_online") or {}
    if online.get("decoder_fits") == 0:
        say(
            "never_fitted",
            "decode_online",
            "The decoder was never fitted: no update lies where it should be.",
            "a later --online.decoder.stop, a smaller --online.decoder.every, or more frames",
        )
    expert = summary.get("nulls", {}).get("expert_return", {}).get("mean")
    if expert is not None and online.get("curve"):
        first, last = course(online["curve"])
        # Shares of what is there, of negative returns too.
        missing, grown = (1 - MAX_STUCK_SHARE) * abs(expert), (MIN_GROWTH - 1) * abs(first)
        if last < expert - missing and last < first + grown:
            say(
                "not_started",
                "decode_online",
                f"Fine-tuning did not start: training episodes returned {first:.2f} in the first quarter of the frames "
                f"and {last:.2f} in the last; the recorded policy returns {expert:.2f}.",
                "an earlier rise of --online.ppo.learning-rates, and look at stages 1 and 2 first",
            )
    for stage in ("decode_offline", "decode_online"):
        if (results := stages.get(stage)) and not results["ok"]:
            say(
                stage,
                stage,
                results["verdict"].removeprefix("failed: ").capitalize() + ".",
                "more labels or frames, and look at stages 1 and 2 first",
            )
    return found
