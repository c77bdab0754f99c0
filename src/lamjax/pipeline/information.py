"""Measures the action information of stage 1 on random play (see `lamjax.analysis.action_information`).

Two parts are done once and kept in the data folder. The first run of an environment records random play, as a store
that later runs open. The ceiling is an inverse network trained on its actions. It depends only on that store and on the
inverse model's settings, not on the run's seed or on anything that stage 1 learned; its scores lie beside the store, in
a file whose name is a digest of both.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lamjax import dynamics, parallel
from lamjax.analysis import action_information, latents
from lamjax.analysis.action_information import WindowScores
from lamjax.analysis.action_probes import ActionProbe, action_probe
from lamjax.cloning import CloningConfig
from lamjax.config import AnalysisConfig, InformationConfig, RunConfig
from lamjax.data.format import Split
from lamjax.data.labels import evaluation_actions
from lamjax.data.reader import Store, open_store
from lamjax.data.stream import EvaluationWindows
from lamjax.decoding import supervised
from lamjax.decoding.behaviour_cloning import ActionState
from lamjax.dynamics import DynamicsConfig, DynamicsState
from lamjax.pipeline.evaluation import make_env
from lamjax.pipeline.labelled import train_on_labels
from lamjax.pipeline.record import record, recording_name
from lamjax.pipeline.sources import find_source
from lamjax.pipeline.windows import training_stats
from lamjax.preprocess import ObsStats
from lamjax.spaces import ActionSpace
from lamjax.training import checkpoint, driver
from lamjax.training.logging import say
from lamjax.training.run_folder import stage_key, write_json

MAX_IN_FLIGHT = 16
# Settings of stage 1 that do not affect the inverse network trained on actions. Fields that are not listed count.
_IRRELEVANT = (
    *("steps", "batch_size", "learning_rate", "warmup_steps", "weight_decay", "optimizer", "max_grad_norm"),
    *("fdm", "quantizer", "play_share", "augment", "augment_pixels", "focus_jitter", "loss_scale", "decorrelation"),
    *("action_weight", "labelled", "labelled_batch", "locator"),  # the network's parameters count instead
)

CheckStop = Callable[[], None]

_init = driver.jit_once(supervised.init, static_argnums=(1, 2, 3, 4))


class PlayWindows(NamedTuple):
    """Windows of random play in host memory ``[E, L, *obs_shape]``, with the target and the episode of each."""

    windows: np.ndarray
    targets: np.ndarray
    episodes: np.ndarray


def random_play(
    env: str, config: RunConfig, data: Path, check_stop: CheckStop, kind: str = "play", seed: int = 0
) -> Store:
    """Opens the recording of random play on a run's levels, under its distractor; records it first if needed.

    Args:
      env: the environment's name.
      config: the run's settings.
      data: the folder of recorded trajectories.
      check_stop: called between dispatches; it stops the recording by raising an error.
      kind: the beginning of the store's name; together with `seed` it determines the levels and actions.
      seed: see `kind`. Runs of all seeds share one recording.

    Returns:
      The store.

    Raises:
      ProcgenNotInstalledError: if the recording is missing and the game cannot be played.
    """
    information = config.analysis.information
    settings = dataclasses.replace(config.record, frames=information.frames, num_envs=information.num_envs)
    path = data / env / recording_name(kind, settings, seed)
    if not path.exists():
        space = make_env(env, 1, RunConfig(record=settings)).action_space
        record(path, env, find_source(env, "random", data, space), settings, stage_key(seed, kind), check_stop)
    return open_store(path)


def play_windows(
    env: str, settings: AnalysisConfig, play: Store, length: int
) -> tuple[ActionProbe, PlayWindows, PlayWindows]:
    """Returns how to score actions, the windows of `length` frames to fit probes on, and the held-out windows."""
    assert play.action_space is not None  # a recording has one
    probe = action_probe(env, play.action_space)

    def drawn(count: int, split: Split) -> PlayWindows:
        # Windows never cross an episode's end, whatever the run's setting: there the frames do not show the action.
        windows = EvaluationWindows(play, num_windows=count, batch_size=1, split=split, length=length)
        targets = probe.targets(evaluation_actions(play, windows.starts, length))
        return PlayWindows(windows.windows, targets, play.episodes.holding(windows.starts))

    return probe, drawn(settings.probe_train, "train"), drawn(settings.probe_test, "test")


def measure(
    env: str,
    settings: AnalysisConfig,
    play: Store,
    model: DynamicsState,
    untrained: DynamicsState,
    check_stop: CheckStop = lambda: None,
) -> dict[str, Any]:
    """Measures the action information of a model and of an untrained one, on held-out levels of random play.

    Returns:
      The results of `action_information.action_information`.
    """
    supervised_scores = ceiling(env, settings, play, model.config, check_stop, model.locator)
    probe, fit, test = play_windows(env, settings, play, model.config.window)

    def read(state: DynamicsState) -> np.ndarray:
        fit_z, test_z = (latents.latents_of(state, part.windows)[0] for part in (fit, test))
        guesses = probe.guess(jax.random.key(0), fit_z, fit.targets, test_z)
        return probe.scores(guesses, fit.targets, test.targets)

    guess = probe.constant_guess(fit.targets, len(test.targets))
    majority = probe.scores(guess, fit.targets, test.targets)
    scores = WindowScores(read(model), read(untrained), supervised_scores, majority)
    return action_information.action_information(scores, test.episodes)


def ceiling(
    env: str,
    settings: AnalysisConfig,
    play: Store,
    config: DynamicsConfig,
    check_stop: CheckStop,
    locator: Any = None,
) -> np.ndarray:
    """Scores ``[E]`` on held-out windows of `config`'s inverse network, which it trains on the actions of random play.

    The scores are kept in ``<store>.ceilings/<digest>.json``; a damaged file is written again. `locator` is as of
    `DynamicsState`.
    """
    inverse = {name: value for name, value in checkpoint.as_json(config).items() if name not in _IRRELEVANT}
    depends_on = {
        "store": play.manifest["sha256"],
        "inverse_model": inverse | {"latent_dim": config.latent_dim},
        "windows": [settings.probe_train, settings.probe_test],
        "training": {k: getattr(settings.information, k) for k in ("steps", "batch_size", "learning_rate")},
    }
    if config.finds_agent:
        depends_on["locator"] = _digest(locator)
    path = play.path.with_name(f"{play.path.name}.ceilings") / f"{checkpoint.note_digest(depends_on)[:16]}.json"
    with contextlib.suppress(FileNotFoundError, KeyError, ValueError):
        return np.asarray(json.loads(path.read_text())["scores"], np.float64)
    say(f"training an inverse network on the actions of random {env}, once for all runs")
    started = time.monotonic()
    probe, fit, test = play_windows(env, settings, play, config.window)
    stats = training_stats(play)
    if config.focus:  # each window is read several times, and its square is cut out once
        seen = functools.partial(_seen, config, stats, locator)
        fit, test = (part._replace(windows=latents.in_batches(seen, part.windows)) for part in (fit, test))
        config = config.uncut
    state = train_ceiling(settings.information, config, probe.target_space, fit, stats, check_stop)
    outputs = latents.in_batches(lambda batch: _apply(state, batch), test.windows)
    scores = probe.scores(np.asarray(probe.target_space.mode(outputs)), fit.targets, test.targets)
    path.parent.mkdir(exist_ok=True)
    note = {"depends_on": depends_on, "score": float(scores.mean()), "seconds": time.monotonic() - started}
    write_json(path, note | {"scores": scores.tolist()})
    return scores


def train_ceiling(
    settings: InformationConfig,
    config: DynamicsConfig,
    space: ActionSpace,
    fit: PlayWindows,
    stats: ObsStats,
    check_stop: CheckStop,
) -> ActionState:
    """Trains the inverse network of `config` on the targets of `fit`, elements of `space`, each once per epoch."""
    steps, batch = settings.steps, min(settings.batch_size, len(fit.targets))
    training = CloningConfig(steps, batch, settings.learning_rate, steps // 20, trunk=config.idm, dtype=config.dtype)
    state = _init(jax.random.key(0), config.program, training, space, fit.windows.shape[2:], stats)
    rng = np.random.default_rng(0)
    epochs = -(-steps * batch // len(fit.targets))
    rows = np.concatenate([rng.permutation(len(fit.targets)) for _ in range(epochs)])[: steps * batch]
    rows = rows.reshape(steps, batch).astype(np.int32)
    devices = parallel.devices()
    return train_on_labels(
        state, fit.windows, fit.targets, rows, devices, max_in_flight=MAX_IN_FLIGHT, check_stop=check_stop
    )


def _digest(tree: Any) -> str:
    """A digest of a tree's arrays."""
    arrays = checkpoint.flatten(tree)
    return hashlib.sha256(b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays))).hexdigest()[:16]


@functools.partial(jax.jit, static_argnums=0)
def _seen(config: DynamicsConfig, stats: ObsStats, locator: Any, windows: jax.Array) -> jax.Array:
    return dynamics.idm_windows(config, windows, stats, locator)


@jax.jit
def _apply(state: ActionState, windows: jax.Array) -> jax.Array:
    return state.agent(state.policy_params, windows)
