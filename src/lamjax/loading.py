"""What a run left behind, loaded for use from Python."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lamjax import envs, policies
from lamjax.cloning import CloningConfig, CloningState
from lamjax.config import RunConfig
from lamjax.dynamics import DynamicsConfig, DynamicsState
from lamjax.models.quantizer import Codebooks
from lamjax.policies import PolicyError
from lamjax.training import checkpoint
from lamjax.training.run_folder import read_json


class LoadedPolicy(NamedTuple):
    """A policy, its parameters, and its provenance: ``policy(obs)`` gives outputs ``[B, K]`` of ``policy.space``."""

    network: policies.Network
    params: Any
    info: dict[str, Any]

    @property
    def space(self) -> Any:
        """What actions are; it samples from outputs."""
        return self.network.space

    def __call__(self, obs: jax.Array) -> jax.Array:
        """Outputs float32 ``[B, K]`` at observations ``[B, *obs_shape]``."""
        return self.network(self.params, obs)


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run.

    Attributes:
      folder: its folder.
      env: the environment's name.
      config: its settings.
      summary: its results, as in ``summary.json``.
      dynamics: stage 1, or None before its first checkpoint. The optimizer's moments are left out.
      cloning: stage 2, likewise.
      policies: the policies that are there, by name.
    """

    folder: Path
    env: str
    config: RunConfig
    summary: dict[str, Any]
    dynamics: DynamicsState | None
    cloning: CloningState | None
    policies: dict[str, LoadedPolicy]


def load(path: str | Path) -> LoadedRun | LoadedPolicy:
    """Loads a run folder, or a policy folder (``runs/<env>/<name>/policies/<policy>``).

    Raises:
      PolicyError: if it is neither, or a policy is damaged.
      CheckpointError: if a checkpoint is damaged.
      RunError: if another of the run's files is damaged.
    """
    path = Path(path)
    if (path / "policy.json").exists():
        return LoadedPolicy(*policies.load_policy(path))
    if not (path / "config.json").exists():
        raise PolicyError(f"There is neither a run nor a policy at {path}: give the folder of one.")
    settings = read_json(path / "config.json")
    if not isinstance(settings, dict) or not isinstance(settings.get("env"), str):
        raise PolicyError(f"{path / 'config.json'} holds no settings of a run: give the folder of one.")
    env = settings.pop("env")
    settings.pop("source", None)
    summary = path / "summary.json"
    return LoadedRun(
        path,
        env,
        checkpoint.from_json(RunConfig, settings),
        read_json(summary) if summary.exists() else {},
        load_dynamics(path, env),
        load_cloning(path),
        {
            folder.parent.name: LoadedPolicy(*policies.load_policy(folder.parent))
            for folder in path.glob("policies/*/policy.json")
        },
    )


def load_dynamics(run: Path, env: str | None = None) -> DynamicsState | None:
    """Stage 1 of a run, from its newest good checkpoint, without the optimizer's moments; None if there is none.

    Without the environment's name, a state that was trained with labels lacks their action space.
    """
    saved = checkpoint.restore_arrays(run / "checkpoints" / "dynamics")
    if saved is None:
        return None
    _, arrays, note = saved
    tree, config = checkpoint.nest(arrays), checkpoint.from_json(DynamicsConfig, note["config"])
    return DynamicsState(
        tree["params"],
        tree.get("batch_stats", {}),
        Codebooks(**tree["codebooks"]),
        None,
        tree["step"],
        config,
        tree.get("obs_stats"),
        envs.make(env, 1).action_space if env and config.action_weight else None,
    )


def load_cloning(run: Path) -> CloningState | None:
    """Stage 2 of a run, as `load_dynamics`."""
    saved = checkpoint.restore_arrays(run / "checkpoints" / "cloning")
    if saved is None:
        return None
    _, arrays, note = saved
    tree, config = checkpoint.nest(arrays), checkpoint.from_json(CloningConfig, note["config"])
    latent_dim = tree["params"]["latent_head"]["linear"]["bias"].shape[0]
    return CloningState(tree["params"], None, tree["step"], latent_dim, config, tree.get("obs_stats"))
