"""Proximal policy optimisation, usable alone: `train` for a whole run, `update` and `learn` inside ``jit``."""

from lamjax.ppo.agent import ActorCriticAgent, Agent
from lamjax.ppo.config import PPOConfig, check_groups
from lamjax.ppo.driver import Driver, train
from lamjax.ppo.learner import (
    Batch,
    Metrics,
    PPOState,
    Rollout,
    collect,
    improve,
    init,
    learn,
    learning_rates,
    loss_fn,
    minibatch_step,
    minibatches,
    update,
)

__all__ = [
    "ActorCriticAgent",
    "Agent",
    "Batch",
    "Driver",
    "Metrics",
    "PPOConfig",
    "PPOState",
    "Rollout",
    "check_groups",
    "collect",
    "improve",
    "init",
    "learn",
    "learning_rates",
    "loss_fn",
    "minibatch_step",
    "minibatches",
    "train",
    "update",
]
