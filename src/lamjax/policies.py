"""Policies as folders: ``weights.npz`` (arrays alone, no pickle) and ``policy.json`` (what they are, and from where).

Three kinds: an actor-critic that PPO trained, a latent policy with an offline decoder, and the hybrid actor of online
decoding. Each as a ``logits_fn`` gives what its space of actions makes a distribution of (see `lamjax.spaces`): logits
of discrete actions, means and log-deviations of continuous ones. Weights may be kept in float16 to be small; they are
computed with in float32.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lamjax.cloning import CloningState
from lamjax.decoding.offline import OfflineConfig, decode
from lamjax.decoding.online import HybridAgent
from lamjax.models.grid import GridConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig
from lamjax.models.policy import LatentPolicy
from lamjax.models.trunk import TrunkConfig
from lamjax.ppo import ActorCriticAgent
from lamjax.preprocess import normalise_obs
from lamjax.spaces import ActionSpace, Box, Discrete, as_space
from lamjax.training import checkpoint


class PolicyError(ValueError):
    """Raised when a policy folder is missing or not one of ours."""


@dataclasses.dataclass(frozen=True)
class DecodedPolicy:
    """Stage 2's policy followed by an offline decoder.

    Attributes:
      trunk: the policy's trunk.
      latent_dim: Z.
      space: what actions are; a number n stands for `Discrete(n)`.
      decoder: the decoder's settings.
    """

    trunk: TrunkConfig
    latent_dim: int
    space: ActionSpace
    decoder: OfflineConfig

    def __post_init__(self):
        object.__setattr__(self, "space", as_space(self.space))


Network = ActorCriticAgent | DecodedPolicy | HybridAgent
KINDS: dict[str, type] = {"actor_critic": ActorCriticAgent, "decoded": DecodedPolicy, "hybrid": HybridAgent}


def actor_critic_logits(network: ActorCriticAgent, params: Any, obs: jax.Array) -> jax.Array:
    """Outputs ``[B, K]`` of an actor-critic."""
    return network.apply(params, obs)[0]


def decoded_params(policy: CloningState, decoder: Any) -> dict[str, Any]:
    """What a `DecodedPolicy` computes with: stage 2's policy, a decoder, and how observations are standardised."""
    stats = {} if policy.obs_stats is None else {"obs_stats": policy.obs_stats}
    return {"policy": policy.params, "decoder": decoder, **stats}


def decoded_logits(network: DecodedPolicy, params: Any, obs: jax.Array) -> jax.Array:
    """Outputs ``[B, K]`` of a latent policy and its decoder; params as of `decoded_params`."""
    inputs = normalise_obs(obs, params.get("obs_stats"))
    latents, _ = LatentPolicy(network.trunk, network.latent_dim).apply({"params": params["policy"]}, inputs)
    return decode(params["decoder"], latents, network.decoder, network.space)


def hybrid_logits(network: HybridAgent, params: Any, obs: jax.Array) -> jax.Array:
    """Outputs ``[B, K]`` of the hybrid actor; params ``{"params": ..., "frozen": ...}``, unless nothing is frozen."""
    return network.apply(params["params"], network.encode(params.get("frozen", {}), obs))[0]


LOGITS = {ActorCriticAgent: actor_critic_logits, DecodedPolicy: decoded_logits, HybridAgent: hybrid_logits}


@dataclasses.dataclass(frozen=True)
class Logits:
    """``logits_fn(params, obs)`` of a network; equal networks compare equal, so ``jit`` compiles them once."""

    network: Network

    def __call__(self, params: Any, obs: jax.Array) -> jax.Array:
        """What the network's space makes actions of, float32 ``[B, K]``, at observations ``[B, *obs_shape]``."""
        return LOGITS[type(self.network)](self.network, params, obs)


def uniform_logits(space: ActionSpace | int) -> Callable[[Any, jax.Array], jax.Array]:
    """The random policy over a space, or over so many actions, as a ``logits_fn``."""
    return _Uniform(as_space(space))


@dataclasses.dataclass(frozen=True)
class _Uniform:
    space: ActionSpace

    def __call__(self, params: Any, obs: jax.Array) -> jax.Array:
        return self.space.uniform(obs.shape[0])


def save_policy(folder: Path, network: Network, params: Any, info: dict[str, Any], dtype: Any = np.float32) -> None:
    """Writes a policy folder.

    Args:
      folder: made if need be; files of an older policy in it are replaced.
      network: what the weights belong to.
      params: nested dicts of arrays.
      info: provenance, anything JSON can hold.
      dtype: float32, or float16 for weights that are shipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: array.astype(dtype) for name, array in checkpoint.flatten(params).items()}
    np.savez_compressed(folder / "weights.npz", **arrays)
    kind = next(name for name, cls in KINDS.items() if isinstance(network, cls))
    sizes = {field.name: _to_json(getattr(network, field.name)) for field in dataclasses.fields(network)}
    sizes.pop("dtype", None)
    note = {"kind": kind, "network": sizes, "info": info}
    (folder / "policy.json").write_text(json.dumps(note, indent=2) + "\n")


def load_policy(folder: Path) -> tuple[Logits, Any, dict[str, Any]]:
    """Reads a policy folder.

    Returns:
      ``logits_fn``, its parameters, and the provenance.

    Raises:
      PolicyError: if the folder is missing, or its files are not those of a policy.
    """
    try:
        note = json.loads((folder / "policy.json").read_text())
        with (folder / "weights.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            params = checkpoint.nest({name: jnp.asarray(arrays[name], jnp.float32) for name in arrays.files})
        sizes = {name: _from_json(value) for name, value in note["network"].items()}
        if "num_actions" in sizes:  # as it was written before actions could be continuous
            sizes["space"] = sizes.pop("num_actions")
        network = KINDS[note["kind"]](**sizes)
        return Logits(network), params, note["info"]
    except FileNotFoundError as error:
        raise PolicyError(f"There is no policy at {folder}: {Path(error.filename).name} is missing.") from error
    except Exception as error:  # damaged files make json, zipfile and zlib raise whatever they meet
        raise PolicyError(f"{folder} does not hold a policy of ours, or is damaged ({error!r}).") from error


_CONFIGS = {cls.__name__: cls for cls in (ImpalaConfig, GridConfig, MLPConfig, OfflineConfig, Discrete, Box)}


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {"type": type(value).__name__, **dataclasses.asdict(value)}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        sizes = {k: _from_json(v) for k, v in value.items() if k != "type"}
        return _CONFIGS[value["type"]](**sizes)
    return tuple(value) if isinstance(value, list) else value
