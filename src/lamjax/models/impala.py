"""The IMPALA residual network (Espeholt et al., 2018), the trunk of LAPO's IDM and policies, and a cheap relative.

Dimension keys: B batch, H and W image size, C channels, F features.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lamjax.checks import check_fields
from lamjax.models.conv import unfused
from lamjax.models.layers import Conv, Dense


@dataclasses.dataclass(frozen=True)
class ImpalaConfig:
    """Sizes of an IMPALA trunk; the defaults are LAPO's (scale 4).

    Attributes:
      channels: output channels of each stage.
      strides: by how much each stage shrinks the image.
      blocks: residual blocks in a stage.
      features: width F of the fully connected layer.
      stem: side in pixels of the blocks that are folded into channels first (space to depth); 1 leaves the image as it
        is. If it does not divide the image, the edges are repeated until it does.
      pool: True shrinks by a max-pool after the stage's convolution, as IMPALA does; False by the convolution's own
        stride, which costs a quarter.
    """

    convolves: ClassVar[bool] = True  # see `lamjax.training.driver`

    channels: tuple[int, ...] = (64, 128, 128)
    strides: tuple[int, ...] = (2, 2, 2)
    blocks: int = 2
    features: int = 256
    stem: int = 1
    pool: bool = True

    def __post_init__(self):
        check_fields(self, "trunk", at_least_1=("channels", "strides", "features", "stem"), at_least_0=("blocks",))
        if len(self.channels) != len(self.strides):
            raise ValueError(f"channels {self.channels} and strides {self.strides} must have the same length.")


def pad_to_multiple(x: jax.Array, of: int) -> jax.Array:
    """Repeats the edges of images ``[B, H, W, C]``, alike on both sides, until H and W are multiples of `of`."""
    rest = [-size % of for size in x.shape[1:3]]
    if not any(rest):
        return x
    return jnp.pad(x, ((0, 0), *((each // 2, each - each // 2) for each in rest), (0, 0)), mode="edge")


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
    """Folds ``block x block`` pixels into channels: ``[B, H, W, C] -> [B, H/block, W/block, block*block*C]``."""
    if block == 1:
        return x
    b, h, w, c = x.shape
    if h % block or w % block:
        raise ValueError(f"A {h} x {w} image cannot be cut into {block} x {block} blocks.")
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
    """The inverse of `space_to_depth`."""
    if block == 1:
        return x
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * block, w * block, c // block**2)


def max_pool(x: jax.Array, window: int, stride: int) -> jax.Array:
    """Max-pool with symmetric padding ``window // 2`` where the window overlaps, as PyTorch pads.

    XLA's "SAME" would pad an even image by (0, 1) instead of (1, 1) and shift every feature by a pixel. Among equal
    pixels the first gets the gradient, as in PyTorch. It is a maximum over strided slices because XLA:CPU's gradient of
    its own pooling is several times slower.
    """
    return _pool_of_3_by_2(x) if (window, stride) == (3, 2) else _pooled(x, window, stride)[0]


def _pooled(x: jax.Array, window: int, stride: int) -> tuple[jax.Array, jax.Array]:
    """The maxima ``[B, H', W', C]``, and for each, int32, which pixel of its window it is, row by row."""
    pad = window // 2 if window > stride else 0
    height, width = ((size + 2 * pad - window) // stride + 1 for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=-jnp.inf)
    rows = [slice(i, i + stride * (height - 1) + 1, stride) for i in range(window)]
    columns = [slice(j, j + stride * (width - 1) + 1, stride) for j in range(window)]
    best, *others = (padded[:, row, column] for row in rows for column in columns)
    winner = jnp.zeros(best.shape, jnp.int32)
    for index, part in enumerate(others, 1):
        wins = part > best
        best, winner = jnp.where(wins, part, best), jnp.where(wins, index, winner)
    return best, winner


@jax.custom_vjp
def _pool_of_3_by_2(x: jax.Array) -> jax.Array:
    """IMPALA's pool. Automatic differentiation of `_pooled` would write nine images and add them up."""
    return _pooled(x, 3, 2)[0]


def _pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    best, winner = _pooled(x, 3, 2)
    return best, (winner, x[:0])


def _pool_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array]:
    winner, image = saved
    return (unfused(_to_winners, winner, g)[:, : image.shape[1], : image.shape[2]],)


def _to_winners(winner: jax.Array, g: jax.Array) -> jax.Array:
    b, h, w, c = g.shape
    total = jnp.zeros((b, h, 2, w, 2, c), g.dtype)
    # Row 2 i + r, r = 0 or 1, is row 1 + r of window i and, for r = 1, row 0 of window i + 1; columns likewise.
    none = -9  # row or column, which makes a place that no winner has
    for down, row in enumerate(((1, 2), (none, 0))):
        for right, column in enumerate(((1, 2), (none, 0))):
            place = np.add.outer(3 * np.array(row), column).astype(np.int32)[None, None, :, None, :, None]
            after = ((0, 0), (0, down), (0, right), (0, 0))
            won = jnp.pad(winner, after, constant_values=-1)[:, down:, None, right:, None] == place
            total += jnp.where(won, jnp.pad(g, after)[:, down:, None, right:, None], 0)
    return total.reshape(b, 2 * h, 2 * w, c)


_pool_of_3_by_2.defvjp(_pool_forward, _pool_backward)


class ResidualBlock(nn.Module):
    """``x + conv3x3(relu(conv3x3(relu(x))))``, with `hidden` channels between (by default those of x)."""

    hidden: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[B, H, W, C]`` to the same shape."""
        h = Conv(self.hidden or x.shape[-1], (3, 3), dtype=self.dtype)(nn.relu(x))
        return x + Conv(x.shape[-1], (3, 3), dtype=self.dtype)(nn.relu(h))


class ImpalaConvs(nn.Module):
    """The convolutional part: images to flat, rectified features."""

    config: ImpalaConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images ``[B, H, W, C]``, floats in ``[-0.5, 0.5]``, to ``[B, H' * W' * C']``, non-negative."""
        x = space_to_depth(pad_to_multiple(x, self.config.stem), self.config.stem)
        for channels, stride in zip(self.config.channels, self.config.strides, strict=True):
            if self.config.pool:
                x = Conv(channels, (3, 3), dtype=self.dtype)(x)
                x = max_pool(x, 3, stride)
            else:
                x = Conv(channels, (3, 3), strides=(stride, stride), padding=1, dtype=self.dtype)(x)
            for _ in range(self.config.blocks):
                x = ResidualBlock(dtype=self.dtype)(x)
        return nn.relu(x.reshape(x.shape[0], -1))


class Impala(nn.Module):
    """Convolutions, then one fully connected layer: ``[B, H, W, C] -> [B, F]``, non-negative."""

    config: ImpalaConfig
    dtype: Any = jnp.float32

    def setup(self):
        """Names the two parts, so that stage 3 can freeze one and train the other."""
        self.convs = ImpalaConvs(self.config, self.dtype)
        self.fc = Dense(self.config.features, dtype=self.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images ``[B, H, W, C]``, floats in ``[-0.5, 0.5]``, to features ``[B, F]``."""
        return nn.relu(self.fc(self.convs(x)))
