"""LAPO's vector quantiser: codebooks that several latents share, updated by exponential moving averages.

Dimension keys: B batch, N codebooks, H latents that share a codebook, D code size, M codes in a codebook,
Z = N * D * H. A flat latent is laid out as ``[N, D, H]`` in row-major order, as the reference's weights expect.
"""

import dataclasses
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct

from lamjax import parallel
from lamjax.checks import check_fields


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """The quantiser's settings; the defaults are LAPO's.

    Attributes:
      enabled: False passes the latent through unquantised (LAPO's "no VQ").
      codebooks: N.
      latents: H.
      dim: D.
      codes: M.
      decay: decay of the moving averages.
      smoothing: Laplace term of the counts.
      commitment: weight of the commitment loss.
      start: "reference" starts the counts at 0; the first step then moves the codes far away, and only one code stays
        in use for thousands of steps. "corrected" starts the counts at 1.
      revive: moves codes whose moving count is below this onto vectors of the batch; 0 never moves any. At 1 the first
        step moves all codes that no vector hit.
    """

    enabled: bool = True
    codebooks: int = 2
    latents: int = 4
    dim: int = 16
    codes: int = 64
    decay: float = 0.999
    smoothing: float = 1e-5
    commitment: float = 0.05
    start: Literal["corrected", "reference"] = "corrected"
    revive: float = 0.0

    def __post_init__(self):
        check_fields(
            self,
            "quantizer",
            at_least_1=("codebooks", "latents", "dim", "codes"),
            above_0=("smoothing",),
            finite=("commitment", "revive"),
            shares=("decay",),
        )

    @property
    def latent_dim(self) -> int:
        """Z, the size of the flat latent."""
        return self.codebooks * self.latents * self.dim


@struct.dataclass
class Codebooks:
    """The quantiser's state, float32.

    Attributes:
      embedding: ``[N, M, D]``, the codes.
      count: ``[N, M]``, moving average of each code's hits.
      total: ``[N, M, D]``, moving average of the sum of the vectors that hit the code.
    """

    embedding: jax.Array
    count: jax.Array
    total: jax.Array


def init(key: jax.Array, config: QuantizerConfig) -> Codebooks:
    """Draws the codes from U(-5/M, 5/M); `config.start` sets the counts, and the totals equal the codes."""
    n, m, d = config.codebooks, config.codes, config.dim
    embedding = jax.random.uniform(key, (n, m, d), jnp.float32, -5 / m, 5 / m)
    start = 1.0 if config.start == "corrected" else 0.0
    # A copy, because a state whose leaves share a buffer cannot be donated.
    return Codebooks(embedding, jnp.full((n, m), start, jnp.float32), embedding.copy())


def grouped(z: jax.Array, config: QuantizerConfig) -> jax.Array:
    """Flat latents ``[B, Z]`` as vectors by codebook, ``[N, B, H, D]``."""
    z = z.reshape(-1, config.codebooks, config.dim, config.latents)
    return z.transpose(1, 0, 3, 2)


def flat(vectors: jax.Array) -> jax.Array:
    """The inverse of `grouped`: ``[N, B, H, D]`` to ``[B, Z]``."""
    n, b, h, d = vectors.shape
    return vectors.transpose(1, 0, 3, 2).reshape(b, n * d * h)


def quantize(books: Codebooks, z: jax.Array, config: QuantizerConfig) -> tuple[jax.Array, jax.Array]:
    """The nearest code of every vector (squared Euclidean distance, in float32).

    Args:
      books: the codebooks.
      z: float32 ``[B, Z]``.
      config: sizes.

    Returns:
      Quantised latents float32 ``[B, Z]`` and codes int32 ``[B, N, H]`` in ``[0, M)``.
    """
    chex.assert_shape(z, (None, config.latent_dim))
    vectors = grouped(z.astype(jnp.float32), config)
    # |v - e|^2 - |v|^2, because |v|^2 is the same for every code. Highest precision: TPUs and recent GPUs would round.
    product = jnp.einsum("nbhd,nmd->nbhm", vectors, books.embedding, precision=jax.lax.Precision.HIGHEST)
    norm = jnp.sum(jnp.square(books.embedding), axis=-1)
    codes = jnp.argmin(norm[:, None, None] - 2 * product, axis=-1).astype(jnp.int32)
    nearest = jax.vmap(lambda embedding, index: embedding[index])(books.embedding, codes)
    return flat(nearest), codes.transpose(1, 0, 2)


def straight_through(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """``z_q`` in the forward pass, the gradient of ``z`` in the backward pass: z + sg(z_q - z)."""
    return z + jax.lax.stop_gradient(z_q - z)


def commitment_loss(z: jax.Array, z_q: jax.Array) -> jax.Array:
    """``mean((z - sg(z_q))^2)``, before its weight."""
    return jnp.mean(jnp.square(z - jax.lax.stop_gradient(z_q)))


def hits(codes: jax.Array, config: QuantizerConfig) -> jax.Array:
    """How often each code was used: codes int32 ``[B, N, H]`` to float32 ``[N, M]``."""
    return jax.nn.one_hot(codes, config.codes, dtype=jnp.float32).sum((0, 2))


def perplexity(counts: jax.Array) -> jax.Array:
    """``exp(-sum_c p_c ln(p_c + 1e-10))`` of each codebook: counts ``[N, M]`` to ``[N]``, in [1, M]."""
    p = counts / jnp.maximum(counts.sum(-1, keepdims=True), 1)
    return jnp.exp(-jnp.sum(p * jnp.log(p + 1e-10), axis=-1))


def update(
    books: Codebooks, z: jax.Array, codes: jax.Array, config: QuantizerConfig, axis_name: str | None = None
) -> Codebooks:
    """Moves every code towards the mean of the vectors that hit it.

        count <- decay * count + (1 - decay) * hits, smoothed so that none is zero (the state keeps smoothed counts)
        total <- decay * total + (1 - decay) * sum of the vectors;  embedding = total / count

    Args:
      books: the codebooks before.
      z: float32 ``[B, Z]``, the latents that were quantised.
      codes: int32 ``[B, N, H]``, their codes.
      config: sizes and decay.
      axis_name: devices whose hits and sums are added up.
    """
    vectors = jax.lax.stop_gradient(grouped(z.astype(jnp.float32), config))
    one_hot = jax.nn.one_hot(codes.transpose(1, 0, 2), config.codes, dtype=jnp.float32)
    sums = jnp.einsum("nbhm,nbhd->nmd", one_hot, vectors, precision=jax.lax.Precision.HIGHEST)
    counts, sums = parallel.psum((one_hot.sum((1, 2)), sums), axis_name)
    count = config.decay * books.count + (1 - config.decay) * counts
    mass = count.sum(-1, keepdims=True)
    count = (count + config.smoothing) / (mass + config.codes * config.smoothing) * mass
    total = config.decay * books.total + (1 - config.decay) * sums
    if config.revive > 0:
        count, total = _revive(count, total, vectors, config, axis_name)
    return Codebooks(total / count[..., None], count, total)


def _revive(
    count: jax.Array, total: jax.Array, vectors: jax.Array, config: QuantizerConfig, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Moves rarely used codes onto vectors ``[N, B, H, D]`` spread over the batch, and gives them the average count."""
    n, b, h, d = vectors.shape
    place = parallel.place(axis_name)
    # All devices choose the same rows of the joined batch; each contributes the rows that it holds.
    rows = jnp.arange(config.codes) * (place["axis_size"] * b * h) // config.codes
    is_here = rows // (b * h) == place["axis_index"]
    chosen = vectors.reshape(n, b * h, d)[:, rows % (b * h)]
    chosen = parallel.psum(jnp.where(is_here[None, :, None], chosen, 0), axis_name)
    dead = count < config.revive
    average = count.mean(-1, keepdims=True)
    return jnp.where(dead, average, count), jnp.where(dead[..., None], average[..., None] * chosen, total)
