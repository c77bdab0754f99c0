"""Stage 3, offline: a decoder from latent to real actions, fitted on a few labelled transitions.

The decoder is fitted on what the *policy* says at the labelled observations, because that is what it will see when it
acts; a decoder fitted on the inverse model's latents meets off-manifold inputs there.

Dimension keys: L labels, Z latent size, A actions.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from lamjax.models.mlp import MLP
from lamjax.optim import warmup_linear


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
    """Offline decoding's settings.

    Attributes:
      labels: numbers of labelled transitions to fit with.
      steps: optimizer steps of one fit.
      batch_size: labels in a step, at most all of them.
      learning_rate: the peak; warmed up over a tenth of the steps, then linear down to zero.
      weight_decay: AdamW's.
      hidden: widths of the decoder's hidden layers.
      episodes: evaluation episodes, a multiple of `num_envs`.
      num_envs: environments that evaluate.
      bc_steps: optimizer steps of behaviour cloning from scratch on the same labels, the null.
    """

    labels: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    steps: int = 10_000
    batch_size: int = 128
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    hidden: tuple[int, ...] = (192, 128, 64)
    episodes: int = 128
    num_envs: int = 64
    bc_steps: int = 3_000

    def __post_init__(self):
        if self.episodes % self.num_envs:
            raise ValueError(f"episodes ({self.episodes}) must be a multiple of num_envs ({self.num_envs}).")


def decoder(config: OfflineConfig, num_actions: int) -> MLP:
    """The decoder: latents ``[B, Z]`` to logits ``[B, A]``."""
    return MLP((*config.hidden, num_actions))


@functools.partial(jax.jit, static_argnames=("config", "num_actions"))
def fit(
    key: jax.Array, latents: jax.Array, actions: jax.Array, config: OfflineConfig, num_actions: int
) -> tuple[Any, jax.Array]:
    """Fits a decoder by cross-entropy.

    Args:
      key: a typed PRNG key.
      latents: float32 ``[L, Z]``.
      actions: int32 ``[L]``.
      config: the settings (static).
      num_actions: A (static).

    Returns:
      The decoder's parameters, and the loss of the last step.
    """
    chex.assert_equal_shape_prefix([latents, actions], 1)
    network = decoder(config, num_actions)
    key_init, key_rows = jax.random.split(key)
    # Latents of different runs differ in scale by orders of magnitude; the decoder should not have to.
    params = {"mean": latents.mean(0), "scale": latents.std() + 1e-6, "net": network.init(key_init, latents[:1])}
    schedule = warmup_linear(config.learning_rate, 0.01, 0.0, config.steps // 10, config.steps)
    tx = optax.adamw(schedule, weight_decay=config.weight_decay)
    batch = min(config.batch_size, latents.shape[0])

    def step(carry, index):
        net, opt_state = carry
        rows = jax.random.choice(jax.random.fold_in(key_rows, index), latents.shape[0], (batch,), replace=False)

        def loss_fn(net):
            logits = decode({**params, "net": net}, latents[rows], config, num_actions)
            return optax.softmax_cross_entropy_with_integer_labels(logits, actions[rows]).mean()

        loss, grads = jax.value_and_grad(loss_fn)(net)
        updates, opt_state = tx.update(grads, opt_state, net)
        return (optax.apply_updates(net, updates), opt_state), loss

    (net, _), loss = jax.lax.scan(step, (params["net"], tx.init(params["net"])), jnp.arange(config.steps))
    return {**params, "net": net}, loss[-1]


def decode(params: Any, latents: jax.Array, config: OfflineConfig, num_actions: int) -> jax.Array:
    """Logits float32 ``[B, A]`` of latents float32 ``[B, Z]``."""
    x = (latents - params["mean"][None]) / params["scale"]
    return decoder(config, num_actions).apply(params["net"], x)
