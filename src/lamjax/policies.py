"""Policies as folders: ``weights.npz`` (arrays only, no pickle) and ``policy.json`` (their settings and provenance).

Three kinds: an actor-critic that PPO trained, a latent policy with an offline decoder, and the hybrid actor of online
decoding. Weights may be stored in float16 to save space; computation is always in float32.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import archives
from lamjax.cloning import CloningState
from lamjax.decoding.hybrid import HybridAgent
from lamjax.decoding.offline import OfflineConfig, decode
from lamjax.models.grid import GridConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig
from lamjax.models.policy import LatentPolicy
from lamjax.models.trunk import TrunkConfig
from lamjax.ppo import ActorCriticAgent
from lamjax.preprocess import normalise_obs, with_stats, without_stats
from lamjax.spaces import ActionSpace, Box, Discrete, as_space
from lamjax.training import checkpoint


class PolicyError(ValueError):
    """Raised when a policy folder is missing or not one of ours."""


class Policy(Protocol):
    """A policy without its parameters: a frozen dataclass that compares by value, so that ``jit`` compiles it once.

    `ActorCriticAgent`, `HybridAgent`, `DecodedPolicy` and `UniformPolicy` are policies. They start in different ways,
    so each has its own ``init``. `save_policy` and `load_policy` store them with their parameters.

    Attributes:
      space: the action space; it samples from outputs, and gives their likeliest action and log-probabilities.
    """

    space: ActionSpace

    def __call__(self, params: Any, obs: jax.Array) -> jax.Array:
        """Outputs float32 ``[B, K]`` of `space`, a distribution over actions, at observations ``[B, *obs_shape]``."""
        ...


@dataclasses.dataclass(frozen=True)
class DecodedPolicy:
    """Stage 2's policy followed by an offline decoder.

    Attributes:
      trunk: the policy's trunk.
      latent_dim: Z.
      space: the action space; a number n stands for `Discrete(n)`.
      decoder: the decoder's settings.
    """

    trunk: TrunkConfig
    latent_dim: int
    space: ActionSpace
    decoder: OfflineConfig

    def __post_init__(self):
        object.__setattr__(self, "space", as_space(self.space))

    @staticmethod
    def init(policy: CloningState, decoder: Any) -> dict[str, Any]:
        """The parameters: stage 2's policy, a decoder, and how observations are standardised."""
        return with_stats({"policy": policy.params, "decoder": decoder}, policy.obs_stats)

    def __call__(self, params: Any, obs: jax.Array) -> jax.Array:
        """See `Policy`."""
        params, stats = without_stats(params)
        inputs = normalise_obs(obs, stats)
        latents, _ = LatentPolicy(self.trunk, self.latent_dim).apply({"params": params["policy"]}, inputs)
        return decode(params["decoder"], latents, self.decoder, self.space)


@dataclasses.dataclass(frozen=True)
class UniformPolicy:
    """The random policy over a space, or over a number of actions; it has no parameters."""

    space: ActionSpace

    def __post_init__(self):
        object.__setattr__(self, "space", as_space(self.space))

    def __call__(self, params: Any, obs: jax.Array) -> jax.Array:
        """See `Policy`."""
        return self.space.uniform(obs.shape[0])


Network = ActorCriticAgent | DecodedPolicy | HybridAgent
KINDS: dict[str, type] = {"actor_critic": ActorCriticAgent, "decoded": DecodedPolicy, "hybrid": HybridAgent}


def save_policy(folder: Path, network: Network, params: Any, info: dict[str, Any], dtype: Any = np.float32) -> None:
    """Writes a policy folder.

    Args:
      folder: created if needed; files of an older policy in it are replaced.
      network: the policy that the weights belong to.
      params: nested dicts of arrays.
      info: provenance, anything JSON can hold.
      dtype: float32, or float16 for weights that are shipped.

    Raises:
      PolicyError: if weights are not finite in that type, so that `load_policy` would refuse them.
    """
    with np.errstate(over="ignore"):
        arrays: dict[str, Any] = {name: array.astype(dtype) for name, array in checkpoint.flatten(params).items()}
    if not_finite := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise PolicyError(f"{folder} was not written: {not_finite[0]} is not finite in {np.dtype(dtype)}.")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "weights.npz", **arrays)
    note = describe(network) | {"info": info}
    (folder / "policy.json").write_text(json.dumps(note, indent=2) + "\n")


def load_policy(folder: Path) -> tuple[Network, Any, dict[str, Any]]:
    """Reads a policy folder.

    Returns:
      The policy, its parameters, and the provenance.

    Raises:
      PolicyError: if the folder is missing, or its files are not those of a policy.
    """
    try:
        note = json.loads((folder / "policy.json").read_text())
        arrays = archives.read(folder / "weights.npz")
        if not_finite := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
            raise ValueError(f"{not_finite[0]} is not finite")
        params = checkpoint.nest({name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()})
        return from_description(note), params, note["info"]
    except FileNotFoundError as error:
        raise PolicyError(f"There is no policy at {folder}: {Path(error.filename).name} is missing.") from error
    except Exception as error:  # on damaged files json, zipfile and zlib raise errors of all kinds
        raise PolicyError(f"{folder} does not hold a policy of ours, or is damaged ({error!r}).") from error


def describe(network: Network) -> dict[str, Any]:
    """What rebuilds a network, as JSON can hold it; the type of activations is no part of it."""
    kind = next(name for name, cls in KINDS.items() if isinstance(network, cls))
    sizes = {field.name: _to_json(getattr(network, field.name)) for field in dataclasses.fields(network)}
    sizes.pop("dtype", None)
    return {"kind": kind, "network": sizes}


def from_description(note: dict[str, Any]) -> Network:
    """The network that `describe` described; raises any error if it describes none."""
    sizes = {name: _from_json(value) for name, value in note["network"].items()}
    if "num_actions" in sizes:  # as it was written before actions could be continuous
        sizes["space"] = sizes.pop("num_actions")
    return KINDS[note["kind"]](**sizes)


_CONFIGS = {cls.__name__: cls for cls in (ImpalaConfig, GridConfig, MLPConfig, OfflineConfig, Discrete, Box)}


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **dataclasses.asdict(value)}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        sizes = {k: _from_json(v) for k, v in value.items() if k != "type"}
        return _CONFIGS[value["type"]](**sizes)
    return tuple(value) if isinstance(value, list) else value
