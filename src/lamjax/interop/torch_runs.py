"""The reference's checkpoints as run folders, and run folders as checkpoints by its names.

Where a checkpoint keeps its networks does not matter: they are found by the names of their weights, at any depth.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lamjax import cloning
from lamjax.cloning import CloningConfig, CloningState
from lamjax.config import RunConfig
from lamjax.dynamics import DynamicsConfig, DynamicsState
from lamjax.interop import pytorch, torchfile
from lamjax.interop.pytorch import FDM, IDM, TRACKED, WeightsError
from lamjax.models.quantizer import Codebooks
from lamjax.training import checkpoint

POLICY = "policy."
_TRUNK, _UNET, _BOOKS = "conv_stack.0.conv.weight", "down.0.conv.weight", "vq.embedding"


def find_networks(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Finds LAPO's networks among arrays by dotted names.

    Args:
      arrays: what `torchfile.flatten` gave, of one file or several.

    Returns:
      The arrays of each network that is there, by its own names: of the inverse model under "idm.", the forward model
      under "wm.", the latent policy under "policy.".

    Raises:
      WeightsError: if there is none, or two of a kind.
    """
    found: dict[str, str] = {}
    for name in arrays:
        prefix = name.removesuffix(_TRUNK if name.endswith(_TRUNK) else _UNET)
        if prefix == name or (prefix and not prefix.endswith(".")):
            continue
        kind = FDM if name.endswith(_UNET) else IDM if prefix + _BOOKS in arrays else POLICY
        if kind in found:
            raise WeightsError(
                f"There are two networks of a kind, at {found[kind] or 'the top'} and {prefix or 'the top'}: save the "
                "one that is meant to a file of its own."
            )
        found[kind] = prefix
    if not found:
        raise WeightsError(
            "There is none of LAPO's networks: no state dict with conv_stack.0.conv.weight or down.0.conv.weight. A "
            "model that was saved as a whole must be saved again as its state_dict()."
        )
    return {
        kind: {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        for kind, prefix in found.items()
    }


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an import found.

    Attributes:
      config: the settings with the sizes of the networks.
      networks: their kinds, "idm.", "wm.", "policy.".
    """

    config: RunConfig
    networks: tuple[str, ...]


def import_torch(paths: Sequence[Path], folder: Path, config: RunConfig) -> Imported:
    """Writes the reference's networks as finished stages of a run folder.

    Args:
      paths: files of ``torch.save``; together they hold the inverse and the forward model, the latent policy, or all.
      folder: the run folder, whose checkpoints of these stages must not exist.
      config: the run's settings; the networks' sizes are replaced by those found.

    Raises:
      TorchFileError: if a file is missing, damaged or of another format.
      WeightsError: if the networks are not LAPO's, or one of a pair is missing.
    """
    arrays: dict[str, np.ndarray] = {}
    for path in paths:
        found = torchfile.flatten(torchfile.read(path))
        arrays |= {(f"{path.name}." if len(paths) > 1 else "") + name: array for name, array in found.items()}
    networks = find_networks(arrays)
    if (IDM in networks) != (FDM in networks):
        have, lack = ("an inverse", "forward") if IDM in networks else ("a forward", "inverse")
        raise WeightsError(f"There is {have} model and no {lack} one: give both, in one file or two.")
    for stage, kind in (("dynamics", IDM), ("cloning", POLICY)):
        if kind in networks and (folder / "checkpoints" / stage).exists():
            raise WeightsError(f"{folder} already has a stage {stage}: choose another --name, or remove the folder.")
    states: dict[str, tuple[int, Any, Any]] = {}
    if IDM in networks:
        joined = {kind + name: array for kind in (IDM, FDM) for name, array in networks[kind].items()}
        sizes = pytorch.dynamics_config(joined, config.dynamics)
        channels = joined[f"{FDM}final_conv.3.weight"].shape[0] if f"{FDM}final_conv.3.weight" in joined else 3
        state = pytorch.dynamics_state(joined, sizes, channels)
        config = dataclasses.replace(config, dynamics=sizes)
        steps = max([int(array) for name, array in joined.items() if name.endswith(TRACKED)], default=0)
        states["dynamics"] = (sizes.steps, state.replace(step=jnp.asarray(steps, jnp.int32)), sizes)
    if POLICY in networks:
        weights = networks[POLICY]
        trunk = pytorch.impala_config(weights)
        latent_dim = pytorch.latent_dim(weights)
        if "dynamics" in states and latent_dim != config.dynamics.latent_dim:
            raise WeightsError(
                f"The policy's latents have {latent_dim} numbers and the inverse model's {config.dynamics.latent_dim}: "
                "they are not of the same run."
            )
        settings = dataclasses.replace(config.cloning, trunk=trunk)
        params = pytorch.policy_params(weights, trunk, latent_dim, *pytorch.policy_input(weights))
        state = CloningState(
            params,
            cloning.optimizer(settings).init(params),
            jnp.asarray(settings.steps, jnp.int32),
            latent_dim,
            settings,
        )
        config = dataclasses.replace(config, cloning=settings)
        states["cloning"] = (settings.steps, state, settings)
    for stage, (steps, state, settings) in states.items():
        # How long it took is not known.
        meta = {"seconds": float("nan"), "imported": [path.name for path in paths]}
        checkpoint.save(folder / "checkpoints" / stage, steps, state, config=settings, meta=meta)
    return Imported(config, tuple(networks))


def export_torch(folder: Path, out: Path) -> list[str]:
    """Writes a run's networks by the reference's names: ``{"idm": ..., "wm": ..., "policy": ...}``.

    Args:
      folder: the run folder.
      out: the file, for ``torch.load(out, weights_only=True)``.

    Returns:
      The names of the networks that were there.

    Raises:
      WeightsError: if the run has none, or of another form than the reference's.
      CheckpointError: if its checkpoints are damaged.
    """
    tree: dict[str, dict[str, np.ndarray]] = {}
    found = checkpoint.restore_arrays(folder / "checkpoints" / "dynamics")
    size = 64
    if found is not None:
        _, leaves, note = found
        config = _as_config(DynamicsConfig(), note["config"])
        nested = checkpoint.nest(leaves)
        books, stats = Codebooks(**nested["codebooks"]), nested["batch_stats"]
        state = DynamicsState(nested["params"], stats, books, None, nested["step"], config)
        for name, array in pytorch.dynamics_arrays(state).items():
            kind, _, rest = name.partition(".")
            tree.setdefault(kind, {})[rest] = np.asarray(array, np.int64 if name.endswith(TRACKED) else np.float32)
        size = pytorch.image_size(config.fdm)
    found = checkpoint.restore_arrays(folder / "checkpoints" / "cloning")
    if found is not None:
        _, leaves, note = found
        trunk = _as_config(CloningConfig(), note["config"]).trunk
        arrays = pytorch.policy_arrays(checkpoint.nest(leaves)["params"], trunk, size)
        tree["policy"] = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    if not tree:
        raise WeightsError(f"{folder} has no checkpoint of stage 1 or 2: give the folder of a run.")
    torchfile.write(out, tree)
    return list(tree)


def options(config: Any, base: Any, prefix: str = "--") -> list[str]:
    """The options of the command line that turn the settings `base` into `config`."""
    words: list[str] = []
    for field in dataclasses.fields(base):
        ours, theirs = getattr(config, field.name), getattr(base, field.name)
        name = f"{prefix}{field.name.replace('_', '-')}"
        if ours == theirs:
            continue
        if dataclasses.is_dataclass(theirs):
            words += options(ours, theirs, f"{name}.")
        elif isinstance(ours, bool):
            words.append(name if ours else f"{prefix}no-{field.name.replace('_', '-')}")
        else:
            words += [name, *(map(str, ours) if isinstance(ours, tuple) else [str(ours)])]
    return words


def _as_config(default: Any, values: Mapping[str, Any]) -> Any:
    """A config from its JSON values.

    Raises:
      WeightsError: if a field is of another type, such as a trunk for vectors.
    """
    known = {field.name for field in dataclasses.fields(default)}
    if odd := sorted(values.keys() - known):
        raise WeightsError(f"The reference has no networks of this form: they have no {odd[0]}.")

    def value(name: str, new: Any) -> Any:
        if dataclasses.is_dataclass(getattr(default, name)):
            return _as_config(getattr(default, name), new)
        return tuple(new) if isinstance(new, list) else new

    return dataclasses.replace(default, **{name: value(name, new) for name, new in values.items()})
