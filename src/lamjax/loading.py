"""Loads runs, shared models and policies for use from Python."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lamjax import dynamics, envs, policies, pretrained, shared_folder, sharing
from lamjax.analysis.latents import BATCH
from lamjax.cloning import CloningConfig, CloningState
from lamjax.config import RunConfig
from lamjax.data.stream import gather
from lamjax.decoding import offline
from lamjax.dynamics import DynamicsConfig, DynamicsState, Latents
from lamjax.policies import PolicyError
from lamjax.shared_folder import Dtype, ModelError
from lamjax.spaces import ActionSpace
from lamjax.training import checkpoint
from lamjax.training.run_folder import read_json


class LoadedPolicy(NamedTuple):
    """A policy, its parameters, and its provenance: ``policy(obs)`` gives outputs ``[B, K]`` of ``policy.space``."""

    network: policies.Network
    params: Any
    info: dict[str, Any]

    @property
    def space(self) -> Any:
        """The action space, which can sample actions from outputs."""
        return self.network.space

    def __call__(self, obs: jax.Array) -> jax.Array:
        """Outputs float32 ``[B, K]`` at observations ``[B, *obs_shape]``."""
        return self.network(self.params, obs)


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run, or a shared model.

    `infer`, `predict` and `decode` are pure: you can ``jit`` and ``vmap`` them.

    Attributes:
      folder: its folder.
      env: the environment's name.
      config: its settings.
      summary: its results, as in ``summary.json``.
      dynamics: stage 1, or None before its first checkpoint. The optimizer's moments are left out.
      cloning: stage 2, likewise.
      policies: the policies in the folder, by name.
      obs_shape: shape of one observation; None if the folder does not say.
    """

    folder: Path
    env: str
    config: RunConfig
    summary: dict[str, Any]
    dynamics: DynamicsState | None
    cloning: CloningState | None
    policies: dict[str, LoadedPolicy]
    obs_shape: tuple[int, ...] | None = None

    @property
    def stage_1(self) -> DynamicsState:
        """Stage 1, as `dynamics`; raises a `ModelError` if there is none yet."""
        if self.dynamics is None:
            raise ModelError(f"There is no stage 1 in {self.folder} yet: train it first.")
        return self.dynamics

    @property
    def window(self) -> int:
        """Number of frames in a window, k + 2."""
        return self.stage_1.config.window

    def infer(self, frames: jax.Array) -> Latents:
        """Infers latent actions, as `dynamics.infer_latents` does.

        Args:
          frames: windows ``[B, k + 2, *obs_shape]``, o_{t-k}, ..., o_{t+1}, or a whole clip ``[T, *obs_shape]``.
            Pixels are uint8.

        Returns:
          The latents of the B windows; for a clip, those of its T - k - 1 windows in order. The first one describes the
          action at frame k, counted from 0.

        Raises:
          ModelError: if the frames do not fit the model.
        """
        state = self.stage_1
        return _infer(state, self._checked(frames, state.config.window))

    def predict(self, frames: jax.Array, latents: Latents | jax.Array) -> jax.Array:
        """Predicts the next frame of each window, as `dynamics.predict_next` does.

        Args:
          frames: as for `infer`, or windows ``[B, k + 1, *obs_shape]`` that end at o_t. The frame o_{t+1} is not used.
          latents: one for each window: the result of `infer`, or quantised latents float32 ``[B, Z]``.

        Returns:
          float32 ``[B, *obs_shape]``, pixels in [-0.5, 0.5], or standardised numbers.

        Raises:
          ModelError: if the frames do not fit the model, or the latents do not fit the frames.
        """
        state = self.stage_1
        frames = self._checked(frames, state.config.window, state.config.window - 1)
        quantized = latents.quantized if isinstance(latents, Latents) else jnp.asarray(latents)
        count = len(frames) if _is_windows(frames) else len(frames) - state.config.window + 1
        if quantized.shape != (count, state.config.latent_dim):
            raise ModelError(
                f"The latents of {count} windows must have the shape {(count, state.config.latent_dim)}, not "
                f"{quantized.shape}."
            )
        return _predict(state, frames, quantized)

    @property
    def decoder(self) -> str | None:
        """What decodes latents to actions: "action_head", the name of a policy, or None if there is no decoder."""
        if self.dynamics is not None and self.dynamics.space is not None:
            return "action_head"
        return best_decoder(self.policies)

    def decode(self, latents: Latents | jax.Array) -> jax.Array:
        """Decodes latents float32 ``[B, Z]``, before the quantiser, to the most likely actions ``[B, *space.shape]``.

        Raises:
          ModelError: if there is no decoder.
        """
        z = latents.continuous if isinstance(latents, Latents) else jnp.asarray(latents)
        if self.decoder is None:
            raise ModelError(
                f"{self.folder} has no decoder of latents: train its stage 3, or give stage 1 action labels."
            )
        state = self.dynamics
        if state is not None and state.space is not None:
            return state.space.mode(dynamics.predict_actions(state, z))
        network, params, _ = self._decoding(self.decoder)
        return network.space.mode(offline.decode(params["decoder"], z, network.decoder, network.space))

    def export(self, folder: str | Path, dtype: Dtype = "float32") -> None:
        """Writes a model folder to share (`lamjax.sharing`); `load` reads it.

        Args:
          folder: must not exist.
          dtype: type of the weights; float16 halves the size, and computations are still in float32.

        Raises:
          ModelError: if there is no stage 1 yet, or the folder exists.
        """
        name = best_decoder(self.policies)
        decoders = {name: self._decoding(name)} if name else {}
        model = (self.env, self.obs_shape, self.config, self.summary, self.stage_1, self.cloning, decoders)
        sharing.write_model(Path(folder), sharing.Model(*model), dtype)

    def _decoding(self, name: str) -> sharing.Decoder:
        network, params, info = self.policies[name]
        assert isinstance(network, policies.DecodedPolicy)  # `best_decoder` chooses only these
        return sharing.Decoder(network, params, info)

    def _checked(self, frames: jax.Array, *lengths: int) -> jax.Array:
        """Converts frames to an array; raises a `ModelError` unless they are a clip or windows of one of `lengths`."""
        frames = jnp.asarray(frames)
        windows = _is_windows(frames)
        lead = 2 if windows else 1
        shape = self.obs_shape or frames.shape[lead:]
        long_enough = frames.shape[1:2] and frames.shape[1] in lengths if windows else frames.shape[0] >= lengths[0]
        if frames.ndim not in (2, 3, 4, 5) or frames.shape[lead:] != shape or not long_enough:
            raise ModelError(
                f"Frames must be windows [B, {lengths[0]}, {', '.join(map(str, shape))}], or a clip of at least as "
                f"many frames, not an array of shape {list(frames.shape)}."
            )
        return frames


def _is_windows(frames: jax.Array) -> bool:
    """Whether frames are windows, whose rank is odd for images and vectors; the rank of a clip is even."""
    return frames.ndim % 2 == 1


@jax.jit
def _infer(state: DynamicsState, frames: jax.Array) -> Latents:
    infer = functools.partial(dynamics.infer_latents, state)
    if _is_windows(frames):
        return _in_batches(infer, frames)
    length = state.config.window
    return _in_batches(lambda starts: infer(gather(frames, starts, length)), jnp.arange(len(frames) - length + 1))


@jax.jit
def _predict(state: DynamicsState, frames: jax.Array, latents: jax.Array) -> jax.Array:
    past = state.config.window - 1
    if _is_windows(frames):
        return _in_batches(lambda w, z: dynamics.predict_next(state, w[:, :past], z), frames, latents)
    predict = lambda starts, z: dynamics.predict_next(state, gather(frames, starts, past), z)  # noqa: E731
    return _in_batches(predict, jnp.arange(len(latents)), latents)


def _in_batches(function: Callable[..., Any], *rows: jax.Array) -> Any:
    """Applies a function to rows ``[E, ...]``, `BATCH` of them at a time to bound the memory; runs inside ``jit``."""
    count = len(rows[0])
    if count <= BATCH:
        return function(*rows)
    missing = -count % BATCH
    batches = [jnp.concatenate([x, jnp.repeat(x[:1], missing, 0)]).reshape(-1, BATCH, *x.shape[1:]) for x in rows]
    results = jax.lax.map(lambda batch: function(*batch), batches)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], results)


def best_decoder(policies: dict[str, LoadedPolicy]) -> str | None:
    """The name of the policy whose decoder suits the inverse model's latents best, or None if there is none.

    A decoder that was fitted on these latents is better than one that was fitted on the latent policy's. Among equals,
    the one with more labels is better.
    """
    labels = {name: name.rpartition("-") for name in policies}
    counts = {name: (kind == "idm", int(n)) for name, (kind, _, n) in labels.items() if kind in ("idm", "offline")}
    return max(counts, key=counts.__getitem__, default=None)


def load(path: str | Path) -> LoadedRun | LoadedPolicy:
    """Loads a run folder, a shared model or policy, or one of the models that come with lamjax.

    The policies of a run are in ``runs/<env>/<name>/policies/<policy>``.

    Args:
      path: the folder, or the name of a model that comes with lamjax (`lamjax.pretrained`), such as "coinrun". If a
        file or folder with that name exists, it is loaded instead.

    Raises:
      PolicyError: if the path is none of these, or a policy is damaged.
      ModelError: if a shared model is damaged.
      CheckpointError: if a checkpoint is damaged.
      RunError: if another file of the run is damaged.
    """
    path = pretrained.resolve(path)
    if (path / "policy.json").exists() or shared_folder.kind_of(path) == sharing.POLICY:
        return load_policy(path)
    if (path / shared_folder.WEIGHTS).exists():
        model = sharing.read_model(path)
        decoders = {name: LoadedPolicy(*decoder) for name, decoder in model.decoders.items()}
        states = (model.dynamics, model.cloning)
        return LoadedRun(path, model.env, model.config, model.summary, *states, decoders, model.obs_shape)
    if not (path / "config.json").exists():
        names = ", ".join(pretrained.available())
        raise PolicyError(
            f"There is neither a run nor a policy at {path}: give the folder of one, or the name of a model that comes "
            f"with lamjax ({names})."
        )
    settings = read_json(path / "config.json")
    if not isinstance(settings, dict) or not isinstance(settings.get("env"), str):
        raise PolicyError(f"{path / 'config.json'} does not hold the settings of a run: give a run folder.")
    env = settings.pop("env")
    settings.pop("source", None)
    summary = read_json(path / "summary.json") if (path / "summary.json").exists() else {}
    return LoadedRun(
        path,
        env,
        checkpoint.from_json(RunConfig, settings),
        summary,
        load_dynamics(path, env),
        load_cloning(path),
        {
            folder.parent.name: LoadedPolicy(*policies.load_policy(folder.parent))
            for folder in path.glob("policies/*/policy.json")
        },
        _obs_shape(summary, env),
    )


def load_policy(path: Path) -> LoadedPolicy:
    """Loads a policy folder, either from a run (`policies.load_policy`) or shared (`sharing.read_policy`)."""
    if shared_folder.kind_of(path) is not None:
        return LoadedPolicy(*sharing.read_policy(path)[:3])
    return LoadedPolicy(*policies.load_policy(path))


def export(source: str | Path, folder: str | Path, dtype: Dtype = "float32") -> None:
    """Writes a run's models, or one policy, to a folder to share; `load` reads it.

    Args:
      source: anything that `load` accepts.
      folder: must not exist.
      dtype: type of the weights; float16 halves the size, and computations are still in float32.

    Raises:
      ModelError: if there is no stage 1 yet, or the folder exists.
    """
    source, loaded = Path(source), load(source)
    if isinstance(loaded, LoadedRun):
        return loaded.export(folder, dtype)
    if shared_folder.kind_of(source) == sharing.POLICY:
        summary = sharing.read_policy(source).summary
    else:  # runs/<env>/<name>/policies/<policy>
        path = source.resolve().parents[1] / "summary.json"
        summary = read_json(path) if source.parent.name == "policies" and path.exists() else {}
    sharing.write_policy(Path(folder), sharing.SharedPolicy(*loaded, summary), dtype)


def _action_space(summary: dict[str, Any], env: str | None) -> ActionSpace | None:
    """The action space of a run, from its recording or the environment; None if both are unknown."""
    if space := summary.get("stages", {}).get("record", {}).get("action_space"):
        return checkpoint.from_json(ActionSpace, space)
    return envs.make(env, 1).action_space if env else None


def _obs_shape(summary: dict[str, Any], env: str) -> tuple[int, ...] | None:
    """The observation shape of a run, from its recording or the environment; None if both are unknown."""
    if shape := summary.get("stages", {}).get("record", {}).get("obs_shape"):
        return tuple(shape)
    try:
        return tuple(envs.obs_shape(env))
    except envs.UnknownEnvError:  # a user's own environment, which is not registered here
        return None


def load_dynamics(run: Path, env: str | None = None) -> DynamicsState | None:
    """Loads stage 1 of a run from its newest good checkpoint, without the optimizer's moments; None if there is none.

    A state that was trained with labels lacks its action space if the run does not state it and `env` is not given.
    """
    saved = checkpoint.restore_arrays(run / "checkpoints" / "dynamics")
    if saved is None:
        return None
    _, arrays, note = saved
    config = checkpoint.from_json(DynamicsConfig, note["config"])
    space = None
    if config.action_weight:
        path = run / "summary.json"
        space = _action_space(read_json(path) if path.exists() else {}, env)
    return sharing.dynamics_state(arrays, config, space)


def load_cloning(run: Path) -> CloningState | None:
    """Loads stage 2 of a run, like `load_dynamics`."""
    saved = checkpoint.restore_arrays(run / "checkpoints" / "cloning")
    if saved is None:
        return None
    _, arrays, note = saved
    return sharing.cloning_state(arrays, checkpoint.from_json(CloningConfig, note["config"]))
