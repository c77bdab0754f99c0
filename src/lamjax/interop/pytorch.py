"""Converts weights with the names and layouts of LAPO's PyTorch modules to our parameters, and back.

PyTorch keeps convolutions as ``[O, I, h, w]``, transposed ones as ``[I, O, h, w]`` (and applies them flipped compared
with XLA), linear layers as ``[O, I]``, and flattens images channels first. One table of names serves both directions,
so weights that are loaded and written again are bit-identical.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import dynamics
from lamjax.dynamics import DynamicsConfig, DynamicsState
from lamjax.models.impala import ImpalaConfig
from lamjax.models.policy import LatentPolicy
from lamjax.models.quantizer import Codebooks
from lamjax.models.trunk import TrunkConfig
from lamjax.models.unet import UNetConfig

Arrays = Mapping[str, Any]

IDM, FDM = "idm.", "wm."  # prefixes of the names of the two models
TRACKED = "num_batches_tracked"  # a count that PyTorch keeps in every batch norm and LAPO does not use


class WeightsError(ValueError):
    """Raised if weights are not those of LAPO's networks; one sentence that names the entry."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One array: its name in PyTorch, its path in our tree, and the conversion between them.

    `image` is the ``(h, w, c)`` that was flattened in front of a linear layer, if any.
    """

    name: str
    path: tuple[str, ...]
    kind: Literal["conv", "transposed", "linear", "vector"]
    image: tuple[int, int, int] | None = None

    def ours(self, array: Any) -> Any:
        match self.kind:
            case "conv":
                return array.transpose(2, 3, 1, 0)
            case "transposed":
                return array.transpose(2, 3, 0, 1)[::-1, ::-1]
            case "linear":
                if self.image is None:
                    return array.T
                h, w, c = self.image
                return array.T.reshape(c, h, w, -1).transpose(1, 2, 0, 3).reshape(h * w * c, -1)
        return array

    def theirs(self, array: Any) -> Any:
        match self.kind:
            case "conv":
                return array.transpose(3, 2, 0, 1)
            case "transposed":
                return array[::-1, ::-1].transpose(2, 3, 0, 1)
            case "linear":
                if self.image is None:
                    return array.T
                h, w, c = self.image
                return array.reshape(h, w, c, -1).transpose(2, 0, 1, 3).reshape(h * w * c, -1).T
        return array


def _layer(name: str, path: tuple[str, ...], kind: Any, image: tuple[int, int, int] | None = None) -> Iterator[_Entry]:
    yield _Entry(f"{name}.weight", (*path, "kernel"), kind, image)
    yield _Entry(f"{name}.bias", (*path, "bias"), "vector")


def _impala(prefix: str, path: tuple[str, ...], config: ImpalaConfig, image_size: int) -> Iterator[_Entry]:
    for stage in range(len(config.channels)):
        name = f"{prefix}conv_stack.{stage}"
        yield from _layer(f"{name}.conv", (*path, "convs", f"Conv_{stage}", "conv"), "conv")
        for block in range(config.blocks):
            ours = (*path, "convs", f"ResidualBlock_{stage * config.blocks + block}")
            for i in range(2):
                yield from _layer(f"{name}.res_block{block}.conv{i}", (*ours, f"Conv_{i}", "conv"), "conv")
    size = image_size // int(np.prod(config.strides))
    yield from _layer(f"{prefix}fc", (*path, "fc", "linear"), "linear", (size, size, config.channels[-1]))


def _residual(name: str, path: tuple[str, ...]) -> Iterator[_Entry]:
    yield from _layer(f"{name}.res_block.1", (*path, "Conv_0", "conv"), "conv")
    yield from _layer(f"{name}.res_block.3", (*path, "Conv_1", "conv"), "conv")


def _unet(prefix: str, levels: int) -> Iterator[_Entry]:
    """Paths begin with "params" or "batch_stats"."""

    def block(name: str, ours: str, conv: str, kind: str) -> Iterator[_Entry]:
        yield from _layer(f"{name}.conv", ("params", ours, conv, "conv"), kind)
        norm = ("BatchNorm_0",)
        yield _Entry(f"{name}.norm.weight", ("params", ours, *norm, "scale"), "vector")
        yield _Entry(f"{name}.norm.bias", ("params", ours, *norm, "bias"), "vector")
        yield _Entry(f"{name}.norm.running_mean", ("batch_stats", ours, *norm, "mean"), "vector")
        yield _Entry(f"{name}.norm.running_var", ("batch_stats", ours, *norm, "var"), "vector")
        yield from _residual(f"{name}.res", ("params", ours, "ResidualBlock_0"))

    for level in range(levels):
        yield from block(f"{prefix}down.{level}", f"DownBlock_{level}", "Conv_0", "conv")
    yield from _layer(f"{prefix}down.{levels}", ("params", "bottleneck", "conv"), "conv")
    for level in range(levels + 1):
        yield from block(f"{prefix}up.{level}", f"UpBlock_{level}", "ConvTranspose_0", "transposed")
    yield from _layer(f"{prefix}final_conv.0", ("params", "head_in", "conv"), "conv")
    yield from _residual(f"{prefix}final_conv.1", ("params", "head_residual"))
    yield from _layer(f"{prefix}final_conv.3", ("params", "head_out", "conv"), "conv")


def _dynamics(config: DynamicsConfig) -> Iterator[_Entry]:
    """Paths begin with "idm", "codebooks" or "fdm"."""
    idm, fdm = check_reference_form(config)
    yield from _impala(IDM, ("idm", "Impala_0"), idm, image_size(fdm))
    yield from _layer(f"{IDM}policy_head", ("idm", "head", "linear"), "linear")
    for theirs, ours in (("embedding", "embedding"), ("ema_count", "count"), ("ema_weight", "total")):
        yield _Entry(f"{IDM}vq.{theirs}", ("codebooks", ours), "vector")
    for entry in _unet(FDM, len(fdm.channels)):
        yield dataclasses.replace(entry, path=("fdm", *entry.path))


def _policy(config: ImpalaConfig, size: int) -> Iterator[_Entry]:
    yield from _impala("", ("trunk_net",), config, size)
    yield from _layer("policy_head", ("latent_head", "linear"), "linear")
    yield from _layer("value_head", ("value_head",), "linear")


def _to_tree(entries: Iterator[_Entry], arrays: Arrays) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for entry in entries:
        node = tree
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = jnp.asarray(entry.ours(arrays[entry.name]), jnp.float32)
    return tree


def _to_arrays(entries: Iterator[_Entry], tree: Any) -> dict[str, Any]:
    return {
        entry.name: entry.theirs(functools.reduce(lambda node, key: node[key], entry.path, tree)) for entry in entries
    }


def image_size(config: UNetConfig) -> int:
    """The side of the images that a U-Net takes, in pixels."""
    return 2 ** (len(config.channels) + 1) * config.stem


def _check(arrays: Arrays, expected: Mapping[str, Any]) -> None:
    """Raises WeightsError unless the arrays are the expected ones with their shapes; counts of batches are ignored."""
    for name, want in expected.items():
        if name not in arrays:
            raise WeightsError(f"{name} is missing, so these are not the weights of LAPO's networks at these sizes.")
        shape = tuple(np.shape(arrays[name]))
        if shape != tuple(want.shape):
            raise WeightsError(f"{name} has shape {list(shape)} where LAPO's networks have {list(want.shape)}.")
    for name in arrays:
        if name not in expected and not name.endswith(TRACKED):
            raise WeightsError(f"{name} belongs to no network of LAPO's at these sizes.")


def _check_trunk(config: Any) -> ImpalaConfig:
    if not isinstance(config, ImpalaConfig) or (config.stem, config.pool) != (1, True) or set(config.strides) != {2}:
        raise WeightsError(
            "The reference has only IMPALA trunks with pooling and no stem: only runs with such networks (presets "
            "paper and reference) have its names."
        )
    return config


def check_reference_form(config: DynamicsConfig) -> tuple[ImpalaConfig, UNetConfig]:
    """Checks that the models have the form of the reference's, at any sizes.

    Returns:
      The inverse model's trunk and the forward model.

    Raises:
      WeightsError: if they do not; the sentence names the setting.
    """
    idm, fdm, like = _check_trunk(config.idm), config.fdm, UNetConfig()
    if not isinstance(fdm, UNetConfig):
        raise WeightsError(
            "The reference's forward model is a U-Net: only the presets paper and reference have its names."
        )
    for field in ("stem", "latent_input", "predict", "shift"):
        if getattr(fdm, field) != getattr(like, field):
            raise WeightsError(
                f"The reference's forward model has fdm.{field}={getattr(like, field)!r}, this one "
                f"{getattr(fdm, field)!r}: only the presets paper and reference have its names."
            )
    if not config.quantizer.enabled:
        raise WeightsError("The reference cannot run without its quantiser, so quantizer.enabled must be True.")
    return idm, fdm


def dynamics_arrays(state: DynamicsState) -> dict[str, Any]:
    """Both models and the quantiser under the reference's names, ``idm.*`` and ``wm.*``, in its layouts; float32.

    Each batch norm's ``num_batches_tracked``, int64 ``[]``, is the number of steps done.

    Raises:
      WeightsError: if the models do not have the reference's form.
    """
    check_reference_form(state.config)
    fdm = {"params": state.params["fdm"], "batch_stats": state.batch_stats}
    codebooks = {name: getattr(state.codebooks, name) for name in ("embedding", "count", "total")}
    arrays = _to_arrays(_dynamics(state.config), {"idm": state.params["idm"], "codebooks": codebooks, "fdm": fdm})
    means = [name for name in arrays if name.endswith(".running_mean")]
    return arrays | {name.replace("running_mean", TRACKED): state.step for name in means}


def dynamics_state(arrays: Arrays, config: DynamicsConfig, channels: int = 3) -> DynamicsState:
    """Stage 1's state from the reference's ``idm.*`` and ``wm.*``; the optimizer is new, and the step 0.

    Args:
      arrays: float arrays by the reference's names, nothing else.
      config: the settings; sizes must be those of the arrays (see `dynamics_config`).
      channels: channels of one observation.

    Raises:
      WeightsError: if a name is missing or unknown or a shape differs; the sentence names it.
    """
    size = image_size(check_reference_form(config)[1])
    template = jax.eval_shape(lambda: dynamics.init(jax.random.key(0), config, (size, size, channels)))
    expected = jax.eval_shape(dynamics_arrays, template)
    _check(arrays, {name: want for name, want in expected.items() if not name.endswith(TRACKED)})
    tree = _to_tree(_dynamics(config), arrays)
    params = {"idm": tree["idm"], "fdm": tree["fdm"]["params"]}
    return DynamicsState(
        params,
        tree["fdm"]["batch_stats"],
        Codebooks(**tree["codebooks"]),
        dynamics.optimizer(config).init(params),
        jnp.zeros((), jnp.int32),
        config,
    )


def policy_arrays(params: Any, config: TrunkConfig, size: int = 64) -> dict[str, Any]:
    """A `LatentPolicy`'s parameters under the names and in the layouts of the reference's stage-2 policy.

    Args:
      params: the parameters.
      config: the trunk.
      size: side of the images, in pixels.

    Raises:
      WeightsError: if the trunk does not have the reference's form.
    """
    return _to_arrays(_policy(_check_trunk(config), size), params)


def policy_params(arrays: Arrays, config: TrunkConfig, latent_dim: int, size: int = 64, channels: int = 3) -> Any:
    """A `LatentPolicy`'s parameters from the reference's stage-2 policy.

    Args:
      arrays: float arrays by the reference's names, nothing else.
      config: the trunk (see `impala_config`).
      latent_dim: Z.
      size: side of the images, in pixels.
      channels: channels of one observation.

    Raises:
      WeightsError: if a name is missing or unknown or a shape differs; the sentence names it.
    """
    trunk = _check_trunk(config)
    network, obs = LatentPolicy(trunk, latent_dim), jnp.zeros((1, size, size, channels))
    template = jax.eval_shape(lambda: network.init(jax.random.key(0), obs)["params"])
    _check(arrays, jax.eval_shape(lambda params: policy_arrays(params, trunk, size), template))
    return _to_tree(_policy(trunk, size), arrays)


# Sizes


def _shape(arrays: Arrays, name: str, rank: int) -> tuple[int, ...]:
    if name not in arrays:
        raise WeightsError(f"{name} is missing, so these are not the weights of LAPO's networks.")
    shape = tuple(np.shape(arrays[name]))
    if len(shape) != rank or 0 in shape:
        raise WeightsError(f"{name} has shape {list(shape)}, which no network of LAPO's has.")
    return shape


def _count(arrays: Arrays, name: str) -> int:
    """Counts the names ``name.format(0)``, ``name.format(1)`` ... up to the first missing one."""
    n = 0
    while name.format(n) in arrays:
        n += 1
    return n


def impala_config(arrays: Arrays, prefix: str = "") -> ImpalaConfig:
    """The sizes of the IMPALA trunk whose arrays lie under `prefix` (for example ``idm.``).

    Raises:
      WeightsError: if there is none.
    """
    stages = max(_count(arrays, prefix + "conv_stack.{}.conv.weight"), 1)
    channels = tuple(_shape(arrays, f"{prefix}conv_stack.{stage}.conv.weight", 4)[0] for stage in range(stages))
    blocks = _count(arrays, prefix + "conv_stack.0.res_block{}.conv0.weight")
    features = _shape(arrays, f"{prefix}fc.weight", 2)[0]
    return ImpalaConfig(channels=channels, strides=(2,) * stages, blocks=blocks, features=features)


def dynamics_config(arrays: Arrays, base: DynamicsConfig) -> DynamicsConfig:
    """The settings `base` with the sizes of the reference's arrays ``idm.*`` and ``wm.*``.

    Raises:
      WeightsError: if the arrays are not those of LAPO's networks.
    """
    levels = max(_count(arrays, FDM + "down.{}.conv.weight"), 1)
    widths = tuple(_shape(arrays, f"{FDM}down.{level}.conv.weight", 4)[0] for level in range(levels))
    n, codes, dim = _shape(arrays, f"{IDM}vq.embedding", 3)
    z = latent_dim(arrays, IDM)
    if z % (n * dim):
        raise WeightsError(f"A latent of {z} numbers cannot be cut into {n} groups of vectors of {dim}.")
    latents = z // (n * dim)
    bottleneck = _shape(arrays, f"{FDM}down.{levels}.weight", 4)[0]
    return dataclasses.replace(
        base,
        idm=impala_config(arrays, IDM),
        fdm=UNetConfig(channels=widths, bottleneck=bottleneck),
        quantizer=dataclasses.replace(base.quantizer, codebooks=n, latents=latents, dim=dim, codes=codes, enabled=True),
    )


def latent_dim(arrays: Arrays, prefix: str = "") -> int:
    """Z of the policy or inverse model whose arrays lie under `prefix`.

    Raises:
      WeightsError: if there is none.
    """
    return _shape(arrays, f"{prefix}policy_head.weight", 2)[0]


def policy_input(arrays: Arrays) -> tuple[int, int]:
    """The side in pixels of the images that a policy takes, and their channels.

    Raises:
      WeightsError: if its layers do not follow each other.
    """
    config = impala_config(arrays)
    pixels, rest = divmod(_shape(arrays, "fc.weight", 2)[1], config.channels[-1])
    side = math.isqrt(pixels)
    if rest or side**2 != pixels:
        raise WeightsError(f"fc.weight has shape {list(arrays['fc.weight'].shape)}, which no square image gives.")
    return side * 2 ** len(config.channels), _shape(arrays, "conv_stack.0.conv.weight", 4)[1]
