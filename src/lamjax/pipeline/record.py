"""Stage 0: records the trajectories that a run learns from."""

import time
from pathlib import Path

import jax

from lamjax.config import RecordConfig, RunConfig
from lamjax.data.reader import Store, open_store
from lamjax.data.record import record as write_store
from lamjax.pipeline.evaluation import make_env
from lamjax.pipeline.sources import Source
from lamjax.training import checkpoint
from lamjax.training.logging import Progress
from lamjax.training.run_folder import Run


def recording_name(source: str, config: RecordConfig, seed: int) -> str:
    """The name of a recording's store."""
    levels = f"-{config.distribution_mode}{config.num_levels}from{config.start_level}"
    plain = (config.distribution_mode, config.num_levels, config.start_level) == ("easy", 0, 0)
    name = f"{source}-{config.frames}-s{seed}" + ("" if plain else levels)
    name += f"-random{config.random_share:g}" if config.random_share else ""
    return name if config.distractor == "none" else f"{name}-{config.distractor}{config.distractor_strength:g}"


def record(
    path: Path,
    env_name: str,
    source: Source,
    config: RecordConfig,
    key: jax.Array,
    check_stop=lambda: None,
) -> None:
    """Records a policy into a new store at `path`.

    `check_stop` is called between dispatches; it stops the recording by raising an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    env = make_env(env_name, config.num_envs, RunConfig(record=config))
    progress = Progress(f"recording {env_name} ({source.kind})", config.frames, unit="frame")

    def tick(frames: int) -> None:
        progress.to(min(frames, config.frames))
        check_stop()

    provenance = {"kind": source.kind, **source.info, "random_share": config.random_share}
    assert source.policy is not None  # a store is not recorded
    try:
        write_store(
            path,
            env,
            source.policy,
            source.params,
            config.frames,
            key,
            source=provenance,
            random_share=config.random_share,
            progress=tick,
        )
    finally:
        progress.close()
        env.close()


def record_stage(run: Run, source: Source, data: Path) -> Store:
    """Opens the trajectories that the run learns from; records them first if they do not exist."""
    config = run.config.record
    path = source.store or data / run.env / recording_name(source.name, config, run.config.seed)
    start = time.monotonic()
    if not path.exists():
        record(path, run.env, source, config, run.key("record"), run.check_stop)
    store = open_store(path)
    if not run.done("record"):
        complete = store.episodes.returns[store.episodes.ending != "cut"]
        seconds = time.monotonic() - start
        run.finish(
            "record",
            {
                "store": str(path),
                "obs_shape": list(store.obs_shape),
                "action_space": store.action_space and checkpoint.as_json(store.action_space),
                "frames": store.num_frames,
                "episodes": len(store.episodes),
                "return_mean": float(complete.mean()) if len(complete) else None,
                "seconds": seconds,
                "frames_per_s": store.num_frames / seconds,
            },
        )
    return store
