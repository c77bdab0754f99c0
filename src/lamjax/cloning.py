"""Stage 2: a policy over latent actions, cloned from the latents that stage 1 infers (LAPO, section 3).

    loss = mean (pi(o_t) - z_t)^2,  z_t = IDM(o_{t-1}, o_t, o_{t+1}) before the quantiser

Dimension keys: B batch, Z latent size.
"""

import dataclasses
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from lamjax import optim, parallel
from lamjax.checks import check_fields
from lamjax.models.impala import ImpalaConfig
from lamjax.models.policy import LatentPolicy
from lamjax.models.trunk import TrunkConfig
from lamjax.optim import OptimizerName, grads_as, unpack_groups
from lamjax.preprocess import ObsStats, check_images, normalise_obs
from lamjax.schedules import Lengths, check_lengths, warmup_linear


@dataclasses.dataclass(frozen=True)
class CloningConfig:
    """Stage 2's settings; the defaults are LAPO's.

    Attributes:
      steps: optimizer steps.
      batch_size: observations in a step, over all devices.
      learning_rate: the peak.
      warmup_steps: steps in which the rate rises linearly from a hundredth of the peak to the peak; it then falls
        linearly to 0 at the last step.
      weight_decay: decoupled weight decay, for every parameter.
      optimizer: "adamw" (LAPO), or "muon" for the kernels of convolutions (`lamjax.optim.optimizer`).
      trunk: the policy's trunk.
      dtype: type of the activations.
    """

    steps: int = 60_000
    batch_size: int = 128
    learning_rate: float = 2e-4
    warmup_steps: int = 1000
    weight_decay: float = 0.01
    optimizer: OptimizerName = "adamw"
    trunk: TrunkConfig = ImpalaConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        check_fields(
            self,
            "cloning",
            at_least_1=("batch_size",),
            at_least_0=("steps", "warmup_steps"),
            finite=("learning_rate", "weight_decay"),
        )

    @property
    def lengths(self) -> tuple[int, int]:
        """Warm-up and total steps, as `train_step` takes them."""
        return self.warmup_steps, self.steps

    @property
    def program(self) -> "CloningConfig":
        """The settings without their lengths: equal for runs that differ only in length, so they compile once."""
        return dataclasses.replace(self, warmup_steps=0, steps=0)


class CloningState(struct.PyTreeNode):
    """Everything that stage 2 carries.

    Attributes:
      params: the `LatentPolicy`'s parameters, float32.
      opt_state: the optimizer's moments, float32.
      step: int32 ``[]``, steps done.
      latent_dim: Z (static).
      config: the settings (static).
      obs_stats: how observations that are not uint8 are standardised (see `normalise_obs`); constant.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    latent_dim: int = struct.field(pytree_node=False)
    config: CloningConfig = struct.field(pytree_node=False)
    obs_stats: ObsStats = None


def _schedule(config: CloningConfig, lengths: Lengths | None = None) -> optax.Schedule:
    return warmup_linear(config.learning_rate, 0.01, 0.0, *(lengths or config.lengths))


def optimizer(config: CloningConfig, lengths: Lengths | None = None) -> optax.GradientTransformation:
    """The config's optimizer under a warm-up and a linear decay, over `lengths` if given; no gradient is clipped.

    The value head has no gradient here and must keep its initial values, so weight decay must not change it.
    """
    labels = lambda params: {name: "frozen" if name == "value_head" else "trained" for name in params}  # noqa: E731
    trained = optim.optimizer(config.optimizer, _schedule(config, lengths), config.weight_decay)
    return optax.multi_transform({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def _policy(config: CloningConfig, latent_dim: int) -> LatentPolicy:
    return LatentPolicy(config.trunk, latent_dim, jnp.dtype(config.dtype))


def init(
    key: jax.Array,
    config: CloningConfig,
    obs_shape: tuple[int, ...],
    latent_dim: int,
    obs_stats: ObsStats = None,
) -> CloningState:
    """Starts stage 2 for observations of `obs_shape` and latents of size `latent_dim`; `obs_stats` as for stage 1."""
    params = _policy(config, latent_dim).init(key, jnp.zeros((1, *obs_shape)))["params"]
    stats = jax.tree.map(jnp.copy, obs_stats)  # a copy: states are donated
    return CloningState(params, optimizer(config).init(params), jnp.zeros((), jnp.int32), latent_dim, config, stats)


def train_step(
    state: CloningState,
    obs: jax.Array,
    latents: jax.Array,
    *,
    axis_name: str | None = None,
    lengths: Lengths | None = None,
) -> tuple[CloningState, dict[str, jax.Array]]:
    """One step of behaviour cloning in latent space, a pure function like `dynamics.train_step`.

    Args:
      state: the training state.
      obs: ``[B, *obs_shape]``, o_t, the middle frames of the windows.
      latents: float32 ``[B, Z]``, the continuous latents of those windows; no gradient flows into them.
      axis_name: devices over which gradients and metrics are reduced.
      lengths: warm-up and total steps of the learning rate, which may be traced, instead of the config's.

    Returns:
      The new state and metrics, float32 ``[]``: ``loss``, ``grad_norm``, ``learning_rate``.
    """
    check_lengths(state.config.steps, lengths)
    chex.assert_shape(latents, (obs.shape[0], state.latent_dim))
    check_images(obs, state.obs_stats, 4)
    latents = jax.lax.stop_gradient(latents)

    def loss_fn(params: Any) -> jax.Array:
        inputs = normalise_obs(obs, state.obs_stats)
        predicted, _ = _policy(state.config, state.latent_dim).apply({"params": params}, inputs)
        return jnp.mean(jnp.square(predicted - latents))

    loss, grads = jax.value_and_grad(loss_fn)(parallel.vary(unpack_groups(state.params), axis_name))
    loss, grads = parallel.pmean((loss, grads_as(state.params, grads)), axis_name)
    updates, opt_state = optimizer(state.config, lengths).update(grads, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(_schedule(state.config, lengths)(state.step)),
    }
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, opt_state=opt_state, step=state.step + 1), metrics


def predict_latents(state: CloningState, obs: jax.Array) -> jax.Array:
    """The policy's latent actions at observations ``[B, *obs_shape]``: float32 ``[B, Z]``."""
    check_images(obs, state.obs_stats, 4)
    inputs = normalise_obs(obs, state.obs_stats)
    return _policy(state.config, state.latent_dim).apply({"params": state.params}, inputs)[0]
