"""Runs a step in its own process: ``python -m benchmarks.accelerator.steps JOB``, with JOB as JSON.

A step appends each measurement to a file at once, one JSON object per line, so that it survives if the step is stopped.
"""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import table
from benchmarks.accelerator import packing


@dataclasses.dataclass(frozen=True)
class Job:
    """The settings of a step.

    Attributes:
      step: the step's name.
      dry: tiny networks and few samples.
      results: the file it appends to.
      out: the folder of files that come back.
      work: a folder for everything else, which all steps share.
      expert_env: the environment whose expert is trained.
    """

    step: str
    dry: bool
    results: str
    out: str
    work: str
    expert_env: str

    def tell(self, **entries: Any) -> None:
        """Appends a row (``row=``) or facts by name."""
        from lamjax.training.run_folder import finite

        with open(self.results, "a") as file:
            file.write(json.dumps(finite(entries)) + "\n")

    def settings(self, dtype: str, batch: int | None = None, samples: int | None = None, **others: Any) -> Any:
        """The bench's settings of a row."""
        from benchmarks.settings import Settings

        batches = () if batch is None else (batch,)
        size, samples = ("smoke", 2) if self.dry else ("paper", samples)
        return Settings(size=size, dtype=dtype, batches=batches, samples=samples, **others)

    def measure(
        self, name: str, settings: Any, call: Callable[..., dict[str, Any]], *args: Any, **options: Any
    ) -> None:
        """Measures a row and appends it, or the reason why it failed."""
        try:
            row = call(*args, **options)
        except Exception as error:
            batch = settings.batches[0] if settings.batches else None
            row = table.failed(name, settings.size, batch, settings.dtype, error)
        self.tell(row=row)


def machine(job: Job) -> None:
    """Device, driver, versions, and the ceilings: copies and matrix products."""
    import flax
    import jaxlib
    import optax
    import orbax.checkpoint

    from benchmarks import measure
    from lamjax.training.provenance import git_hash

    libraries = {"jaxlib": jaxlib, "flax": flax, "optax": optax, "orbax": orbax.checkpoint}
    versions = measure.versions() | {name: module.__version__ for name, module in libraries.items()}
    device = measure.identity() | {"driver": _driver()}
    job.tell(device=device, versions=versions, git=git_hash())
    device |= measure.device()
    job.tell(
        device=device,
        float32_products={
            "relative_error": measure.matmul_error(),
            "gflops_highest": measure.matmul_flops("float32", "highest") / 1e9,
        },
    )


def _driver() -> str | None:
    """The NVIDIA driver's version."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.split("\n")[0].strip() or None


def gradients(job: Job) -> None:
    """Gradients in both types on this device, against float32 on the host's CPU."""
    import jax

    from benchmarks.accelerator import gradients

    preset = job.settings("float32").preset
    count = 4 if job.dry else 8
    try:
        windows = gradients.coinrun_windows(count)
    except Exception as error:
        job.tell(gradients_windows=f"random pixels, for want of coinrun ({table.sentence(error)})")
        windows = gradients.random_windows(count)
    problem = gradients.Problem.at_start(preset, windows)
    host, device = jax.devices("cpu")[0], jax.devices()[0]
    errors: dict[str, Any] = {}
    for stage in gradients.STAGES:
        try:
            reference = gradients.gradients(stage, problem, "float32", host)
            errors[stage] = {
                dtype: gradients.gradient_errors(reference, gradients.gradients(stage, problem, dtype, device))
                for dtype in ("float32", "bfloat16")
            }
        except Exception as error:
            errors[stage] = {"error": table.sentence(error)}
        job.tell(gradients=errors)


def _stages(job: Job, batch: int, names: tuple[str, ...] = ("stage1", "stage2")) -> None:
    from benchmarks import training

    for dtype in ("bfloat16", "float32"):
        for name in names:
            settings = job.settings(dtype, batch)
            job.measure(name, settings, training.row, name, settings, None)


def stages(job: Job) -> None:
    """Stages 1 and 2 at LAPO's batch."""
    _stages(job, 8 if job.dry else 128)


def large_batches(job: Job) -> None:
    """Stages 1 and 2 at four times that."""
    if job.dry:  # a CPU compiles stage 1 longest
        _stages(job, 16, ("stage2",))
    else:
        _stages(job, 512)


def procgen(job: Job) -> None:
    """Procgen without JAX, and calls of the host without Procgen."""
    from benchmarks.accelerator import acting

    for num_envs in (64, 256):
        settings = job.settings("float32", num_envs, 10)
        job.measure("procgen", settings, acting.native, settings, num_envs, 8 if job.dry else 200)
    for num_frames in (0, 64):
        settings = job.settings("float32", num_frames, 10)
        job.measure("callback", settings, acting.callbacks, settings, num_frames)


def acting(job: Job) -> None:
    """Rollouts in real coinrun, with one native batch and with two in turn, and whole updates."""
    from benchmarks.accelerator import acting

    settings = job.settings("bfloat16", samples=5)
    job.measure("stage3_acting", settings, acting.rollout, "stage3", settings, groups=1)
    job.measure("stage3_acting", settings, acting.rollout, "stage3", settings, groups=2)
    job.measure("stage3_update", settings, acting.online_update, settings)
    job.measure("ppo_update", settings, acting.scratch_update, settings)
    job.measure("ppo_acting", settings, acting.rollout, "ppo", settings, groups=1)
    job.measure("ppo_acting", settings, acting.rollout, "ppo", settings, groups=2)


def traces(job: Job) -> None:
    """Traces of two dispatches of stages 1 and 2."""
    from benchmarks import training
    from benchmarks.accelerator import trace

    summaries: dict[str, Any] = {}
    for name in ("stage1", "stage2"):
        folder = Path(job.work) / "traces" / name
        settings = job.settings("bfloat16", 8 if job.dry else 128, 2, profile=folder)
        try:
            training.row(name, settings, None)
            path = trace.newest(folder)
            summaries[name] = trace.summary(trace.read(path))
            job.tell(traces=summaries)
            packing.check_size(Path(shutil.copy(path, Path(job.out) / f"trace-{name}.json.gz")))
        except Exception as error:
            summaries[name] = {**summaries.get(name, {}), "error": table.sentence(error)}
            job.tell(traces=summaries)


def evaluation(job: Job) -> None:
    """Held-out errors of stage 1 as a run takes them, in a recording of random play."""
    settings = job.settings("bfloat16", samples=2)
    job.measure("held_out", settings, _held_out, job, settings)


def _held_out(job: Job, settings: Any) -> dict[str, Any]:
    import jax

    from benchmarks import loading, measure
    from benchmarks.settings import OBS
    from benchmarks.training import init_dynamics
    from lamjax.analysis.held_out import held_out_errors
    from lamjax.pipeline.windows import held_out_windows

    preset, start = settings.preset, time.perf_counter()
    # A tenth of the levels is held out.
    store = loading.random_play(Path(job.work) / "random_play", 4096 if job.dry else 12 * preset.analysis.probe_test)
    recorded = time.perf_counter()
    windows = held_out_windows(SimpleNamespace(config=preset, devices=tuple(jax.devices()[:1])), store)
    read = time.perf_counter()
    jax.block_until_ready(windows.batches)
    uploaded = time.perf_counter()
    state = init_dynamics(jax.random.key(0), preset.dynamics, OBS)
    held_out_errors(state, windows.batches)
    compiled = time.perf_counter()
    times = measure.milliseconds(lambda: held_out_errors(state, windows.batches)["fdm_mse"], settings.repeats)
    count = len(windows.starts)
    row = measure.row(
        *("held_out", settings.size, windows.batch_size, "windows/s", count, [(1, times)]),
        dtype=preset.dynamics.dtype,
        windows=count,
        recording_s=recorded - start,
        reading_s=read - recorded,
        uploading_s=uploaded - read,
    )
    return row | {"compile_s": compiled - uploaded}


def expert(job: Job) -> None:
    """Trains an expert until it is stopped, from where an earlier run left it."""
    import jax

    from lamjax import pipeline
    from lamjax.training.run_folder import InterruptedRunError

    env, runs = job.expert_env, Path(job.work) / "runs"
    preset, config = pipeline.choose_preset(env, "smoke" if job.dry else "paper")
    ppo = config.expert.ppo
    frames, before = ppo.frames_per_update, _trained(runs / env / "expert")
    report = {"env": env, "preset": preset, "frames_before": before[0] * frames}
    job.tell(**{job.step: report})
    try:
        # So many frames that a dry run does not finish.
        results = pipeline.train_expert(env, config, preset=preset, runs=runs, frames=10**8 if job.dry else None)
        report |= {"finished": True, "return_mean": results["return_mean"]}
    except InterruptedRunError:
        report |= {"finished": False}
    updates, seconds = (now - then for now, then in zip(_trained(runs / env / "expert"), before, strict=True))
    report |= {"frames": frames * updates, "seconds": seconds, "frames_per_s": frames * updates / max(seconds, 1e-9)}
    report |= {"devices": jax.device_count(), "metrics": _last_metrics(runs / env / "expert")}
    job.tell(**{job.step: report})


expert_again = expert  # in a dry run, after packing and unpacking


def _trained(run: Path) -> tuple[int, float]:
    """Updates of an expert's newest checkpoint, and the seconds they took."""
    from lamjax.training import checkpoint

    saved = checkpoint.restore_arrays(run / "checkpoints" / "expert")
    return (saved[0], saved[2]["meta"]["seconds"]) if saved else (0, 0.0)


def _last_metrics(run: Path) -> dict[str, Any]:
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    return json.loads(lines[-1]) if lines else {}


def hangs(job: Job) -> None:
    """Never ends: a dry run shows that it is stopped."""
    time.sleep(3600)


def fails(job: Job) -> None:
    """Raises an error: a dry run shows that it is reported."""
    raise RuntimeError("this step always fails")


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every step of every save
    job = Job(**json.loads(sys.argv[1]))
    globals()[job.step](job)
