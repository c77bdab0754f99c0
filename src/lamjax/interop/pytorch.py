"""Weights by the names and layouts of LAPO's PyTorch modules, as our parameters.

PyTorch keeps convolutions as ``[O, I, h, w]``, transposed ones as ``[I, O, h, w]`` (and applies them flipped compared
with XLA), linear layers as ``[O, I]``, and flattens images channels first.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lamjax.dynamics import DynamicsConfig, DynamicsState
from lamjax.models.impala import ImpalaConfig
from lamjax.models.quantizer import Codebooks

Arrays = Mapping[str, np.ndarray]


def _conv(arrays: Arrays, name: str) -> dict[str, Any]:
    kernel = jnp.asarray(arrays[f"{name}.weight"]).transpose(2, 3, 1, 0)
    return {"conv": {"kernel": kernel, "bias": jnp.asarray(arrays[f"{name}.bias"])}}


def _conv_transpose(arrays: Arrays, name: str) -> dict[str, Any]:
    kernel = jnp.asarray(arrays[f"{name}.weight"]).transpose(2, 3, 0, 1)[::-1, ::-1]
    return {"conv": {"kernel": kernel, "bias": jnp.asarray(arrays[f"{name}.bias"])}}


def _linear(arrays: Arrays, name: str, image: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """`image` is the ``(h, w, c)`` that was flattened in front of the layer, if any."""
    kernel = jnp.asarray(arrays[f"{name}.weight"]).T
    if image is not None:
        h, w, c = image
        kernel = kernel.reshape(c, h, w, -1).transpose(1, 2, 0, 3).reshape(h * w * c, -1)
    return {"linear": {"kernel": kernel, "bias": jnp.asarray(arrays[f"{name}.bias"])}}


def impala_params(arrays: Arrays, prefix: str, config: ImpalaConfig, image_size: int = 64) -> dict[str, Any]:
    """An `Impala` trunk from the arrays under `prefix` (for example ``idm.``)."""
    convs: dict[str, Any] = {}
    for stage in range(len(config.channels)):
        name = f"{prefix}conv_stack.{stage}"
        convs[f"Conv_{stage}"] = _conv(arrays, f"{name}.conv")
        for block in range(config.blocks):
            convs[f"ResidualBlock_{stage * config.blocks + block}"] = {
                f"Conv_{i}": _conv(arrays, f"{name}.res_block{block}.conv{i}") for i in range(2)
            }
    size = image_size // int(np.prod(config.strides))
    return {"convs": convs, "fc": _linear(arrays, f"{prefix}fc", (size, size, config.channels[-1]))}


def _residual(arrays: Arrays, name: str) -> dict[str, Any]:
    return {"Conv_0": _conv(arrays, f"{name}.res_block.1"), "Conv_1": _conv(arrays, f"{name}.res_block.3")}


def unet_params(arrays: Arrays, prefix: str, levels: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A `UNet`'s parameters and batch statistics from the arrays under `prefix` (for example ``wm.``)."""
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}

    def block(ours: str, theirs: str, conv: str, convert: Any) -> None:
        norm = {key: jnp.asarray(arrays[f"{theirs}.norm.{key}"]) for key in ("weight", "bias")}
        params[ours] = {
            conv: convert(arrays, f"{theirs}.conv"),
            "BatchNorm_0": {"scale": norm["weight"], "bias": norm["bias"]},
            "ResidualBlock_0": _residual(arrays, f"{theirs}.res"),
        }
        stats[ours] = {
            "BatchNorm_0": {
                "mean": jnp.asarray(arrays[f"{theirs}.norm.running_mean"]),
                "var": jnp.asarray(arrays[f"{theirs}.norm.running_var"]),
            }
        }

    for level in range(levels):
        block(f"DownBlock_{level}", f"{prefix}down.{level}", "Conv_0", _conv)
    params["bottleneck"] = _conv(arrays, f"{prefix}down.{levels}")
    for level in range(levels + 1):
        block(f"UpBlock_{level}", f"{prefix}up.{level}", "ConvTranspose_0", _conv_transpose)
    params["head_in"] = _conv(arrays, f"{prefix}final_conv.0")
    params["head_residual"] = _residual(arrays, f"{prefix}final_conv.1")
    params["head_out"] = _conv(arrays, f"{prefix}final_conv.3")
    return params, stats


def codebooks(arrays: Arrays, prefix: str) -> Codebooks:
    """The quantiser's buffers from the arrays under `prefix` (for example ``idm.vq.``)."""
    return Codebooks(*(jnp.asarray(arrays[prefix + name]) for name in ("embedding", "ema_count", "ema_weight")))


def load_dynamics(state: DynamicsState, arrays: Arrays, prefix: str = "") -> DynamicsState:
    """Replaces a state's weights and buffers by the reference's ``idm.*`` and ``wm.*``; the optimizer starts anew."""
    config: DynamicsConfig = state.config
    idm = {
        "Impala_0": impala_params(arrays, f"{prefix}idm.", config.idm),
        "head": _linear(arrays, f"{prefix}idm.policy_head"),
    }
    fdm, stats = unet_params(arrays, f"{prefix}wm.", len(config.fdm.channels))
    return state.replace(
        params={"idm": idm, "fdm": fdm}, batch_stats=stats, codebooks=codebooks(arrays, f"{prefix}idm.vq.")
    )


def latent_policy_params(arrays: Arrays, prefix: str, config: ImpalaConfig) -> dict[str, Any]:
    """A `LatentPolicy` from the reference's stage-2 policy."""
    value = _linear(arrays, f"{prefix}value_head")["linear"]
    return {
        "trunk_net": impala_params(arrays, prefix, config),
        "latent_head": _linear(arrays, f"{prefix}policy_head"),
        "value_head": value,
    }
