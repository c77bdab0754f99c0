"""Stage 3, offline: a decoder from latent to real actions, fitted on a few labelled transitions.

The paper gives no protocol. In this one, N windows are labelled, drawn at random from the training levels, once for
each seed. On each draw every method is fitted, and its policy plays the same fixed number of episodes in each
environment. LAPO's own order is to clone latents first and then decode the policy: the decoder is fitted on the latents
that the *policy* predicts at the labelled observations, because those are its inputs when it acts. The alternative, a
decoder fitted on the inverse model's latents, meets off-manifold inputs there; it is measured as well.

Dimension keys: F decoders, L places for labels, N labels, Z latent size, K numbers that a policy head gives (see
`lamjax.spaces`).
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from lamjax.checks import check_fields
from lamjax.models.mlp import MLP
from lamjax.schedules import warmup_linear
from lamjax.spaces import ActionSpace, as_space
from lamjax.statistics import mean_and_stderr

Method = Literal["policy", "idm", "bc", "relabel"]
Play = Literal["sampled", "greedy"]


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
    """Offline decoding's settings.

    Attributes:
      labels: the numbers of labelled transitions to fit with.
      label_shares: further numbers of labels, as shares of the training windows.
      seeds: how many draws of the labels, each with its own evaluation levels; the results are means over them.
      methods: what to do with the labels. "policy": fit a decoder on the latents of the policy; "bc": clone the labels
        from scratch, the baseline; "idm": fit a decoder on the latents of the inverse model, and use it behind the
        policy; "relabel": LAPO+'s order (arXiv 2602.02762), which decodes the inverse model first, pseudo-labels every
        training window with it, and clones these actions (`relabel_steps`).
      play: how the policies act.
      compare_at: the numbers of labels at which methods other than "policy" and "bc", and greedy play, are measured; by
        default all.
      steps: optimizer steps of one fit.
      batch_size: labels in a step, drawn with replacement.
      learning_rate: the peak; the rate warms up over a tenth of the steps, then falls linearly to zero.
      weight_decay: AdamW's.
      hidden: widths of the decoder's hidden layers.
      balance: gives all discrete actions the same total weight in a fit, however often they are labelled. The likeliest
        action is then the one that makes the latents likeliest, not the commonest of those that may explain them.
      noise: Gaussian noise on the latents while a decoder of pseudo-labels is fitted, in standard deviations of each
        number. Such a decoder relies on what is large in the latents, so it also fits latents of another distribution,
        such as those of demonstrations if the labels come from random play. Decoders of policies get none: noise makes
        them less certain, and policies sample.
      episodes: evaluation episodes, a multiple of `num_envs`.
      num_envs: environments that evaluate.
      bc_steps: optimizer steps of behaviour cloning from scratch on the same labels, the baseline.
      relabel_steps: optimizer steps of cloning pseudo-labels, which begins with the latent policy's trunk; 0 begins
        from scratch, and takes as long as stage 2.
      relabel_hidden: widths of the hidden layers of the decoder that gives pseudo-labels; None means `hidden`, and an
        empty tuple a linear decoder, which a few labels fit best if the latents are uncorrelated.
      oracle: also clones all true actions of the recording, for as long as stage 2 takes: how well a policy of this
        size does with perfect labels.
    """

    labels: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    label_shares: tuple[float, ...] = (0.01,)
    seeds: int = 3
    methods: tuple[Method, ...] = ("policy", "bc", "idm")
    play: tuple[Play, ...] = ("sampled", "greedy")
    compare_at: tuple[int, ...] = ()
    steps: int = 10_000
    batch_size: int = 128
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    hidden: tuple[int, ...] = (192, 128, 64)
    balance: bool = False
    noise: float = 0.0
    episodes: int = 128
    num_envs: int = 64
    bc_steps: int = 3_000
    relabel_steps: int = 0
    relabel_hidden: tuple[int, ...] | None = None
    oracle: bool = True

    @property
    def program(self) -> "OfflineConfig":
        """The settings that decoded policies and their fits depend on, with the protocol's numbers left neutral."""
        return dataclasses.replace(
            self,
            labels=(),
            label_shares=(),
            seeds=1,
            compare_at=(),
            bc_steps=1,
            noise=0.0,
            relabel_steps=0,
            relabel_hidden=None,
            oracle=False,
            episodes=self.num_envs,
        )

    @property
    def pseudo_labels(self) -> "OfflineConfig":
        """`program` for the decoder that gives pseudo-labels."""
        hidden = self.hidden if self.relabel_hidden is None else self.relabel_hidden
        return dataclasses.replace(self.program, hidden=hidden, noise=self.noise)

    def __post_init__(self):
        check_fields(
            self,
            "offline",
            at_least_1=(
                "labels",
                "seeds",
                "compare_at",
                "steps",
                "batch_size",
                "hidden",
                "episodes",
                "num_envs",
                "bc_steps",
                "relabel_hidden",
            ),
            at_least_0=("relabel_steps",),
            finite=("learning_rate", "weight_decay", "noise"),
        )
        if self.episodes % self.num_envs:
            raise ValueError(f"episodes ({self.episodes}) must be a multiple of num_envs ({self.num_envs}).")
        if not all(0 < share <= 1 for share in self.label_shares):
            raise ValueError(f"offline.label_shares must lie in (0, 1], not {self.label_shares}.")
        if "policy" not in self.methods or "sampled" not in self.play:
            raise ValueError('offline.methods must hold "policy" and offline.play "sampled": they are the main curve.')


def label_counts(config: OfflineConfig, windows: int) -> list[int]:
    """The numbers of labels to fit with, ascending, out of so many training windows; larger numbers are dropped."""
    shares = (round(share * windows) for share in config.label_shares)
    return sorted({n for n in (*config.labels, *shares) if 1 <= n <= windows})


def curve_name(method: Method, play: Play) -> str:
    """The curve's name in the summary: "curve" for the sampled policy, otherwise a name such as "idm_greedy_curve"."""
    parts = ("" if method == "policy" else method, "" if play == "sampled" else play, "curve")
    return "_".join(part for part in parts if part)


def variants(config: OfflineConfig, count: int) -> dict[Method, tuple[Play, ...]]:
    """The methods at a number of labels, each with the ways its policies act."""
    if not config.compare_at or count in config.compare_at:
        return dict.fromkeys(config.methods, config.play)
    return {method: ("sampled",) for method in config.methods if method in ("policy", "bc")}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A policy that the protocol measures.

    Attributes:
      draw: which draw of the labels.
      count: how many labels of it.
      method: what is done with the labels.
      plays: how the policy acts, one evaluation for each.
    """

    draw: int
    count: int
    method: Method
    plays: tuple[Play, ...]

    @property
    def is_decoded(self) -> bool:
        """Whether it is the latent policy with its own decoder, not a clone of actions."""
        return self.method in ("policy", "idm")


def candidates(
    config: OfflineConfig, counts: Sequence[int], by_seed: Mapping[str, Sequence[Sequence[float]]]
) -> list[Candidate]:
    """What is still to be measured, in order of draw, decoded policies first, and number of labels.

    Args:
      config: the settings.
      counts: the numbers of labels.
      by_seed: what has been measured: for each curve rows that start with ``(N, draw)``.
    """
    every = [
        Candidate(
            draw,
            count,
            method,
            tuple(
                play
                for play in plays
                if [count, draw] not in [list(row[:2]) for row in by_seed.get(curve_name(method, play), ())]
            ),
        )
        for draw in range(config.seeds)
        for count in counts
        for method, plays in variants(config, count).items()
    ]
    return sorted((one for one in every if one.plays), key=lambda one: (one.draw, not one.is_decoded))


def chunks(candidates: Sequence[Candidate], size: int) -> Iterator[list[Candidate]]:
    """Groups candidates that are evaluated together: one draw, one kind of network, at most `size` plays.

    The plays of one candidate stay together, even if there are more.
    """
    for _, alike in itertools.groupby(candidates, lambda one: (one.draw, one.is_decoded)):
        chunk: list[Candidate] = []
        for one in alike:
            if chunk and sum(len(other.plays) for other in (*chunk, one)) > size:
                yield chunk
                chunk = []
            chunk.append(one)
        yield chunk


def over_seeds(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Computes a curve from the returns of each draw.

    Args:
      rows: ``(N, seed, mean, standard error over episodes)`` of each number of labels and draw.

    Returns:
      ``[N, mean, standard error]`` for each N, ascending: over the draws, or over the episodes of a single draw.
    """
    curve = []
    for count in sorted({row[0] for row in rows}):
        means = [mean for n, _, mean, _ in rows if n == count]
        errors = [error for n, _, _, error in rows if n == count]
        mean, error = mean_and_stderr(means)
        curve.append([count, mean, error if len(means) > 1 else errors[0]])
    return curve


def decoder(config: OfflineConfig, space: ActionSpace | int) -> MLP:
    """The decoder, from latents ``[B, Z]`` to outputs ``[B, K]``, which are logits for discrete actions."""
    return MLP((*config.hidden, as_space(space).num_outputs))


@functools.partial(jax.jit, static_argnames=("config", "space"))
def fit(
    key: jax.Array,
    latents: jax.Array,
    actions: jax.Array,
    config: OfflineConfig,
    space: ActionSpace | int,
    count: jax.Array | int | None = None,
) -> tuple[Any, jax.Array]:
    """Fits a decoder by the likelihood of the labels. All counts that are padded to one size share a compiled program.

    For discrete actions that is cross-entropy; for continuous ones the decoder outputs a Gaussian (see
    `lamjax.spaces`).

    Args:
      key: a typed PRNG key.
      latents: float32 ``[L, Z]``.
      actions: ``[L, *space.shape]``.
      config: the settings (static).
      space: the action space, or the number of actions (static).
      count: int32 ``[]``, N, how many of the first rows to use; all by default.

    Returns:
      The decoder's parameters, and the loss of the last step.
    """
    chex.assert_equal_shape_prefix([latents, actions], 1)
    space = as_space(space)
    network = decoder(config, space)
    key_init, key_rows = jax.random.split(key)
    count = latents.shape[0] if count is None else count
    # The scale of latents differs between runs by orders of magnitude; the decoder should not have to adapt to it.
    counts = (jnp.arange(latents.shape[0]) < count)[:, None]
    mean = jnp.where(counts, latents, 0).sum(0) / count
    # One deviation for all numbers together, around their common mean.
    scale = jnp.sqrt(jnp.where(counts, jnp.square(latents - mean.mean()), 0).sum() / (count * latents.shape[1]))
    params = {"mean": mean, "scale": scale + 1e-6, "net": network.init(key_init, latents[:1])}
    spread = config.noise * jnp.sqrt(jnp.where(counts, jnp.square(latents - mean[None]), 0).sum(0) / count)
    weights = space.balance(actions, counts[:, 0]) if config.balance else None
    schedule = warmup_linear(config.learning_rate, 0.01, 0.0, config.steps // 10, config.steps)
    tx = optax.adamw(schedule, weight_decay=config.weight_decay)

    def step(carry, index):
        net, opt_state = carry
        key = jax.random.fold_in(key_rows, index)
        rows = jax.random.randint(key, (config.batch_size,), 0, count)
        inputs = latents[rows]
        if config.noise:
            inputs += spread[None] * jax.random.normal(jax.random.fold_in(key, 1), inputs.shape)

        def loss_fn(net):
            outputs = decode({**params, "net": net}, inputs, config, space)
            losses = space.loss(outputs, actions[rows])
            return losses.mean() if weights is None else (weights[rows] * losses).mean()

        loss, grads = jax.value_and_grad(loss_fn)(net)
        updates, opt_state = tx.update(grads, opt_state, net)
        return (optax.apply_updates(net, updates), opt_state), loss

    (net, _), loss = jax.lax.scan(step, (params["net"], tx.init(params["net"])), jnp.arange(config.steps))
    return {**params, "net": net}, loss[-1]


@functools.partial(jax.jit, static_argnames=("config", "space"))
def fit_all(
    keys: jax.Array,
    latents: jax.Array,
    actions: jax.Array,
    config: OfflineConfig,
    space: ActionSpace | int,
    counts: jax.Array,
) -> tuple[Any, jax.Array]:
    """Fits F decoders in one dispatch; each is what `fit` returns for its key, latents, actions and count.

    Args:
      keys: typed PRNG keys ``[F]``.
      latents: float32 ``[F, L, Z]``.
      actions: ``[F, L, *space.shape]``.
      config: the settings (static).
      space: the action space (static).
      counts: int32 ``[F]``.

    Returns:
      The decoders' parameters, with a leading axis F, and the losses of the last steps ``[F]``.
    """
    return jax.vmap(lambda key, z, labels, count: fit(key, z, labels, config, space, count))(
        keys, latents, actions, counts
    )


def decode(params: Any, latents: jax.Array, config: OfflineConfig, space: ActionSpace | int) -> jax.Array:
    """Outputs float32 ``[B, K]`` for latents float32 ``[B, Z]``."""
    x = (latents - params["mean"][None]) / params["scale"]
    return decoder(config, space).apply(params["net"], x)


decode_batch = jax.jit(decode, static_argnames=("config", "space"))
