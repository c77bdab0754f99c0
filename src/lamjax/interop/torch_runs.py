"""Imports the reference's checkpoints into run folders, and exports run folders as checkpoints with its names.

The names of weights identify the networks, at whatever depth a checkpoint keeps them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lamjax import cloning
from lamjax.cloning import CloningState
from lamjax.config import RunConfig
from lamjax.dynamics import DynamicsState
from lamjax.interop import pytorch, torchfile
from lamjax.interop.pytorch import FDM, IDM, TRACKED, WeightsError
from lamjax.training import checkpoint

POLICY = "policy."
_TRUNK, _UNET, _BOOKS = "conv_stack.0.conv.weight", "down.0.conv.weight", "vq.embedding"


def find_networks(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Finds LAPO's networks among arrays by dotted names.

    Args:
      arrays: the arrays of one file or several, from `torchfile.flatten`.

    Returns:
      The arrays of each network by its own names: those of the inverse model under "idm.", of the forward model under
      "wm.", and of the latent policy under "policy.".

    Raises:
      WeightsError: if there is no network, or two of a kind.
    """
    prefixes: dict[str, str] = {}
    for name in arrays:
        prefix = name.removesuffix(_TRUNK if name.endswith(_TRUNK) else _UNET)
        if prefix == name or (prefix and not prefix.endswith(".")):
            continue
        kind = FDM if name.endswith(_UNET) else IDM if prefix + _BOOKS in arrays else POLICY
        if kind in prefixes:
            raise WeightsError(
                f"There are two networks of a kind, at {prefixes[kind] or 'the top'} and {prefix or 'the top'}: save "
                "the right one to its own file."
            )
        prefixes[kind] = prefix
    if not prefixes:
        raise WeightsError(
            "There is none of LAPO's networks: no state dict with conv_stack.0.conv.weight or down.0.conv.weight. A "
            "model that was saved as a whole must be saved again as its state_dict()."
        )
    return {
        kind: {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        for kind, prefix in prefixes.items()
    }


def _check_finite(networks: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    for kind, weights in networks.items():
        for name, array in weights.items():
            with np.errstate(over="ignore"):
                finite = np.isfinite(array.astype(np.float32)).all()
            if not finite:
                raise WeightsError(
                    f"{kind}{name} is not finite in float32: its training had diverged; give an earlier checkpoint."
                )


@dataclasses.dataclass(frozen=True)
class Imported:
    """The result of an import.

    Attributes:
      config: the settings with the sizes of the networks.
      networks: the kinds of the networks: "idm.", "wm.", "policy.".
    """

    config: RunConfig
    networks: tuple[str, ...]


def import_torch(paths: Sequence[Path], folder: Path, config: RunConfig) -> Imported:
    """Writes the reference's networks as finished stages of a run folder.

    Args:
      paths: files of ``torch.save``; together they hold the inverse and the forward model, the latent policy, or all.
      folder: the run folder, whose checkpoints of these stages must not exist.
      config: the run's settings; the sizes of the files' networks replace its own.

    Raises:
      TorchFileError: if a file is missing, damaged or of another format.
      WeightsError: if the networks are not LAPO's, if one of a pair is missing, or if weights are not finite.
    """
    arrays: dict[str, np.ndarray] = {}
    for path in paths:
        prefix = f"{path.name}." if len(paths) > 1 else ""
        arrays |= {prefix + name: array for name, array in torchfile.flatten(torchfile.read(path)).items()}
    networks = find_networks(arrays)
    _check_finite(networks)
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
        policy = CloningState(
            params,
            cloning.optimizer(settings).init(params),
            jnp.asarray(settings.steps, jnp.int32),
            latent_dim,
            settings,
        )
        config = dataclasses.replace(config, cloning=settings)
        states["cloning"] = (settings.steps, policy, settings)
    for stage, (steps, state, settings) in states.items():
        # The files do not say how long training took.
        meta = {"seconds": float("nan"), "imported": [path.name for path in paths]}
        checkpoint.save(folder / "checkpoints" / stage, steps, state, config=settings, meta=meta)
    return Imported(config, tuple(networks))


def export_torch(model: DynamicsState | None, policy: CloningState | None, out: Path) -> list[str]:
    """Writes a run's networks under the reference's names: ``{"idm": ..., "wm": ..., "policy": ...}``.

    Args:
      model: stage 1, as from `loading.load_dynamics`.
      policy: stage 2, as from `loading.load_cloning`.
      out: the file, for ``torch.load(out, weights_only=True)``.

    Returns:
      The names of the networks.

    Raises:
      WeightsError: if there are no networks, or networks of another form than the reference's.
    """
    tree: dict[str, dict[str, np.ndarray]] = {}
    size = 64
    if model is not None:
        for name, array in pytorch.dynamics_arrays(model).items():
            kind, _, rest = name.partition(".")
            tree.setdefault(kind, {})[rest] = np.asarray(array, np.int64 if name.endswith(TRACKED) else np.float32)
        size = pytorch.image_size(pytorch.check_reference_form(model.config)[1])
    if policy is not None:
        arrays = pytorch.policy_arrays(policy.params, policy.config.trunk, size)
        tree["policy"] = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    if not tree:
        raise WeightsError("The run has no checkpoint of stage 1 or 2: give the folder of a run.")
    torchfile.write(out, tree)
    return list(tree)


def options(config: Any, base: Any, prefix: str = "--") -> list[str]:
    """The command-line options that turn the settings `base` into `config`."""
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
