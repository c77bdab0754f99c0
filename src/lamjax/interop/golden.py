"""Compares lamjax with numbers that the PyTorch reference computed: ``python -m lamjax.interop.golden FILE.npz``.

A golden file is an ``.npz`` of plain arrays. Its inputs are

    config              int64 [6]: IMPALA scale, forward model's base width, codebooks N, latents H, dim D, codes M
    obs_u8              uint8 [B, 3, 64, 64, 3]: windows o_{t-1}, o_t, o_{t+1}
    before/idm.*, wm.*  weights and buffers by PyTorch's names and layouts, before the first step
    policy/*            the stage-2 policy's weights
    gae/rewards, values, dones [T, N], next_value, next_done [N]; dones[t] says that step t starts an episode

and its outputs ``eval/*`` (evaluation mode), ``train0/*`` to ``train2/*`` (three steps of AdamW on the same batch),
``after3/*`` (some weights and buffers after them), ``policy_out/*`` and ``gae/adv``, ``gae/returns``. The command
computes all outputs again at the file's own sizes and compares them entry by entry.
"""

import argparse
import dataclasses
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lamjax import archives, dynamics
from lamjax.dynamics import DynamicsConfig, DynamicsState
from lamjax.interop import pytorch
from lamjax.interop.pytorch import TRACKED, WeightsError
from lamjax.models import quantizer
from lamjax.models.impala import ImpalaConfig
from lamjax.models.policy import LatentPolicy
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.unet import UNet, UNetConfig
from lamjax.ppo.gae import gae
from lamjax.preprocess import normalise_obs

STEPS = 3
GAMMA, LAMBDA = 0.999, 0.95

_FORWARD = ("la", "la_q", "la_qinds", "vq_loss", "vq_perp", "wm_pred", "wm_loss")
_BUFFERS = {"vq.embedding": "embedding", "vq.ema_count": "count", "vq.ema_weight": "total"}
_STEP = ("wm_loss", "vq_loss", "vq_perp", "grad_norm", *_BUFFERS)
_GAE = ("rewards", "values", "dones", "next_value", "next_done")
_INPUTS = ("config", "obs_u8", *(f"gae/{name}" for name in _GAE))
_INPUT_FOLDERS = ("before/", "policy/")
_OUTPUTS = (
    *(f"eval/{name}" for name in _FORWARD),
    *(f"train0/{name}" for name in _FORWARD),
    *(f"train{step}/{name}" for step in range(STEPS) for name in _STEP),
    "policy_out/latent",
    "policy_out/value",
    "gae/adv",
    "gae/returns",
)
_AFTER = f"after{STEPS}/"
_OF_STEPS = rf"train\d/({'|'.join(map(re.escape, _STEP))})"
_MOST, _ALL = 1e-4, 5e-4  # weights after the steps: 99 % of the elements, and all
_MARGIN = 10  # how many times more another machine may round than this one shows


class GoldenError(ValueError):
    """Raised for a file that is not a golden file; one sentence that says why."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The comparison of one entry.

    Attributes:
      name: the entry.
      difference: largest difference, relative where the tolerance is; NaN where either side is NaN.
      tolerance: the tolerance in words.
      ok: whether the entry is within it.
    """

    name: str
    difference: float
    tolerance: str
    ok: bool


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads a golden file; nothing in it is unpickled.

    Raises:
      GoldenError: if it cannot be read, lacks an entry, or has one that the format does not know.
    """
    if not path.is_file():
        raise GoldenError(f"There is no file {path}: check the path.")
    if not zipfile.is_zipfile(path):
        raise GoldenError(f"{path} is not a golden file, or is cut short: it is no .npz archive of arrays.")
    try:
        arrays = archives.read(path)
    except archives.ArchiveError as error:
        raise GoldenError(f"{path} is damaged, or holds more than numbers ({error}).") from None
    for name in (*_INPUTS, *_OUTPUTS):
        if name not in arrays:
            raise GoldenError(f"{path} is not a golden file: it has no entry {name}.")
    for folder in (*_INPUT_FOLDERS, _AFTER):
        if not any(name.startswith(folder) for name in arrays):
            raise GoldenError(f"{path} is not a golden file: it has no entries {folder}*.")
    for name, array in arrays.items():
        if name not in (*_INPUTS, *_OUTPUTS) and not name.startswith((*_INPUT_FOLDERS, _AFTER)):
            raise GoldenError(f"{path} is not a golden file: the format has no entry {name}.")
        if array.dtype.kind not in "fiub":
            raise GoldenError(f"{path} is not a golden file: {name} holds {array.dtype} and not numbers.")
    return arrays


def config_of(golden: Mapping[str, np.ndarray]) -> DynamicsConfig:
    """The settings in the file's ``config``, with a constant learning rate of 3e-4.

    Raises:
      GoldenError: if ``config`` is not six positive integers.
    """
    config = np.asarray(golden["config"])
    if config.shape != (6,) or config.dtype.kind not in "iu" or config.min() < 1:
        raise GoldenError("config must be six positive integers: scale, base width, N, H, D, M.")
    scale, base, n, h, d, m = (int(x) for x in config)
    levels = 5  # 64 x 64 images
    return DynamicsConfig(
        steps=10**9,
        warmup_steps=0,
        idm=ImpalaConfig(channels=tuple(scale * c for c in (16, 32, 32))),
        fdm=UNetConfig(channels=tuple(base * 2**level for level in range(levels)), bottleneck=base * 2**levels),
        quantizer=QuantizerConfig(codebooks=n, latents=h, dim=d, codes=m, start="reference"),
    )


@jax.jit
def _evaluation(state: DynamicsState, windows: jax.Array) -> dict[str, jax.Array]:
    latents = dynamics.infer_latents(state, windows)
    prediction = dynamics.predict_next(state, windows[:, :2], latents.quantized)
    return _forward(state.config, latents, prediction, windows)


@jax.jit
def _training(state: DynamicsState, windows: jax.Array) -> dict[str, jax.Array]:
    config, frames = state.config, normalise_obs(windows)
    latents = dynamics.infer_latents(state, windows)
    prediction, _ = UNet(config.fdm, frames.shape[-1]).apply(
        {"params": state.params["fdm"], "batch_stats": state.batch_stats},
        dynamics.join_frames(frames[:, :2]),
        quantizer.straight_through(latents.continuous, latents.quantized),
        train=True,
        mutable=["batch_stats"],
    )
    return _forward(config, latents, prediction, windows)


def _forward(
    config: DynamicsConfig, latents: dynamics.Latents, prediction: jax.Array, windows: jax.Array
) -> dict[str, jax.Array]:
    z, z_q = latents.continuous, latents.quantized
    return {
        "la": z,
        "la_q": z_q,
        "la_qinds": latents.codes[..., None],
        "vq_loss": config.quantizer.commitment * quantizer.commitment_loss(z, z_q),
        "vq_perp": quantizer.perplexity(quantizer.hits(latents.codes, config.quantizer)).sum(),
        "wm_pred": prediction,
        "wm_loss": jnp.mean(jnp.square(prediction - normalise_obs(windows[:, 2]))),
    }


_train_step = jax.jit(dynamics.train_step)


def _train(state: DynamicsState, windows: jax.Array) -> tuple[dict[str, jax.Array], DynamicsState]:
    """Takes the steps; returns the outputs ``train*/`` that belong to them, and the state after them."""
    outputs: dict[str, jax.Array] = {}
    for step in range(STEPS):
        state, metrics = _train_step(state, windows)
        row = {"wm_loss": metrics["fdm_mse"], "vq_loss": metrics["commitment"], "grad_norm": metrics["grad_norm"]}
        row["vq_perp"] = sum(metrics[f"perplexity_{n}"] for n in range(state.config.quantizer.codebooks))
        row |= {theirs: getattr(state.codebooks, ours) for theirs, ours in _BUFFERS.items()}
        outputs |= {f"train{step}/{name}": array for name, array in row.items()}
    return outputs, state


def _gradients(state: DynamicsState, windows: jax.Array) -> Any:
    """The clipped gradients of a first step, up to a factor, on the host: Adam's first moments after it."""
    return jax.device_get(optax.tree_utils.tree_get(_train_step(state, windows)[0].opt_state, "mu"))


def _stripped(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def recompute(golden: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Computes the outputs from the inputs.

    Args:
      golden: at least the inputs (see the module).

    Returns:
      The outputs, with ``after3/*`` for every weight and buffer.

    Raises:
      GoldenError: if the inputs do not fit each other.
    """
    config = config_of(golden)
    obs = np.asarray(golden["obs_u8"])
    if obs.dtype != np.uint8 or obs.shape[1:] != (3, 64, 64, 3) or not len(obs):
        raise GoldenError(f"obs_u8 must be uint8 [B, 3, 64, 64, 3], not {obs.dtype} {list(obs.shape)}.")
    before, weights = _stripped(golden, "before/"), _stripped(golden, "policy/")
    # A GPU or TPU would round products to fewer digits than the tolerances ask for.
    with jax.default_matmul_precision("highest"):
        try:
            state = pytorch.dynamics_state(before, config)
            policy = pytorch.policy_params(weights, config.idm, config.latent_dim)
        except WeightsError as error:
            raise GoldenError(f"The weights do not fit config {list(map(int, golden['config']))}: {error}") from None
        windows = jnp.asarray(obs)
        computed = {f"eval/{name}": array for name, array in _evaluation(state, windows).items()}
        computed |= {f"train0/{name}": array for name, array in _training(state, windows).items()}
        trained, state = _train(state, windows)
        computed |= trained
        for name, array in pytorch.dynamics_arrays(state).items():
            counted = before.get(name, 0) if name.endswith(TRACKED) else 0
            computed[_AFTER + name] = np.asarray(array) + counted
        network = LatentPolicy(config.idm, config.latent_dim)
        latent, value = jax.jit(network.apply)({"params": policy}, normalise_obs(windows[:, 1]))
        computed |= {"policy_out/latent": latent, "policy_out/value": value[:, None]}
        computed["gae/adv"], computed["gae/returns"] = _gae(golden)
    return {name: np.asarray(array) for name, array in jax.device_get(computed).items()}


def _gae(golden: Mapping[str, np.ndarray]) -> tuple[jax.Array, jax.Array]:
    reward, value, starts, next_value, next_done = (np.asarray(golden[f"gae/{name}"], np.float32) for name in _GAE)
    t, n = reward.shape if reward.ndim == 2 else (0, 0)
    if not t or not value.shape == starts.shape == (t, n) or not next_value.shape == next_done.shape == (n,):
        raise GoldenError("gae/rewards, values and dones must be [T, N], gae/next_value and next_done [N].")
    # Theirs says that a step starts an episode, ours that it ended one.
    done = np.concatenate([starts[1:], next_done[None]]) != 0
    values = np.concatenate([value[1:], next_value[None]])
    return jax.jit(gae, static_argnames=("gamma", "gae_lambda"))(
        reward, value, values, done, done, gamma=GAMMA, gae_lambda=LAMBDA
    )


def rounding(
    golden: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray], draws: int = 4
) -> dict[str, np.ndarray]:
    """Measures how far float32 rounding alone moves each output of three steps, and each weight and buffer after them.

    A bias in front of a batch norm has a true gradient of zero, and so does the input of a channel that is the same
    everywhere. Their computed gradients are rounding, which Adam scales up to full steps: on another machine to other
    ones, because it rounds by more or by less. A gradient is rounding if weights that differ in the last bit change it
    by a third or more. Such an element may move by all steps of Adam, and statistics of batches by what that does to
    them. Of everything else, repeating the steps from weights that differ in the last bit shows how far it moves.

    Args:
      golden: at least the inputs.
      computed: the outputs of `recompute`.
      draws: how often the last bits are drawn.

    Returns:
      ``train*/*`` of the steps, and ``after3/*`` of `computed`: the largest absolute difference over the draws.
    """
    config, windows = config_of(golden), jnp.asarray(golden["obs_u8"])
    state = pytorch.dynamics_state(_stripped(golden, "before/"), config)
    spread = {name: np.zeros(array.shape) for name, array in computed.items() if _is_trained(name)}
    params, full = jax.device_get(state.params), STEPS * config.learning_rate
    starts: list[tuple[DynamicsState, Any]] = []

    def train(start: DynamicsState) -> dict[str, np.ndarray]:
        outputs, end = _train(start, windows)
        return jax.device_get(outputs | {_AFTER + name: a for name, a in pytorch.dynamics_arrays(end).items()})

    with jax.default_matmul_precision("highest"):
        for draw in range(draws):
            rng = np.random.default_rng(draw)

            def jitter(w: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
                return w * np.float32(1 + rng.uniform(-1, 1, w.shape) * 2.0**-23)

            start = state.replace(params=jax.tree.map(jitter, params))
            starts.append((start, _gradients(start, windows)))
        is_rounding = jax.tree.map(
            lambda own, *others: np.abs(own) < 3 * np.max([np.abs(other - own) for other in others], axis=0),
            _gradients(state, windows),
            *(gradients for _, gradients in starts),
        )
        for start, gradients in starts:
            along = jax.tree.map(lambda g, moves: np.float32(moves * full) * np.sign(g), gradients, is_rounding)
            jittered, pushed = (
                train(begin) for begin in (start, start.replace(params=jax.tree.map(np.subtract, start.params, along)))
            )
            for name in spread:
                end = pushed if ".running_" in name else jittered
                spread[name] = np.maximum(spread[name], np.abs(end[name] - computed[name]))
    for name, moves in pytorch.dynamics_arrays(state.replace(params=is_rounding)).items():
        if _is_weight(_AFTER + name) and ".running_" not in name:
            spread[_AFTER + name] = np.where(moves, full, spread[_AFTER + name])
    return spread


def compare(
    golden: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray], spread: Mapping[str, np.ndarray] | None = None
) -> list[Row]:
    """Compares the outputs of a golden file with computed ones.

    Args:
      golden: the file.
      computed: the outputs of `recompute`.
      spread: the result of `rounding`: each number of the steps and after them may differ by ten times its own spread,
        a weight by no more than three steps of Adam in opposite directions, others by no more than a hundred times
        their tolerance. None holds every number to its tolerance.

    Returns:
      One row for each entry, in the file's order, and one for all ``after3/*`` together.

    Raises:
      GoldenError: if an entry has another shape than the computed one, or belongs to no model.
    """
    rows, errors = [], []
    for name, expected in golden.items():
        if name in _INPUTS or name.startswith(_INPUT_FOLDERS):
            continue
        if name not in computed:
            raise GoldenError(f"{name} belongs to neither model at the sizes of config.")
        result = computed[name]
        if result.shape != expected.shape:
            raise GoldenError(f"{name} has shape {list(expected.shape)} where these sizes give {list(result.shape)}.")
        expected, result = expected.astype(np.float64), result.astype(np.float64)
        error = np.abs(result - expected)
        words, allowed = _tolerance(name, expected)
        difference = float(error.max())
        if "relative" in words:  # in units of what the tolerance is relative to
            unit = allowed / float(words.split()[0])
            difference = float(np.max(np.divide(error, unit, out=np.where(error > 0, np.inf, error), where=unit > 0)))
        if _is_weight(name):
            errors.append(error.ravel())
        if spread is not None and name in spread and not np.all(error <= allowed):
            if not _is_weight(name):
                most = 100 * allowed
            else:
                most = np.inf if ".running_" in name else 2 * STEPS * config_of(golden).learning_rate
            loose = np.clip(_MARGIN * spread[name], allowed, most)
            words, allowed = f"{words}, {int((loose > allowed).sum())} by rounding", loose
        rows.append(Row(name, difference, words, bool(np.all(error <= allowed))))
    if not errors:
        return rows
    most, words, allowed = _quantile(errors), f"{_MOST:.0e}", _MOST
    if spread is not None and most > allowed:
        moves = _quantile([spread[name].ravel() for name in golden if _is_weight(name)])
        words, allowed = f"{words}, by rounding", float(np.clip(_MARGIN * moves, _MOST, _ALL))
    return [*rows, Row(f"{_AFTER}* (99 % of the elements)", most, words, bool(most <= allowed))]


def _quantile(arrays: list[np.ndarray]) -> float:
    return float(np.quantile(np.concatenate(arrays), 0.99))


def check(golden: Mapping[str, np.ndarray]) -> list[Row]:
    """Recomputes a golden file and compares it; `rounding` bounds what training moves beyond its tolerance.

    Args:
      golden: all entries (see `read`).

    Returns:
      The rows of `compare`.

    Raises:
      GoldenError: if entries do not fit each other.
    """
    computed = recompute(golden)
    rows = compare(golden, computed)
    if all(row.ok for row in rows if _is_trained(row.name)):
        return rows
    return compare(golden, computed, rounding(golden, computed))


def _is_weight(name: str) -> bool:
    return name.startswith(_AFTER) and not name.endswith(TRACKED) and ".vq." not in name


def _is_trained(name: str) -> bool:
    """Whether an entry follows from the steps, and so from how the machine rounds their gradients."""
    return (name.startswith(_AFTER) and not name.endswith(TRACKED)) or re.fullmatch(_OF_STEPS, name) is not None


def _tolerance(name: str, expected: np.ndarray) -> tuple[str, np.ndarray | float]:
    """The tolerance of an entry in words, and as absolute bounds that broadcast against it.

    Outputs have 1e-5 and losses 1e-6. Gradient norms and quantiser buffers have 1e-4 of their size (for a code's vector
    that of its largest number, because single coordinates may be close to 0). Weights and batch statistics have `_ALL`,
    and 99 % of them together `_MOST`. Bounds of losses, advantages and perplexities above 1 grow with the largest
    number, because float32 does not hold more digits.
    """
    if name.endswith(("la_qinds", TRACKED)):
        return "0", 0.0
    if _is_weight(name):
        return f"{_ALL:.0e}", _ALL
    size = np.abs(expected)
    if ".vq." in name or "/vq." in name or name.endswith("grad_norm"):
        return "1e-04 relative", 1e-4 * (size.max(-1, keepdims=True) if size.ndim == 3 else size)
    if name.endswith(("_loss", "vq_perp")) or name.startswith("gae/"):
        bound, most = 1e-6 if name.endswith("_loss") else 1e-5, max(1.0, float(size.max()))
        return f"{bound:.0e}" + (" relative" if most > 1 else ""), bound * most
    return "1e-05", 1e-5


def table(rows: list[Row]) -> Iterator[str]:
    """Yields the lines of a table: a header, and one line for each row."""
    width = max(len(row.name) for row in rows)
    yield f"{'entry':{width}s}  {'difference':>10s}  {'tolerance':22s}  ok"
    for row in rows:
        yield f"{row.name:{width}s}  {row.difference:10.1e}  {row.tolerance:22s}  {'yes' if row.ok else 'NO'}"


def main(argv: list[str] | None = None) -> int:
    """The command; returns 0 if every entry is within its tolerance, 1 if not, 2 if the file is not a golden file."""
    parser = argparse.ArgumentParser(
        prog="python -m lamjax.interop.golden",
        description="Recomputes what the PyTorch reference computed, and compares entry by entry.",
    )
    parser.add_argument("file", type=Path, help="the golden file, .npz")
    path = parser.parse_args(argv).file
    try:
        rows = check(read(path))
    except GoldenError as error:
        print(f"golden: {error}", file=sys.stderr)
        return 2
    for line in table(rows):
        print(line)
    if any("rounding" in row.tolerance for row in rows):
        print("by rounding: held to ten times what a change of the weights in their last bit does to the same number,")
        print("and where the gradient is nothing but rounding, to all steps of Adam")
    bad = sum(not row.ok for row in rows)
    print(f"{len(rows) - bad} of {len(rows)} within tolerance")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
