"""Windows of a run's store: for training, and fixed sets for tests."""

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import parallel
from lamjax.data.format import Split
from lamjax.data.reader import Store
from lamjax.data.stream import EvaluationWindows, ObservationStream, StreamBesidePlay
from lamjax.dynamics import DynamicsState
from lamjax.pipeline.latents import infer_store
from lamjax.preprocess import ObsStats, obs_stats
from lamjax.training import driver
from lamjax.training.run_folder import Run, RunError, Saver, train

HELD_OUT_BATCH = 128  # the most windows in a batch of held-out ones


def training_stream(
    run: Run, store: Store, batch_size: int, seed: int, fuse: int, like: ObservationStream | None = None
) -> ObservationStream:
    """The training windows of the store, in the order of `seed`, for dispatches of `fuse` steps.

    It shares the frames that the stream `like` has already uploaded.
    """
    config = run.config
    return ObservationStream(
        store,
        batch_size=batch_size,
        seed=seed,
        mode="ring" if config.ring_frames else "resident",
        ring_frames=config.ring_frames,
        # Blocks change between dispatches, and so between rows of metrics if these cut dispatches short.
        align=fuse if config.log_every % fuse == 0 else config.log_every,
        mask_boundaries=config.analysis.mask_boundaries,
        length=config.dynamics.window,
        devices=buffer_devices(run),
        like=like,
    )


class TrainingFrames:
    """The training frames in device memory, and their latents, which stages share.

    The first stage that needs frames uploads them, and the first one that needs latents infers them. A ring never holds
    all frames, so with rings each stage has its own. Stages in several threads may ask.
    """

    def __init__(self, run: Run, store: Store):
        """Remembers the store; uploads nothing yet."""
        self.run, self.store = run, store
        self._uploading, self._inferring = threading.Lock(), threading.Lock()
        self._first: ObservationStream | None = None
        self._latents: tuple[DynamicsState, np.ndarray] | None = None

    def stream(self, batch_size: int, seed: int, fuse: int) -> ObservationStream:
        """As `training_stream`."""
        with self._uploading:
            stream = training_stream(self.run, self.store, batch_size, seed, fuse, self._first)
            if stream.steps_per_phase is None:
                self._first = stream
            return stream

    def latents(self, model: DynamicsState) -> np.ndarray:
        """The latents float32 ``[F, Z]`` that stage 1 infers for each frame (see `infer_store`), in host memory."""
        with self._inferring:
            if self._latents is None or self._latents[0] is not model:
                self._latents = model, self.infer(model)
            return self._latents[1]

    def infer(self, model: DynamicsState) -> np.ndarray:
        """Infers what `latents` keeps."""
        return infer_store(model, self.store, self.run.devices, check_stop=self.run.check_stop)

    def free(self) -> None:
        """Frees device memory, once no stage uses its stream any more."""
        self._first = None


def buffer_devices(run: Run) -> tuple[jax.Device, ...] | None:
    """The devices of buffers, or None for a single device, which needs no leading axis."""
    return run.devices if len(run.devices) > 1 else None


def evaluation_windows(
    run: Run, store: Store, num_windows: int, batch_size: int, split: Split = "test"
) -> EvaluationWindows:
    """A fixed set of windows, by default of the held-out levels."""
    masked, length = run.config.analysis.mask_probes, run.config.dynamics.window
    return EvaluationWindows(
        store, num_windows=num_windows, batch_size=batch_size, split=split, mask_boundaries=masked, length=length
    )


def held_out_windows(run: Run, store: Store) -> EvaluationWindows:
    """The windows of held-out levels on which every stage is tested."""
    count = run.config.analysis.probe_test
    return evaluation_windows(run, store, count, min(HELD_OUT_BATCH, count))


def training_stats(store: Store) -> ObsStats:
    """Statistics of the training levels that standardise observations; None for uint8."""
    if store.obs_dtype == np.uint8:
        return None
    obs = store.observations_at(store.starts("train", 1))
    if not np.isfinite(obs).all():
        raise RunError(f"{store.path} holds observations that are NaN or infinite: no network can learn from them.")
    return obs_stats(obs)


def train_on_windows(
    run: Run,
    name: str,
    step: Callable,
    state: Any,
    stream: ObservationStream | StreamBesidePlay,
    shared: tuple[Any, ...],
    *,
    config: Any,
    fuse: int,
    per_device: tuple[Any, ...] = (),
    static: tuple[Any, ...] = (),
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    show: tuple[str, ...] = (),
) -> tuple[Any, float]:
    """Trains a supervised stage on all devices of the run, from its newest checkpoint if there is one.

    Args:
      run: the open run.
      name: the stage's name in metrics and checkpoints.
      step: ``(state, buffer, *per_device, key, *shared, *static, axis_name=...)``, one of `lamjax.training.steps`.
      state: the state before its first step; it is not donated.
      stream: the windows.
      shared: arguments that are the same on all devices.
      config: the stage's settings, which a checkpoint must match.
      fuse: steps in a dispatch.
      per_device: arguments that differ between devices, with a leading axis of devices.
      static: static arguments of the compiled program.
      evaluate: returns metrics of a state; called every `eval_every` steps.
      show: the metrics that the progress line shows.

    Returns:
      The trained state on one device, and the seconds that steps took.
    """
    axes = (None, 0, *[0] * len(per_device), None, *[None] * len(shared))
    advance = driver.compile_steps(step, run.devices, axes, len(static))
    key, shared = parallel.replicate((stream.key, shared), run.devices)
    state, seconds = train(
        run,
        name,
        parallel.replicate(jax.tree.map(jnp.copy, state), run.devices),  # states are donated
        lambda state, position, n: advance(state, stream.buffer(position), *per_device, key, *shared, *static, n),
        config.steps,
        # All devices share the state, so it is saved once and replicated when it is restored.
        saver=Saver(config, unpack=lambda _, tree, host: parallel.replicate(tree, run.devices)),
        log_every=run.config.log_every,
        fuse=fuse,
        evaluate=evaluate,
        eval_every=run.config.analysis.eval_every,
        show=show,
    )
    return parallel.on_one(state, run.devices), seconds
