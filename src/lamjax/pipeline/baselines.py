"""The baselines of stage 3: returns of the random policy and of the recorded one."""

from typing import Any

from lamjax import policies
from lamjax.pipeline.evaluation import evaluate_policy
from lamjax.pipeline.sources import Source
from lamjax.spaces import ActionSpace
from lamjax.training.run_folder import Run


def baselines_stage(run: Run, source: Source, space: ActionSpace) -> None:
    """Measures the random policy and the recorded one on the run's own levels."""
    baselines: dict[str, tuple[str, Any, Any]] = {
        "random_return": ("the random policy", policies.UniformPolicy(space), {})
    }
    if source.kind not in ("random", "store"):
        label = f"the recorded policy ({source.kind})"
        baselines["expert_return"] = (label, source.policy, source.params)
    for name, policy in baselines.items():
        if name in run.summary["nulls"]:
            continue
        # The demonstrator sees frames without a distractor, so it is evaluated on them.
        results = evaluate_policy(run, *policy, distracted=name != "expert_return")
        with run.changing() as summary:
            summary["nulls"][name] = {
                "mean": results["return_mean"],
                "stderr": results["return_stderr"],
                "episodes": results["episodes"],
            }
