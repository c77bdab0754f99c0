"""Stage 3 of a run without a simulator: actions decoded from few labels, judged on held-out windows.

No policy can be played there, so no return says how good a decoder is. Instead each method is scored by how well it
predicts the actions of held-out episodes: a decoder of the inverse model's latents, which sees the next frame; the
decoded latent policy and behaviour cloning, which see only o_t; and a constant guess, which sees nothing.
"""

import functools

import jax
import numpy as np

from lamjax import policies
from lamjax.analysis import diagnosis, latents
from lamjax.cloning import CloningState
from lamjax.data.labels import evaluation_actions
from lamjax.data.reader import Store
from lamjax.data.stream import EvaluationWindows
from lamjax.decoding import offline
from lamjax.decoding.offline import Candidate
from lamjax.dynamics import DynamicsState
from lamjax.pipeline.offline import SAVED_AS, draw_labels, offline_policies
from lamjax.pipeline.windows import TrainingFrames, held_out_windows
from lamjax.spaces import ActionSpace, Discrete
from lamjax.statistics import stderr_over_groups
from lamjax.training.run_folder import Run, timed

STAGE = "decode_actions"
METHODS: tuple[offline.Method, ...] = ("idm", "policy", "bc")
_SAVED_AS = {**SAVED_AS, "idm": "idm"}

_act = jax.jit(lambda network, params, obs: network(params, obs), static_argnums=0)


def action_stage(
    run: Run, store: Store, model: DynamicsState, policy: CloningState, frames: TrainingFrames | None = None
) -> None:
    """Fits decoders and clones on draws of labels, and scores them on the held-out windows."""
    config = run.config.offline
    if run.done(STAGE):
        return
    frames, space = frames or TrainingFrames(run, store), store.action_space
    assert space is not None  # the store has actions
    with timed() as seconds:
        held_out = held_out_windows(run, store)
        actions = evaluation_actions(store, held_out.starts, model.config.window)
        z, _ = latents.latents_of_batches(model, held_out.batches)
        episodes = np.searchsorted(store.episodes.start, held_out.starts, side="right")
        counts = offline.label_counts(config, len(store.starts("train", model.config.window)))
        by_seed: dict[str, list[list[float]]] = {}
        for draw in range(config.seeds):
            labelled = draw_labels(run, store, model, policy, counts[-1], draw)
            for method in (method for method in METHODS if method in config.methods):
                chunk = [Candidate(draw, count, method, ("greedy",)) for count in counts]
                network, params = offline_policies(run, chunk, labelled, model, policy, frames, space)
                for count, p in zip(counts, params, strict=True):
                    outputs = outputs_of(method, network, p, held_out, z)
                    scores = np.asarray(space.score(space.mode(outputs), actions), np.float64)
                    row = [count, draw, float(scores.mean()), stderr_over_groups(scores, episodes)]
                    by_seed.setdefault(f"{method}_curve", []).append(row)
                    if draw == 0 and method in _SAVED_AS:
                        folder = run.folder / "policies" / f"{_SAVED_AS[method]}-{count}"
                        policies.save_policy(folder, network, p, {space.score_name: row[2], "stderr": row[3]})
                run.check_stop()
        guess = np.broadcast_to(constant_action(space, labelled.actions), actions.shape)
        results = {
            "score": space.score_name,
            "constant": float(np.mean(space.score(guess, actions))),
            **{name: offline.over_seeds(rows) for name, rows in by_seed.items()},
            "seeds": config.seeds,
            "windows": len(actions),
            "seconds": seconds(),
        }
    run.finish(STAGE, results | diagnosis.judge_actions(results))


def outputs_of(
    method: offline.Method, network: policies.Network, params: dict, held_out: EvaluationWindows, z: np.ndarray
) -> np.ndarray:
    """Outputs float32 ``[E, K]`` of a method on held-out windows, whose latents are `z` ``[E, Z]``: see `METHODS`."""
    if method == "idm":
        assert isinstance(network, policies.DecodedPolicy)
        return latents.in_batches(
            lambda rows: offline.decode_batch(params["decoder"], rows, network.decoder, network.space), z
        )
    return latents.in_batches(functools.partial(_act, network, params), held_out.windows[:, -2])


def constant_action(space: ActionSpace, actions: np.ndarray) -> np.ndarray:
    """The constant guess: the most frequent of some actions, or the mean of continuous ones."""
    return np.asarray(np.bincount(actions).argmax() if isinstance(space, Discrete) else actions.mean(0))
