"""Table 1: does a non-linear latent action model do what the linear theory says? A square in a 4 x 4 grid, by stage 1.

The top 3 x 4 cells hold one square of intensity 1, which five actions leave alone or move by a cell; it comes back on
the other side, so that every action shows (the paper does not say what its walls do). The bottom row is noise: each
cell is on in half of the frames, independently of everything, at a given intensity. The paper's model sees the pair (o,
o'); `lamjax.dynamics` sees windows of three frames, so the context frame o_{t-1} repeats o_t and adds nothing.

Errors are relative to the smallest that is possible without a latent, the variance of what o does not predict: 0.8 for
the square, intensity squared for the noise. At 1 the latent holds nothing of it, at 0 everything.

Dimension keys: B batch.
"""

import dataclasses
import functools
import math
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.linear_lam import tables
from experiments.linear_lam.common import HERE, RESULTS, WORK, key, options, save
from experiments.page import COLOURS, load, store, style
from lamjax import dynamics
from lamjax.analysis import probes
from lamjax.analysis.latents import latents_of
from lamjax.dynamics import DynamicsConfig, DynamicsState
from lamjax.linear import Moments, optimum
from lamjax.linear.world import Transition
from lamjax.models.impala import ImpalaConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.unet import UNetConfig
from lamjax.training.driver import fuses_steps, jit_once, repeat

ROWS, COLUMNS = 3, 4
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # stay, up, down, left, right
UNIT = 100  # the uint8 value of intensity 1: the greatest, 2, still fits
SQUARE_VARIANCE = 1 - 1 / len(MOVES)  # of o' given o: five places, equally likely, one-hot
CODES = len(MOVES)

INTENSITIES = (0.0, 0.5, 1.0, 2.0)
SEEDS = range(5)
PLAIN, FADED = "from the start", "faded in"
TEST = 8192  # transitions that a model is examined on, and as many that its probe is fitted on

CONFIG = DynamicsConfig(
    steps=1500,
    batch_size=64,
    learning_rate=1e-3,
    weight_decay=0.0,
    idm=ImpalaConfig(channels=(16,), strides=(2,), blocks=1, features=128, pool=False),
    fdm=UNetConfig(channels=(16,), bottleneck=32, latent_input="bias", predict="change"),
    quantizer=QuantizerConfig(codebooks=1, latents=1, dim=8, codes=CODES, decay=0.99, revive=1.0),
)
PAPER_STEPS = 16_000

EXPECTED = (
    "below an intensity of 0.58 the latent takes the action (error of the square well below 1, of the noise 1), above "
    "it the noise (1, and 0.44 at best). That is the linear theory's threshold: five codes would do better with the "
    "action up to 1.19. Noise of 1 that is faded in leaves some of a learned action, or all."
)


# The world


def frames(position: jax.Array, noise: jax.Array, intensity: jax.Array) -> jax.Array:
    """Draws the world: positions int ``[B, 2]`` and noise bool ``[B, 4]`` to uint8 ``[B, 4, 4, 1]``."""
    rows, columns = jnp.arange(ROWS)[None, :, None], jnp.arange(COLUMNS)[None, None, :]
    square = (position[:, 0, None, None] == rows) & (position[:, 1, None, None] == columns)
    intensities = jnp.concatenate([square.astype(jnp.float32), intensity * noise[:, None].astype(jnp.float32)], axis=1)
    return jnp.round(UNIT * intensities).astype(jnp.uint8)[..., None]


def move(position: jax.Array, action: jax.Array) -> jax.Array:
    """Positions int ``[B, 2]`` after actions int ``[B]``."""
    return (position + jnp.asarray(MOVES)[action]) % jnp.asarray([[ROWS, COLUMNS]])


def sample(key: jax.Array, n: int, intensity: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Independent transitions: windows uint8 ``[n, 3, 4, 4, 1]``; position ``[n, 2]``, action ``[n]``, noise of o'."""
    row, column, choice, flips = jax.random.split(key, 4)
    position = jnp.stack([jax.random.randint(row, (n,), 0, ROWS), jax.random.randint(column, (n,), 0, COLUMNS)], axis=1)
    action = jax.random.randint(choice, (n,), 0, len(MOVES))
    noise = jax.random.bernoulli(flips, 0.5, (2, n, COLUMNS))
    before, after = frames(position, noise[0], intensity), frames(move(position, action), noise[1], intensity)
    return jnp.stack([before, before, after], axis=1), {"position": position, "action": action, "noise": noise[1]}


# Theory


def best_codes(intensity: float) -> tuple[float, float]:
    """Errors of square and noise under the best quantiser of o' given o with five codes.

    Five codes name the action, or split the noise: four sets by two of its cells, one of them once more by a third,
    which leaves 1 - 0.5 - 0.25 / 4 of its variance. The action saves 0.8, the noise 0.5625 intensity^2. (Mixtures are
    worse: Lloyd's algorithm from 2000 starts found none better at twelve intensities from 0 to 2.)
    """
    noise = 0.5 + 0.25 / 4
    return (0.0, 1.0) if intensity**2 * noise < SQUARE_VARIANCE else (1.0, 1 - noise)


@functools.cache
def linear_codes(intensity: float) -> tuple[float, float]:
    """The same under the linear closed form with as many dimensions as five codes span, over all transitions."""
    row, column, action, *noise = np.indices((ROWS, COLUMNS, len(MOVES), 2**COLUMNS, 2**COLUMNS)).reshape(5, -1)
    position = np.stack([row, column], axis=1)
    old, new = ((pattern[:, None] >> np.arange(COLUMNS)) % 2 for pattern in noise)
    states = [(position, old), (move(position, action), old), (move(position, action), new)]
    before, moved, after = (
        np.asarray(frames(place, bits, intensity), np.float64).reshape(len(action), -1) / UNIT for place, bits in states
    )
    samples = Transition(before, moved - before, after - moved, np.eye(len(MOVES))[action])
    lam = optimum(Moments.of_samples(samples), CODES - 1, bias=True, ties="ignore").lam
    missed = after - before @ (lam.A + lam.B @ lam.C).T - after @ (lam.B @ lam.D).T - lam.bias_o
    return relative(missed, intensity)


def relative(missed: np.ndarray, intensity: float) -> tuple[float, float]:
    """Errors of square and noise, relative to what o does not predict: ``[B, 16]`` in units of intensity 1."""
    error = np.mean(missed**2, axis=0)
    cut = ROWS * COLUMNS
    return error[:cut].sum() / SQUARE_VARIANCE, error[cut:].sum() / intensity**2 if intensity else 1.0


# Training


def faded(intensity: jax.Array, share: jax.Array) -> jax.Array:
    """The noise at a share of the training: absent for half of it, then growing to its intensity over a quarter."""
    return intensity * jnp.clip(4 * share - 2, 0, 1)


@functools.partial(jax.jit, static_argnames=("fade", "steps"), donate_argnums=0)
def train_steps(
    state: DynamicsState, key: jax.Array, intensity: jax.Array, *, fade: bool, steps: int
) -> tuple[DynamicsState, dict[str, jax.Array]]:
    """Some steps of stage 1, each on fresh transitions that follow from the key and the step.

    Args:
      state: stage 1.
      key: of the data, typed.
      intensity: of the noise, float32 ``[]``.
      fade: the noise is `faded` in.
      steps: how many.
    """

    def step(state: DynamicsState) -> tuple[DynamicsState, dict[str, jax.Array]]:
        level = faded(intensity, state.step / state.config.steps) if fade else intensity
        windows, _ = sample(jax.random.fold_in(key, state.step), state.config.batch_size, level)
        return dynamics.train_step(state, windows)

    return repeat(step, state, steps)


def start(key: jax.Array, config: DynamicsConfig) -> DynamicsState:
    return jit_once(dynamics.init, static_argnums=(1, 2))(key, config, (ROWS + 1, COLUMNS, 1))


def train(config: DynamicsConfig, intensity: float, seed: int, fade: bool = False) -> DynamicsState:
    """Trains a point."""
    key_init, key_data = jax.random.split(jax.random.key(seed))
    state = start(key_init, config)
    together = math.gcd(config.steps, 100) if fuses_steps(config.idm, config.fdm) else 1
    for _ in range(config.steps // together):
        state, metrics = train_steps(state, key_data, jnp.float32(intensity), fade=fade, steps=together)
    if not np.isfinite(metrics["loss"]):
        raise RuntimeError(f"The loss at intensity {intensity:g}, seed {seed} is not finite: lower the learning rate.")
    return state


def examine(state: DynamicsState, intensity: float, seed: int) -> dict[str, float]:
    """What the latent holds of action and noise, on fresh transitions, with baselines."""
    (fit, fit_truth), (test, truth) = (
        jax.device_get(sample(jax.random.fold_in(jax.random.key(seed), name), TEST, jnp.float32(intensity)))
        for name in (1, 2)
    )
    fit_z, _ = latents_of(state, fit)
    z, codes = latents_of(state, test)
    quantized = jax.jit(dynamics.infer_latents)(state, test).quantized
    predicted = (np.asarray(jax.jit(dynamics.predict_next)(state, test[:, :2], quantized)) + 0.5) * 255 / UNIT
    square, noise = relative((predicted - test[:, 2] / np.float64(UNIT)).reshape(TEST, -1), intensity)

    key, actions = jax.random.key(seed), fit_truth["action"]
    shuffled = np.random.default_rng(seed).permutation(actions)
    predicted_actions, by_chance = (
        probes.fit_probe(key, fit_z, labels, z, len(MOVES)) for labels in (actions, shuffled)
    )
    place = truth["position"] @ np.array([COLUMNS, 1])
    pattern = truth["noise"] @ (1 << np.arange(COLUMNS))
    scores = {
        "square_error": square,
        "noise_error": noise,
        "probe": np.mean(predicted_actions == truth["action"]),
        "probe_shuffled": np.mean(by_chance == truth["action"]),
        "majority": probes.majority_accuracy(actions, truth["action"]),
    }
    placed = np.concatenate([codes, place[:, None, None]], axis=1)
    for name, seen, classes in (
        ("action", codes, truth["action"]),
        ("action_placed", placed, truth["action"]),
        ("noise", codes, pattern),
    ):
        match = probes.agreement(seen, classes, range(classes.max() + 1), seed)
        for measure in ("nmi", "purity"):
            scores[f"{name}_{measure}"] = match[f"code_{measure}"]
            scores[f"{name}_{measure}_shuffled"] = match[f"code_{measure}_shuffled"]
    return {name: float(value) for name, value in scores.items()}


# The panel


def points() -> list[tuple[str, float, int]]:
    """Curve, intensity and seed of every point, whole seeds first, so that an interrupted run has whole seeds."""
    curves = [(PLAIN, x) for x in INTENSITIES] + [(FADED, 1.0)]
    return [(curve, x, seed) for seed in SEEDS for curve, x in curves]


def compute(full: bool) -> list[dict[str, str]]:
    """Trains the points that the CSV file does not hold yet; returns all rows. A full run has a file of its own."""
    path = WORK / ("grid_full.csv" if full else "grid.csv")
    config = dataclasses.replace(CONFIG, steps=PAPER_STEPS) if full else CONFIG
    rows = load(path)
    done = {(row["curve"], row["x"], row["seed"]) for row in rows}
    for curve, intensity, seed in points():
        name = key(curve, intensity, seed)
        if name in done:
            continue
        start_time = time.perf_counter()
        scores = examine(train(config, intensity, seed, fade=curve == FADED), intensity, seed)
        row = dict(zip(("curve", "x", "seed"), name, strict=True)) | {k: f"{v:.4f}" for k, v in scores.items()}
        for theory, errors in (("best", best_codes(intensity)), ("linear", linear_codes(intensity))):
            row |= {f"{theory}_{k}": f"{v:.4f}" for k, v in zip(("square", "noise"), errors, strict=True)}
        row |= {"steps": str(config.steps), "seconds": f"{time.perf_counter() - start_time:.1f}"}
        rows.append(row)
        store(path, rows)
        print(
            f"  noise {intensity:g} {curve}, seed {seed}: error of square {scores['square_error']:.3f}, of noise "
            f"{scores['noise_error']:.3f}; {row['seconds']} s",
            flush=True,
        )
    RESULTS.mkdir(exist_ok=True)
    shutil.copyfile(path, RESULTS / "grid.csv")
    return rows


def draw(rows: list[dict[str, str]]) -> Path:
    """Solid: the best five codes. Dashed: the linear closed form. Points: trained, mean and range over seeds."""
    fig = Figure(figsize=(6.2, 3.6), layout="constrained")
    ax = fig.add_subplot()
    style(ax, "Table 1: a square in a grid, five codes", "intensity of the noise", "error, 1 = knows nothing")
    dense = np.linspace(0, 2, 201)[1:]
    for index, (what, colour) in enumerate((("square", COLOURS[0]), ("noise", COLOURS[1]))):
        for theory, label, dash in ((best_codes, "best codes", "-"), (linear_codes, "linear", "--")):
            values = [theory(round(x, 2))[index] for x in dense]
            ax.plot(dense, values, dash, color=colour, linewidth=1.4, label=f"{what}, {label}")
        for curve, fill in ((PLAIN, colour), (FADED, "white")):
            mine = [row for row in rows if row["curve"] == curve]
            for x in sorted({float(row["x"]) for row in mine}):
                values = [float(row[f"{what}_error"]) for row in mine if float(row["x"]) == x]
                if x or what == "square":
                    ax.plot([x, x], [min(values), max(values)], color=colour, linewidth=1)
                    ax.plot(x, np.mean(values), "o", color=colour, markerfacecolor=fill, markersize=5.5)
            ax.plot([], [], "o", color=colour, markerfacecolor=fill, markersize=5, label=f"{what}, noise {curve}")
    fig.legend(loc="outside right center", fontsize=8, frameon=False)
    return save(fig, "grid")


def main() -> None:
    full = options().full
    print(f"grid: Table 1, a square in a grid\n  expected: {EXPECTED}", flush=True)
    print(f"  {draw(compute(full)).relative_to(HERE.parents[1])}")
    tables.put(grid=tables.grid())


if __name__ == "__main__":
    main()
