"""Linear latent action models: worlds, closed-form optima, training and probes (arXiv 2506.15691).

Stands alone: numpy, JAX and optax, nothing else of lamjax.
"""

from lamjax.linear.metrics import Scores, information_objective, latent_map, mutual_information, probe_errors, score
from lamjax.linear.optimum import LAM, Optimum, TieWarning, angle, excess, optimum, population_loss, shifted
from lamjax.linear.theory import (
    action_eigenvalue,
    critical_action_weight,
    critical_cleaning,
    critical_kappa,
    effective_action_weight,
    sample_overlap,
)
from lamjax.linear.train import PAPER, RECOMMENDED, Point, TrainConfig, Trained, train
from lamjax.linear.world import Moments, Transition, World, WorldConfig, make_world

__all__ = [
    "LAM",
    "PAPER",
    "RECOMMENDED",
    "Moments",
    "Optimum",
    "Point",
    "Scores",
    "TieWarning",
    "TrainConfig",
    "Trained",
    "Transition",
    "World",
    "WorldConfig",
    "action_eigenvalue",
    "angle",
    "critical_action_weight",
    "critical_cleaning",
    "critical_kappa",
    "effective_action_weight",
    "excess",
    "information_objective",
    "latent_map",
    "make_world",
    "mutual_information",
    "optimum",
    "population_loss",
    "probe_errors",
    "sample_overlap",
    "score",
    "shifted",
    "train",
]
