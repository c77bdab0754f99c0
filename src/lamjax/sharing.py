"""Models as folders to share: weights that any reader of safetensors opens, what rebuilds the model, and a model card.

- ``model.safetensors``: arrays by dotted names, ``dynamics.*``, ``cloning.*`` and ``decoder.*``
- ``config.json``: the settings, the shape of observations, the results, and digests of the weights and of itself
- ``README.md``: the model card (`lamjax.analysis.model_card`), with the front matter that model hubs read
"""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import lamjax
from lamjax import spaces
from lamjax.analysis.model_card import model_card
from lamjax.archives import brief
from lamjax.cloning import CloningConfig, CloningState
from lamjax.config import RunConfig
from lamjax.decoding.offline import OfflineConfig
from lamjax.dynamics import DynamicsConfig, DynamicsState
from lamjax.models.quantizer import Codebooks
from lamjax.policies import DecodedPolicy
from lamjax.training import checkpoint

FORMAT, VERSION = "lamjax-model", 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
# Entries of summary.json that a shared model keeps: those that say nothing of the machine's folders.
_KEPT = ("env", "preset", "seed", "name", "git", "versions", "device", "source", "stages", "nulls", "banner")


class ModelError(ValueError):
    """Raised where a folder is no model, or a damaged one; one sentence that says what to do."""


class Decoder(NamedTuple):
    """A decoder from latents to actions: its policy, that policy's parameters, and how it did."""

    network: DecodedPolicy
    params: Any
    info: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """A latent action model.

    Attributes:
      env: what it was trained on: an environment's name, or the name of somebody's own data.
      obs_shape: of one observation; None where that is not known.
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


def write_model(folder: Path, model: Model) -> None:
    """Writes a model folder.

    It is written beside its place and renamed, so there is never half a model.

    Args:
      folder: must not exist.
      model: what it will hold.

    Raises:
      ModelError: if the folder exists.
      OSError: if it cannot be written.
    """
    folder = Path(folder)
    if os.path.lexists(folder):
        raise ModelError(f"{folder} already exists: remove it, or choose another folder.")
    arrays, note = _pack(model)
    weights = safetensors.numpy.save(arrays)
    note |= {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    note["sha256"] = checkpoint.note_digest(note)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / WEIGHTS).write_bytes(weights)
    (partial / CONFIG).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    card = model_card(note["summary"] | {"env": model.env}, folder.name, _facts(model, arrays))
    (partial / CARD).write_text(card, encoding="utf-8")
    os.rename(partial, folder)


def read_model(folder: Path) -> Model:
    """Reads a model folder.

    Raises:
      ModelError: if it is missing, damaged, of a newer version or of another library.
    """
    try:
        note = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"There is no model in {folder}: {Path(error.filename).name} is missing.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{folder / CONFIG} is damaged ({brief(error)}): fetch the folder again.") from error
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        raise ModelError(f"{folder} holds no model of lamjax: its {CONFIG} does not have the format {FORMAT!r}.")
    if note.get("version") != VERSION:
        raise ModelError(
            f"{folder} is a model of version {note.get('version')}, and this lamjax reads version {VERSION}: update it."
        )
    if note.get("sha256") != checkpoint.note_digest(note):
        raise ModelError(f"{folder / CONFIG} is not what was written: fetch the folder again.")
    if note["weights_sha256"] != hashlib.sha256(weights).hexdigest():
        raise ModelError(f"{folder / WEIGHTS} is not what was written: fetch the folder again.")
    try:
        return _unpack(note, safetensors.numpy.load(weights))
    except Exception as error:  # digests match, so only somebody who wrote them anew can get here
        raise ModelError(f"{folder} does not hold a model that can be ({brief(error)}).") from error


def dynamics_state(arrays: dict[str, Any], config: DynamicsConfig, space: Any) -> DynamicsState:
    """Stage 1 from its arrays by dotted names, without the optimizer's moments."""
    tree = checkpoint.nest(arrays)
    codebooks = Codebooks(**tree["codebooks"])
    stats, obs_stats = tree.get("batch_stats", {}), tree.get("obs_stats")
    return DynamicsState(tree["params"], stats, codebooks, None, tree["step"], config, obs_stats, space)


def cloning_state(arrays: dict[str, Any], config: CloningConfig) -> CloningState:
    """Stage 2 from its arrays by dotted names, without the optimizer's moments."""
    tree = checkpoint.nest(arrays)
    latent_dim = tree["params"]["latent_head"]["linear"]["bias"].shape[0]
    return CloningState(tree["params"], None, tree["step"], latent_dim, config, tree.get("obs_stats"))


def _pack(model: Model) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a model, and what else rebuilds it."""
    parts: dict[str, Any] = {"dynamics": model.dynamics.replace(opt_state=None)}
    note: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "created_by": f"lamjax {lamjax.__version__}",
        "env": model.env,
        "obs_shape": model.obs_shape and list(model.obs_shape),
        "settings": checkpoint.as_json(model.config),
        "dynamics": checkpoint.as_json(model.dynamics.config),
        "action_space": model.dynamics.space and checkpoint.as_json(model.dynamics.space),
        "cloning": None,
        "decoders": {},
        "summary": _shareable({key: model.summary[key] for key in _KEPT if key in model.summary}),
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


def _shareable(value: Any) -> Any:
    """Results without the folders of the machine that they were made on: of each absolute path the name is left."""
    if isinstance(value, dict):
        return {key: _shareable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shareable(each) for each in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def _facts(model: Model, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """What the card says of the model besides its results."""
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
        "weights": f"{sum(array.nbytes for array in arrays.values()) / 1e6:.1f} MB, float32",
    }
