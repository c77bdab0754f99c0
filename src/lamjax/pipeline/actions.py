"""Stage 3 of a run without a simulator: actions decoded from few labels, judged on held-out windows.

No policy can be played there, so no return says how good a decoder is. Instead each method is scored by how well it
predicts the actions of held-out episodes: a decoder of the inverse model's latents, which sees the next frame; the
decoded latent policy and behaviour cloning, which see only o_t; and a constant guess, which sees nothing.
"""

from lamjax.analysis import diagnosis
from lamjax.cloning import CloningState
from lamjax.data.reader import Store
from lamjax.decoding import offline
from lamjax.decoding.offline import Candidate
from lamjax.dynamics import DynamicsState
from lamjax.pipeline import decoders
from lamjax.pipeline.offline import SAVED_AS, draw_labels, offline_policies
from lamjax.pipeline.windows import TrainingFrames
from lamjax.training.run_folder import Run, timed

STAGE = "decode_actions"
METHODS: tuple[offline.Method, ...] = ("idm", "policy", "bc")
_SAVED_AS = {**SAVED_AS, "idm": "idm"}


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
        examples = decoders.held_out(run, store, model)
        counts = offline.label_counts(config, len(store.starts("train", model.config.window)))
        by_seed: dict[str, list[list[float]]] = {}
        for draw in range(config.seeds):
            labelled = draw_labels(run, store, model, policy, counts[-1], draw)
            for method in (method for method in METHODS if method in config.methods):
                chunk = [Candidate(draw, count, method, ("greedy",)) for count in counts]
                network, params = offline_policies(run, chunk, labelled, model, policy, frames, space)
                for count, p in zip(counts, params, strict=True):
                    mean, stderr = decoders.score(method, network, p, examples, space)
                    by_seed.setdefault(f"{method}_curve", []).append([count, draw, mean, stderr])
                    if draw == 0 and method in _SAVED_AS:
                        decoders.save_scored(run, f"{_SAVED_AS[method]}-{count}", network, p, (mean, stderr))
                run.check_stop()
        results = {
            "score": space.score_name,
            "constant": decoders.constant_score(space, labelled.actions, examples),
            **{name: offline.over_seeds(rows) for name, rows in by_seed.items()},
            "seeds": config.seeds,
            "windows": len(examples.actions),
            "seconds": seconds(),
        }
    run.finish(STAGE, results | diagnosis.judge_actions(results))
