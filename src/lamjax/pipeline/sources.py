"""The source of a run's trajectories: a policy to record, or an existing store."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from lamjax import envs, experts, loading, planners, policies, shared_folder
from lamjax.acting import PolicyFn
from lamjax.data.reader import open_store
from lamjax.policies import PolicyError
from lamjax.spaces import ActionSpace, as_space
from lamjax.training.run_folder import RunError


@dataclasses.dataclass(frozen=True)
class Source:
    """The source of a run's trajectories.

    Attributes:
      kind: "expert", "planner", "random" or "checkpoint"; "store" for trajectories without a policy.
      policy: the policy; None for a store.
      params: the policy's parameters.
      info: the policy's provenance.
      digest: the first eight digits of the digest of the weights or trajectories, or a planner's version, for names;
        empty for the random policy.
      store: the path of the trajectories if the kind is "store".
    """

    kind: str
    policy: PolicyFn | None
    params: Any
    info: dict[str, Any]
    digest: str = ""
    store: Path | None = None

    @property
    def name(self) -> str:
        """A name that differs between sources."""
        return f"{self.kind}-{self.digest}" if self.digest else self.kind


def find_source(env: str, policy: str, runs: Path, space: ActionSpace | int) -> Source:
    """Loads a policy: "random", "expert" (shipped, or trained on this machine), "planner", or a policy folder's path.

    `runs` is the folder that holds the run folders.

    Raises:
      PolicyError: if there is no such policy.
      StateLayoutError: if a planner cannot read the states of the Procgen that is installed.
    """
    if policy == "random":
        return Source("random", policies.UniformPolicy(as_space(space)), {}, {"actions": "uniform"})
    if policy == "planner":
        return _planner(env)
    if policy == "expert" and env in planners.PLANS and not has_expert(env, runs):
        raise PolicyError(
            f"No expert is shipped for {env}, but there is a planner: say planner instead of expert, or train one with "
            f"`lamjax expert --env {env}`."
        )
    if policy == "expert":
        own = expert_folder(runs, env) / "policies" / "expert"
        folder = own if (own / "policy.json").exists() else experts.folder(env)
        kind, loaded = "expert", policies.load_policy(own) if folder == own else experts.load(env)
    else:
        folder = Path(policy)
        kind, loaded = "checkpoint", loading.load_policy(folder)
    weights = next(path for name in ("weights.npz", shared_folder.WEIGHTS) if (path := folder / name).exists())
    return Source(kind, *loaded, hashlib.sha256(weights.read_bytes()).hexdigest()[:8])


def _planner(env: str) -> Source:
    if env not in planners.PLANS:
        have = ", ".join(planners.PLANS)
        raise PolicyError(f"There is no planner for {env} (there are: {have}): use expert, random or a policy folder.")
    planners.check_layout(env)
    info = {"planner": env, "version": planners.VERSION}
    return Source("planner", planners.Planner(), {}, info, f"v{planners.VERSION}")


def store_source(env: str, path: Path, space: ActionSpace | int | None = None) -> Source:
    """Opens existing trajectories as a source.

    Args:
      env: the environment's name, or the name of the data if no simulator exists.
      path: the store.
      space: the environment's action space; None accepts any actions.

    Raises:
      RunError: if the trajectories come from another environment or have other actions.
      StoreError: if there is no store, or it is damaged.
    """
    store = open_store(path)
    space = store.action_space if space is None else as_space(space)
    if store.env != env or store.action_space != space:
        actions = store.action_space or "continuous actions without bounds"
        raise RunError(
            f"{path} holds {store.env} with {actions}, not {env} with {space}: use --env {store.env}, or another store."
        )
    # The manifest describes each clip; a summary need not repeat that.
    info = {"store": str(path), **{name: value for name, value in store.policy.items() if name != "clips"}}
    return Source("store", None, {}, info, digest=store.manifest["sha256"][:8], store=path)


def env_of(env: str | None, store: Path | None) -> str:
    """The name of what a run learns from: an environment that can be played, or data that exists only as a store.

    Raises:
      RunError: if neither an environment nor a store is given.
      UnknownEnvError: if there is no such environment, and the store does not have this name.
      StoreError: if there is no store, or it is damaged.
    """
    recorded = open_store(store).env if store is not None else None
    name = env or recorded
    if name is None:
        raise RunError("Say what to learn from: an environment, or a store of trajectories.")
    return name if name == recorded else envs.check_name(name)


def has_expert(env: str, runs: Path) -> bool:
    """Whether there is an expert to record, shipped or trained on this machine."""
    own = expert_folder(runs, env) / "policies" / "expert"
    return any((folder / "policy.json").exists() for folder in (own, experts.folder(env)))


def expert_folder(runs: Path, env: str) -> Path:
    """The run folder of the expert that is trained on this machine."""
    return runs / env / "expert"
