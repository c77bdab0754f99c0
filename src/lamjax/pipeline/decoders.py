"""Scores decoders of latents on the actions of held-out windows, for data that cannot be played."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from lamjax import policies
from lamjax.analysis import latents
from lamjax.cloning import CloningState
from lamjax.data.labels import evaluation_actions
from lamjax.data.reader import Store
from lamjax.decoding import offline
from lamjax.dynamics import DynamicsState
from lamjax.pipeline.windows import held_out_windows
from lamjax.spaces import ActionSpace, Discrete
from lamjax.statistics import stderr_over_groups
from lamjax.training.run_folder import Run

_act = jax.jit(lambda network, params, obs: network(params, obs), static_argnums=0)


class HeldOut(NamedTuple):
    """Held-out windows ``[E, L, *obs_shape]``, latents float32 ``[E, Z]``, actions at o_t, and episodes int ``[E]``."""

    windows: np.ndarray
    z: np.ndarray
    actions: np.ndarray
    episodes: np.ndarray


def held_out(run: Run, store: Store, model: DynamicsState) -> HeldOut:
    """The held-out windows of a run's store, which must have actions."""
    drawn = held_out_windows(run, store)
    z, _ = latents.latents_of_batches(model, drawn.batches)
    actions = evaluation_actions(store, drawn.starts, model.config.window)
    return HeldOut(drawn.windows, z, actions, store.episodes.holding(drawn.starts))


def score(
    method: offline.Method, network: policies.Network, params: dict, examples: HeldOut, space: ActionSpace
) -> tuple[float, float]:
    """Scores how well a method predicts held-out actions (`space.score_name`), with the standard error over episodes.

    "idm" decodes the inverse model's latents, which also depend on o_{t+1}. The other methods see only o_t.
    """
    if method == "idm":
        assert isinstance(network, policies.DecodedPolicy)
        settings = network.decoder
        decode = lambda rows: offline.decode_batch(params["decoder"], rows, settings, network.space)  # noqa: E731
        outputs = latents.in_batches(decode, examples.z)
    else:
        outputs = latents.in_batches(functools.partial(_act, network, params), examples.windows[:, -2])
    scores = np.asarray(space.score(space.mode(outputs), examples.actions), np.float64)
    return float(scores.mean()), stderr_over_groups(scores, examples.episodes)


def constant_score(space: ActionSpace, actions: np.ndarray, examples: HeldOut) -> float:
    """The score on held-out actions of the `constant_action` for `actions`."""
    guess = np.broadcast_to(constant_action(space, actions), examples.actions.shape)
    return float(np.mean(space.score(guess, examples.actions)))


def constant_action(space: ActionSpace, actions: np.ndarray) -> np.ndarray:
    """The best constant guess: the most frequent of some actions, or the mean of continuous ones."""
    return np.asarray(np.bincount(actions).argmax() if isinstance(space, Discrete) else actions.mean(0))


def save_scored(run: Run, name: str, network: policies.Network, params: dict, scored: tuple[float, float]) -> None:
    """Saves a policy of the run together with its score and the standard error."""
    info = dict(zip((network.space.score_name, "stderr"), scored, strict=True))
    policies.save_policy(run.folder / "policies" / name, network, params, info)


def save_decoder(
    run: Run, store: Store, model: DynamicsState, policy: CloningState, z: np.ndarray, actions: np.ndarray
) -> dict[str, float]:
    """Fits a decoder of the inverse model's latents on all labels of a draw; `lamjax label` uses it.

    Args:
      run: the open run; the decoder is saved as its policy ``idm-<labels>``, together with stage 2.
      store: the recorded trajectories.
      model: stage 1.
      policy: stage 2.
      z: float32 ``[N, Z]``, the inverse model's latents of the labelled windows.
      actions: ``[N, *space.shape]``, their labels.

    Returns:
      ``labels``: their number; the score on held-out windows, under `space.score_name`; its ``stderr``; and
      ``constant``: the score of a constant guess.
    """
    settings, space, count = run.config.offline.program, store.action_space, len(actions)
    assert space is not None  # the store has actions
    decoder, _ = offline.fit(jax.random.fold_in(run.key("offline"), count), z, actions, settings, space)
    network = policies.DecodedPolicy(policy.config.trunk, policy.latent_dim, space, settings)
    params, examples = network.init(policy, decoder), held_out(run, store, model)
    scored = score("idm", network, params, examples, space)
    save_scored(run, f"idm-{count}", network, params, scored)
    constant = constant_score(space, actions, examples)
    return {"labels": count, space.score_name: scored[0], "stderr": scored[1], "constant": constant}
