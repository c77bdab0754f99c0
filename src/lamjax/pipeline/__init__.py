"""A run as a list of stages: record, train, decode, evaluate, report. `train` is the entry point."""

from lamjax.pipeline.actions import action_stage
from lamjax.pipeline.aggregate import aggregate
from lamjax.pipeline.baselines import baselines_stage
from lamjax.pipeline.cloning import cloning_stage
from lamjax.pipeline.dynamics import dynamics_stage
from lamjax.pipeline.expert import choose_source, train_expert
from lamjax.pipeline.offline import offline_stage
from lamjax.pipeline.pseudo_labels import pseudo_label_stage
from lamjax.pipeline.record import record_stage
from lamjax.pipeline.reinforcement import online_stage, scratch_stage
from lamjax.pipeline.sources import Source, env_of, expert_folder, find_source, store_source
from lamjax.pipeline.train import choose_preset, run_stages, train

__all__ = [
    "Source",
    "action_stage",
    "aggregate",
    "baselines_stage",
    "choose_preset",
    "choose_source",
    "cloning_stage",
    "dynamics_stage",
    "env_of",
    "expert_folder",
    "find_source",
    "offline_stage",
    "online_stage",
    "pseudo_label_stage",
    "record_stage",
    "run_stages",
    "scratch_stage",
    "store_source",
    "train",
    "train_expert",
]
