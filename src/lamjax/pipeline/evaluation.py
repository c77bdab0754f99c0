"""Evaluates policies on a run's own levels."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lamjax import envs
from lamjax.config import RunConfig
from lamjax.envs.evaluate import evaluate_all
from lamjax.statistics import mean_and_stderr
from lamjax.training.logging import Progress
from lamjax.training.run_folder import Run


def make_env(name: str, num_envs: int, config: RunConfig, *, distracted: bool = True) -> envs.VectorEnv:
    """Makes the environment with the run's levels, and with its distractor unless `distracted` is False."""
    settings = config.record
    params: dict[str, Any] = {}
    if distracted:
        params = {"distractor": settings.distractor, "distractor_strength": settings.distractor_strength}
    if name in envs.PROCGEN_GAMES:
        params |= {
            "num_levels": settings.num_levels,
            "start_level": settings.start_level,
            "distribution_mode": settings.distribution_mode,
        }
    return envs.make(name, num_envs, **params)


def returns_summary(env: str, returns: np.ndarray) -> dict[str, Any]:
    """Mean, standard error and count of episode returns, and the normalised mean (None if it is not defined)."""
    mean, stderr = mean_and_stderr(returns)
    return {
        "return_mean": mean,
        "return_stderr": stderr,
        "episodes": len(returns),
        "normalised": envs.normalised_return(env, mean),
    }


def evaluate_policy(run: Run, label: str, policy: Any, params: Any, *, distracted: bool = True) -> dict[str, Any]:
    """Evaluates one policy, which samples its actions, over the run's `eval_episodes`; see `evaluate_policies`."""
    play = {"episodes": run.config.eval_episodes, "num_envs": run.config.eval_envs, "greedy": [False]}
    (results,) = evaluate_policies(run, label, policy, [params], **play, distracted=distracted)
    return results


def evaluate_policies(
    run: Run,
    label: str,
    policy: Any,
    params: list[Any],
    *,
    episodes: int,
    num_envs: int,
    greedy: list[bool],
    distracted: bool = True,
    draw: int = 0,
) -> list[dict[str, Any]]:
    """Evaluates policies on levels that depend only on the run's seed and `draw`; for the arguments see `play`."""
    key = run.key(f"evaluation-{draw}" if draw else "evaluation")
    returns, _ = play(
        run.env,
        run.config,
        label,
        policy,
        params,
        key,
        episodes=episodes,
        num_envs=num_envs,
        greedy=greedy,
        distracted=distracted,
        check_stop=run.check_stop,
    )
    return [returns_summary(run.env, row) for row in returns]


def play(
    env_name: str,
    config: RunConfig,
    label: str,
    policy: Any,
    params: list[Any],
    key: jax.Array,
    *,
    episodes: int,
    num_envs: int,
    greedy: list[bool],
    distracted: bool = True,
    check_stop: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Plays a fixed number of episodes with each of P policies, side by side on the same levels.

    All policies share the function `policy`; each has its own `params`, and its own `num_envs` environments (at most
    `episodes`). Those with `greedy` take the most likely action, the others sample. `check_stop` is called between
    dispatches; it stops the evaluation by raising an error.

    Returns:
      Raw returns float32 ``[P, episodes]`` and lengths int32 ``[P, episodes]``.
    """
    num_envs, count = min(num_envs, episodes), len(params)

    def make(number: int) -> envs.VectorEnv:
        return make_env(env_name, number, config, distracted=distracted)

    env, wide = make(num_envs), make(num_envs * count) if count > 1 else None
    progress = Progress(f"evaluating {label}", episodes * count, unit="episode")

    def tick(finished: int) -> None:
        progress.to(finished)
        check_stop()

    try:
        results = evaluate_all(policy, params, env, episodes, key, greedy=greedy, wide=wide, make=make, progress=tick)
        progress.to(episodes * count)
    finally:
        progress.close()
        for opened in (env, wide):
            if opened is not None:
                opened.close()
    return results
