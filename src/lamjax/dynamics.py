"""Stage 1: inverse and forward dynamics models joined by a quantiser, trained by prediction error (LAPO, section 3).

    z_t = IDM(o_{t-1}, o_t, o_{t+1}),  z^q_t = VQ(z_t),  o^_{t+1} = FDM(o_{t-1}, o_t, z^q_t)
    loss = mean (o^_{t+1} - o_{t+1})^2 + 0.05 mean (z_t - sg z^q_t)^2

If some windows have labels, a linear head on z_t can also predict the action (`action_weight`). The loss then gains
weight * cross-entropy for discrete actions, or weight * mean squared error, in half-ranges, for continuous ones.
Observations are images or grids ``[H, W, C]``, or vectors ``[C]``; the networks in the config must fit them.

Dimension keys: B batch, L labelled windows, H, W, C frame, S a frame's shape without C, Z latent size, N codebooks,
M codes, A size of the action head: logits of discrete actions, or continuous ones in half-ranges (`lamjax.spaces`).
"""

import dataclasses
from typing import Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from lamjax import optim, parallel
from lamjax.checks import check_fields
from lamjax.models import quantizer
from lamjax.models.fdm import FDMConfig, make_fdm
from lamjax.models.idm import IDM
from lamjax.models.impala import ImpalaConfig
from lamjax.models.layers import Dense
from lamjax.models.locator import LocatorConfig
from lamjax.models.locator import find as find_agent
from lamjax.models.quantizer import Codebooks, QuantizerConfig
from lamjax.models.trunk import TrunkConfig
from lamjax.models.unet import UNetConfig
from lamjax.optim import OptimizerName, grads_as, unpack_groups
from lamjax.preprocess import (
    Cleaning,
    ObsStats,
    check_images,
    clean,
    cut_squares,
    join_tiles,
    moving_squares,
    normalise_obs,
    paste_squares,
    squares_around,
    tiles,
    unsteady_squares,
    view_moves,
)
from lamjax.schedules import Lengths, check_lengths, warmup_linear
from lamjax.spaces import ActionSpace, as_space

_AUGMENT = 0x5417F7  # seed of the random shifts
_AUGMENT_LABELLED = 0x1ABE1  # seed of the random shifts of labelled windows
_FOCUS = 0xF0C05  # seed of the squares' positions
LOG_OFFSET = 0.1  # of `loss_scale` "log_channels"


@dataclasses.dataclass(frozen=True)
class DynamicsConfig:
    """Stage 1's settings; the defaults are LAPO's.

    Attributes:
      steps: optimizer steps.
      batch_size: windows in a step, over all devices.
      learning_rate: the peak.
      warmup_steps: steps in which the rate rises linearly from a tenth of the peak to the peak; it then falls
        linearly to a hundredth of the peak at the last step.
      weight_decay: decoupled weight decay, for every parameter.
      optimizer: "adamw" (LAPO), or "muon" for the kernels of convolutions (`lamjax.optim.optimizer`).
      max_grad_norm: the gradient's global norm over both models is clipped to this.
      play_share: 0 is LAPO. Above, this share of a step's windows comes from random play, frames without actions beside
        the demonstrations. A demonstrator that always does the same shows too little of what its actions do.
      context: k, the number of frames before o_t that both models see; windows hold k + 2 frames. LAPO: 1.
      idm: trunk of the inverse model.
      fdm: the forward model.
      quantizer: the quantiser.
      idm_input: what the inverse model sees. "frames" are o_{t-1}, o_t, o_{t+1}, as in LAPO. "changes" are
        o_t - o_{t-1}, o_t, o_{t+1} - o_t, and earlier changes with a longer context; a small network can read motion
        from them directly.
      clean: "none" is LAPO. "median" removes noise of single pixels and "level" removes changes in lighting, from all
        frames that either model sees, in training and in inference (see `lamjax.preprocess`).
      augment: "none" is LAPO. "shift" translates the frames that the inverse model sees in training, at random and by
        the same amount within a window. The forward model sees the frames unshifted, so a latent that carries o_t
        itself does not help it (see `shift_windows`).
      augment_pixels: the largest shift along each axis, in pixels.
      focus: 0 is LAPO: both models see whole frames. Otherwise each sees a square with sides of this many pixels, cut
        around what moves in the window (see `focus_at`), so that a small object makes up more of the error
        and of the inverse model's input. The networks' sizes must fit the square. Predictions of whole frames are
        joined from squares.
      focus_at: what the square lies around. "change" is the mean place of all change (`preprocess.moving_squares`);
        "unsteady" is what changes its motion most (`preprocess.unsteady_squares`), for views with several movers.
        "agent" is where a network finds the agent (`lamjax.models.locator`), which has learned it from how the agent
        moves; `init` takes its parameters.
      focus_rows: between which shares of the frame's height, from the top, a change counts for the square's place: for
        views in which the agent stays in some rows while other things move elsewhere. Not with "agent".
      locator: the network that finds the agent, with `focus_at` "agent".
      focus_jitter: the forward model's square is shifted at random from the inverse model's, by up to this many pixels
        along each axis. Otherwise its position would reveal part of o_{t+1}, and the latent would not have to.
      loss_scale: "none" is LAPO's loss. "copy_last" divides the prediction error by that of the copy-last baseline, so
        that games whose frames barely change learn as fast as others. "log_channels" is for grids whose channels are
        kinds of objects: the mean over channels of log(e + 0.1), e being a channel's error over that of copying. Once a
        channel is mostly predicted, what is left of its error counts up to ten times as much. With one error for all,
        an action that changes a single cell, such as a shot, may never be learned.
      decorrelation: 0 is LAPO. A positive weight adds this weight times `correlation(z)` to the loss. With the
        prediction error alone, a few large changes, such as camera motion, fill all of z, and small ones can hardly be
        read from it.
      action_weight: 0 is LAPO. A positive weight adds to the loss this weight times the error with which a linear head
        on z predicts the actions of labelled windows: cross-entropy (nats), or the squared error of continuous actions.
        LAOM (arXiv 2502.00379) uses 0.01 beside a prediction error of order 1. The error in pixels is far smaller,
        unless `loss_scale` is "copy_last".
      labelled: how many training windows have a label: a share if it is below 1, otherwise a number.
      labelled_batch: labelled windows in a step, over all devices, in addition to the `batch_size` others. Only the
        inverse model sees them.
      dtype: type of the activations; losses, statistics, the quantiser and the optimizer stay float32.
    """

    steps: int = 50_000
    batch_size: int = 128
    learning_rate: float = 3e-4
    warmup_steps: int = 50
    weight_decay: float = 0.01
    optimizer: OptimizerName = "adamw"
    max_grad_norm: float = 2.0
    play_share: float = 0.0
    context: int = 1
    idm: TrunkConfig = ImpalaConfig()
    fdm: FDMConfig = UNetConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    idm_input: Literal["frames", "changes"] = "frames"
    clean: Cleaning = "none"
    augment: Literal["none", "shift"] = "none"
    augment_pixels: int = 4
    focus: int = 0
    focus_at: Literal["change", "unsteady", "agent"] = "change"
    focus_rows: tuple[float, float] = (0.0, 1.0)
    locator: LocatorConfig = LocatorConfig()
    focus_jitter: int = 4
    loss_scale: Literal["none", "copy_last", "log_channels"] = "none"
    decorrelation: float = 0.0
    action_weight: float = 0.0
    labelled: float = 0.01
    labelled_batch: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        check_fields(
            self,
            "dynamics",
            at_least_1=("batch_size", "augment_pixels", "labelled_batch"),
            at_least_0=("steps", "warmup_steps", "context", "focus", "focus_jitter"),
            above_0=("max_grad_norm",),
            finite=("learning_rate", "weight_decay", "decorrelation", "action_weight"),
            shares=("play_share",),
        )
        if self.focus % 4:
            raise ValueError(f"dynamics.focus must be a multiple of 4 pixels, or 0 for whole frames, not {self.focus}.")
        top, bottom = self.focus_rows
        if not 0 <= top < bottom <= 1:
            raise ValueError(
                f"dynamics.focus_rows must rise from 0 or more to 1 or less, such as 0.75 1, not {self.focus_rows}."
            )
        if self.focus_at != "change" and not self.context:
            raise ValueError(
                f"dynamics.focus_at {self.focus_at} compares two changes: set dynamics.context to 1 or more."
            )
        if not self.labelled > 0 or (self.labelled > 1 and self.labelled != int(self.labelled)):
            raise ValueError(
                f"dynamics.labelled must be a share between 0 and 1, or a whole number of windows, not {self.labelled}."
            )

    @property
    def lengths(self) -> tuple[int, int]:
        """Warm-up and total steps, as `train_step` takes them."""
        return self.warmup_steps, self.steps

    @property
    def program(self) -> "DynamicsConfig":
        """The settings without their lengths: equal for runs that differ only in length, so they compile once."""
        return dataclasses.replace(self, warmup_steps=0, steps=0)

    @property
    def latent_dim(self) -> int:
        """Z."""
        return self.quantizer.latent_dim

    @property
    def window(self) -> int:
        """Frames in a window: k before o_t, o_t, o_{t+1}."""
        return self.context + 2

    @property
    def uncut(self) -> "DynamicsConfig":
        """The settings for windows of which `idm_windows` has cut out all that the inverse model sees."""
        return dataclasses.replace(self, focus=0, clean="none")

    @property
    def finds_agent(self) -> bool:
        """Whether squares lie around the agent, which a network finds."""
        return self.focus > 0 and self.focus_at == "agent"

    def num_labelled(self, windows: int) -> int:
        """How many of `windows` training windows have a label; 0 if actions are not predicted."""
        if not self.action_weight:
            return 0
        return int(self.labelled) if self.labelled >= 1 else max(1, round(self.labelled * windows))


class DynamicsState(struct.PyTreeNode):
    """Everything that stage 1 carries.

    Attributes:
      params: ``{"idm": ..., "fdm": ...}``, and ``"action_head"`` if actions are predicted, float32.
      batch_stats: running statistics of the forward model's batch norms.
      codebooks: the quantiser.
      opt_state: the optimizer's moments, float32.
      step: int32 ``[]``, steps done.
      config: the settings (static).
      obs_stats: how observations that are not uint8 are standardised (see `normalise_obs`); constant.
      space: the action space if actions are predicted, else None (static).
      locator: parameters of the network that finds the agent, if squares lie around it, else None; constant.
    """

    params: dict[str, Any]
    batch_stats: Any
    codebooks: Codebooks
    opt_state: Any
    step: jax.Array
    config: DynamicsConfig = struct.field(pytree_node=False)
    obs_stats: ObsStats = None
    space: ActionSpace | None = struct.field(pytree_node=False, default=None)
    locator: Any = None


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


def _schedule(config: DynamicsConfig, lengths: Lengths | None = None) -> optax.Schedule:
    return warmup_linear(config.learning_rate, 0.1, 0.01, *(lengths or config.lengths))


def optimizer(config: DynamicsConfig, lengths: Lengths | None = None) -> optax.GradientTransformation:
    """Global-norm clip, then the config's optimizer under a warm-up and a linear decay, over `lengths` if given."""
    rest = optim.optimizer(config.optimizer, _schedule(config, lengths), config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), rest)


def _idm(config: DynamicsConfig) -> IDM:
    return IDM(config.idm, config.latent_dim, jnp.dtype(config.dtype))


def _fdm(config: DynamicsConfig, channels: int, axis_name: str | None = None) -> nn.Module:
    return make_fdm(config.fdm, channels, jnp.dtype(config.dtype), axis_name)


def _action_head(params: Any, z: jax.Array) -> jax.Array:
    return Dense(params["linear"]["bias"].shape[0]).apply({"params": params}, z)


def join_frames(frames: jax.Array) -> jax.Array:
    """Joins time and channels: ``[B, T, *S, C] -> [B, *S, T * C]``, oldest first."""
    b, t, *shape, c = frames.shape
    return jnp.moveaxis(frames, 1, -2).reshape(b, *shape, t * c)


def init(
    key: jax.Array,
    config: DynamicsConfig,
    obs_shape: tuple[int, ...],
    obs_stats: ObsStats = None,
    space: ActionSpace | int | None = None,
    locator: Any = None,
) -> DynamicsState:
    """Starts stage 1.

    Args:
      key: a typed PRNG key.
      config: the settings.
      obs_shape: shape of one observation, ``(H, W, C)``, or ``(C,)`` with networks for vectors.
      obs_stats: `preprocess.obs_stats` of the training observations, for types other than uint8.
      space: the action space, or the number of actions; required with `action_weight`, and ignored without it.
      locator: the parameters of the network that finds the agent; required with `focus_at` "agent", and ignored
        without it.

    Raises:
      ValueError: if `augment` or `focus` is set and observations are not images, if the images are smaller than the
        square, or if `action_weight` is set without `space`, or `focus_at` "agent" without `locator`.
    """
    *shape, c = obs_shape
    if config.augment == "shift" and len(obs_shape) != 3:
        raise ValueError(f"Observations of shape {obs_shape} cannot be shifted: set --dynamics.augment none.")
    if config.focus:
        if len(obs_shape) != 3 or config.focus > min(shape):
            side = config.focus
            raise ValueError(
                f"No {side} x {side} square fits into observations of shape {obs_shape}: set --dynamics.focus 0."
            )
        if config.finds_agent and locator is None:
            raise ValueError(
                "dynamics.focus_at agent needs the network that finds the agent: train one (lamjax.models.locator) and "
                "give `locator` its parameters."
            )
        shape = [config.focus] * 2
    key_idm, key_fdm, key_vq = jax.random.split(key, 3)
    idm = _idm(config).init(key_idm, jnp.zeros((1, *shape, config.window * c)))["params"]
    past = jnp.zeros((1, *shape, (config.window - 1) * c))
    fdm = _fdm(config, c).init(key_fdm, past, jnp.zeros((1, config.latent_dim)))
    params = {"idm": idm, "fdm": fdm["params"]}
    if config.action_weight:
        if space is None:
            raise ValueError("dynamics.action_weight predicts actions: give `space`, or the number of actions.")
        # The head has its own key, so that both models start as they do without it.
        key_head, z = jax.random.fold_in(key_idm, 1), jnp.zeros((1, config.latent_dim))
        params["action_head"] = Dense(as_space(space).size).init(key_head, z)["params"]
    return DynamicsState(
        params,
        fdm.get("batch_stats", {}),
        quantizer.init(key_vq, config.quantizer),
        optimizer(config).init(params),
        jnp.zeros((), jnp.int32),
        config,
        jax.tree.map(jnp.copy, obs_stats),  # a copy: states are donated
        as_space(space) if config.action_weight and space is not None else None,
        jax.tree.map(jnp.copy, locator) if config.finds_agent else None,
    )


def augmentation_keys(
    step: jax.Array | int, batch: int, axis_name: str | None = None, constant: int = _AUGMENT
) -> jax.Array:
    """A key for each window of a batch, typed keys ``[B]``: a pure function of the step and the window's row.

    The state carries no key, so checkpoints have the same fields with and without augmentation. A resumed run draws the
    same shifts, because they follow from a constant, the step and the row. Rows count over all devices, so several
    devices draw what one device draws for the joined batch. Runs with different seeds use the same keys, on different
    windows.

    Args:
      step: int32 ``[]``, steps done.
      batch: B, windows on this device.
      axis_name: devices that share the batch.
      constant: the seed.
    """
    first = parallel.place(axis_name)["axis_index"] * batch
    key = jax.random.fold_in(jax.random.key(constant), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first + jnp.arange(batch))


def shift_windows(keys: jax.Array, windows: jax.Array, pixels: int) -> jax.Array:
    """Shifts each window by a random translation, the same for all its frames, and repeats the edge pixels.

    This is the augmentation kappa_1 of arXiv 2506.15691, one draw for both inputs of the inverse model. In a linear
    model z = C o + D o' may hold any multiple of o, which the forward model subtracts. If the forward model does not
    see the draw, that multiple is noise to it, so C = -D: the latent holds the change alone. kappa_2, a draw for the
    forward model's input and target, is left out, so the prediction is LAPO's. Flips and rotations would change the
    meaning of actions.

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


def clean_frames(config: DynamicsConfig, frames: jax.Array) -> jax.Array:
    """Cleans frames ``[B, T, *S, C]`` as `config.clean` says; k of them precede o_t, and floats stay as they are."""
    if config.clean == "none" or frames.dtype != jnp.uint8:
        return frames
    return clean(frames, config.clean, config.context)


def forward_squares(
    config: DynamicsConfig,
    frames: jax.Array,
    step: jax.Array | int,
    axis_name: str | None = None,
    locator: Any = None,
) -> jax.Array:
    """What the forward model sees and predicts: with `focus` squares ``[B, k + 2, F, F, C]``, else whole windows.

    The squares' positions are drawn from the step and the row (see `augmentation_keys`).

    Args:
      config: the settings.
      frames: float32 ``[B, k + 2, *S, C]``, normalised.
      step: int32 ``[]``.
      axis_name: devices that share the batch.
      locator: see `DynamicsState`.
    """
    if not config.focus:
        return frames
    jitter = config.focus_jitter
    keys = augmentation_keys(step, len(frames), axis_name, _FOCUS)
    beside = jax.vmap(lambda key: jax.random.randint(key, (2,), -jitter, jitter + 1))(keys)
    return cut_squares(frames, focus_corners(config, frames, locator) + beside, config.focus)


def idm_windows(
    config: DynamicsConfig, windows: jax.Array, obs_stats: ObsStats = None, locator: Any = None
) -> jax.Array:
    """What the inverse model sees of windows ``[B, k + 2, *S, C]``, cleaned: with `focus` squares, else all of it.

    A model whose settings are ``config.uncut`` sees the same in it. `obs_stats` and `locator` are as of
    `DynamicsState`.
    """
    windows = clean_frames(config, windows)
    if not config.focus:
        return windows
    return cut_squares(windows, focus_corners(config, normalise_obs(windows, obs_stats), locator), config.focus)


def focus_corners(config: DynamicsConfig, frames: jax.Array, locator: Any = None) -> jax.Array:
    """Corners int32 ``[B, 2]`` of the inverse model's squares in normalised frames ``[B, k + 2, H, W, C]``.

    `locator` is as of `DynamicsState`; with it, only o_t decides.
    """
    if config.finds_agent:
        return _around_agent(config, frames[:, config.context], locator)
    find = unsteady_squares if config.focus_at == "unsteady" else moving_squares
    return find(frames, config.focus, config.focus_rows)


def _around_agent(config: DynamicsConfig, frames: jax.Array, locator: Any) -> jax.Array:
    """Corners int32 ``[B, 2]`` of squares around the agent in normalised frames ``[B, H, W, C]``."""
    return squares_around(find_agent(locator, config.locator, frames), frames.shape[1:3], config.focus)


def correlation(z: jax.Array, axis_name: str | None = None) -> jax.Array:
    """How correlated the numbers of a latent are over a batch: ``sum_{i != j} r_ij^2 / Z^2``, r_ij their correlations.

    It is 0 if no two are correlated, 1 - 1 / Z if all are equal, and about 1 / B, by chance, for independent numbers.
    It is VICReg's covariance term (arXiv 2105.04906), made independent of scale.

    Args:
      z: float32 ``[B, Z]``; a number that does not vary counts as uncorrelated.
      axis_name: devices that share the batch.

    Returns:
      float32 ``[]``, the same on all devices.
    """
    centred = z - parallel.pmean(z.mean(0), axis_name)[None]
    product = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST)
    covariance = parallel.pmean(product / len(z), axis_name)
    deviation = jnp.sqrt(jnp.diag(covariance) + 1e-8)
    r = covariance / (deviation[:, None] * deviation[None])
    return (jnp.sum(jnp.square(r)) - jnp.sum(jnp.square(jnp.diag(r)))) / len(r) ** 2


def _infer(params: Any, state: DynamicsState, frames: jax.Array) -> Latents:
    """`frames` float32 ``[B, k + 2, *S, C]``, normalised; `params` instead of the state's."""
    config, codebooks = state.config, state.codebooks
    if config.focus:
        frames = cut_squares(frames, focus_corners(config, frames, state.locator), config.focus)
    if config.idm_input == "changes":
        changes = jnp.diff(frames, axis=1)
        frames = jnp.concatenate([changes[:, :-1], frames[:, -2:-1], changes[:, -1:]], axis=1)
    z = _idm(config).apply({"params": params["idm"]}, join_frames(frames)).astype(jnp.float32)
    z_q, codes = quantizer.quantize(codebooks, jax.lax.stop_gradient(z), config.quantizer)
    return Latents(z, z_q if config.quantizer.enabled else z, codes)


def _action_loss(
    params: Any, z: jax.Array, actions: jax.Array, space: ActionSpace, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Loss and score of the linear head, float32 ``[]``; their means over devices are those over all labelled windows.

    Devices may hold different numbers of labels: each divides its sums by the mean number of labels on a device.

    Args:
      params: the head's parameters.
      z: float32 ``[L, Z]``.
      actions: ``[L, *space.shape]``, -1 or NaN where unknown.
      space: the action space.
      axis_name: the devices.
    """
    outputs = _action_head(params, z)
    is_known = space.known(actions)
    known = is_known.astype(jnp.float32)
    actions = jnp.where(is_known.reshape(-1, *(1,) * len(space.shape)), actions, 0)
    count = jnp.maximum(parallel.pmean(known.sum(), axis_name), 1e-8)
    losses, scores = space.point_loss(outputs, actions), space.score(space.mode(outputs), actions)
    return jnp.sum(known * losses) / count, jnp.sum(known * scores) / count


def prediction_loss(
    errors: jax.Array, copy_errors: jax.Array, config: DynamicsConfig, axis_name: str | None = None
) -> jax.Array:
    """The loss of a prediction, by `loss_scale`.

    Args:
      errors: float32 ``[B, *S, C]``, squared errors of the prediction.
      copy_errors: those of the copy-last baseline.
      config: the settings.
      axis_name: devices that share the batch.

    Returns:
      float32 ``[]``, this device's loss; its mean over devices is the joined batch's.
    """
    if config.loss_scale == "none":
        return errors.mean()
    mean_over_devices = lambda x: jax.lax.stop_gradient(parallel.pmean(x, axis_name))  # noqa: E731
    if config.loss_scale == "copy_last":
        return errors.mean() / (mean_over_devices(copy_errors.mean()) + 1e-8)
    axes = tuple(range(errors.ndim - 1))
    by_channel, copying = errors.mean(axes), mean_over_devices(copy_errors.mean(axes))
    copying = copying + 0.01 * copying.mean(keepdims=True) + 1e-8  # a channel may not change in the whole batch
    joined = mean_over_devices(by_channel)
    bounded = joined + LOG_OFFSET * copying
    # The value and the gradient of log(bounded / copying), although a device differentiates its own errors only.
    return jnp.mean((by_channel - joined) / bounded + jnp.log(bounded / copying))


def loss_fn(
    params: Any,
    state: DynamicsState,
    windows: jax.Array,
    axis_name: str | None = None,
    labelled: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, tuple[Any, Latents, dict[str, jax.Array]]]:
    """Stage 1's training loss.

    Args:
      params: the parameters by which the loss is differentiated.
      state: batch statistics, codebooks, config, and the step, from which the augmentation draws.
      windows: ``[B, k + 2, *S, C]``, o_{t-k}, ..., o_t, o_{t+1}; uint8, or float32 that `obs_stats` standardise.
      axis_name: devices that share the batch; the loss is this device's, and its mean over devices is the joined
        batch's.
      labelled: windows ``[L, k + 2, *S, C]`` and the actions at their o_t ``[L, *space.shape]``, -1 or NaN where
        unknown.

    Returns:
      The loss, and new batch statistics, latents of `windows`, and metrics (see `train_step`).
    """
    config = state.config

    def augmented(windows: jax.Array, constant: int) -> jax.Array:
        if config.augment == "shift":
            keys = augmentation_keys(state.step, len(windows), axis_name, constant)
            windows = shift_windows(keys, windows, config.augment_pixels)
        return normalise_obs(windows, state.obs_stats)

    check_images(windows, state.obs_stats, 5)
    windows = clean_frames(config, windows)
    frames = normalise_obs(windows, state.obs_stats)
    idm_input = augmented(windows, _AUGMENT)
    if labelled is not None:
        idm_input = jnp.concatenate([idm_input, augmented(clean_frames(config, labelled[0]), _AUGMENT_LABELLED)])
    latents = _infer(params, state, idm_input)
    labelled_z = latents.continuous[len(windows) :]
    latents = jax.tree.map(lambda x: x[: len(windows)], latents)
    z, z_q = latents.continuous, latents.quantized
    frames = forward_squares(config, frames, state.step, axis_name, state.locator)
    prediction, updated = _fdm(config, frames.shape[-1], axis_name).apply(
        {"params": params["fdm"], "batch_stats": state.batch_stats},
        join_frames(frames[:, :-1]),
        quantizer.straight_through(z, z_q) if config.quantizer.enabled else z,
        train=True,
        mutable=["batch_stats"],
    )
    errors, copy_errors = (jnp.square(guess - frames[:, -1]) for guess in (prediction, frames[:, -2]))
    fdm_mse, copy_last_mse = errors.mean(), copy_errors.mean()
    commitment = config.quantizer.commitment * quantizer.commitment_loss(z, z_q)
    loss = prediction_loss(errors, copy_errors, config, axis_name)
    if config.quantizer.enabled:
        loss = loss + commitment
    metrics = {"fdm_mse": fdm_mse, "copy_last_mse": copy_last_mse, "commitment": commitment}
    if config.decorrelation:
        metrics["correlation"] = correlation(z, axis_name)
        loss = loss + config.decorrelation * metrics["correlation"]
    if labelled is not None and state.space is not None:
        action_loss, score = _action_loss(params["action_head"], labelled_z, labelled[1], state.space, axis_name)
        loss = loss + config.action_weight * action_loss
        metrics |= {"action_loss": action_loss, f"action_{state.space.score_name}": score}
    return loss, (updated.get("batch_stats", {}), latents, {"loss": loss} | metrics)


def train_step(
    state: DynamicsState,
    windows: jax.Array,
    labelled: tuple[jax.Array, jax.Array] | None = None,
    *,
    axis_name: str | None = None,
    lengths: Lengths | None = None,
) -> tuple[DynamicsState, dict[str, jax.Array]]:
    """One step of stage 1, a pure function: ``jit`` it (donating the state) or ``vmap`` it over seeds.

    Under ``pmap``, ``jax.shard_map`` or ``vmap`` with an `axis_name`, and under ``jit`` of a sharded batch, it computes
    what one device computes on the joined batch.

    Args:
      state: the training state.
      windows: ``[B, k + 2, *S, C]`` as in `loss_fn`; under `axis_name` each device's share of the batch.
      labelled: with `action_weight`, windows ``[L, k + 2, *S, C]`` and the action at the o_t of each: int32 ``[L]`` in
        ``[0, A)``, -1 where unknown, or float32 ``[L, A]``, NaN where unknown. If all are unknown the action loss is 0.
        Labels train the inverse model and the head, not the forward model, its batch statistics or the codebooks.
      axis_name: devices over which gradients, batch statistics, code counts and metrics are reduced.
      lengths: warm-up and total steps of the learning rate, which may be traced, instead of the config's.

    Returns:
      The new state and metrics, float32 ``[]``: ``loss``, ``fdm_mse`` and ``copy_last_mse`` (pixels in [-0.5, 0.5],
      or standardised numbers), ``commitment`` (weighted), ``grad_norm`` (before the clip), ``learning_rate``, for each
      codebook n ``perplexity_n`` and ``used_codes_n`` of this batch, with `decorrelation` ``correlation`` (not
      weighted), and with `labelled` ``action_loss`` (not weighted) and ``action_accuracy``, or ``action_mse`` for
      continuous actions.

    Raises:
      ValueError: if there are labels and the state has no action head, or images that are not uint8 and no statistics.
    """
    config = state.config
    check_lengths(config.steps, lengths)
    chex.assert_rank(windows, {3, 5})
    chex.assert_axis_dimension(windows, 1, config.window)
    if labelled is not None:
        if state.space is None:
            raise ValueError("Labels are used only if dynamics.action_weight is above 0: set it, or give no labels.")
        chex.assert_shape(labelled[0], (None, *windows.shape[1:]))
        chex.assert_shape(labelled[1], (len(labelled[0]), *state.space.shape))
    grads, (batch_stats, latents, metrics) = jax.grad(loss_fn, has_aux=True)(
        parallel.vary(unpack_groups(state.params), axis_name), state, windows, axis_name, labelled
    )
    grads, metrics = parallel.pmean((grads_as(state.params, grads), metrics), axis_name)
    updates, opt_state = optimizer(config, lengths).update(grads, state.opt_state, state.params)
    counts = parallel.psum(quantizer.hits(latents.codes, config.quantizer), axis_name)
    perplexity = quantizer.perplexity(counts)
    metrics["grad_norm"] = optax.tree.norm(grads)
    metrics["learning_rate"] = jnp.asarray(_schedule(config, lengths)(state.step))
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
    check_images(windows, state.obs_stats, 5)
    frames = normalise_obs(clean_frames(state.config, windows), state.obs_stats)
    return _infer(state.params, state, frames)


def predict_actions(state: DynamicsState, latents: jax.Array) -> jax.Array:
    """The action head's outputs for latents float32 ``[B, Z]`` (`Latents.continuous`), float32 ``[B, A]``."""
    return _action_head(state.params["action_head"], latents)


def predict_next(state: DynamicsState, frames: jax.Array, latent: jax.Array) -> jax.Array:
    """Predicts o_{t+1} in evaluation mode.

    With `focus` the models know squares only. If the view stands still, the square around what moved up to o_t, or
    around the agent, is predicted, and the rest of o_t copied. If the view moves, squares all over the frame are
    predicted, and their inner halves joined.

    Args:
      state: the trained state.
      frames: ``[B, k + 1, *S, C]``, up to o_t: uint8 as observed, or float32 in [-0.5, 0.5], which are not cleaned.
      latent: float32 ``[B, Z]``, quantised latents.

    Returns:
      float32 ``[B, *S, C]``, pixels in [-0.5, 0.5], or standardised numbers.
    """
    chex.assert_rank(frames, {3, 5})
    frames = normalise_obs(clean_frames(state.config, frames), state.obs_stats)
    if not state.config.focus:
        return predict_seen(state, frames, latent)
    config, side, rows = state.config, state.config.focus, state.config.focus_rows
    if config.finds_agent:
        corners = _around_agent(config, frames[:, -1], state.locator)
    else:
        corners = moving_squares(frames, side, rows)
    squares = tiles(frames, side)
    latents = jnp.repeat(latent, len(squares) // len(frames), axis=0)
    height, width = frames.shape[2:4]
    everywhere = join_tiles(predict_seen(state, squares, latents), (height, width))
    square = predict_seen(state, cut_squares(frames, corners, side), latent)
    still = paste_squares(frames[:, -1], square, corners)
    return jnp.where(view_moves(frames, rows)[:, None, None, None], everywhere, still)


def predict_seen(state: DynamicsState, frames: jax.Array, latent: jax.Array) -> jax.Array:
    """Predicts the part of o_{t+1} that the forward model sees: all of it, or with `focus` a square.

    Args:
      state: the trained state.
      frames: float32 ``[B, k + 1, *S, C]``, normalised, as `forward_squares` cuts them.
      latent: float32 ``[B, Z]``, quantised latents.

    Returns:
      float32 ``[B, *S, C]``, normalised.
    """
    variables = {"params": state.params["fdm"], "batch_stats": state.batch_stats}
    return _fdm(state.config, frames.shape[-1]).apply(variables, join_frames(frames), latent)


def _held_out(state: DynamicsState, windows: jax.Array) -> tuple[DynamicsState, jax.Array, Latents]:
    """A state for normalised frames, those that the forward model is evaluated on, and the windows' latents."""
    check_images(windows, state.obs_stats, 5)
    frames = normalise_obs(clean_frames(state.config, windows), state.obs_stats)
    latents = _infer(state.params, state, frames)
    squares = forward_squares(state.config, frames, 0, locator=state.locator)
    return state.replace(obs_stats=None), squares, latents


def evaluate(state: DynamicsState, windows: jax.Array) -> dict[str, jax.Array]:
    """Errors on held-out windows ``[B, k + 2, *S, C]`` (see `loss_fn`), in evaluation mode, on cleaned frames.

    With `focus` they are the errors on the squares that the forward model would be trained on in step 0.

    Returns:
      ``fdm_mse`` and ``copy_last_mse`` float32 ``[]``, and ``code_counts`` float32 ``[N, M]``.
    """
    state, frames, latents = _held_out(state, windows)
    prediction = predict_seen(state, frames[:, :-1], latents.quantized)
    last, target = frames[:, -2], frames[:, -1]
    return {
        "fdm_mse": jnp.mean(jnp.square(prediction - target)),
        "copy_last_mse": jnp.mean(jnp.square(last - target)),
        "code_counts": quantizer.hits(latents.codes, state.config.quantizer),
    }


def evaluate_swapped(state: DynamicsState, windows: jax.Array) -> jax.Array:
    """The prediction error on held-out windows ``[B, k + 2, *S, C]`` with swapped latents, float32 ``[]``.

    Each window gets the latent of the window half a batch away. If the error is no larger than `evaluate`'s, the
    forward model ignores the latents.
    """
    state, frames, latents = _held_out(state, windows)
    swapped = jnp.roll(latents.quantized, len(windows) // 2, axis=0)
    return jnp.mean(jnp.square(predict_seen(state, frames[:, :-1], swapped) - frames[:, -1]))
