"""Stage 2 of a run: a policy over latent actions."""

import jax
import numpy as np

from lamjax import cloning, parallel
from lamjax.analysis import diagnosis, latents
from lamjax.analysis.held_out import cloning_error
from lamjax.cloning import CloningState
from lamjax.data.reader import Store
from lamjax.dynamics import DynamicsState
from lamjax.pipeline.windows import TrainingFrames, held_out_windows, train_on_windows
from lamjax.training import driver
from lamjax.training.run_folder import Run, Saver, restore, timed
from lamjax.training.steps import cloning_step, traced

_init = driver.jit_once(cloning.init, static_argnums=(1, 2, 3))


def cloning_stage(run: Run, store: Store, model: DynamicsState, frames: TrainingFrames | None = None) -> CloningState:
    """Trains the latent policy; without `frames` it uploads the training frames itself."""
    config, latent_dim = run.config.cloning, run.config.dynamics.latent_dim
    state = _init(run.key("cloning"), config.program, store.obs_shape, latent_dim, model.obs_stats)
    if run.done("cloning"):
        return restore(run, "cloning", state, Saver(config))[1]
    fuse = driver.steps_per_dispatch(config.trunk)
    # Each stage draws its windows in a different order.
    frames = frames or TrainingFrames(run, store)
    stream = frames.stream(config.batch_size, run.config.seed + 1, fuse)
    with timed() as passed:
        inferred = jax.device_put(frames.latents(model))
        infer_seconds = passed()
    held_out = held_out_windows(run, store)
    targets, _ = latents.latents_of_batches(model, held_out.batches)
    uploaded = jax.device_put(targets)

    def test(state: CloningState) -> dict[str, float]:
        return {"test_loss": cloning_error(parallel.on_one(state, run.devices), held_out.batches, uploaded)}

    state, seconds = train_on_windows(
        run,
        "cloning",
        cloning_step,
        state,
        stream,
        (inferred, traced(config.lengths)),
        config=config,
        fuse=fuse,
        static=(model.config.window,),
        evaluate=test,
        show=("loss", "test_loss"),
    )
    seconds += infer_seconds
    mse = cloning_error(state, held_out.batches, uploaded)
    mean_mse = float(np.mean(np.square(targets - targets.mean(0))))
    results = {
        "steps": config.steps,
        "windows_per_s": config.steps * config.batch_size / seconds,
        "seconds": seconds,
        "mse": mse,
        "null_mse": mean_mse,
        "ratio": mse / mean_mse,
    }
    run.finish("cloning", results | diagnosis.judge_cloning(results))
    return state
