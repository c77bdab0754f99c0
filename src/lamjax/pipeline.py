"""The stages of a run in order, each resumable, each held against its nulls.

record -> dynamics (stage 1) -> cloning (stage 2) -> decode_offline, decode_online, decode_named (stage 3), ppo_scratch
-> report
"""

import dataclasses
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lamjax
from lamjax import cloning, dynamics, envs, experts, parallel, policies
from lamjax.analysis import diagnosis, latents, probes, report
from lamjax.analysis.held_out import cloning_error, held_out_errors, swapped_error
from lamjax.analysis.reading import reading_of
from lamjax.cloning import CloningState
from lamjax.config import RecordConfig, RunConfig, ScratchConfig
from lamjax.data.format import Split
from lamjax.data.labels import LabelledSubset, evaluation_actions, evaluation_distractor
from lamjax.data.reader import Store, open_store
from lamjax.data.record import record
from lamjax.data.stream import (
    Buffer,
    EvaluationWindows,
    Labels,
    ObservationStream,
    sample,
    sample_labelled,
    upload_labels,
)
from lamjax.decoding import behaviour_cloning, offline, online
from lamjax.dynamics import DynamicsState
from lamjax.envs.evaluate import evaluate_all, most_together
from lamjax.ppo import train as ppo
from lamjax.ppo.agent import ScratchAgent
from lamjax.ppo.train import PPOConfig, PPOState
from lamjax.preprocess import ObsStats, obs_stats
from lamjax.schedules import Lengths
from lamjax.spaces import ActionSpace, as_space
from lamjax.training import driver
from lamjax.training.logging import Progress, read_metrics
from lamjax.training.run_folder import Run, RunError, Saver, restore, timed, train, write_json

FUSE = 25  # optimizer steps in a dispatch where steps fuse
STRIPS = {1: 256, 3: 8}  # held-out predictions that are shown, by the rank of an observation
IMAGINED = 8
LABEL_SEEDS = 100_003  # between the seeds of two draws of labels: runs of neighbouring seeds share none
LABELS_USED = {
    "policy": "the policy decoded from",
    "idm": "the policy, by a decoder of the inverse model fitted on",
    "bc": "BC on",
    "relabel": "the policy cloned from actions that were named after",
}
SAVED_AS = {"policy": "offline", "relabel": "relabel"}  # the policies that are kept, of the first draw
ONLINE = {
    "decode_online": "the policy decoded online",
    "decode_named": "the policy named by random play, after PPO",
    "ppo_scratch": "PPO from scratch",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Who is recorded.

    Attributes:
      kind: "expert", "random" or "checkpoint"; "store" where there are trajectories and no policy.
      logits_fn: the policy.
      params: its first argument.
      info: provenance.
      digest: of the weights or trajectories, eight digits, for names; empty for the random policy.
      store: the trajectories, of kind "store".
    """

    kind: str
    logits_fn: Callable[[Any, jax.Array], jax.Array]
    params: Any
    info: dict[str, Any]
    digest: str = ""
    store: Path | None = None

    @property
    def name(self) -> str:
        """What tells this source from others."""
        return f"{self.kind}-{self.digest}" if self.digest else self.kind


def find_source(env: str, policy: str, runs: Path, space: ActionSpace | int) -> Source:
    """The policy called `policy`: "random", "expert" (shipped, or trained here), or a policy folder's path.

    Args:
      env: the environment's name.
      policy: the policy's.
      runs: where run folders lie.
      space: what the environment's actions are, or how many.

    Raises:
      PolicyError: if there is none.
    """
    if policy == "random":
        return Source("random", policies.uniform_logits(space), {}, {"actions": "uniform"})
    if policy == "expert":
        own = expert_folder(runs, env) / "policies" / "expert"
        folder = own if (own / "policy.json").exists() else experts.folder(env)
        logits_fn, params, info = policies.load_policy(own) if folder == own else experts.load(env)
    else:
        folder = Path(policy)
        logits_fn, params, info = policies.load_policy(folder)
    digest = hashlib.sha256((folder / "weights.npz").read_bytes()).hexdigest()[:8]
    return Source("expert" if policy == "expert" else "checkpoint", logits_fn, params, info, digest)


def store_source(env: str, path: Path, space: ActionSpace | int) -> Source:
    """Trajectories that are there already, as a source.

    Raises:
      RunError: if they are of another environment or have other actions.
      StoreError: if there is no store, or it is damaged.
    """
    store, space = open_store(path), as_space(space)
    if store.env != env or store.action_space != space:
        held = store.action_space or "continuous actions without bounds"
        raise RunError(
            f"{path} holds {store.env} with {held}, not {env} with {space}: use --env {store.env}, or another store."
        )
    info = {"store": str(path), **store.policy}
    return Source("store", policies.uniform_logits(space), {}, info, digest=store.manifest["sha256"][:8], store=path)


def has_expert(env: str, runs: Path) -> bool:
    """Whether "expert" can be recorded: shipped with the package, or trained here before."""
    own = expert_folder(runs, env) / "policies" / "expert"
    return any((folder / "policy.json").exists() for folder in (own, experts.folder(env)))


def expert_folder(runs: Path, env: str) -> Path:
    """Where an expert that was trained here lies."""
    return runs / env / "expert"


def make_env(name: str, num_envs: int, config: RunConfig, *, distracted: bool = True) -> envs.VectorEnv:
    """The environment under the run's level settings, and with its distractor unless `distracted` is False."""
    record_config = config.record
    params: dict[str, Any] = {}
    if distracted:
        params = {"distractor": record_config.distractor, "distractor_strength": record_config.distractor_strength}
    if name in envs.PROCGEN_GAMES:
        params |= {
            "num_levels": record_config.num_levels,
            "start_level": record_config.start_level,
            "distribution_mode": record_config.distribution_mode,
        }
    return envs.make(name, num_envs, **params)


def stage_key(config: RunConfig, stage: str) -> jax.Array:
    """A key of its own for each stage, from the run's seed."""
    tag = int.from_bytes(hashlib.sha256(stage.encode()).digest()[:4], "big") >> 1
    return jax.random.fold_in(jax.random.key(config.seed), tag)


def header(env: str, preset: str, name: str, command: str, config: RunConfig) -> dict[str, Any]:
    """What ``summary.json`` says of the run as a whole."""
    device = jax.devices()[0]
    versions = {module.__name__: module.__version__ for module in (jax, flax, optax, np)}
    return {
        "env": env,
        "preset": preset,
        "seed": config.seed,
        "name": name,
        "command": command,
        "git": git_hash(),
        "versions": {"lamjax": lamjax.__version__, "python": platform.python_version(), **versions},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.local_device_count()}
        | {"cpus": os.cpu_count()},
    }


def git_hash() -> str | None:
    """The commit of this checkout, or None outside of one and where git is not installed."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def returns_summary(env: str, returns: np.ndarray) -> dict[str, Any]:
    """Mean, standard error and count of episode returns, and the mean normalised where constants are known."""
    mean = float(returns.mean())
    stderr = float(returns.std(ddof=1) / np.sqrt(len(returns))) if len(returns) > 1 else float("nan")
    return {
        "return_mean": mean,
        "return_stderr": stderr,
        "episodes": len(returns),
        "normalised": envs.normalised_return(env, mean),
    }


def evaluate_policy(
    run: Run,
    label: str,
    logits_fn: Any,
    params: Any,
    *,
    episodes: int,
    num_envs: int,
    greedy: bool = False,
    distracted: bool = True,
) -> dict[str, Any]:
    """One policy: see `evaluate_policies`."""
    (results,) = evaluate_policies(
        run, label, logits_fn, [params], episodes=episodes, num_envs=num_envs, greedy=[greedy], distracted=distracted
    )
    return results


def evaluate_policies(
    run: Run,
    label: str,
    logits_fn: Any,
    params: list[Any],
    *,
    episodes: int,
    num_envs: int,
    greedy: list[bool],
    distracted: bool = True,
    draw: int = 0,
) -> list[dict[str, Any]]:
    """Plays fixed episodes on levels that depend on the run's seed and `draw` alone, the same for every policy.

    Args:
      run: the open run.
      label: what is evaluated, for the progress.
      logits_fn: of all policies.
      params: of each policy; they play side by side.
      episodes: of each.
      num_envs: environments of each.
      greedy: for each, whether it takes the most likely action.
      distracted: whether frames carry the run's distractor.
      draw: another number means other levels.
    """
    num_envs = min(num_envs, episodes)
    env = make_env(run.env, num_envs, run.config, distracted=distracted)
    wide = make_env(run.env, num_envs * len(params), run.config, distracted=distracted) if len(params) > 1 else None
    total = episodes * len(params)
    progress = Progress(f"evaluating {label}", total, unit="episode")

    def tick(finished: int) -> None:
        progress.to(finished)
        run.check_stop()

    key = stage_key(run.config, f"evaluation-{draw}" if draw else "evaluation")
    try:
        returns, _ = evaluate_all(logits_fn, params, env, episodes, key, greedy=greedy, wide=wide, progress=tick)
        progress.to(total)
    finally:
        progress.close()
        for opened in (env, wide):
            if opened is not None:
                opened.close()
    return [returns_summary(run.env, row) for row in returns]


# Recording


def recording_name(source: str, config: RecordConfig, seed: int) -> str:
    """What the store of a recording is called."""
    levels = f"-{config.distribution_mode}{config.num_levels}from{config.start_level}"
    plain = (config.distribution_mode, config.num_levels, config.start_level) == ("easy", 0, 0)
    name = f"{source}-{config.frames}-s{seed}" + ("" if plain else levels)
    return name if config.distractor == "none" else f"{name}-{config.distractor}{config.distractor_strength:g}"


def play(run: Run, path: Path, source: Source, frames: int, num_envs: int, key: jax.Array) -> None:
    """Records so many frames of a policy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    env = make_env(run.env, num_envs, run.config)
    progress = Progress(f"recording {run.env} ({source.kind})", frames, unit="frame")

    def tick(done: int) -> None:
        progress.to(min(done, frames))
        run.check_stop()

    try:
        record(
            path,
            env,
            source.logits_fn,
            source.params,
            frames,
            key,
            source={"kind": source.kind, **source.info},
            progress=tick,
        )
    finally:
        progress.close()
        env.close()


def record_stage(run: Run, source: Source, data: Path) -> Store:
    """Finds the recorded trajectories, or records them."""
    config = run.config.record
    path = source.store or data / run.env / recording_name(source.name, config, run.config.seed)
    start = time.monotonic()
    if not path.exists():
        play(run, path, source, config.frames, config.num_envs, stage_key(run.config, "record"))
    store = open_store(path)
    if not run.done("record"):
        complete = store.episodes.returns[store.episodes.ending != "cut"]
        seconds = time.monotonic() - start
        run.finish(
            "record",
            {
                "store": str(path),
                "frames": store.num_frames,
                "episodes": len(store.episodes),
                "return_mean": float(complete.mean()) if len(complete) else None,
                "seconds": seconds,
                "frames_per_s": store.num_frames / seconds,
            },
        )
    return store


# Stage 1


def _fuse(*networks: Any) -> int:
    return FUSE if driver.fuses_steps(*networks) else 1


def _scan(*networks: Any) -> Callable:
    return jax.lax.scan if driver.fuses_steps(*networks) else driver.host_scan


@functools.cache
def over(
    steps: Callable, devices: tuple[jax.Device, ...], in_axes: tuple[int | None, ...], static: int = 1
) -> Callable:
    """Compiles training steps for some devices, once for all runs.

    Args:
      steps: ``(state, ..., axis_name=...) -> (state, metrics)``; its first argument is donated.
      devices: where they run.
      in_axes: as for `parallel.map_step`.
      static: how many arguments after these are compiled in.
    """
    last = tuple(range(len(in_axes), len(in_axes) + static))
    return parallel.map_step(steps, devices, in_axes=in_axes, static_argnums=last, donate_argnums=(0,))


def _dynamics_steps(
    state: DynamicsState,
    buffer: Buffer,
    key: jax.Array,
    labels: Labels | None,
    lengths: Lengths,
    n: int,
    *,
    axis_name: str | None,
):
    """Takes n steps of stage 1 in one dispatch; `key` is the stream's, `labels` what it may know of actions."""
    place = parallel.place(axis_name)

    def step(state: DynamicsState):
        config = state.config
        labelled = None
        if labels is not None:
            labelled = sample_labelled(labels, key, state.step, config.labelled_batch, **place)
        windows = sample(buffer, key, state.step, config.batch_size, length=config.window, **place)
        return dynamics.train_step(state, windows, labelled, axis_name=axis_name, lengths=lengths)

    return driver.repeat(step, state, n)


def _cloning_steps(
    state: CloningState,
    buffer: Buffer,
    key: jax.Array,
    lengths: Lengths,
    model: DynamicsState,
    n: int,
    *,
    axis_name: str | None,
):
    """Takes n steps of stage 2 in one dispatch; `key` is the stream's."""
    place = parallel.place(axis_name)

    def step(state: CloningState):
        windows = sample(buffer, key, state.step, state.config.batch_size, length=model.config.window, **place)
        latents = dynamics.infer_latents(model, windows).continuous
        return cloning.train_step(state, windows[:, -2], latents, axis_name=axis_name, lengths=lengths)

    return driver.repeat(step, state, n)


def _traced(lengths: tuple[int, int]) -> Lengths:
    """Lengths as arguments of a compiled program, which then serves runs of every length."""
    return tuple(jnp.int32(length) for length in lengths)


def training_stream(
    run: Run, store: Store, batch_size: int, seed: int, fuse: int, like: ObservationStream | None = None
) -> ObservationStream:
    """The training windows of the store, in the order of `seed`, for dispatches of `fuse` steps; frames as `like`'s."""
    config = run.config
    return ObservationStream(
        store,
        batch_size=batch_size,
        seed=seed,
        mode="ring" if config.ring_frames else "resident",
        ring_frames=config.ring_frames,
        # Blocks change between dispatches, and where rows cut these short, between rows.
        align=fuse if config.log_every % fuse == 0 else config.log_every,
        mask_boundaries=config.analysis.mask_boundaries,
        length=config.dynamics.window,
        devices=_several(run.devices),
        like=like,
    )


class TrainingFrames:
    """The training frames in device memory: uploaded for the first stage that asks, kept for the next until `free`.

    In a ring, which never holds all of them, each stage has its own.
    """

    def __init__(self, run: Run, store: Store):
        """Uploads nothing yet."""
        self._run, self._store = run, store
        self._first: ObservationStream | None = None

    def stream(self, batch_size: int, seed: int, fuse: int) -> ObservationStream:
        """As `training_stream`."""
        made = training_stream(self._run, self._store, batch_size, seed, fuse, self._first)
        if made.steps_per_phase is None:
            self._first = made
        return made

    def free(self) -> None:
        """Gives the memory back, once no stage uses its stream any more."""
        self._first = None


def _several(devices: tuple[jax.Device, ...]) -> tuple[jax.Device, ...] | None:
    """What buffers take: None for one device, which needs no leading axis."""
    return devices if len(devices) > 1 else None


def _spread_saver(run: Run, config: Any) -> Saver:
    """Saves a state that all devices share, once, and lays it out on as many as there are when it is restored."""
    return Saver(config, unpack=lambda _, tree, host: parallel.replicate(tree, run.devices))


def evaluation_windows(
    run: Run, store: Store, num_windows: int, batch_size: int, split: Split = "test"
) -> EvaluationWindows:
    """A fixed set of windows, of the held-out levels unless another split is asked for."""
    masked, length = run.config.analysis.mask_probes, run.config.dynamics.window
    return EvaluationWindows(
        store, num_windows=num_windows, batch_size=batch_size, split=split, mask_boundaries=masked, length=length
    )


def held_out_windows(run: Run, store: Store) -> EvaluationWindows:
    """The windows of held-out levels that every stage is tested on."""
    count = run.config.analysis.probe_test
    return evaluation_windows(run, store, count, min(128, count))


_init_dynamics = driver.jit_once(dynamics.init, static_argnums=(1, 2, 4))


def training_stats(store: Store) -> ObsStats:
    """How the store's observations are standardised: by those of the training levels, unless they are uint8."""
    if store.obs_dtype == np.uint8:
        return None
    return obs_stats(store.observations_at(store.starts("train", 1)))


def init_dynamics(run: Run, store: Store) -> DynamicsState:
    """Stage 1 before its first step: the same for the same seed, and the probe's null."""
    key = stage_key(run.config, "dynamics")
    return _init_dynamics(key, run.config.dynamics.program, store.obs_shape, training_stats(store), store.action_space)


def dynamics_stage(run: Run, store: Store, frames: TrainingFrames | None = None) -> DynamicsState:
    """Trains stage 1 and examines it on held-out levels; `frames` are by default its own."""
    config = run.config.dynamics
    untrained = init_dynamics(run, store)
    if run.done("dynamics"):
        return restore(run, "dynamics", untrained, Saver(config))[1]
    fuse = _fuse(config.idm, config.fdm)
    stream = (frames or TrainingFrames(run, store)).stream(config.batch_size, run.config.seed, fuse)
    # Off, stage 1 has no door to actions at all; on, it knows those of the subset and counts them.
    num_labels = config.num_labelled(len(store.starts("train", config.window)))
    subset = LabelledSubset(store, num_labels, seed=run.config.seed, length=config.window) if num_labels else None
    labels = upload_labels(subset, _several(run.devices)) if subset else None
    held_out = held_out_windows(run, store)

    def test(state: DynamicsState) -> dict[str, float]:
        errors = held_out_errors(parallel.on_one(state, run.devices), held_out.batches)
        return {"test_fdm_mse": errors["fdm_mse"], "test_fdm_ratio": errors["fdm_ratio"]}

    advance = over(_dynamics_steps, run.devices, (None, 0, None, 0, None))
    key, lengths = parallel.replicate((stream.key, _traced(config.lengths)), run.devices)
    # The state is donated, so the untrained one is copied first: the probe's null needs it.
    state, seconds = train(
        run,
        "dynamics",
        parallel.replicate(jax.tree.map(jnp.copy, untrained), run.devices),
        lambda state, position, n: advance(state, stream.buffer(position), key, labels, lengths, n),
        config.steps,
        saver=_spread_saver(run, config),
        log_every=run.config.log_every,
        fuse=fuse,
        evaluate=test,
        eval_every=run.config.analysis.eval_every,
        show=("fdm_mse", "test_fdm_ratio", "perplexity_0", "action_accuracy", "action_mse"),
    )
    state = parallel.on_one(state, run.devices)
    results = {
        "steps": config.steps,
        "labels": subset.labels_used if subset else 0,
        "windows_per_s": config.steps * config.batch_size / seconds,
        "seconds": seconds,
    }
    run.finish("dynamics", results | examine_dynamics(run, store, untrained, state, held_out))
    return state


SWAPPED = 8  # batches of held-out windows whose latents are exchanged


def _still(windows: np.ndarray) -> np.ndarray:
    """Windows that show o_t in place of every frame; a view."""
    return np.broadcast_to(windows[:, -2:-1], windows.shape)


def examine_dynamics(
    run: Run, store: Store, untrained: DynamicsState, state: DynamicsState, held_out: EvaluationWindows
) -> dict[str, Any]:
    """Errors, codebook use and probes of stage 1, each beside its null; writes the arrays of the report's figures."""
    print("examining stage 1 on held-out levels", file=sys.stderr)
    reading = reading_of(run.env, store.action_space)
    fitting = evaluation_windows(run, store, run.config.analysis.probe_train, 1, "train")
    train_actions = evaluation_actions(store, fitting.starts, state.config.window)
    test_actions = evaluation_actions(store, held_out.starts, state.config.window)
    train_shown, test_shown = (
        evaluation_distractor(store, windows.starts, state.config.window) for windows in (fitting, held_out)
    )
    results: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    # The last null shows the untrained model o_t three times: what the recorded policy gives away by itself.
    for prefix, model, motion in (("", state, True), ("untrained_", untrained, True), ("still_", untrained, False)):
        train_z, _ = latents.latents_of(model, fitting.windows if motion else _still(fitting.windows))
        if motion:
            test_z, codes = latents.latents_of_batches(model, held_out.batches)
        else:
            test_z, codes = latents.latents_of(model, _still(held_out.windows))
        key = stage_key(run.config, "probe")
        read = reading.probe(key, train_z, train_actions, test_z, test_actions)
        results |= {prefix + name: value for name, value in read.items()}
        if prefix != "still_":
            if store.distractor_dim:
                read = probes.read_distractor(key, train_z, train_shown, test_z, test_shown)
                results |= {prefix + name: value for name, value in read.items()}
            arrays["latents_untrained" if prefix else "latents"] = test_z
        if not prefix:
            test_z_trained, test_codes = test_z, codes
    errors = held_out_errors(state, held_out.batches)
    counts = errors.pop("code_counts")
    shares = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    results |= errors | {
        "fdm_swapped_mse": swapped_error(state, held_out.batches[:SWAPPED]),
        **reading.constant(train_actions, test_actions),
        "codebook_perplexity": np.exp(-np.sum(shares * np.log(shares + 1e-10), -1)).tolist(),
        "dead_codes": (counts == 0).sum(-1).tolist(),
        "num_codes": counts.shape[-1],
        "quantized": state.config.quantizer.enabled,
        **reading.codes(test_codes, test_actions, run.config.seed),
    }
    if run.config.dynamics.action_weight:
        named = np.asarray(dynamics.predict_actions(state, jnp.asarray(test_z_trained)))
        results |= reading.head(named, test_actions)
    results |= diagnosis.judge_dynamics(results)

    shown = min(STRIPS[len(store.obs_shape)], len(held_out.windows))
    rows = np.random.default_rng(run.config.seed).choice(len(held_out.windows), shown, False)
    joint, first = latents.most_used(test_codes, IMAGINED)
    quantized = np.asarray(dynamics.infer_latents(state, jnp.asarray(held_out.windows[first])).quantized)
    arrays |= latents.strips(state, held_out.windows[rows]) | {
        **reading.arrays(test_actions),
        "code_counts": counts.astype(np.int64),
        "rollout_frames": latents.imagined_rollouts(state, held_out.windows[rows[0]][:-1], quantized),
        "rollout_labels": np.array([f"codes {' '.join(map(str, code.ravel()))}" for code in joint]),
    }
    np.savez_compressed(run.folder / "analysis.npz", **arrays)
    return results


# Stage 2


def cloning_stage(run: Run, store: Store, model: DynamicsState, frames: TrainingFrames | None = None) -> CloningState:
    """Clones the latent policy; `frames` are by default its own."""
    config = run.config.cloning
    state = driver.jit_once(cloning.init, static_argnums=(1, 2, 3))(
        stage_key(run.config, "cloning"),
        config.program,
        store.obs_shape,
        run.config.dynamics.latent_dim,
        model.obs_stats,
    )
    if run.done("cloning"):
        return restore(run, "cloning", state, Saver(config))[1]
    fuse = _fuse(config.trunk, run.config.dynamics.idm)
    stream = (frames or TrainingFrames(run, store)).stream(config.batch_size, run.config.seed + 1, fuse)
    held_out = held_out_windows(run, store)
    targets, _ = latents.latents_of_batches(model, held_out.batches)
    uploaded = jax.device_put(targets)

    def test(state: CloningState) -> dict[str, float]:
        return {"test_loss": cloning_error(parallel.on_one(state, run.devices), held_out.batches, uploaded)}

    advance = over(_cloning_steps, run.devices, (None, 0, None, None, None))
    shared = parallel.replicate((stream.key, _traced(config.lengths), model), run.devices)
    state, seconds = train(
        run,
        "cloning",
        parallel.replicate(state, run.devices),
        lambda state, position, n: advance(state, stream.buffer(position), *shared, n),
        config.steps,
        saver=_spread_saver(run, config),
        log_every=run.config.log_every,
        fuse=fuse,
        evaluate=test,
        eval_every=run.config.analysis.eval_every,
        show=("loss", "test_loss"),
    )
    state = parallel.on_one(state, run.devices)
    mse = test(state)["test_loss"]
    null = float(np.mean(np.square(targets - targets.mean(0))))
    results = {
        "steps": config.steps,
        "windows_per_s": config.steps * config.batch_size / seconds,
        "seconds": seconds,
        "mse": mse,
        "null_mse": null,
        "ratio": mse / null,
    }
    run.finish("cloning", results | diagnosis.judge_cloning(results))
    return state


_predict_latents = jax.jit(cloning.predict_latents)


def policy_latents(state: CloningState, obs: np.ndarray) -> np.ndarray:
    """What the latent policy says at observations ``[E, *obs_shape]``: float32 ``[E, Z]``."""
    batch = latents.BATCH
    padded = np.concatenate([obs, obs[:1].repeat(-len(obs) % batch, 0)])
    pieces = [_predict_latents(state, padded[i : i + batch]) for i in range(0, len(padded), batch)]
    return np.concatenate(jax.device_get(pieces))[: len(obs)]


# Nulls that the third stage is held against


def nulls_stage(run: Run, source: Source, space: ActionSpace | int) -> None:
    """Returns of the random policy and of the recorded one, over the run's own evaluation levels."""
    for name, logits_fn, params in (
        ("random_return", policies.uniform_logits(space), {}),
        ("expert_return", source.logits_fn, source.params),
    ):
        if name in run.summary["nulls"] or (name == "expert_return" and source.kind in ("random", "store")):
            continue
        label = "the random policy" if name == "random_return" else f"the recorded policy ({source.kind})"
        # The demonstrator is measured on what it demonstrated on: frames without a distractor.
        found = evaluate_policy(
            run,
            label,
            logits_fn,
            params,
            episodes=run.config.eval_episodes,
            num_envs=64,
            distracted=name != "expert_return",
        )
        run.summary["nulls"][name] = {
            "mean": found["return_mean"],
            "stderr": found["return_stderr"],
            "episodes": found["episodes"],
        }
        run.write_summary()


# Stage 3, offline


@dataclasses.dataclass(frozen=True)
class Labelled:
    """One draw of labelled windows, and what the models say of them.

    Attributes:
      draw: its number.
      obs: o_t, ``[L, *obs_shape]``, in device memory.
      actions: ``[L, *space.shape]``.
      latents: float32 ``[L, Z]`` of o_t by the "policy", and of the windows by the "idm" where it is decoded too.
    """

    draw: int
    obs: jax.Array
    actions: np.ndarray
    latents: dict[str, np.ndarray]


def draw_labels(run: Run, store: Store, model: DynamicsState, policy: CloningState, count: int, draw: int) -> Labelled:
    """Draws `count` labelled windows; fewer labels of the same draw are its first ones."""
    seed = run.config.seed + LABEL_SEEDS * draw
    subset = LabelledSubset(store, count, seed=seed, length=model.config.window)
    windows = subset.windows()
    obs = np.ascontiguousarray(windows[:, -2])
    found = {"policy": policy_latents(policy, obs)}
    if {"idm", "relabel"} & set(run.config.offline.methods):
        found["idm"], _ = latents.latents_of(model, windows)
    return Labelled(draw, jax.device_put(obs), subset.actions, found)


def offline_stage(
    run: Run,
    store: Store,
    model: DynamicsState,
    policy: CloningState,
    space: ActionSpace,
    frames: TrainingFrames | None = None,
) -> None:
    """Decodes by the protocol of `offline`: every method, at every number of labels, on every draw of them.

    Policies are made and evaluated in chunks; what a chunk measured is in the summary before the next one begins.
    """
    config = run.config.offline
    if run.done("decode_offline"):
        return
    frames = frames or TrainingFrames(run, store)
    with timed() as seconds:
        available = len(store.starts("train", model.config.window))
        counts = offline.label_counts(config, available)
        if not counts:
            raise RunError(f"The store has {available} labelled windows, fewer than any of --offline.labels.")
        partial = run.summary.setdefault("partial", {}).setdefault("decode_offline", {"by_seed": {}})
        by_seed: dict[str, list[list[float]]] = partial["by_seed"]
        labelled = functools.lru_cache(1)(lambda draw: draw_labels(run, store, model, policy, counts[-1], draw))
        for chunk in offline.chunks(offline.candidates(config, counts, by_seed), most_together(config.num_envs)):
            draw = chunk[0].draw
            network, params = offline_policies(run, chunk, labelled(draw), model, policy, frames, space)
            plays = [(one, play, p) for one, p in zip(chunk, params, strict=True) for play in one.plays]
            measured = evaluate_policies(
                run,
                f"{LABELS_USED[chunk[0].method]} {chunk[0].count} labels" + (" and others" if len(plays) > 1 else ""),
                policies.Logits(network),
                [p for _, _, p in plays],
                episodes=config.episodes,
                num_envs=config.num_envs,
                greedy=[play == "greedy" for _, play, _ in plays],
                draw=draw,
            )
            for (one, play, p), result in zip(plays, measured, strict=True):
                if (play, draw) == ("sampled", 0) and one.method in SAVED_AS:
                    folder = run.folder / "policies" / f"{SAVED_AS[one.method]}-{one.count}"
                    policies.save_policy(folder, network, p, result)
                rows = by_seed.setdefault(offline.curve_name(one.method, play), [])
                rows.append([one.count, draw, result["return_mean"], result["return_stderr"]])
            partial |= {name: offline.over_seeds(rows) for name, rows in by_seed.items()}
            run.write_summary()
            run.check_stop()
        results = {
            "curve": [],
            "bc_curve": [],
            **partial,
            "seeds": config.seeds,
            "stderr_over": "seeds" if config.seeds > 1 else "episodes",
            "episodes": config.episodes,
            "seconds": seconds(),
            "normalised": [[n, envs.normalised_return(run.env, mean)] for n, mean, _ in partial["curve"]],
        }
    run.summary.pop("partial")
    run.finish("decode_offline", results | diagnosis.judge_offline(results, run.summary["nulls"]))


def offline_policies(
    run: Run,
    chunk: list[offline.Candidate],
    labelled: Labelled,
    model: DynamicsState,
    policy: CloningState,
    frames: TrainingFrames,
    space: ActionSpace,
) -> tuple[policies.Network, list[Any]]:
    """The policies of a chunk, made of the first labels of a draw: their network, and the parameters of each."""
    config = run.config.offline
    keys = [jax.random.fold_in(stage_key(run.config, "offline"), one.count) for one in chunk]
    if labelled.draw:
        keys = [jax.random.fold_in(key, labelled.draw) for key in keys]
    fitted = [place for place, one in enumerate(chunk) if one.method != "bc"]
    decoders = {}
    if fitted:
        stacked, _ = offline.fit_all(
            jnp.stack([keys[place] for place in fitted]),
            np.stack([labelled.latents["policy" if chunk[place].method == "policy" else "idm"] for place in fitted]),
            np.stack([labelled.actions] * len(fitted)),
            config.program,
            space,
            np.array([chunk[place].count for place in fitted], np.int32),
        )
        decoders = {place: jax.tree.map(lambda x, row=row: x[row], stacked) for row, place in enumerate(fitted)}
    if chunk[0].is_decoded:
        network = policies.DecodedPolicy(policy.config.trunk, policy.latent_dim, space, config.program)
        return network, [policies.decoded_params(policy, decoders[place]) for place in fitted]
    made = []
    for place, (one, key) in enumerate(zip(chunk, keys, strict=True)):
        if one.method == "bc":
            made.append(clone_actions(run, key, labelled.obs, labelled.actions, one.count, space, policy.obs_stats))
        else:
            name, obs_shape = f"relabel-{one.count}-{one.draw}", labelled.obs.shape[1:]
            stream = frames.stream(
                run.config.cloning.batch_size,
                run.config.seed + 2,
                _fuse(run.config.cloning.trunk, model.config.idm),
            )
            made.append(relabel(run, name, key, model, decoders[place], stream, obs_shape, space))
    return made[0][0], [params for _, params in made]


_init_actions = driver.jit_once(behaviour_cloning.init, static_argnums=(1, 2, 3, 4))
_clone_steps = jax.jit(behaviour_cloning.clone_steps, static_argnames="n", donate_argnums=0)


def clone_actions(
    run: Run,
    key: jax.Array,
    obs: jax.Array,
    taken: np.ndarray,
    count: int,
    space: ActionSpace,
    stats: ObsStats = None,
) -> tuple[ScratchAgent, Any]:
    """Behaviour cloning from scratch on the first `count` labelled observations (standardised by `stats`).

    It is offline decoding's null.
    """
    config, steps = run.config.cloning, run.config.offline.bc_steps
    # The learning rate stays at its peak here, so lengths do not matter.
    state = _init_actions(key, config.program, space, obs.shape[1:], False, stats)
    rng = np.random.default_rng(run.config.seed)
    rows = np.array([rng.integers(count, size=config.batch_size) for _ in range(steps)], np.int32)
    labels = jax.device_put((obs, taken, rows))  # of one size for all counts, so that steps compile once
    fuse = _fuse(config.trunk)
    for number, first in enumerate(range(0, steps, fuse)):
        state, _ = _clone_steps(state, *labels, min(fuse, steps - first))
        if number % run.config.max_in_flight == 0:
            jax.block_until_ready(state)
            run.check_stop()
    return state.agent, state.policy


def _named_steps(
    state: behaviour_cloning.ActionState,
    buffer: Buffer,
    key: jax.Array,
    model: DynamicsState,
    decoder: Any,
    config: offline.OfflineConfig,
    n: int,
    *,
    axis_name: str | None,
):
    """Takes n steps of cloning named actions in one dispatch; `key` is the stream's."""
    place = parallel.place(axis_name)

    def step(state: behaviour_cloning.ActionState):
        windows = sample(buffer, key, state.step, state.config.batch_size, length=model.config.window, **place)
        named = behaviour_cloning.name_actions(model, decoder, windows, config, state.agent.space)
        return behaviour_cloning.train_step(state, windows[:, -2], named, axis_name=axis_name)

    return driver.repeat(step, state, n)


def relabel(
    run: Run,
    name: str,
    key: jax.Array,
    model: DynamicsState,
    decoder: Any,
    stream: ObservationStream,
    obs_shape: tuple[int, ...],
    space: ActionSpace,
) -> tuple[ScratchAgent, Any]:
    """LAPO+'s second half: the decoded inverse model names every training window's action, and a policy clones them."""
    config, settings = run.config.cloning, run.config.offline
    advance = over(_named_steps, run.devices, (None, 0, None, None, None), 2)
    state = _init_actions(key, config, space, obs_shape, True, model.obs_stats)
    state, *shared = parallel.replicate((state, stream.key, model, decoder), run.devices)
    state, _ = train(
        run,
        name,
        state,
        lambda state, position, n: advance(state, stream.buffer(position), *shared, settings, n),
        config.steps,
        saver=_spread_saver(run, config),
        log_every=run.config.log_every,
        fuse=_fuse(config.trunk, model.config.idm),
        show=("loss", state.agent.space.score_name),
    )
    state = parallel.on_one(state, run.devices)
    return state.agent, state.policy


# Stage 3, online, and PPO from scratch


def ppo_share(run: Run, config: PPOConfig, option: str) -> int:
    """How many environments each device plays.

    Raises:
      ValueError: if the settings, which the command line calls `option`, do not divide by the devices.
    """
    each = parallel.share(config.num_envs, run.devices, f"{option}.num-envs")
    if each * config.num_steps % (config.num_minibatches * config.grad_chunks):
        raise ValueError(
            f"{option}: the {each} environments of a device, times num-steps ({config.num_steps}), do not divide into "
            f"num-minibatches * grad-chunks ({config.num_minibatches} * {config.grad_chunks}): lower one of these."
        )
    return each


def _ppo_saver(run: Run, config: Any, env: envs.VectorEnv, get: Callable[[Any], PPOState], put: Callable) -> Saver:
    """Saves the native environments beside the state: a handle means nothing in another process.

    A checkpoint has one form on any number of devices, the environments of all of them joined.
    """
    count = len(run.devices)

    def pack(state: Any) -> tuple[Any, dict[str, np.ndarray]]:
        inner = get(state)
        actors = parallel.collected(inner.actor, run.devices)
        host = envs.join_states([env.get_state(actor.env) for actor in actors])
        actors = jax.device_get([actor.replace(env=None) for actor in actors])
        # All environments' entries, and of the reward scale's moments, which are equal, the first.
        actor = jax.tree.map(lambda *parts: np.concatenate(parts) if parts[0].ndim else parts[0], *actors)
        return put(state, inner.replace(actor=actor)), host

    def unpack(_: Any, tree: Any, host: dict[str, np.ndarray]) -> Any:
        inner = get(tree)
        actors = [
            jax.tree.map(lambda x, part=part: jnp.split(x, count)[part] if x.ndim else x, inner.actor).replace(
                env=env.set_state(saved)
            )
            for part, saved in enumerate(envs.split_state(host, count))
        ]
        shared = parallel.replicate(put(tree, inner.replace(actor=None)), run.devices)
        return put(shared, get(shared).replace(actor=parallel.deal(actors, run.devices)))

    return Saver(config, pack, unpack)


def _curve(run: Run, stage: str, before: int) -> list[list[float]]:
    """(frames, return) of the training episodes, from the rows of metrics, which leave out frames spent `before`."""
    rows = read_metrics(run.folder / "metrics.jsonl").get(stage, {})
    returns = {before + step: row.get("episode_return") for step, row in rows.items()}
    return [[frames, value] for frames, value in returns.items() if value is not None]


def online_stage(run: Run, model: DynamicsState, policy: CloningState) -> None:
    """Decodes the latent policy by PPO."""
    config = run.config.online
    if run.done("decode_online"):
        return
    env = make_env(run.env, ppo_share(run, config.ppo, "--online.ppo"), run.config)
    scan = _scan(policy.config.trunk)
    agent = online.make_agent(policy, config, env.action_space)
    state = online.init(stage_key(run.config, "online"), config, policy, env, run.devices)
    shown = parallel.replicate(model, run.devices)
    state, seconds = train(
        run,
        "decode_online",
        state,
        lambda state, position, n: online.update(state, shown, agent, env, scan=scan, devices=run.devices),
        config.ppo.num_updates,
        saver=_ppo_saver(run, config, env, lambda s: s.ppo, lambda s, inner: s.replace(ppo=inner)),
        unit=config.ppo.num_envs * config.ppo.num_steps,
        unit_name="frame",
        show=("episode_return", f"decoder_{env.action_space.score_name}"),
    )
    env.close()
    params = parallel.on_one({"params": state.ppo.params, "frozen": state.frozen}, run.devices)
    counts = {}
    if config.decoder.enabled:
        counts["decoder_fits"] = sum(online.refits(config, number + 1) for number in range(config.ppo.num_updates))
    _finish_ppo(run, "decode_online", agent, params, config.ppo.num_updates, config.ppo, seconds, **counts)


def named_stage(run: Run, store: Store, model: DynamicsState, space: ActionSpace) -> None:
    """Random play labels windows of its own, these name the recording's actions, and a clone of them goes on by PPO."""
    config, stage = run.config.named, "decode_named"
    if not config.frames or run.done(stage):
        return
    folder = run.folder / "policies" / "named"
    if not (folder / "policy.json").exists():
        with timed() as seconds:
            network, params = named_policy(run, store, model, space)
            label = "the policy cloned from actions that random play named"
            found = evaluate_policy(
                run, label, policies.Logits(network), params, episodes=run.config.eval_episodes, num_envs=64
            )
        frames = open_store(run.folder / "play").num_frames  # a dispatch's more than were asked for, at most
        info = {"env": run.env, "stage": "named", "frames": frames, "seconds": seconds()}
        policies.save_policy(folder, network, params, info | found)
    start = find_source(run.env, str(folder), run.folder, space)
    trained = ScratchConfig(run.config.cloning.trunk, config.after, run.config.cloning.dtype)
    scratch_stage(run, stage, trained, start, start.info["frames"])


def named_policy(run: Run, store: Store, model: DynamicsState, space: ActionSpace) -> tuple[ScratchAgent, Any]:
    """The policy that `named_stage` starts from, and its parameters."""
    config, key, length = run.config, stage_key(run.config, "named"), model.config.window
    path = run.folder / "play"
    if not path.exists():
        uniform = find_source(run.env, "random", run.folder, space)
        play(run, path, uniform, config.named.frames, config.named.ppo.num_envs, key)
    played = open_store(path)
    labelled = LabelledSubset(played, len(played.starts("all", length)), split="all", length=length)
    decoder, _ = offline.fit(
        key, latents.latents_of(model, labelled.windows())[0], labelled.actions, config.offline, space
    )
    fuse = _fuse(config.cloning.trunk, model.config.idm)
    stream = training_stream(run, store, config.cloning.batch_size, config.seed + 2, fuse)
    return relabel(run, "named", key, model, decoder, stream, store.obs_shape, space)


def scratch_stage(run: Run, stage: str, config: ScratchConfig, start: Source | None = None, before: int = 0) -> None:
    """Trains PPO from scratch: the null of online decoding, or an expert.

    Args:
      run: the run.
      stage: what it is called.
      config: the settings.
      start: a policy whose weights are the first ones.
      before: environment frames that were spent before.

    Raises:
      RunError: if the weights of `start` are those of another network.
    """
    if run.done(stage):
        return
    option = {"expert": "--expert.ppo", "decode_named": "--named.ppo"}.get(stage, "--scratch.ppo")
    env, scan = make_env(run.env, ppo_share(run, config.ppo, option), run.config), _scan(config.trunk)
    agent = config.agent(env.action_space)
    key_params, key = jax.random.split(stage_key(run.config, stage))
    if start is None:
        params = driver.jit_once(agent.init, static_argnums=1)(key_params, env.obs_shape)
    else:
        plain = dataclasses.replace(agent, dtype=jnp.float32)  # files of policies do not tell
        if getattr(start.logits_fn, "network", None) != plain:
            raise RunError(
                f"The policy to start from ({start.name}) is not an actor-critic with the trunk of --expert.trunk: "
                "give these options the sizes in its policy.json."
            )
        params = start.params
        run.note("start", {"policy": start.name, **start.info})
    state = ppo.init(key, config.ppo, params, env, run.devices)
    state, seconds = train(
        run,
        stage,
        state,
        lambda state, position, n: ppo.update_on(run.devices, state, agent, env, scan=scan),
        config.ppo.num_updates,
        saver=_ppo_saver(run, config, env, lambda s: s, lambda s, inner: inner),
        unit=config.ppo.num_envs * config.ppo.num_steps,
        unit_name="frame",
        show=("episode_return", "entropy"),
    )
    env.close()
    params = parallel.on_one(state.params, run.devices)
    told = {} if start is None or "return_mean" not in start.info else {"start_return": start.info["return_mean"]}
    _finish_ppo(run, stage, agent, params, config.ppo.num_updates, config.ppo, seconds, before, **told)


def _finish_ppo(
    run: Run,
    stage: str,
    network: Any,
    params: Any,
    updates: int,
    config: ppo.PPOConfig,
    seconds: float,
    before: int = 0,
    **more: float,
) -> None:
    trained = updates * config.num_envs * config.num_steps
    frames = before + trained
    label = ONLINE.get(stage, stage)
    found = evaluate_policy(
        run, label, policies.Logits(network), params, episodes=run.config.eval_episodes, num_envs=64
    )
    info = {"env": run.env, "stage": stage, "frames": frames, "seconds": seconds, **found}
    kept = ("command", "git", "versions", "device", "seed", "start")
    info |= {key: run.summary[key] for key in kept if key in run.summary}
    policies.save_policy(run.folder / "policies" / stage, network, params, info)
    results = {
        "frames": frames,
        "curve": _curve(run, stage, before),
        **found,
        "seconds": seconds,
        "frames_per_s": trained / max(seconds, 1e-9),
        **more,
    }
    run.finish(stage, results | diagnosis.judge_online(stage, results, run.summary))


# The whole


def check_shares(run: Run) -> None:
    """Raises `ValueError` where a setting does not divide by the devices, before hours have gone into other stages."""
    config = run.config
    sizes = {"--dynamics.batch-size": config.dynamics.batch_size, "--cloning.batch-size": config.cloning.batch_size}
    if config.dynamics.action_weight:
        sizes["--dynamics.labelled-batch"] = config.dynamics.labelled_batch
    for option, size in sizes.items():
        parallel.share(size, run.devices, option)
    if jax.process_count() == 1:
        used = {"--online.ppo": config.online.ppo, "--scratch.ppo": config.scratch.ppo}
        if config.named.frames:
            used["--named.ppo"] = config.named.ppo
        for option, settings in used.items():
            ppo_share(run, settings, option)


def run_pipeline(run: Run, source: Source, data: Path) -> Path:
    """Runs every stage that has not ended yet, then writes the report; a run that has ended is left as it is."""
    page = run.folder / "report.html"
    last = "decode_named" if run.config.named.frames else "decode_online"
    if run.done(last) and parallel.from_first(page.exists):
        return page
    started = time.monotonic()
    before = run.summary.get("total_seconds") or 0.0

    def checkpointed() -> None:
        run.summary["diagnosis"] = diagnosis.diagnose(run.summary)
        run.note("total_seconds", before + time.monotonic() - started)
        run.check_stop()

    check_shares(run)
    run.summary["source"] = {"policy": source.kind, **source.info}
    store = record_stage(run, source, data)
    space, frames = store.action_space, TrainingFrames(run, store)
    checkpointed()
    model = dynamics_stage(run, store, frames)
    checkpointed()
    policy = cloning_stage(run, store, model, frames)
    checkpointed()
    if "relabel" not in run.config.offline.methods:
        frames.free()
    if jax.process_count() > 1:
        print("stages 1 and 2 have ended; the others run on one host: start the same command there", file=sys.stderr)
        return page
    nulls_stage(run, source, space)
    checkpointed()
    offline_stage(run, store, model, policy, space, frames)
    frames.free()  # PPO has a use for the memory
    checkpointed()
    scratch_stage(run, "ppo_scratch", run.config.scratch)
    checkpointed()
    online_stage(run, model, policy)
    checkpointed()
    named_stage(run, store, model, space)
    checkpointed()
    return report.write(run.folder)


AGGREGATED = {
    "dynamics": ("fdm_ratio", "probe_accuracy", "probe_accuracy_merged", "probe_r2"),
    "cloning": ("ratio",),
    "decode_online": ("return_mean", "normalised"),
    "decode_named": ("return_mean", "normalised"),
    "ppo_scratch": ("return_mean", "normalised"),
}


def aggregate(folders: list[Path]) -> Path:
    """Means and standard errors over the runs of several seeds, beside them as ``<name>-aggregate.json``."""
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]

    def over_seeds(values: list[float]) -> dict[str, Any]:
        return {"mean": float(np.mean(values)), "stderr": float(np.std(values, ddof=1) / np.sqrt(len(values)))}

    def told(stage: str, name: str) -> bool:
        return all(summary["stages"].get(stage, {}).get(name) is not None for summary in summaries)

    stages: dict[str, Any] = {
        stage: {
            name: over_seeds([summary["stages"][stage][name] for summary in summaries])
            for name in names
            if told(stage, name)
        }
        for stage, names in AGGREGATED.items()
    }
    curves = [dict((n, mean) for n, mean, _ in s["stages"]["decode_offline"]["curve"]) for s in summaries]
    common = [n for n in curves[0] if all(n in curve for curve in curves)]
    stages["decode_offline"] = {"curve": [[n, *over_seeds([curve[n] for curve in curves]).values()] for n in common]}
    path = folders[0].with_name(f"{folders[0].name.rpartition('-s')[0]}-aggregate.json")
    write_json(path, {"seeds": [summary["seed"] for summary in summaries], "stages": stages})
    return path
