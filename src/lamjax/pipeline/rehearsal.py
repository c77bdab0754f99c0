"""Rehearses a run to measure this machine's rates: sets its stages up and stops each after a few steps.

`Run.rehearse` replaces the training loop, so the rehearsal times the functions that the pipeline calls. The run does
not compile them again, because lengths are arguments of the compiled programs, or no part of them.
"""

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import numpy as np

from lamjax import budget, parallel
from lamjax.budget import Rates, StageRates
from lamjax.config import RunConfig
from lamjax.data.record import CHUNK
from lamjax.decoding import offline, online
from lamjax.dynamics import DynamicsState
from lamjax.envs.evaluate import CHUNK as PLAYED
from lamjax.envs.evaluate import evaluate
from lamjax.pipeline.cloning import cloning_stage
from lamjax.pipeline.dynamics import dynamics_stage, examine_dynamics, init_dynamics, prepare_information
from lamjax.pipeline.evaluation import make_env
from lamjax.pipeline.latents import BLOCK, infer_store
from lamjax.pipeline.offline import draw_labels, offline_policies
from lamjax.pipeline.record import record, record_stage
from lamjax.pipeline.reinforcement import online_stage, scratch_stage
from lamjax.pipeline.sources import Source
from lamjax.pipeline.windows import TrainingFrames, held_out_windows
from lamjax.training.run_folder import Run, stage_key

LONG_ENOUGH = 0.5  # seconds of steps that give a rate
MANY = 4  # a first dispatch this many times as long gives a rate itself: its one-off costs are then a small part
MOST = 20  # the most dispatches that give a rate
CHUNKS = 3  # dispatches of recording and evaluation; the first one compiles
LATENTS = 4  # blocks of windows whose latents are inferred
BC_STEPS = 4


class _EnoughError(Exception):
    """Stops a stage once it has been timed."""


@dataclasses.dataclass(frozen=True)
class _Timed:
    """A stage's rates and its state after a few steps."""

    rates: StageRates
    state: Any


class _FewLatents(TrainingFrames):
    """Training frames that infer only a few of the latents, the others are 0, and time them."""

    seconds = 0.0  # for a latent

    def infer(self, model: DynamicsState) -> np.ndarray:
        most = LATENTS * BLOCK * len(parallel.local(self.run.devices))
        most = min(most, self.store.num_frames - model.config.window + 1)
        with _stopwatch() as passed:
            latents = infer_store(model, self.store, self.run.devices, most=most)
        self.seconds = passed() / most
        return latents


class _Compilation:
    """The seconds that JAX has spent on tracing, lowering and compiling."""

    seconds = 0.0

    @classmethod
    @functools.cache  # a listener cannot be removed, so there is only one
    def listen(cls) -> None:
        def add(event: str, duration_secs: float, **_: str | int) -> None:
            if event.startswith("/jax/core/compile/"):
                cls.seconds += duration_secs

        jax.monitoring.register_event_duration_secs_listener(add)


@contextlib.contextmanager
def _stopwatch() -> Iterator[Callable[[], float]]:
    """Yields a function that returns the seconds since the block began, without the time for compilation."""
    _Compilation.listen()
    started, compiled = time.monotonic(), _Compilation.seconds
    # Never below 0: the compilation of a program that is traced inside another counts twice.
    yield lambda: max(0.0, time.monotonic() - started - (_Compilation.seconds - compiled))


def _rehearse(run: Run, stage: Callable[[], Any]) -> _Timed:
    """Sets a stage up, takes a few steps and stops it."""
    timed: list[_Timed] = []

    def steps(name: str, state: Any, advance: Callable, *, fuse: int, evaluate: Callable | None) -> None:
        start, n, position = seconds(), min(fuse, run.config.log_every), 0

        def dispatch() -> float:
            nonlocal state, position
            with _stopwatch() as passed:
                state, metrics = advance(state, position, n)
                jax.block_until_ready((state, metrics))
            position += n
            return passed()

        # The first dispatch also loads the program and allocates memory: it took 0.7 s for a step of 0.17 s.
        spent = [dispatch()]
        if spent[0] < MANY * LONG_ENOUGH:
            spent = []
            while sum(spent) < LONG_ENOUGH and len(spent) < MOST:
                spent.append(dispatch())
        test = 0.0
        if evaluate:
            evaluate(state)
            with _stopwatch() as passed:
                evaluate(state)
            test = passed()
        timed.append(_Timed(StageRates(start, sum(spent) / len(spent) / n, test), parallel.on_one(state, run.devices)))
        raise _EnoughError

    run.rehearse = steps
    with _stopwatch() as seconds, contextlib.suppress(_EnoughError):
        stage()
    return timed[0]


def measure(env: str, config: RunConfig, source: Source, seconds: float, data: Path) -> Rates:
    """Records the run's trajectories in `data` and measures the rates of its stages; call it on a single host.

    `seconds` is the whole budget. Returns the rates that `budget.fit_budget` needs; does not catch errors of stages.
    """
    started = time.monotonic()
    _Compilation.listen()
    compiled = _Compilation.seconds
    with tempfile.TemporaryDirectory(prefix="lamjax-") as folder:
        frame = 0.0 if source.store else _frame(env, config, source, Path(folder))
        config = budget.with_frames(config, frame, seconds)
        settings = dataclasses.replace(config, offline=dataclasses.replace(config.offline, bc_steps=BC_STEPS))
        header = {"env": env}
        with Run(Path(folder) / "run", env, settings, header, source.name) as run:
            store = record_stage(run, source, data)
            rates = _rates(run, store, data)
    spent = time.monotonic() - started
    return Rates(spent=spent, frame=frame, compile=_Compilation.seconds - compiled, **rates)


def _frame(env: str, config: RunConfig, source: Source, folder: Path) -> float:
    """Seconds for a recorded frame."""
    frames, key = CHUNK * config.record.num_envs, stage_key(config.seed, "record")
    few, some = (dataclasses.replace(config.record, frames=count * frames) for count in (1, CHUNKS))
    record(folder / "compiled", env, source, few, key)
    with _stopwatch() as passed:
        record(folder / "timed", env, source, some, key)
    return passed() / some.frames


def _rates(run: Run, store: Any, data: Path) -> dict[str, Any]:
    """The rates of every stage after the recording."""
    config, space = run.config, store.action_space
    untrained, frames = init_dynamics(run, store, data), _FewLatents(run, store)
    prepare_information(run, data)  # in `data`, where the run will look for it
    dynamics = _rehearse(run, lambda: dynamics_stage(run, store, frames, data))
    model = dynamics.state
    held_out = held_out_windows(run, store)
    with _stopwatch() as passed:
        examine_dynamics(run, store, untrained, model, held_out, data)
    examine = passed()
    frames.latents(model)  # now, so that stage 2's start does not count it
    cloning = _rehearse(run, lambda: cloning_stage(run, store, model, frames))
    policy = cloning.state
    frames.free()
    scratch = _rehearse(run, lambda: scratch_stage(run, "ppo_scratch", config.scratch))
    decoding = _rehearse(run, lambda: online_stage(run, model, policy))
    decoder_step, online_rates = _decoder(config, decoding, policy, space)
    episode, player = _play(run, store, config.scratch.agent(space), scratch.state.params)

    windows = len(store.starts("train", config.dynamics.window))
    count = offline.label_counts(config.offline, windows)[-1:]
    times = {"labels": 0.0, "fit": 0.0, "bc_step": 0.0}
    if count:
        with _stopwatch() as passed:
            labelled = draw_labels(run, store, model, policy, count[0], 0)
        times["labels"] = passed()
        cost = {}
        for method in ("policy", "bc"):
            candidate = offline.Candidate(0, count[0], method, ("sampled",))
            with _stopwatch() as passed:
                jax.block_until_ready(offline_policies(run, [candidate], labelled, model, policy, frames, space)[1])
            cost[method] = passed()
        times |= {"fit": cost["policy"], "bc_step": cost["bc"] / BC_STEPS}
    return {
        "windows": windows,
        "dynamics": dynamics.rates,
        "cloning": cloning.rates,
        "scratch": scratch.rates,
        "online": online_rates,
        "decoder_step": decoder_step,
        "examine": examine,
        "episode": episode,
        "player": player,
        "latent": frames.seconds,
        **times,
    }


def _decoder(config: RunConfig, decoding: _Timed, policy: Any, space: Any) -> tuple[float, StageRates]:
    """Seconds for a step of the online decoder, and the rates of online decoding without it."""
    settings, state = config.online.decoder, decoding.state
    if not settings.enabled:
        return 0.0, decoding.rates
    agent = online.make_agent(policy, config.online, space)
    key = jax.random.key(0)
    jax.block_until_ready(online.fit_decoder(key, state.pairs, agent, settings))
    with _stopwatch() as passed:
        jax.block_until_ready(online.fit_decoder(key, state.pairs, agent, settings))
    capacity = state.pairs.valid.shape[0]
    steps = online.fit_steps(settings, min(int(state.pairs.written), capacity), capacity)
    return passed() / max(steps, 1), decoding.rates


def _play(run: Run, store: Any, network: Any, params: Any) -> tuple[float, float]:
    """Seconds for an episode in each environment of an evaluation, and for compiling the evaluation."""
    config = run.config
    env = make_env(run.env, config.eval_envs, config)
    times: list[float] = []

    def tick(_: int) -> None:
        times.append(time.monotonic())
        if len(times) > CHUNKS:
            raise _EnoughError

    key = run.key("evaluation")
    before = _Compilation.seconds
    with contextlib.suppress(_EnoughError), contextlib.closing(env):
        evaluate(network, params, env, config.eval_episodes, key, progress=tick)
        times.append(time.monotonic())
    player = _Compilation.seconds - before
    # If all episodes end within one dispatch, its time includes compilation.
    chunk = float(np.median(np.diff(times)[1:])) if len(times) > 2 else max(0.0, times[-1] - times[0] - player)
    lengths = np.asarray(store.episodes.length)
    longest = getattr(env, "time_limit", None) or int(lengths.max())
    return chunk * longest / PLAYED, player
