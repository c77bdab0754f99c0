"""Fits a run into a given time: turns this machine's rates into steps, frames and evaluations.

The functions are pure; `pipeline.rehearsal` measures the rates. The fixed costs come first: recording and measuring,
set-up, and the examination of stage 1. The rest of the time is split as follows:

- `RESERVE` of the whole time stays free, for checkpoints, the report, and moments when the machine is slower.
- Recording may take `RECORDING` of the whole time: frames that training never visits do not help.
- Playing (baselines, offline decoding's curves, final returns) may take `PLAYING` of the rest. To save time, draws of
  labels go first, then numbers of labels, then comparisons, then episodes.
- Of the remainder (`SHARES`) stage 1 has 0.4, since every later stage uses its latents, stage 2 has 0.2, and PPO,
  online and from scratch at the same frames, has 0.4. No stage gets more than the preset gives it. Time that a stage
  does not use goes to the others.
- The oracle is trained if time is left once all other stages have theirs.

Settings other than lengths stay as they are: batches, networks, learning rates. Schedules are fractions and scale by
themselves; this module scales warm-up steps and the decoder's `every`.
"""

import bisect
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from lamjax.config import RunConfig
from lamjax.data.record import CHUNK
from lamjax.decoding import offline, online

RESERVE = 0.05
RECORDING = 0.1
PLAYING = 0.35
SHARES = {"dynamics": 0.4, "cloning": 0.2, "ppo": 0.4}
TESTS = 5  # the most evaluations on held-out windows in the longer of stages 1 and 2
FEWEST_UPDATES = 8
FEWEST_FRAMES = 4096
DENSE = 4  # the online decoder is refitted after each of PPO's first updates, for at least this many
FEWEST = 50  # a stage keeps at least one in this many of the preset's steps


class BudgetError(ValueError):
    """Raised if a run does not fit into its time; the message says how much it needs."""


@dataclasses.dataclass(frozen=True)
class StageRates:
    """Seconds that a training stage takes, without compilation.

    Attributes:
      start: before the first step.
      step: for an optimizer step, or an update of PPO.
      test: for an evaluation on held-out windows.
    """

    start: float
    step: float
    test: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rates:
    """Seconds that this machine takes for the parts of a run; compilation counts if the run repeats it.

    Attributes:
      spent: recording and measuring, with the compilation of programs that the run compiles once.
      frame: one recorded frame; 0 if there is a recording already.
      windows: the number of training windows in the recording.
      dynamics: stage 1.
      cloning: stage 2 on latents that are already inferred.
      scratch: PPO from scratch.
      online: online decoding, without its decoder.
      decoder_step: a step of online decoding's decoder.
      examine: examining stage 1.
      episode: one episode of maximum length in each environment of an evaluation.
      player: compiling the evaluation of one more policy.
      labels: drawing labels.
      fit: an offline decoder's fit.
      bc_step: a step of behaviour cloning on labels.
      latent: inferring the latent of a window.
      compile: compilation while measuring, a part of `spent`.
    """

    spent: float
    frame: float
    windows: int
    dynamics: StageRates
    cloning: StageRates
    scratch: StageRates
    online: StageRates
    decoder_step: float
    examine: float
    episode: float
    player: float
    labels: float
    fit: float
    bc_step: float
    latent: float = 0.0
    compile: float = 0.0


def parse_duration(text: str) -> float:
    """Parses "600", "600s", "10m" or "1h30m" to seconds.

    Raises:
      BudgetError: if the text does not have this form, or the time is not positive.
    """
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    hours, minutes, seconds = (float(part or 0) for part in parts.groups()) if parts else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise BudgetError(f"--within {text} is not a time: give seconds (600), or hours and minutes (10m, 1h30m).")
    return total


def format_duration(seconds: float) -> str:
    """Formats seconds as "1h05m" or "9m40s"."""
    whole = math.ceil(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def with_frames(config: RunConfig, frame: float, seconds: float) -> RunConfig:
    """Shortens the recording so that it fits; the probe's windows and the numbers of labels shrink with it.

    `frame` is the time for a recorded frame, `seconds` the whole budget.
    """
    dispatch = CHUNK * config.record.num_envs
    full = config.record.frames
    fewest = min(full, _up(FEWEST_FRAMES, dispatch))
    frames = min(full, max(fewest, int(RECORDING * seconds / max(frame, 1e-9)) // dispatch * dispatch))
    if frames == full:
        return config
    windows = {name: getattr(config.analysis, name) for name in ("probe_train", "probe_test")}
    windows = {name: min(count, _up(max(1, count * frames // full), 128)) for name, count in windows.items()}
    information = config.analysis.information
    play = {name: getattr(information, name) for name in ("frames", "steps")}
    play = {name: -(-count * frames // full) for name, count in play.items()}
    labels = tuple(n for n in config.offline.labels if n <= frames // 4) or config.offline.labels[:1]
    return dataclasses.replace(
        config,
        record=dataclasses.replace(config.record, frames=frames),
        analysis=dataclasses.replace(config.analysis, **windows, information=dataclasses.replace(information, **play)),
        offline=_with_labels(config.offline, labels),
    )


def _with_labels(settings: offline.OfflineConfig, labels: tuple[int, ...]) -> offline.OfflineConfig:
    """Keeps only some numbers of labels; methods are compared at one that is left."""
    compared = settings.compare_at and (tuple(n for n in settings.compare_at if n in labels) or labels[-1:])
    return dataclasses.replace(settings, labels=labels, label_shares=(), compare_at=compared)


def _up(count: int, unit: int) -> int:
    """Rounds up to a multiple of `unit`."""
    return -(-count // unit) * unit


def _protocols(config: RunConfig) -> Iterator[RunConfig]:
    """The settings with the preset's evaluation, then with less and less of it."""
    yield config
    settings = config.offline
    for seeds in range(settings.seeds - 1, 0, -1):
        settings = dataclasses.replace(settings, seeds=seeds)
        yield dataclasses.replace(config, offline=settings)
    labels = settings.labels
    while len(labels) > 1:
        # The largest stays, because fits are padded to it, and so does the one for comparisons; the smallest goes last.
        kept = {labels[-1], *settings.compare_at[-1:]}
        spare = [n for n in labels if n not in kept]
        labels = tuple(n for n in labels if n != (spare[0] if spare else labels[0]))
        settings = _with_labels(settings, labels)
        yield dataclasses.replace(config, offline=settings)
    methods = tuple(method for method in settings.methods if method in ("policy", "bc"))
    settings = dataclasses.replace(settings, methods=methods, play=("sampled",))
    yield dataclasses.replace(config, offline=settings)
    settings = dataclasses.replace(settings, episodes=settings.num_envs)
    yield dataclasses.replace(config, offline=settings, eval_episodes=config.eval_envs)


def predict(config: RunConfig, rates: Rates) -> dict[str, float]:
    """Predicts the seconds of each stage on this machine; "spent" went into recording and measuring."""
    settings, ppo = config.offline, config.online.ppo

    def play(episodes: int, num_envs: int) -> float:
        return episodes // min(num_envs, episodes) * rates.episode

    evaluation = play(config.eval_episodes, config.eval_envs)

    def tests(steps: int) -> int:
        return -(-steps // config.analysis.eval_every)

    counts = offline.label_counts(settings, rates.windows)
    plans = [(method, plays) for count in counts for method, plays in offline.variants(settings, count).items()]
    cost = {"policy": rates.fit, "idm": rates.fit, "bc": settings.bc_steps * rates.bc_step}
    cost["relabel"] = rates.fit + (settings.relabel_steps or config.cloning.steps) * rates.cloning.step
    decoding = sum(cost[method] + len(plays) * play(settings.episodes, settings.num_envs) for method, plays in plans)
    players = len({(method == "bc", way) for method, plays in plans for way in plays})
    seconds = {
        "spent": rates.spent,
        "dynamics": rates.dynamics.start
        + config.dynamics.steps * rates.dynamics.step
        + tests(config.dynamics.steps) * rates.dynamics.test
        + rates.examine,
        "cloning": rates.windows * rates.latent
        + rates.cloning.start
        + config.cloning.steps * rates.cloning.step
        + (tests(config.cloning.steps) + 1) * rates.cloning.test,
        "nulls": 2 * (evaluation + rates.player),
        "decode_offline": rates.fit + settings.seeds * (rates.labels + decoding) + players * rates.player,
        "ppo_scratch": rates.scratch.start + config.scratch.ppo.num_updates * rates.scratch.step + evaluation,
        "decode_online": rates.online.start
        + ppo.num_updates * rates.online.step
        + decoder_steps(config) * rates.decoder_step
        + evaluation
        + rates.player,
    }
    if settings.oracle:
        training = config.cloning.steps * rates.cloning.step
        seconds["oracle"] = training + play(settings.episodes, settings.num_envs) + rates.player
    if config.named.frames:
        # PPO after a clone may take fewer passes over a rollout than PPO from scratch, so this is an upper bound too.
        seconds["decode_named"] = (
            config.named.frames * rates.frame
            + rates.fit
            + config.cloning.steps * rates.cloning.step
            + config.named.after.num_updates * rates.scratch.step
            + 2 * evaluation
        )
    return seconds


def decoder_steps(config: RunConfig) -> int:
    """The number of steps in all refits of the online decoder."""
    settings, ppo = config.online.decoder, config.online.ppo
    pairs = online.pairs_per_update(ppo, config.dynamics.window)
    capacity = min(settings.capacity, ppo.total_frames)
    return sum(
        online.fit_steps(settings, min(number * pairs, capacity), capacity)
        for number in range(1, ppo.num_updates + 1)
        if online.refits(config.online, number)
    )


@dataclasses.dataclass(frozen=True)
class _Lengths:
    """Steps of stages 1 and 2 and updates of PPO."""

    dynamics: int
    cloning: int
    ppo: int


def _with_lengths(config: RunConfig, lengths: _Lengths) -> RunConfig:
    """Sets the numbers of steps and updates, and everything that scales with them."""

    def stage(settings: Any, steps: int) -> Any:
        warmup = max(1, settings.warmup_steps * steps // settings.steps) if settings.warmup_steps else 0
        return dataclasses.replace(settings, steps=steps, warmup_steps=warmup)

    def frames(ppo: Any) -> Any:
        if lengths.ppo >= config.online.ppo.num_updates:
            return ppo
        share = lengths.ppo / config.online.ppo.num_updates
        updates = lengths.ppo if ppo.num_updates == config.online.ppo.num_updates else round(share * ppo.num_updates)
        return dataclasses.replace(ppo, total_frames=max(1, updates) * ppo.frames_per_update)

    share = lengths.ppo / config.online.ppo.num_updates
    decoder = _with_refits(config.online.decoder, share, lengths.ppo)
    play_frames, pseudo_ppo = config.named.frames, frames(config.named.ppo)
    if play_frames and share < 1:
        dispatch = CHUNK * pseudo_ppo.num_envs
        play_frames = max(dispatch, int(play_frames * share) // dispatch * dispatch)
    if play_frames >= pseudo_ppo.total_frames:
        pseudo_ppo = dataclasses.replace(pseudo_ppo, total_frames=play_frames + pseudo_ppo.frames_per_update)
    relabel = config.offline.relabel_steps
    relabel = relabel and max(1, relabel * lengths.cloning // config.cloning.steps)
    longest = max(lengths.dynamics, lengths.cloning)
    every = max(config.analysis.eval_every, 1)
    if -(-longest // every) > TESTS or every >= min(lengths.dynamics, lengths.cloning):
        every = _up(-(-longest // TESTS), config.log_every)
    return dataclasses.replace(
        config,
        dynamics=stage(config.dynamics, lengths.dynamics),
        cloning=stage(config.cloning, lengths.cloning),
        analysis=dataclasses.replace(config.analysis, eval_every=every),
        offline=dataclasses.replace(config.offline, relabel_steps=relabel),
        online=dataclasses.replace(config.online, ppo=frames(config.online.ppo), decoder=decoder),
        scratch=dataclasses.replace(config.scratch, ppo=frames(config.scratch.ppo)),
        named=dataclasses.replace(config.named, ppo=pseudo_ppo, frames=play_frames),
    )


def _with_refits(decoder: online.DecoderConfig, share: float, updates: int) -> online.DecoderConfig:
    """Keeps the number of refits close to the preset's, and refits after each of the first few updates."""
    if share >= 1:
        return decoder
    dense = min(1.0, max(decoder.dense_until, (DENSE + 0.5) / updates))
    return dataclasses.replace(
        decoder,
        start=min(decoder.start, 0.5 / updates),
        dense_until=dense,
        stop=max(decoder.stop, min(1.0, 2 * dense)),
        every=max(1, round(decoder.every * share)),
    )


def fit_budget(config: RunConfig, rates: Rates, seconds: float) -> RunConfig:
    """Shortens a run so that it ends within `seconds` on a machine of these rates, as the module describes.

    `config` holds the preset's settings. `seconds` is the whole time, including that of measuring.

    Returns:
      Settings whose `predict` adds up to at most `seconds`; no stage is longer than in `config`.

    Raises:
      BudgetError: if not even the shortest stages fit; the message says how much time they need.
    """
    oracle = config.offline.oracle
    config = _with_oracle(with_frames(config, rates.frame, seconds), False)
    if fitting := _fit(config, rates, seconds):
        whole = _with_oracle(fitting, oracle)
        return whole if sum(predict(whole, rates).values()) <= (1 - RESERVE) * seconds else fitting
    needed = seconds
    while _fit(config, rates, needed) is None:
        needed *= 1.05
    raise BudgetError(
        f"A run with these settings does not fit into {format_duration(seconds)} on this machine, where measuring "
        f"took {format_duration(rates.spent)}: give it {format_duration(needed)}, or choose smaller settings."
    )


def _with_oracle(config: RunConfig, oracle: bool) -> RunConfig:
    return dataclasses.replace(config, offline=dataclasses.replace(config.offline, oracle=oracle))


def _fit(config: RunConfig, rates: Rates, seconds: float) -> RunConfig | None:
    """As `fit_budget`, but None if nothing fits."""
    full = _Lengths(config.dynamics.steps, config.cloning.steps, config.online.ppo.num_updates)
    fewest = _Lengths(
        _fewest_steps(config.dynamics.steps, config.log_every),
        _fewest_steps(config.cloning.steps, config.log_every),
        min(full.ppo, FEWEST_UPDATES),
    )
    available = (1 - RESERVE) * seconds - rates.spent
    protocols = [(_playing(protocol, rates), protocol) for protocol in _protocols(config)]
    allowed = max(min(protocols[0][0], PLAYING * available), min(cost for cost, _ in protocols))
    config = next(protocol for cost, protocol in protocols if cost <= allowed)

    def training(lengths: _Lengths) -> float:
        candidate = _with_lengths(config, lengths)
        return sum(predict(candidate, rates).values()) - rates.spent - _playing(candidate, rates)

    budget = available - allowed
    lengths, least = fewest, training(fewest)
    if least > budget:
        return None
    # Each stage gets its share of the spare time; the next round shares out what stages did not use.
    growing = dict(SHARES)
    # Stages 1 and 2 end with a row of metrics, so that no shorter dispatch is compiled for their last steps.
    units = {"dynamics": config.log_every, "cloning": config.log_every, "ppo": 1}
    while growing and (spare := budget - training(lengths)) > 0:
        total, before = sum(growing.values()), lengths
        for name, share in list(growing.items()):
            now, most = getattr(lengths, name), getattr(full, name)

            def cost(count: int, name: str = name, others: _Lengths = lengths) -> float:
                return training(dataclasses.replace(others, **{name: count}))

            count = _most(cost, now, most, units[name], cost(now) + spare * share / total)
            lengths = dataclasses.replace(lengths, **{name: count})
            if count == most:
                growing.pop(name)
        if lengths == before:
            break
    return _with_lengths(config, lengths)


def _most(cost: Callable[[int], float], low: int, high: int, unit: int, limit: float) -> int:
    """The largest of low, low + unit, ..., high whose cost is within the limit, else `low`; costs rise."""
    if cost(high) <= limit:
        return high
    counts = range(low, high + 1, unit)
    return counts[max(0, bisect.bisect_right(counts, limit, key=cost) - 1)]


def _fewest_steps(steps: int, log_every: int) -> int:
    return min(steps, _up(max(4 * log_every, steps // FEWEST), log_every))


def _playing(config: RunConfig, rates: Rates) -> float:
    """Seconds of all evaluations."""
    seconds = predict(config, rates)
    finals = 2 * (config.eval_episodes // config.eval_envs) * rates.episode
    return seconds["nulls"] + seconds["decode_offline"] + finals + rates.player
