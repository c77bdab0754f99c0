"""Writes and reads models and policies as folders to share (`lamjax.shared_folder`).

A model's arrays are ``dynamics.*``, ``cloning.*`` and ``decoder.*``; its note holds the settings, the observation shape
and the results. A policy's arrays are its parameters; its note holds the network, its own results, and those of its
run.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lamjax import policies, shared_folder, spaces
from lamjax.analysis.model_card import model_card, policy_card
from lamjax.archives import brief
from lamjax.cloning import CloningConfig, CloningState
from lamjax.config import RunConfig
from lamjax.decoding.offline import OfflineConfig
from lamjax.dynamics import DynamicsConfig, DynamicsState
from lamjax.models.quantizer import Codebooks
from lamjax.policies import DecodedPolicy
from lamjax.shared_folder import Dtype, ModelError, shareable
from lamjax.training import checkpoint

MODEL, POLICY = "lamjax-model", "lamjax-policy"
# Entries of summary.json to keep in a shared folder: those that reveal nothing about the machine's folders.
_KEPT = (
    *("env", "preset", "seed", "name", "git", "versions", "device", "source"),
    *("stages", "nulls", "decoder", "fresh_levels", "banner"),
)


class Decoder(NamedTuple):
    """A decoder from latents to actions: its policy, that policy's parameters, and its results."""

    network: DecodedPolicy
    params: Any
    info: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """A latent action model.

    Attributes:
      env: what it was trained on: the name of an environment, or of the user's own data.
      obs_shape: shape of one observation; None if unknown.
      config: the settings of the run.
      summary: the results, as in ``summary.json``.
      dynamics: stage 1, without the optimizer's moments.
      cloning: stage 2, likewise; None if it was not trained.
      decoders: decoders by the name of their policy.
    """

    env: str
    obs_shape: tuple[int, ...] | None
    config: RunConfig
    summary: dict[str, Any]
    dynamics: DynamicsState
    cloning: CloningState | None
    decoders: dict[str, Decoder]


class SharedPolicy(NamedTuple):
    """A policy, its parameters, its provenance and results, and the results of its run (empty if there is none)."""

    network: policies.Network
    params: Any
    info: dict[str, Any]
    summary: dict[str, Any]


def write_model(folder: Path, model: Model, dtype: Dtype = "float32") -> None:
    """Writes a model folder.

    Args:
      folder: must not exist.
      model: the model to write.
      dtype: type of the weights; float16 halves the size, and computations are still in float32.

    Raises:
      ModelError: if the folder exists, or a weight is not finite in that type.
      OSError: if it cannot be written.
    """
    arrays, note = _pack(model)
    arrays = shared_folder.converted(arrays, dtype)
    facts = _facts(model) | {"weights": _size(arrays, dtype)}
    about = {"env": model.env, "random_share": model.config.record.random_share}
    card = model_card(note["summary"] | about, Path(folder).name, facts)
    shared_folder.write(folder, MODEL, arrays, note, card)


def read_model(folder: Path) -> Model:
    """Reads a model folder.

    Raises:
      ModelError: if it is missing, damaged, from a newer version or from another library.
    """
    note, arrays = shared_folder.read(folder, MODEL)
    try:
        return _unpack(note, arrays)
    except Exception as error:  # the digests match, so this needs a folder with recomputed digests
        raise ModelError(f"{folder} does not hold a valid model ({brief(error)}).") from error


def write_policy(folder: Path, policy: SharedPolicy, dtype: Dtype = "float32") -> None:
    """Writes a policy folder; arguments and errors are those of `write_model`."""
    network, params, info, summary = policy
    arrays = shared_folder.converted(checkpoint.flatten(params), dtype)
    note = policies.describe(network) | {"info": shareable(info), "summary": _kept(summary)}
    facts = {"network": type(network).__name__, "trunk": type(network.trunk).__name__.removesuffix("Config")}
    facts |= {"actions": str(network.space), "weights": _size(arrays, dtype)}
    card = policy_card(note["summary"], note["info"], Path(folder).name, facts)
    shared_folder.write(folder, POLICY, arrays, note, card)


def read_policy(folder: Path) -> SharedPolicy:
    """Reads a policy folder.

    Raises:
      ModelError: if it is missing, damaged, from a newer version or from another library.
    """
    note, arrays = shared_folder.read(folder, POLICY)
    try:
        params = checkpoint.nest({name: jnp.asarray(array) for name, array in arrays.items()})
        return SharedPolicy(policies.from_description(note), params, note["info"], note["summary"])
    except Exception as error:  # as in `read_model`
        raise ModelError(f"{folder} does not hold a valid policy ({brief(error)}).") from error


def dynamics_state(arrays: dict[str, Any], config: DynamicsConfig, space: Any) -> DynamicsState:
    """Builds stage 1 from its arrays by dotted names, without the optimizer's moments."""
    tree = checkpoint.nest(arrays)
    codebooks = Codebooks(**tree["codebooks"])
    stats, obs_stats = tree.get("batch_stats", {}), tree.get("obs_stats")
    return DynamicsState(
        tree["params"], stats, codebooks, None, tree["step"], config, obs_stats, space, tree.get("locator")
    )


def cloning_state(arrays: dict[str, Any], config: CloningConfig) -> CloningState:
    """Builds stage 2 from its arrays by dotted names, without the optimizer's moments."""
    tree = checkpoint.nest(arrays)
    latent_dim = tree["params"]["latent_head"]["linear"]["bias"].shape[0]
    return CloningState(tree["params"], None, tree["step"], latent_dim, config, tree.get("obs_stats"))


def _pack(model: Model) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a model, and the note with everything else that is needed to rebuild it."""
    parts: dict[str, Any] = {"dynamics": model.dynamics.replace(opt_state=None)}
    note: dict[str, Any] = {
        "env": model.env,
        "obs_shape": model.obs_shape and list(model.obs_shape),
        "settings": checkpoint.as_json(model.config),
        "dynamics": checkpoint.as_json(model.dynamics.config),
        "action_space": model.dynamics.space and checkpoint.as_json(model.dynamics.space),
        "cloning": None,
        "decoders": {},
        "summary": _kept(model.summary),
    }
    if model.cloning is not None:
        parts["cloning"] = model.cloning.replace(opt_state=None)
        note["cloning"] = checkpoint.as_json(model.cloning.config)
        for name, (network, params, info) in model.decoders.items():
            parts[f"decoder.{name}"] = params["decoder"]
            settings = {"config": checkpoint.as_json(network.decoder), "space": checkpoint.as_json(network.space)}
            note["decoders"][name] = settings | {"info": info}
    arrays = {f"{part}.{name}": each for part, tree in parts.items() for name, each in checkpoint.flatten(tree).items()}
    return arrays, note


def _unpack(note: dict[str, Any], arrays: dict[str, np.ndarray]) -> Model:
    """The inverse of `_pack`."""

    def part(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): jnp.asarray(x) for name, x in arrays.items() if name.startswith(prefix)}

    space = note["action_space"] and checkpoint.from_json(spaces.ActionSpace, note["action_space"])
    dynamics = dynamics_state(part("dynamics."), checkpoint.from_json(DynamicsConfig, note["dynamics"]), space)
    cloning, decoders = None, {}
    if note["cloning"] is not None:
        cloning = cloning_state(part("cloning."), checkpoint.from_json(CloningConfig, note["cloning"]))
        for name, saved in note["decoders"].items():
            config = checkpoint.from_json(OfflineConfig, saved["config"])
            decoded = checkpoint.from_json(spaces.ActionSpace, saved["space"])
            network = DecodedPolicy(cloning.config.trunk, cloning.latent_dim, decoded, config)
            params = DecodedPolicy.init(cloning, checkpoint.nest(part(f"decoder.{name}.")))
            decoders[name] = Decoder(network, params, saved["info"])
    shape, settings = note["obs_shape"], checkpoint.from_json(RunConfig, note["settings"])
    return Model(note["env"], shape and tuple(shape), settings, note["summary"], dynamics, cloning, decoders)


def _kept(summary: Mapping[str, Any]) -> dict[str, Any]:
    return shareable({key: summary[key] for key in _KEPT if key in summary})


def _size(arrays: Mapping[str, np.ndarray], dtype: Dtype) -> str:
    return f"{sum(array.nbytes for array in arrays.values()) / 1e6:.1f} MB, {dtype}"


def _facts(model: Model) -> dict[str, str]:
    """What the card says about the model itself, apart from its results."""
    config, quantizer = model.dynamics.config, model.dynamics.config.quantizer
    latent = f"{config.latent_dim} numbers"
    if quantizer.enabled:
        latent += f", quantised with {quantizer.codebooks} x {quantizer.latents} codes of {quantizer.codes}"
    return {
        "observation": " x ".join(map(str, model.obs_shape)) if model.obs_shape else "see config.json",
        "window": f"{config.window} frames: {config.context} before o_t, o_t, and o_(t+1)",
        "latent action": latent,
        "inverse model": type(config.idm).__name__.removesuffix("Config"),
        "forward model": type(config.fdm).__name__.removesuffix("Config"),
        "decoder": ", ".join(model.decoders) or ("the action head" if config.action_weight else "none"),
    }
