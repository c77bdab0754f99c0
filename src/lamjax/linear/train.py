"""Trains linear latent action models by stochastic gradient descent, a whole sweep as one program.

Points of a sweep differ in world, latent size, augmentation, action loss and seed. They become one batched program:
smaller latents and actions are padded with zeros, which gradient descent leaves at zero, and points of the same seed
use the same draws, mapped through each point's own world. Every step draws fresh transitions, as in the paper.

A sweep runs in rounds. After a round, `optimum.excess` measures the excess over the closed form on exact moments.
Points above the tolerance enter the next round, which is twice as long and starts at the full learning rate.

Dimension keys: S seeds, M points of a seed, N batch, O observation, A action, B other agents' action, Z latent.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lamjax.linear.optimum import LAM, Optimum, check_settings, excess, optimum, population_loss
from lamjax.linear.theory import effective_action_weight
from lamjax.linear.world import Factors, Sources, World, WorldConfig, check, check_choice, make_world, transition

# Points in a block: four of the paper's size. And steps that a block takes at a time, if they divide the steps.
_BLOCK_SIZE, _CHUNK = 4 * 128**2, 8


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of training. The defaults reach the optimum; `PAPER`, the printed protocol, does not.

    Attributes:
      learning_rate: Adam's, at the start of a round.
      schedule: "cosine" to 0 over a round, or "constant".
      steps: of the first round; each further round is twice as long.
      max_rounds: the most rounds.
      batch: N, fresh transitions per step.
      tolerance: a point has converged when its excess is at most this.
      label_tolerance: the same for points with an action loss, whose gradients are noisier.
      units: the units of the action weight: "sum", or "code" for the authors' means over coordinates.
      fix_a: A stays the identity.
      tie_c: C = -D.
      bias: the forward model and the action head have biases.
    """

    learning_rate: float = 1e-2
    schedule: Literal["cosine", "constant"] = "cosine"
    steps: int = 4000
    max_rounds: int = 3
    batch: int = 128
    tolerance: float = 2e-3
    label_tolerance: float = 5e-3
    units: Literal["sum", "code"] = "sum"
    fix_a: bool = False
    tie_c: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "max_rounds", "batch"):
            check(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("learning_rate", "tolerance", "label_tolerance"):
            value = getattr(self, name)
            check(0 < value < np.inf, f"{name} must be positive and finite, not {value}.")
        check_choice("schedule", self.schedule, "cosine", "constant")
        check_choice("units", self.units, "sum", "code")


RECOMMENDED = TrainConfig()
# Appendix B: Adam at its default rate, 4000 steps.
PAPER = TrainConfig(learning_rate=1e-3, schedule="constant", max_rounds=1)


@dataclasses.dataclass(frozen=True)
class Point:
    """One model to train.

    Attributes:
      world: the settings of its world.
      d_z: size of the latent.
      kappa: standard deviation of the augmentation.
      action_weight: weight of the action loss, in `TrainConfig.units`.
      label_fraction: probability that a transition has its action; ignored without an action weight.
      seed: draws the initial model and the batches.
      world_seed: draws the world; by default the same seed.
    """

    world: WorldConfig
    d_z: int
    kappa: float = 0.0
    action_weight: float = 0.0
    label_fraction: float = 1.0
    seed: int = 0
    world_seed: int | None = None

    def __post_init__(self) -> None:
        check_settings(self.world.d_o, self.d_z, self.kappa, self.action_weight)
        check(0 <= self.label_fraction <= 1, f"label_fraction must lie in [0, 1], not {self.label_fraction}.")

    def make_world(self) -> World:
        """The point's world."""
        return make_world(self.world, self.seed if self.world_seed is None else self.world_seed)

    def lam(self, config: TrainConfig) -> float:
        """The weight of its action loss in sum units, averaged over batches with and without labels."""
        return effective_action_weight(
            self.action_weight, config.units, self.label_fraction, config.batch, self.world.d_o, self.world.d_a
        )

    def optimum(self, config: TrainConfig = RECOMMENDED) -> Optimum:
        """The closed form of the point's optimum."""
        return optimum(
            self.make_world().moments(),
            self.d_z,
            kappa=self.kappa,
            action_weight=self.lam(config),
            bias=config.bias,
            fix_a=config.fix_a,
            ties="ignore",
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """The result of training a point.

    Attributes:
      point: the point.
      lam: the model, float64 numpy, of its own sizes.
      best: the closed form.
      loss: on exact moments, in sum units.
      excess: ``(L - L*) / tr S_{q + eps}``.
      converged: the excess is within the tolerance.
      steps: of training.
    """

    point: Point
    lam: LAM
    best: Optimum
    loss: float
    excess: float
    converged: bool
    steps: int


class Task(NamedTuple):
    """A point as arrays: float32, with leading axes ``[S, M]`` in a sweep.

    Attributes:
      world: its matrices, padded.
      kappa: ``[]``.
      weight: ``[]``, of the action loss in sum units, as written.
      label_fraction: ``[]``.
      actions: ``[A]``, 1 for actions that are there, 0 for padding.
    """

    world: Factors
    kappa: Any
    weight: Any
    label_fraction: Any
    actions: Any


class State(NamedTuple):
    """The training state: the models and Adam's moments, leading axes ``[S, M]``."""

    lam: LAM
    adam: optax.ScaleByAdamState


class Draw(NamedTuple):
    """One batch of sources, which all points of a seed share.

    Attributes:
      sources: of the world.
      kappa1: ``[N, O]``, standard normal: added to both inputs of the inverse model.
      kappa2: ``[N, O]``, standard normal: added to the input and the target of the forward model.
      label: ``[N, 1]``, uniform on [0, 1): labelled where below the label fraction.
    """

    sources: Sources
    kappa1: jax.Array
    kappa2: jax.Array
    label: jax.Array


@dataclasses.dataclass(frozen=True)
class SweepShape:
    """The sizes of a sweep's program, and which draws it needs.

    Attributes:
      d_o: O.
      d_a: A, the largest of any point.
      d_b: B, likewise.
      uniform: whether the iid noise is uniform.
      iid: whether any point has iid noise.
      augmented: whether any point has augmentation.
      labelled: whether any point has an action loss.
    """

    d_o: int
    d_a: int
    d_b: int
    uniform: bool
    iid: bool
    augmented: bool
    labelled: bool


def draw(key: jax.Array, batch: int, shape: SweepShape) -> Draw:
    """Draws a batch, float32."""
    o, iid = shape.d_o, shape.d_o if shape.iid else 0
    kappa = shape.d_o if shape.augmented else 0
    sizes = (o, shape.d_a, shape.d_b, 0 if shape.uniform else iid, kappa, kappa)
    key, key_uniform = jax.random.split(key)
    normal = jax.random.normal(key, (batch, sum(sizes)))  # at once: each call is a loop of its own to compile
    uniform = jax.random.uniform(key_uniform, (batch, 1 + (iid if shape.uniform else 0)))
    *parts, kappa1, kappa2 = jnp.split(normal, np.cumsum(sizes)[:-1].tolist(), axis=1)
    if shape.uniform:
        parts[3] = 12**0.5 * (uniform[:, 1:] - 0.5)
    # Zeros instead of what no point needs.
    parts[3], kappa1, kappa2 = (x if x.shape[1] else jnp.zeros((batch, 1)) for x in (parts[3], kappa1, kappa2))
    return Draw(Sources(jnp.ones((batch, 1)), *parts), kappa1, kappa2, uniform[:, :1])


def sampled_loss(lam: LAM, task: Task, batch: Draw, config: TrainConfig, labelled: bool = True) -> jax.Array:
    """The loss on a batch (section 3 of the paper; augmentation of its section 4.3).

        z  = C (o + kappa k1) + D (o' + kappa k1)
        o^ = A (o + kappa k2) + B z
        L  = mean_N |o^ - o' - kappa k2|^2 + lam mean_labelled |E z - a|^2

    Args:
      lam: the model.
      task: the point.
      batch: the draws.
      config: what is trained, and the units of lam; `task.weight` is in sum units already.
      labelled: False leaves the action loss out.

    Returns:
      ``[]``, in sum units.
    """
    fixed = jax.lax.stop_gradient
    A = fixed(lam.A) if config.fix_a else lam.A
    C = -lam.D if config.tie_c else lam.C
    o, q, eps, a = transition(task.world, batch.sources)
    delta = q + eps
    # In terms of the change, o' - o, and of C + D: nothing of size o cancels in float32.
    z = (o + task.kappa * batch.kappa1) @ (C + lam.D).T + delta @ lam.D.T
    residual = (o + task.kappa * batch.kappa2) @ (A - jnp.eye(len(A))).T + z @ lam.B.T - delta
    if config.bias:
        residual = residual + lam.bias_o[None]
    loss = jnp.sum(jnp.square(residual)) / len(residual)
    if labelled:
        error = z @ lam.E.T - a * task.actions[None]
        if config.bias:
            error = error + lam.bias_a[None]
        mask = (batch.label < task.label_fraction).astype(error.dtype)
        loss += task.weight * jnp.sum(mask * jnp.square(error)) / jnp.maximum(mask.sum(), 1)
    return loss


def train_step(state: State, tasks: Task, batches: Draw, rate: jax.Array, config: TrainConfig, labelled: bool) -> State:
    """One step of Adam for all points.

    Args:
      state: leading axes ``[S, M]``.
      tasks: leading axes ``[S, M]``.
      batches: leading axis ``[S]``.
      rate: ``[]``, learning rate.
      config: the settings.
      labelled: whether any point has an action loss.
    """
    # Divided by O, the loss is PyTorch's mean, and Adam's epsilon means the same.
    gradient = jax.grad(
        lambda lam, task, batch: sampled_loss(lam, task, batch, config, labelled) / task.world.X.shape[-2]
    )
    of_seed = jax.vmap(gradient, in_axes=(0, 0, None))
    gradients = jax.vmap(of_seed)(state.lam, tasks, batches)
    updates, adam = optax.scale_by_adam().update(gradients, state.adam)
    lam = jax.tree.map(lambda p, u: p - rate * u, state.lam, updates)
    return State(lam, adam)


@functools.partial(jax.jit, static_argnames=("steps", "shape", "config"), donate_argnums=0)
def run_round(
    state: State, tasks: Task, keys: jax.Array, start: jax.Array, shape: SweepShape, *, steps: int, config: TrainConfig
) -> State:
    """A round of `steps` steps as one program.

    Drawing costs as much as several points' steps, so all points share the draws. Points run in blocks that fit the
    cache, several steps at a time, because memory would limit a large sweep.

    Args:
      state: leading axes ``[K, S, M]``: K blocks of points. Donated.
      tasks: leading axes ``[K, S, M]``.
      keys: ``[S]``, one a seed.
      start: ``[]`` int32, number of the round's first step.
      shape: sizes, and which draws are needed.
      steps: how many.
      config: the settings.
    """

    def chunk(state: State, first: jax.Array) -> State:
        indices = first + jnp.arange(length)
        of_step = jax.vmap(lambda key, i: draw(jax.random.fold_in(key, start + i), config.batch, shape), (0, None))
        batches = jax.vmap(of_step, (None, 0))(keys, indices)
        rates = jnp.full(length, config.learning_rate)
        if config.schedule == "cosine":
            rates = rates * 0.5 * (1 + jnp.cos(jnp.pi * indices / steps))

        def block(state_and_tasks: tuple[State, Task]) -> State:
            state, tasks = state_and_tasks

            def step(state: State, batch_and_rate: tuple[Draw, jax.Array]) -> tuple[State, None]:
                return train_step(state, tasks, *batch_and_rate, config, shape.labelled), None

            return jax.lax.scan(step, state, (batches, rates))[0]

        return jax.lax.map(block, (state, tasks))

    length = math.gcd(steps, _CHUNK)
    state, _ = jax.lax.scan(lambda s, i: (chunk(s, i * length), None), state, jnp.arange(steps // length))
    return state


def init(point: Point, fix_a: bool = False) -> LAM:
    """PyTorch's default start, U(+-1 / sqrt(fan_in)) for every matrix and 0 for the biases; float64 numpy."""
    d_o, d_a, d_z = point.world.d_o, point.world.d_a, point.d_z
    rng = np.random.default_rng([point.seed, d_z])

    def uniform(rows: int, fan_in: int) -> np.ndarray:
        return rng.uniform(-1, 1, (rows, fan_in)) / np.sqrt(fan_in)

    A, B, C, D, E = (uniform(r, c) for r, c in ((d_o, d_o), (d_o, d_z), (d_z, d_o), (d_z, d_o), (d_a, d_z)))
    return LAM(np.eye(d_o) if fix_a else A, B, C, D, E, np.zeros(d_o), np.zeros(d_a))


def _padded(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.pad(x, [(0, want - have) for have, want in zip(np.shape(x), shape, strict=True)])


def _model_shapes(d_o: int, d_a: int, d_z: int) -> LAM:
    return LAM((d_o, d_o), (d_o, d_z), (d_z, d_o), (d_z, d_o), (d_a, d_z), (d_o,), (d_a,))


def _stacked(grid: list[list[list[int]]], trees: Sequence[Any]) -> Any:
    """The trees of the points in the grid, as one tree of float32 JAX arrays with leading axes ``[K, S, M]``."""

    def stack(*leaves: Any) -> jax.Array:
        x = np.stack(leaves)
        return jnp.asarray(x.reshape(*np.shape(grid), *x.shape[1:]), jnp.float32)

    return jax.tree.map(stack, *(trees[i] for block in grid for row in block for i in row))


def _task(point: Point, config: TrainConfig, d_a: int, d_b: int) -> Task:
    world = point.make_world()
    f, d_o = world.factors, point.world.d_o
    factors = f._replace(X=_padded(f.X, (d_o, d_a)), Y=_padded(f.Y, (d_o, d_b)), Pi=_padded(f.Pi, (d_a, d_o)))
    written = effective_action_weight(point.action_weight, config.units, 1.0, 1, d_o, point.world.d_a)
    actions = (np.arange(d_a) < point.world.d_a).astype(float)
    return Task(factors, point.kappa, written, point.label_fraction, actions)


def _shape(points: Sequence[Point]) -> SweepShape:
    worlds = [p.world for p in points]
    check(len({w.d_o for w in worlds}) == 1, "points: all must have the same d_o.")
    check(len({w.noise for w in worlds}) == 1, "points: all must have the same kind of noise.")
    return SweepShape(
        d_o=worlds[0].d_o,
        d_a=max(w.d_a for w in worlds),
        d_b=max(w.d_b for w in worlds),
        uniform=worlds[0].noise == "uniform",
        iid=any(w.s_iid > 0 for w in worlds),
        augmented=any(p.kappa > 0 for p in points),
        labelled=any(p.action_weight > 0 for p in points),
    )


def blocks_of_points(points: Sequence[Point], pending: Sequence[int]) -> list[list[list[int]]]:
    """Arranges pending points in blocks: indices ``[K, S, M]`` by block, seed and place.

    Short rows repeat their last point.
    """
    rows: dict[int, list[int]] = {}
    for index in pending:
        rows.setdefault(points[index].seed, []).append(index)
    longest = max(map(len, rows.values()))
    # Whole blocks of points, so that few programs of different size need compiling.
    block = max(_BLOCK_SIZE // points[0].world.d_o ** 2, 1)
    size = max(block // len(rows), 1) if len(pending) > block else longest
    blocks = -(-longest // size)
    padded = [row + row[-1:] * (blocks * size - len(row)) for row in rows.values()]
    return [[row[k * size : (k + 1) * size] for row in padded] for k in range(blocks)]


def _starts(points: Sequence[Point], config: TrainConfig, shape: SweepShape) -> tuple[list[Task], list[State]]:
    """Each point's task and start, padded to the sizes of the sweep; numpy."""
    sizes = _model_shapes(shape.d_o, shape.d_a, max(point.d_z for point in points))
    tasks = [_task(point, config, shape.d_a, shape.d_b) for point in points]
    models = [LAM(*map(_padded, init(point, config.fix_a), sizes)) for point in points]
    return tasks, [State(lam, jax.tree.map(np.asarray, optax.scale_by_adam().init(lam))) for lam in models]


def _arrays(
    points: Sequence[Point], grid: list[list[list[int]]], carried: Sequence[State], tasks: Sequence[Task], start: int
) -> tuple[State, Task, jax.Array, np.int32]:
    """The first arguments of `run_round`, on the device."""
    state = _stacked(grid, carried)
    # An integer, but one a block: every block's Adam counts its own steps.
    state = state._replace(adam=state.adam._replace(count=jnp.full(len(grid), start, jnp.int32)))
    keys = jnp.stack([jax.random.key(points[row[0]].seed) for row in grid[0]])
    return state, _stacked(grid, tasks), keys, np.int32(start)


def prepare(points: Sequence[Point], config: TrainConfig) -> tuple[State, Task, jax.Array, np.int32, SweepShape]:
    """The arguments of `run_round` for the first round of all points."""
    shape = _shape(points)
    tasks, starts = _starts(points, config, shape)
    return *_arrays(points, blocks_of_points(points, range(len(points))), starts, tasks, 0), shape


def train(
    points: Sequence[Point], config: TrainConfig = RECOMMENDED, *, progress: Callable[[str], None] | None = None
) -> list[Trained]:
    """Trains all points until they have converged or `config.max_rounds` is reached.

    Args:
      points: what to train. One d_o and one kind of noise a sweep; everything else may differ.
      config: how.
      progress: called with one line after each round.

    Raises:
      ValueError: if the list is empty, or a point has no optimum to converge to.
      FloatingPointError: if training diverges.
    """
    check(len(points) > 0, "points must not be empty.")
    shape = _shape(points)
    best = [point.optimum(config) for point in points]
    moments = [point.make_world().moments() for point in points]
    tasks, carried = _starts(points, config, shape)
    results: dict[int, Trained] = {}
    pending, start = list(range(len(points))), 0
    for turn in range(config.max_rounds):
        steps = config.steps << turn
        grid = blocks_of_points(points, pending)
        arrays = _arrays(points, grid, carried, tasks, start)
        state = run_round(*arrays, shape, steps=steps, config=config)
        state = jax.tree.map(np.asarray, state)
        start += steps
        for where in np.ndindex(np.shape(grid)):
            index = int(np.asarray(grid)[where])
            lam, mu, nu = (jax.tree.map(lambda x, where=where: x[where], t) for t in (state.lam, *state.adam[1:]))
            carried[index] = State(lam, state.adam._replace(count=np.int32(start), mu=mu, nu=nu))
            results[index] = _trained(points[index], lam, best[index], moments[index], config, start)
        pending = [index for index in pending if not results[index].converged]
        if progress:
            worst = max(results[i].excess for i in range(len(points)))
            progress(f"{start} steps, {len(points) - len(pending)}/{len(points)} converged, worst excess {worst:.1e}")
        if not pending:
            break
    return [results[index] for index in range(len(points))]


def _trained(point: Point, lam: LAM, best: Optimum, moments: Any, config: TrainConfig, steps: int) -> Trained:
    sizes = _model_shapes(point.world.d_o, point.world.d_a, point.d_z)
    own = [np.asarray(x, np.float64)[tuple(map(slice, size))] for x, size in zip(lam, sizes, strict=True)]
    lam = LAM(*own)
    if config.tie_c:
        lam = lam._replace(C=-lam.D)
    if not all(np.isfinite(x).all() for x in lam):
        raise FloatingPointError(f"Training diverged within {steps} steps at {point}: lower learning_rate.")
    weights = {"kappa": point.kappa, "action_weight": point.lam(config)}
    loss, over = population_loss(lam, moments, **weights), excess(lam, best, moments, **weights)
    tolerance = config.label_tolerance if point.action_weight > 0 else config.tolerance
    return Trained(point, lam, best, loss, over, bool(over <= tolerance), steps)
