"""Stage 3 of a run from labels: evaluates every method, for every number of labels, on every draw of labels."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import cloning, envs, policies
from lamjax.analysis import diagnosis, latents
from lamjax.cloning import CloningState
from lamjax.data.labels import LabelledSubset
from lamjax.data.reader import Store
from lamjax.decoding import behaviour_cloning, offline
from lamjax.dynamics import DynamicsState
from lamjax.envs.evaluate import most_together
from lamjax.pipeline.decoders import save_decoder
from lamjax.pipeline.evaluation import evaluate_policies
from lamjax.pipeline.labelled import train_on_labels
from lamjax.pipeline.oracle import oracle_stage, partial_results
from lamjax.pipeline.pseudo_labels import clone_pseudo_labels, init_clone, same_effect
from lamjax.pipeline.windows import TrainingFrames
from lamjax.preprocess import ObsStats
from lamjax.spaces import ActionSpace
from lamjax.training.run_folder import Run, timed

LABEL_SEEDS = 100_003  # the distance between the seeds of two draws of labels: runs of adjacent seeds share none
LABELS_USED = {
    "policy": "the policy decoded from",
    "idm": "the policy, by a decoder of the inverse model fitted on",
    "bc": "BC on",
    "relabel": "the policy cloned from pseudo-labels after",
}
SAVED_AS = {"policy": "offline", "relabel": "relabel"}  # the run saves these policies of the first draw

_predict_latents = jax.jit(cloning.predict_latents)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """One draw of labelled windows, and the latents that the models infer from them.

    Attributes:
      draw: the draw's number.
      obs: o_t, ``[L, *obs_shape]``, in device memory.
      actions: ``[L, *space.shape]``.
      latents: float32 ``[L, Z]``: "policy", those of the latent policy at o_t; "idm", those of the inverse model.
    """

    draw: int
    obs: jax.Array
    actions: np.ndarray
    latents: dict[str, np.ndarray]


def draw_labels(run: Run, store: Store, model: DynamicsState, policy: CloningState, count: int, draw: int) -> Labelled:
    """Draws `count` labelled windows. To use fewer labels of the same draw, take the first ones."""
    seed = run.config.seed + LABEL_SEEDS * draw
    subset = LabelledSubset(store, count, seed=seed, length=model.config.window)
    windows = subset.windows()
    obs = np.ascontiguousarray(windows[:, -2])
    inputs = {"policy": policy_latents(policy, obs), "idm": latents.latents_of(model, windows)[0]}
    return Labelled(draw, jax.device_put(obs), subset.actions, inputs)


def policy_latents(state: CloningState, obs: np.ndarray) -> np.ndarray:
    """The latents that the latent policy predicts at observations ``[E, *obs_shape]``: float32 ``[E, Z]``."""
    batch = latents.BATCH
    padded = np.concatenate([obs, obs[:1].repeat(-len(obs) % batch, 0)])
    pieces = [_predict_latents(state, padded[i : i + batch]) for i in range(0, len(padded), batch)]
    return np.concatenate(jax.device_get(pieces))[: len(obs)]


def offline_stage(
    run: Run,
    store: Store,
    model: DynamicsState,
    policy: CloningState,
    space: ActionSpace,
    frames: TrainingFrames | None = None,
) -> None:
    """Decodes the latent policy by the protocol of `lamjax.decoding.offline`.

    Policies are trained and evaluated in chunks; each chunk's results are in the summary before the next one begins.
    """
    config = run.config.offline
    if run.done("decode_offline"):
        return
    frames = frames or TrainingFrames(run, store)
    with timed() as seconds:
        available = len(store.starts("train", model.config.window))
        counts = offline.label_counts(config, available)
        labelled = functools.lru_cache(1)(lambda draw: draw_labels(run, store, model, policy, counts[-1], draw))
        if "decoder" not in run.summary:
            first = labelled(0)
            run.note("decoder", save_decoder(run, store, model, policy, first.latents["idm"], first.actions))
        oracle_stage(run, store, space, frames)
        if "relabel" not in config.methods:
            frames.free()
        partial = partial_results(run)
        by_seed: dict[str, list[list[float]]] = partial["by_seed"]
        for chunk in offline.chunks(offline.candidates(config, counts, by_seed), most_together(config.num_envs)):
            draw = chunk[0].draw
            network, params = offline_policies(run, chunk, labelled(draw), model, policy, frames, space)
            plays = [(one, play, p) for one, p in zip(chunk, params, strict=True) for play in one.plays]
            measured = evaluate_policies(
                run,
                f"{LABELS_USED[chunk[0].method]} {chunk[0].count} labels" + (" and others" if len(plays) > 1 else ""),
                network,
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
            with run.changing():
                for (one, play, _), result in zip(plays, measured, strict=True):
                    rows = by_seed.setdefault(offline.curve_name(one.method, play), [])
                    rows.append([one.count, draw, result["return_mean"], result["return_stderr"]])
                partial |= {name: offline.over_seeds(rows) for name, rows in by_seed.items()}
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
    with run.changing() as summary:
        summary.pop("partial")
        run.finish("decode_offline", results | diagnosis.judge_offline(results, summary["nulls"]))


def offline_policies(
    run: Run,
    chunk: list[offline.Candidate],
    labelled: Labelled,
    model: DynamicsState,
    policy: CloningState,
    frames: TrainingFrames,
    space: ActionSpace,
) -> tuple[policies.Network, list[Any]]:
    """Trains a chunk's policies on the first labels of a draw; returns their network and the parameters of each."""
    config = run.config.offline
    actions, settings = labelled.actions, config.program
    if chunk[0].method == "relabel":
        actions, settings = same_effect(run.env, actions, space), config.pseudo_labels
    keys = [jax.random.fold_in(run.key("offline"), one.count) for one in chunk]
    if labelled.draw:
        keys = [jax.random.fold_in(key, labelled.draw) for key in keys]
    fitted = [place for place, one in enumerate(chunk) if one.method != "bc"]
    decoders = {}
    if fitted:
        stacked, _ = offline.fit_all(
            jnp.stack([keys[place] for place in fitted]),
            np.stack([labelled.latents["policy" if chunk[place].method == "policy" else "idm"] for place in fitted]),
            np.stack([actions] * len(fitted)),
            settings,
            space,
            np.array([chunk[place].count for place in fitted], np.int32),
        )
        decoders = {place: jax.tree.map(lambda x, row=row: x[row], stacked) for row, place in enumerate(fitted)}
    if chunk[0].is_decoded:
        network = policies.DecodedPolicy(policy.config.trunk, policy.latent_dim, space, settings)
        return network, [network.init(policy, decoders[place]) for place in fitted]
    clones = []
    for place, (one, key) in enumerate(zip(chunk, keys, strict=True)):
        if one.method == "bc":
            clones.append(clone_labels(run, key, labelled.obs, labelled.actions, one.count, space, policy.obs_stats))
        else:
            name = f"relabel-{one.count}-{one.draw}"
            args = run, name, key, model, decoders[place], frames, labelled.obs.shape[1:], space
            clones.append(clone_pseudo_labels(*args, policy=policy, steps=config.relabel_steps))
    return clones[0].agent, [state.policy_params for state in clones]


def clone_labels(
    run: Run,
    key: jax.Array,
    obs: jax.Array,
    actions: np.ndarray,
    count: int,
    space: ActionSpace,
    stats: ObsStats = None,
) -> behaviour_cloning.ActionState:
    """Clones actions from scratch from the first `count` labels: the baseline of offline decoding.

    Observations are ``[L, *obs_shape]``, which `stats` standardise, and actions ``[L, *space.shape]``.
    """
    config, steps = run.config.cloning, run.config.offline.bc_steps
    # The learning rate stays at its peak here, so the lengths do not matter.
    state = init_clone(key, config.program, space, obs.shape[1:], False, stats)
    rng = np.random.default_rng(run.config.seed)
    rows = np.array([rng.integers(count, size=config.batch_size) for _ in range(steps)], np.int32)
    options = {"max_in_flight": run.config.max_in_flight, "check_stop": run.check_stop}
    return train_on_labels(state, obs, actions, rows, run.devices, **options)  # one size for all counts
