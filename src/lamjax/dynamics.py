"""Stage 1: inverse and forward dynamics models joined by a quantiser, trained by prediction error (LAPO, section 3).

    z_t = IDM(o_{t-1}, o_t, o_{t+1}),  z^q_t = VQ(z_t),  o^_{t+1} = FDM(o_{t-1}, o_t, z^q_t)
    loss = mean (o^_{t+1} - o_{t+1})^2 + 0.05 mean (z_t - sg z^q_t)^2

Observations are images or grids ``[H, W, C]``, or vectors ``[C]``; which, only the networks in the config know.

Dimension keys: B batch, H, W, C frame, S a frame's shape but for C, Z latent size, N codebooks, M codes.
"""

import dataclasses
from typing import Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from lamjax import parallel
from lamjax.models import quantizer
from lamjax.models.fdm import FDMConfig, make_fdm
from lamjax.models.idm import IDM
from lamjax.models.impala import ImpalaConfig
from lamjax.models.policy import ObsStats, normalise_obs
from lamjax.models.quantizer import Codebooks, QuantizerConfig
from lamjax.models.trunk import TrunkConfig
from lamjax.models.unet import UNetConfig
from lamjax.optim import warmup_linear

_AUGMENT = 0x5417F7  # the constant that random shifts are drawn from


@dataclasses.dataclass(frozen=True)
class DynamicsConfig:
    """Stage 1's settings; the defaults are LAPO's.

    Attributes:
      steps: optimizer steps.
      batch_size: windows in a step, over all devices.
      learning_rate: the peak.
      warmup_steps: linear steps from a tenth of the peak up to it; then linear down to a hundredth at the last step.
      weight_decay: AdamW's, on every parameter.
      max_grad_norm: clip of the global norm over both models.
      context: k, frames before o_t that both models see; windows hold k + 2 frames. LAPO: 1.
      idm: trunk of the inverse model.
      fdm: the forward model.
      quantizer: the quantiser.
      idm_input: what the inverse model sees: "frames" are o_{t-1}, o_t, o_{t+1}, as in LAPO; "changes" are
        o_t - o_{t-1}, o_t, o_{t+1} - o_t, from which a small network reads motion at once (and so on, further back).
      augment: "none" is LAPO; "shift" moves all frames that the inverse model sees in training by one random
        translation a window, while the forward model sees them as they are: a latent that carries o_t itself is then
        of no use to it (see `shift_windows`).
      augment_pixels: the largest shift along each axis, in pixels.
      loss_scale: "none" is LAPO's loss; "copy_last" divides the prediction error by that of copying o_t, so that
        games whose frames barely change learn as fast as others.
      dtype: type of the activations; losses, statistics, the quantiser and the optimizer stay float32.
    """

    steps: int = 50_000
    batch_size: int = 128
    learning_rate: float = 3e-4
    warmup_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 2.0
    context: int = 1
    idm: TrunkConfig = ImpalaConfig()
    fdm: FDMConfig = UNetConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    idm_input: Literal["frames", "changes"] = "frames"
    augment: Literal["none", "shift"] = "none"
    augment_pixels: int = 4
    loss_scale: Literal["none", "copy_last"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.context < 0:
            raise ValueError(f"dynamics.context must not be negative, not {self.context}.")
        if self.augment_pixels < 1:
            raise ValueError(f"dynamics.augment_pixels must be at least 1, not {self.augment_pixels}.")

    @property
    def latent_dim(self) -> int:
        """Z."""
        return self.quantizer.latent_dim

    @property
    def window(self) -> int:
        """Frames in a window: k before o_t, o_t, o_{t+1}."""
        return self.context + 2


@struct.dataclass
class DynamicsState:
    """Everything that stage 1 carries.

    Attributes:
      params: ``{"idm": ..., "fdm": ...}``, float32.
      batch_stats: running statistics of the forward model's batch norms.
      codebooks: the quantiser.
      opt_state: AdamW's moments, float32.
      step: int32 ``[]``, steps done.
      config: the settings (static).
      obs_stats: how observations that are not uint8 are standardised (see `normalise_obs`); constant.
    """

    params: dict[str, Any]
    batch_stats: Any
    codebooks: Codebooks
    opt_state: Any
    step: jax.Array
    config: DynamicsConfig = struct.field(pytree_node=False)
    obs_stats: ObsStats = None


@struct.dataclass
class Latents:
    """Inferred latent actions.

    Attributes:
      continuous: float32 ``[B, Z]``, z before the quantiser: what stage 2 clones and probes read.
      quantized: float32 ``[B, Z]``, what the forward model sees.
      codes: int32 ``[B, N, H]``.
    """

    continuous: jax.Array
    quantized: jax.Array
    codes: jax.Array


def optimizer(config: DynamicsConfig) -> optax.GradientTransformation:
    """Global-norm clip, then AdamW under a warm-up and a linear decay."""
    schedule = warmup_linear(config.learning_rate, 0.1, 0.01, config.warmup_steps, config.steps)
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.adamw(schedule, weight_decay=config.weight_decay)
    )


def _idm(config: DynamicsConfig) -> IDM:
    return IDM(config.idm, config.latent_dim, jnp.dtype(config.dtype))


def _fdm(config: DynamicsConfig, channels: int) -> nn.Module:
    return make_fdm(config.fdm, channels, jnp.dtype(config.dtype))


def join_frames(frames: jax.Array) -> jax.Array:
    """Joins time and channels: ``[B, T, *S, C] -> [B, *S, T * C]``, oldest first."""
    b, t, *shape, c = frames.shape
    return jnp.moveaxis(frames, 1, -2).reshape(b, *shape, t * c)


def init(
    key: jax.Array, config: DynamicsConfig, obs_shape: tuple[int, ...], obs_stats: ObsStats = None
) -> DynamicsState:
    """Starts stage 1.

    Args:
      key: a typed PRNG key.
      config: the settings.
      obs_shape: shape of one observation, ``(H, W, C)``, or ``(C,)`` with networks for vectors.
      obs_stats: what `models.policy.obs_stats` tells of the training observations, for types other than uint8.

    Raises:
      ValueError: if vectors are to be shifted.
    """
    *shape, c = obs_shape
    if config.augment == "shift" and len(obs_shape) != 3:
        raise ValueError(f"Observations of shape {obs_shape} cannot be shifted: set --dynamics.augment none.")
    key_idm, key_fdm, key_vq = jax.random.split(key, 3)
    idm = _idm(config).init(key_idm, jnp.zeros((1, *shape, config.window * c)))["params"]
    seen = jnp.zeros((1, *shape, (config.window - 1) * c))
    fdm = _fdm(config, c).init(key_fdm, seen, jnp.zeros((1, config.latent_dim)))
    params = {"idm": idm, "fdm": fdm["params"]}
    return DynamicsState(
        params,
        fdm.get("batch_stats", {}),
        quantizer.init(key_vq, config.quantizer),
        optimizer(config).init(params),
        jnp.zeros((), jnp.int32),
        config,
        jax.tree.map(jnp.copy, obs_stats),  # a copy: states are donated
    )


def augmentation_keys(step: jax.Array, batch: int, axis_name: str | None = None) -> jax.Array:
    """A key for each window of a batch, typed keys ``[B]``: a pure function of the step and the window's place.

    The state carries no key, so that checkpoints with and without augmentation are of one form: the draws follow from a
    constant, the step and the row, which a resumed run repeats exactly. The row counts over all devices, so that N of
    them draw what one draws for the joined batch. Runs of different seeds share the sequence; their windows differ.

    Args:
      step: int32 ``[]``, steps done.
      batch: B, windows on this device.
      axis_name: devices that share the batch, in their order.
    """
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch
    key = jax.random.fold_in(jax.random.key(_AUGMENT), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first + jnp.arange(batch))


def shift_windows(keys: jax.Array, windows: jax.Array, pixels: int) -> jax.Array:
    """Moves each window by a random translation, the same for all of its frames; what comes in repeats the edge.

    The augmentation of arXiv 2506.15691 on frames, its kappa_1, one draw for both inputs of the inverse model: in a
    linear model z = C o + D o' may hold any multiple of o, which the forward model subtracts; under a draw that the
    forward model does not see that multiple is noise to it, so C = -D, a latent of the change alone. (Its kappa_2, a
    draw for the forward model's input and target, is left out: LAPO's prediction stays what it is.) Shifts only: flips
    and rotations would change what an action means.

    Args:
      keys: typed PRNG keys ``[B]``.
      windows: ``[B, T, H, W, C]`` of any dtype.
      pixels: the largest shift; both axes draw from the integers in ``[-pixels, pixels]``.

    Returns:
      Windows of the same shape and dtype.
    """
    chex.assert_rank(windows, 5)
    edges = ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0))

    def shift(key: jax.Array, window: jax.Array) -> jax.Array:
        y, x = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        return jax.lax.dynamic_slice(jnp.pad(window, edges, mode="edge"), (0, y, x, 0), window.shape)

    return jax.vmap(shift)(keys, windows)


def _infer(params: Any, codebooks: Codebooks, frames: jax.Array, config: DynamicsConfig) -> Latents:
    """`frames` float32 ``[B, k + 2, *S, C]``, normalised."""
    if config.idm_input == "changes":
        changes = jnp.diff(frames, axis=1)
        frames = jnp.concatenate([changes[:, :-1], frames[:, -2:-1], changes[:, -1:]], axis=1)
    z = _idm(config).apply({"params": params["idm"]}, join_frames(frames)).astype(jnp.float32)
    z_q, codes = quantizer.quantize(codebooks, jax.lax.stop_gradient(z), config.quantizer)
    return Latents(z, z_q if config.quantizer.enabled else z, codes)


def loss_fn(
    params: Any, state: DynamicsState, windows: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, tuple[Any, Latents, dict[str, jax.Array]]]:
    """Stage 1's training loss.

    Args:
      params: what is differentiated.
      state: batch statistics, codebooks, config, and the step that augmentation is drawn from.
      windows: ``[B, k + 2, *S, C]``, o_{t-k}, ..., o_t, o_{t+1}; uint8, or float32 that `obs_stats` standardise.
      axis_name: devices that share batch statistics and draw shifts of their own.

    Returns:
      The loss, and new batch statistics, latents, and metrics (see `train_step`).
    """
    config = state.config
    frames = normalise_obs(windows, state.obs_stats)
    seen = frames
    if config.augment == "shift":
        keys = augmentation_keys(state.step, len(windows), axis_name)
        seen = normalise_obs(shift_windows(keys, windows, config.augment_pixels))
    latents = _infer(params, state.codebooks, seen, config)
    z, z_q = latents.continuous, latents.quantized
    prediction, updated = _fdm(config, frames.shape[-1]).apply(
        {"params": params["fdm"], "batch_stats": state.batch_stats},
        join_frames(frames[:, :-1]),
        quantizer.straight_through(z, z_q) if config.quantizer.enabled else z,
        train=True,
        axis_name=axis_name,
        mutable=["batch_stats"],
    )
    fdm_mse = jnp.mean(jnp.square(prediction - frames[:, -1]))
    copy_last_mse = jnp.mean(jnp.square(frames[:, -2] - frames[:, -1]))
    commitment = config.quantizer.commitment * quantizer.commitment_loss(z, z_q)
    scale = jax.lax.stop_gradient(parallel.pmean(copy_last_mse, axis_name)) + 1e-8
    loss = fdm_mse / (scale if config.loss_scale == "copy_last" else 1.0)
    if config.quantizer.enabled:
        loss = loss + commitment
    metrics = {"loss": loss, "fdm_mse": fdm_mse, "copy_last_mse": copy_last_mse, "commitment": commitment}
    return loss, (updated.get("batch_stats", {}), latents, metrics)


def train_step(
    state: DynamicsState, windows: jax.Array, *, axis_name: str | None = None
) -> tuple[DynamicsState, dict[str, jax.Array]]:
    """One step of stage 1. Pure: jit it (donating the state), vmap it over seeds, or pmap it with an `axis_name`.

    Args:
      state: the training state.
      windows: ``[B, k + 2, *S, C]`` as in `loss_fn`; under `axis_name` each device's share of the batch.
      axis_name: devices over which gradients, batch statistics, code counts and metrics are reduced.

    Returns:
      The new state and metrics, float32 ``[]``: ``loss``, ``fdm_mse`` and ``copy_last_mse`` (pixels in [-0.5, 0.5],
      or standardised numbers), ``commitment`` (weighted), ``grad_norm`` (before the clip), ``learning_rate``, and for
      each codebook n ``perplexity_n`` and ``used_codes_n`` of this batch.
    """
    config = state.config
    chex.assert_rank(windows, {3, 5})
    chex.assert_axis_dimension(windows, 1, config.window)
    grads, (batch_stats, latents, metrics) = jax.grad(loss_fn, has_aux=True)(state.params, state, windows, axis_name)
    grads, metrics = parallel.pmean((grads, metrics), axis_name)
    updates, opt_state = optimizer(config).update(grads, state.opt_state, state.params)
    counts = parallel.psum(quantizer.hits(latents.codes, config.quantizer), axis_name)
    perplexity = quantizer.perplexity(counts)
    metrics["grad_norm"] = optax.tree.norm(grads)
    metrics["learning_rate"] = warmup_linear(config.learning_rate, 0.1, 0.01, config.warmup_steps, config.steps)(
        state.step
    )
    for n in range(config.quantizer.codebooks):
        metrics[f"perplexity_{n}"] = perplexity[n]
        metrics[f"used_codes_{n}"] = jnp.sum(counts[n] > 0).astype(jnp.float32)
    new = state.replace(
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        codebooks=quantizer.update(state.codebooks, latents.continuous, latents.codes, config.quantizer, axis_name),
        opt_state=opt_state,
        step=state.step + 1,
    )
    return new, metrics


def infer_latents(state: DynamicsState, windows: jax.Array) -> Latents:
    """The latent actions of windows ``[B, k + 2, *S, C]`` (see `loss_fn`), in evaluation mode."""
    chex.assert_rank(windows, {3, 5})
    return _infer(state.params, state.codebooks, normalise_obs(windows, state.obs_stats), state.config)


def predict_next(state: DynamicsState, frames: jax.Array, latent: jax.Array) -> jax.Array:
    """Predicts o_{t+1} in evaluation mode.

    Args:
      state: the trained state.
      frames: ``[B, k + 1, *S, C]``, up to o_t, as they are observed; instead of uint8 also float32 in [-0.5, 0.5].
      latent: float32 ``[B, Z]``, quantised latents.

    Returns:
      float32 ``[B, *S, C]``, pixels in [-0.5, 0.5], or standardised numbers.
    """
    chex.assert_rank(frames, {3, 5})
    joined = join_frames(normalise_obs(frames, state.obs_stats))
    return _fdm(state.config, frames.shape[-1]).apply(
        {"params": state.params["fdm"], "batch_stats": state.batch_stats}, joined, latent
    )


def evaluate(state: DynamicsState, windows: jax.Array) -> dict[str, jax.Array]:
    """Errors on held-out windows ``[B, k + 2, *S, C]`` (see `loss_fn`), in evaluation mode.

    Returns:
      ``fdm_mse`` and ``copy_last_mse`` float32 ``[]``, and ``code_counts`` float32 ``[N, M]``.
    """
    latents = infer_latents(state, windows)
    prediction = predict_next(state, windows[:, :-1], latents.quantized)
    last, target = jnp.unstack(normalise_obs(windows[:, -2:], state.obs_stats), axis=1)
    return {
        "fdm_mse": jnp.mean(jnp.square(prediction - target)),
        "copy_last_mse": jnp.mean(jnp.square(last - target)),
        "code_counts": quantizer.hits(latents.codes, state.config.quantizer),
    }
