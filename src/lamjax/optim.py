"""The optimizers of stages 1 and 2, and how parameters and moments lie in memory while optimizer steps repeat."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from optax.contrib import MuonDimensionNumbers, MuonState, muon

OptimizerName = Literal["adamw", "muon"]

# Jordan's coefficients of Newton and Schulz' iteration, in float32 also in a process with 64 bits.
_COEFFICIENTS = np.array((3.4445, -4.7750, 2.0315), np.float32)


def optimizer(
    name: OptimizerName, learning_rate: optax.ScalarOrSchedule, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW, or Muon for the kernels of convolutions and AdamW, with Nesterov momentum, for all other parameters.

    Muon (Jordan et al., 2024) replaces the averaged gradient of a matrix by roughly the nearest orthogonal matrix. A
    kernel ``[h, w, I, O]`` counts as a matrix ``[h * w * I, O]``. The updates are scaled to the size of AdamW's (Liu et
    al., 2025, arXiv 2502.16982), so a learning rate and a weight decay mean the same for both.

    Fully connected layers keep AdamW: on a CPU, making a matrix of 2,048 x 256 orthogonal takes twice as long as the
    gradients of the networks here.

    Args:
      name: the optimizer.
      learning_rate: the rate, or its schedule.
      weight_decay: decoupled weight decay, for every parameter.
    """
    if name == "adamw":
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    return muon(
        learning_rate,
        _COEFFICIENTS,
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=_as_matrices,
        consistent_rms=0.2,
    )


def _as_matrices(params: Any) -> Any:
    """How Muon sees a kernel ``[h, w, I, O]`` as a matrix; None for the parameters that AdamW updates."""
    kernel = MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=(3,))
    return jax.tree.map(lambda x: kernel if x.ndim == 4 else None, params)


@struct.dataclass
class Packed:
    """A tree of arrays of one dtype, end to end in one array.

    An elementwise optimizer, such as Adam, treats it as a tree of one leaf. On an accelerator its step is then one
    kernel instead of one for each array, and so is the gradient's norm.

    Attributes:
      values: ``[P]``.
      structure: the tree's structure (static).
      shapes: the shapes of its leaves (static).
    """

    values: jax.Array
    structure: Any = struct.field(pytree_node=False)
    shapes: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)


def pack(tree: Any) -> Packed:
    """Puts a tree's arrays end to end."""
    leaves, structure = jax.tree.flatten(tree)
    return Packed(jnp.concatenate([leaf.ravel() for leaf in leaves]), structure, tuple(leaf.shape for leaf in leaves))


def unpack(packed: Packed) -> Any:
    """Undoes `pack`."""
    start, leaves = 0, []
    for shape in packed.shapes:
        size = math.prod(shape)
        leaves.append(packed.values[start : start + size].reshape(shape))
        start += size
    return jax.tree.unflatten(packed.structure, leaves)


def pack_groups(params: dict[str, Any], opt_state: Any) -> tuple[dict[str, Any], Any]:
    """Packs each top-level group of `params`, and what an optimizer keeps for it.

    Groups stay apart because optimizers may treat them differently. A node without moments (`optax.MaskedNode`) stays
    as it is. Muon needs the matrices themselves, so nothing is packed if it is among the optimizers.
    """
    if any(map(_is_muon, jax.tree.leaves(opt_state, is_leaf=_is_muon))):
        return params, opt_state

    def is_kept(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() == params.keys()

    def pack_like(node: Any) -> Any:
        if not is_kept(node):
            return node
        same = {name: jax.tree.structure(node[name]) == jax.tree.structure(params[name]) for name in params}
        return {name: pack(tree) if same[name] else tree for name, tree in node.items()}

    return pack_like(params), jax.tree.map(pack_like, opt_state, is_leaf=is_kept)


def _is_muon(node: Any) -> bool:
    return isinstance(node, MuonState)


def unpack_groups(tree: Any) -> Any:
    """The inverse of `pack_groups`, for any tree; what is not packed stays as it is."""

    def is_packed(node: Any) -> bool:
        return isinstance(node, Packed)

    return jax.tree.map(lambda node: unpack(node) if is_packed(node) else node, tree, is_leaf=is_packed)


def grads_as(params: dict[str, Any], grads: dict[str, Any]) -> dict[str, Any]:
    """Packs the gradients of ``unpack_groups(params)`` wherever `params` are packed."""
    return {name: pack(grads[name]) if isinstance(params[name], Packed) else grads[name] for name in params}
