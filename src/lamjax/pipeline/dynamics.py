"""Stage 1 of a run: trains latent dynamics by prediction and examines the model on held-out levels."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lamjax import dynamics, envs, parallel
from lamjax.analysis import diagnosis
from lamjax.analysis.action_probes import NoActions, action_probe
from lamjax.analysis.examine import Examined, examine
from lamjax.analysis.held_out import held_out_errors
from lamjax.data.labels import LabelledSubset, evaluation_actions, evaluation_distractor
from lamjax.data.reader import Store
from lamjax.data.stream import EvaluationWindows, ObservationStream, StreamBesidePlay, upload_labels
from lamjax.dynamics import DynamicsState
from lamjax.pipeline import information
from lamjax.pipeline.locator import agent_locator, untrained_locator
from lamjax.pipeline.windows import (
    TrainingFrames,
    buffer_devices,
    evaluation_windows,
    held_out_windows,
    train_on_windows,
    training_stats,
)
from lamjax.training import driver
from lamjax.training.logging import say
from lamjax.training.run_folder import Run, RunError, Saver, restore, timed
from lamjax.training.steps import dynamics_step, traced

init_model = driver.jit_once(dynamics.init, static_argnums=(1, 2, 4))


def init_dynamics(run: Run, store: Store, data: Path | None = None) -> DynamicsState:
    """Initialises stage 1, which also serves as the untrained baseline of probes. Only the seed decides how it starts.

    If its squares lie around the agent, a network learns first to find it; `data` is as of `dynamics_stage`.
    """
    return _initial(run, store, _locator(run, store, data))


def _initial(run: Run, store: Store, locator: Any) -> DynamicsState:
    """Stage 1 before its first step, with a network that finds the agent, if it needs one."""
    config, stats = run.config.dynamics.program, training_stats(store)
    return init_model(run.key("dynamics"), config, store.obs_shape, stats, store.action_space, locator)


def _locator(run: Run, store: Store, data: Path | None) -> Any:
    """The network that finds the agent, from random play or else the run's own recording; None if it is not needed."""
    config = run.config.dynamics
    if not config.finds_agent:
        return None
    play = random_play(run, data) if data is not None else None
    folder = play.path.with_name(f"{play.path.name}.locators") if play else run.folder / "locators"
    return agent_locator(config, play or store, training_stats(store), folder, run.check_stop)


def dynamics_stage(
    run: Run, store: Store, frames: TrainingFrames | None = None, data: Path | None = None
) -> DynamicsState:
    """Trains stage 1 and examines it on held-out levels.

    Without `frames`, it uploads the training frames itself. `data` is the folder of recordings, which also holds random
    play; without it, the action information is not measured.

    Raises:
      RunError: if the run needs random play but has none.
    """
    config = run.config.dynamics
    if run.done("dynamics"):  # the checkpoint holds the network that finds the agent as well
        template = _initial(run, store, untrained_locator(config, store.obs_shape))
        return restore(run, "dynamics", template, Saver(config))[1]
    untrained = init_dynamics(run, store, data)
    fuse = driver.steps_per_dispatch(config.idm, config.fdm)
    frames = frames or TrainingFrames(run, store)
    stream = beside_play(run, frames.stream(config.batch_size, run.config.seed, fuse), data)
    # With a weight of 0, stage 1 cannot read actions. With more, it reads only those of the labelled subset, and counts
    # them.
    num_labels = config.num_labelled(len(store.starts("train", config.window)))
    subset = LabelledSubset(store, num_labels, seed=run.config.seed, length=config.window) if num_labels else None
    labels = upload_labels(subset, buffer_devices(run)) if subset else None
    held_out = held_out_windows(run, store)

    def test(state: DynamicsState) -> dict[str, float]:
        errors = held_out_errors(parallel.on_one(state, run.devices), held_out.batches)
        return {"test_fdm_mse": errors["fdm_mse"], "test_fdm_ratio": errors["fdm_ratio"]}

    state, seconds = train_on_windows(
        run,
        "dynamics",
        dynamics_step,
        untrained,
        stream,
        (traced(config.lengths),),
        config=config,
        fuse=fuse,
        per_device=(labels,),
        evaluate=test,
        show=("fdm_mse", "test_fdm_ratio", "perplexity_0", "action_accuracy", "action_mse"),
    )
    results = {
        "steps": config.steps,
        "play_share": config.play_share,
        "labels": subset.labels_used if subset else 0,
        "windows_per_s": config.steps * config.batch_size / seconds,
        "seconds": seconds,
    }
    run.finish("dynamics", results | examine_dynamics(run, store, untrained, state, held_out, data))
    return state


def examine_dynamics(
    run: Run,
    store: Store,
    untrained: DynamicsState,
    state: DynamicsState,
    held_out: EvaluationWindows,
    data: Path | None = None,
) -> dict[str, Any]:
    """Measures stage 1 and its baselines; see `dynamics_stage`."""
    say("examining stage 1 on held-out levels")
    results = examine_on_recording(run, store, untrained, state, held_out)
    if data is not None and (play := random_play(run, data)):
        with timed() as seconds:
            results["action_information"] = information.measure(
                run.env, run.config.analysis, play, state, untrained, run.check_stop
            )
            results["information_seconds"] = seconds()
    return results | diagnosis.judge_dynamics(results)


def beside_play(run: Run, stream: ObservationStream, data: Path | None) -> ObservationStream | StreamBesidePlay:
    """Returns the stream; with `play_share`, combines it with random play on training levels."""
    config = run.config.dynamics
    if not config.play_share:
        return stream
    play = random_play(run, data) if data is not None else None
    if play is None:
        raise RunError(
            "dynamics.play_share needs random play, which a run on one host records in the environment for the action "
            "information: leave --dynamics.play-share at 0, or set --analysis.information.frames."
        )
    return StreamBesidePlay(
        stream, ObservationStream(play, batch_size=len(run.devices), length=config.window, devices=buffer_devices(run))
    )


def random_play(run: Run, data: Path) -> Store | None:
    """The recording of random play in `data`; None if there is no simulator or the run does not use random play."""
    if not run.config.analysis.information.frames or jax.process_count() > 1:
        return None
    try:
        return information.random_play(run.env, run.config, data, run.check_stop)
    except envs.ProcgenNotInstalledError:
        return None


def prepare_information(run: Run, data: Path) -> None:
    """Prepares what runs share to measure action information: the recording of random play, and the ceiling on it."""
    if play := random_play(run, data):
        locator = _locator(run, play, data)
        information.ceiling(run.env, run.config.analysis, play, run.config.dynamics, run.check_stop, locator)


def examine_on_recording(
    run: Run, store: Store, untrained: DynamicsState, state: DynamicsState, held_out: EvaluationWindows
) -> dict[str, Any]:
    """Measures stage 1 on the run's own trajectories, and writes the arrays that the report plots."""
    length = state.config.window
    fitting = evaluation_windows(run, store, run.config.analysis.probe_train, 1, "train")
    fit, test = (
        Examined(
            windows.windows,
            evaluation_actions(store, windows.starts, length),
            evaluation_distractor(store, windows.starts, length) if store.distractor_dim else None,
        )
        for windows in (fitting, held_out)
    )
    space, seed = store.action_space, run.config.seed
    probe = action_probe(run.env, space) if space is not None and store.has_actions else NoActions()
    results, arrays = examine(run.key("probe"), state, untrained, fit, test, held_out.batches, probe, seed)
    np.savez_compressed(run.folder / "analysis.npz", **dict[str, Any](arrays))
    return results
