"""Packs parameters and moments end to end in memory while optimizer steps repeat."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


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
    as it is.
    """

    def is_kept(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() == params.keys()

    def pack_like(node: Any) -> Any:
        if not is_kept(node):
            return node
        same = {name: jax.tree.structure(node[name]) == jax.tree.structure(params[name]) for name in params}
        return {name: pack(tree) if same[name] else tree for name, tree in node.items()}

    return pack_like(params), jax.tree.map(pack_like, opt_state, is_leaf=is_kept)


def unpack_groups(tree: Any) -> Any:
    """The inverse of `pack_groups`, for any tree; what is not packed stays as it is."""

    def is_packed(node: Any) -> bool:
        return isinstance(node, Packed)

    return jax.tree.map(lambda node: unpack(node) if is_packed(node) else node, tree, is_leaf=is_packed)


def grads_as(params: dict[str, Any], grads: dict[str, Any]) -> dict[str, Any]:
    """Packs the gradients of ``unpack_groups(params)`` wherever `params` are packed."""
    return {name: pack(grads[name]) if isinstance(params[name], Packed) else grads[name] for name in params}
