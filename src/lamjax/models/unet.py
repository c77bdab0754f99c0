"""LAPO's forward dynamics model: a U-Net that predicts the next frame from two frames and a latent action.

Dimension keys: B batch, H and W image size, C image channels, Z latent size.
"""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lamjax.checks import check_fields
from lamjax.models.impala import ResidualBlock, depth_to_space, max_pool, pad_to_multiple, space_to_depth
from lamjax.models.layers import BatchNorm, Conv, ConvTranspose, Dense, TiledConv


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes and form of the forward model; the defaults are LAPO's (base width 24).

    Attributes:
      channels: channels of each level on the way down, each half as large as the one before. Images of any size are
        padded inside the network, by repeating their edges, to a multiple of ``stem * 2 ** len(channels)``.
      bottleneck: channels of the 1 x 1 bottleneck, which sees the whole last level (2 x 2 of LAPO's 64 x 64 images).
      stem: side in pixels of the blocks that become channels before the first level (space to depth); the output is
        unfolded after the last level.
      latent_input: how the latent enters, in addition to the bottleneck. "tile" repeats it over space as channels of
        the input, as LAPO does. "bias" adds a linear map of it to each level on both ways, which is much cheaper.
      predict: "frame" predicts the next frame, tanh(.)/2. "change" adds to o_t an output that starts at zero.
      shift: with ``predict="change"``, the most pixels by which the view may scroll in a step; 0 allows no scrolling.
        The change is added to o_t after filtering it by a predicted row of taps vertically and one horizontally, which
        start as the identity, so the network need not redraw a scrolling view.
    """

    convolves: ClassVar[bool] = True  # see `lamjax.training.driver`

    channels: tuple[int, ...] = (24, 48, 96, 192, 384)
    bottleneck: int = 768
    stem: int = 1
    latent_input: Literal["tile", "bias"] = "tile"
    predict: Literal["frame", "change"] = "frame"
    shift: int = 0

    def __post_init__(self):
        check_fields(
            self, "fdm", at_least_1=("channels", "bottleneck", "stem"), at_least_0=("shift",), not_empty=("channels",)
        )
        if self.shift and self.predict != "change":
            raise ValueError('A U-Net with a shift predicts a change: set predict="change" or shift=0.')


def filter_rows(image: jax.Array, taps: jax.Array) -> jax.Array:
    """Filters each column of an image: ``out[b, h] = sum_k taps[b, k] image[b, h + k - K // 2]``, edges repeated.

    Args:
      image: ``[B, H, W, C]``.
      taps: ``[B, K]``, K odd.
    """
    h, k = image.shape[1], taps.shape[1]
    source = np.clip(np.arange(h)[:, None] + np.arange(k)[None] - k // 2, 0, h - 1)
    toeplitz = jnp.einsum("bk,hkj->bhj", taps, np.eye(h, dtype=taps.dtype)[source])
    return jnp.einsum("bhj,bjwc->bhwc", toeplitz, image)


class DownBlock(nn.Module):
    """Convolution, batch norm, residual block, 2 x 2 max-pool, ReLU; the latent is a bias, or channels of the input."""

    features: int
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, bias: jax.Array | None = None, tiled: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Maps ``[B, H, W, I]`` to ``[B, H/2, W/2, O]``; `bias` and `tiled` are ``[B, Z]`` or None."""
        if tiled is None:
            x = Conv(self.features, (3, 3), dtype=self.dtype, name="Conv_0")(x)
        else:
            x = TiledConv(self.features, (3, 3), dtype=self.dtype, name="Conv_0")(x, tiled)
        if bias is not None:
            x = x + Dense(self.features, dtype=self.dtype)(bias)[:, None, None]
        x = BatchNorm(dtype=self.dtype, axis_name=self.axis_name)(x, train=train)
        x = ResidualBlock(self.features // 2, dtype=self.dtype)(x)
        return nn.relu(max_pool(x, 2, 2))


class UpBlock(nn.Module):
    """Transposed convolution, batch norm, residual block, ReLU; the latent can be a bias."""

    features: int
    dtype: Any = jnp.float32
    axis_name: str | None = None
    scale: tuple[int, int] = (2, 2)

    @nn.compact
    def __call__(self, x: jax.Array, latent: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Maps ``[B, H, W, I]`` to ``[B, scale H, scale W, O]``; `latent` is ``[B, Z]`` or None."""
        x = ConvTranspose(self.features, self.scale, dtype=self.dtype)(x)
        x = BatchNorm(dtype=self.dtype, axis_name=self.axis_name)(x, train=train)
        if latent is not None:
            x = x + Dense(self.features, dtype=self.dtype)(latent)[:, None, None]
        x = ResidualBlock(self.features // 2, dtype=self.dtype)(x)
        return nn.relu(x)


class UNet(nn.Module):
    """The forward dynamics model.

    Attributes:
      config: its sizes and form.
      out_channels: C.
      dtype: type of the activations.
      axis_name: devices that share batch statistics.
    """

    config: UNetConfig
    out_channels: int = 3
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, frames: jax.Array, latent: jax.Array, *, train: bool = False) -> jax.Array:
        """Predicts the next frame.

        Args:
          frames: float32 ``[B, H, W, (k + 1) C]`` in ``[-0.5, 0.5]``, up to o_t, joined on channels.
          latent: float32 ``[B, Z]``, the (quantised) latent action.
          train: use and update batch statistics.

        Returns:
          float32 ``[B, H, W, C]``: the prediction of o_{t+1}, in ``[-0.5, 0.5]`` up to a learned overshoot for
          ``predict="change"``.
        """
        config = self.config
        down, up = (
            functools.partial(block, dtype=self.dtype, axis_name=self.axis_name) for block in (DownBlock, UpBlock)
        )
        height, width = frames.shape[1:3]
        frames = pad_to_multiple(frames, config.stem * 2 ** len(config.channels))
        top, left = ((padded - size) // 2 for padded, size in zip(frames.shape[1:3], (height, width), strict=True))
        folded = space_to_depth(frames.astype(self.dtype), config.stem)
        latent = latent.astype(self.dtype)
        bias = latent if config.latent_input == "bias" else None
        tiled = latent if config.latent_input == "tile" else None

        x, skips = folded, []
        for level, features in enumerate(config.channels):
            x = down(features)(x, bias, tiled if level == 0 else None, train=train)
            skips.append(x)
        last_level = x.shape[1:3]
        x = Conv(config.bottleneck, last_level, padding="VALID", dtype=self.dtype, name="bottleneck")(x)

        x = jnp.concatenate([x, latent[:, None, None]], axis=-1)
        last = frames[..., -self.out_channels :]
        inputs = [folded]
        if config.shift:
            last = self.scroll(last, x[:, 0, 0])
            inputs.append(space_to_depth(last.astype(self.dtype), config.stem))
        x = up(config.channels[-1], scale=last_level)(x, bias, train=train)
        for features, skip in zip((*config.channels[-2::-1], config.channels[0]), reversed(skips), strict=True):
            x = up(features)(jnp.concatenate([x, skip], axis=-1), bias, train=train)

        features = config.channels[0]
        x = Conv(features, (3, 3), dtype=self.dtype, name="head_in")(jnp.concatenate([x, *inputs], axis=-1))
        x = nn.relu(ResidualBlock(features // 2, dtype=self.dtype, name="head_residual")(x))
        out = self.out_channels * config.stem**2
        if config.predict == "frame":
            x = Conv(out, (1, 1), dtype=self.dtype, name="head_out")(x)
            predicted = jnp.tanh(depth_to_space(x, config.stem).astype(jnp.float32)) / 2
            return predicted[:, top : top + height, left : left + width]
        zero = nn.initializers.zeros
        x = nn.Conv(out, (1, 1), dtype=self.dtype, kernel_init=zero, bias_init=zero, name="head_change")(x)
        predicted = last + depth_to_space(x, config.stem).astype(jnp.float32)
        return predicted[:, top : top + height, left : left + width]

    def scroll(self, image: jax.Array, features: jax.Array) -> jax.Array:
        """Filters `image` ``[B, H, W, C]`` down and across by taps predicted from `features` ``[B, F]``."""
        k = 2 * self.config.shift + 1
        hidden = nn.relu(Dense(self.config.bottleneck, dtype=self.dtype, name="scroll_in")(features))
        zero = nn.initializers.zeros
        taps = nn.Dense(2 * k, kernel_init=zero, bias_init=zero, name="scroll_out")(hidden.astype(jnp.float32))
        taps = taps.reshape(-1, 2, k) + jax.nn.one_hot(k // 2, k)[None, None]
        image = filter_rows(image, taps[:, 0])
        return filter_rows(image.swapaxes(1, 2), taps[:, 1]).swapaxes(1, 2)
