"""How well actions can be read from latents, for discrete and for continuous actions.

Discrete actions are classified: the scores are accuracies, raw and with aliased actions merged. Continuous actions are
regressed: the scores are shares of their variance. Both classes have the same methods.

`targets`, `guess`, `constant_guess` and `scores` serve `action_information`, which needs a score of each window.

Dimension keys: S training windows, E test windows, Z latent size, A discrete actions, D numbers of a continuous one,
N codebooks, H latents of a codebook.
"""

import dataclasses

import jax
import numpy as np

from lamjax import envs
from lamjax.analysis import probes
from lamjax.spaces import ActionSpace, Box, Discrete


@dataclasses.dataclass(frozen=True)
class DiscreteActions:
    """Scores of discrete actions, int32 ``[E]``.

    Attributes:
      env: the environment, which knows the aliases among its actions.
      num_actions: A.
      classes: replaces the environment's: the class of each action, A numbers from 0 on.
    """

    env: str
    num_actions: int
    classes: tuple[int, ...] | None = None

    @property
    def merged(self) -> np.ndarray:
        """The class of each action, int ``[A]``: aliases share one."""
        if self.classes is not None:
            return np.asarray(self.classes)
        return np.asarray(envs.merged_actions(self.env, self.num_actions))

    def probe(
        self, key: jax.Array, train_z: np.ndarray, train_y: np.ndarray, test_z: np.ndarray, test_y: np.ndarray
    ) -> dict[str, float]:
        """Accuracies of an MLP and a linear probe: fitted on latents ``[S, Z]``, tested on other levels' ``[E, Z]``."""
        scores: dict[str, float] = {}
        for prefix, hidden in (("", probes.HIDDEN), ("linear_", ())):
            raw, merged = probes.accuracies(key, train_z, train_y, test_z, test_y, self.merged, hidden)
            scores |= {f"{prefix}probe_accuracy": raw, f"{prefix}probe_accuracy_merged": merged}
        return scores

    def constant(self, train_y: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
        """The majority-class baseline: accuracies of always guessing the most frequent action."""
        merged = self.merged
        return {
            "majority_accuracy": probes.majority_accuracy(train_y, test_y),
            "majority_accuracy_merged": probes.majority_accuracy(merged[train_y], merged[test_y]),
        }

    def codes(self, codes: np.ndarray, test_y: np.ndarray, seed: int) -> dict[str, float]:
        """How well codes int ``[E, N, H]`` match actions, beside shuffled actions: see `probes.agreement`."""
        return probes.agreement(codes, test_y, self.merged, seed)

    def head(self, outputs: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
        """How well stage 1's own action head predicts actions; `outputs` are logits float32 ``[E, A]``."""
        return probes.head_scores(outputs, test_y, self.merged)

    @property
    def target_space(self) -> Discrete:
        """The merged classes, as a space: what `targets` are elements of."""
        return Discrete(int(self.merged.max()) + 1)

    def targets(self, actions: np.ndarray) -> np.ndarray:
        """The classes int32 ``[E]`` of actions ``[E]``, aliases merged: the most that frames can reveal about them."""
        return self.merged[actions].astype(np.int32)

    def guess(
        self,
        key: jax.Array,
        train_z: np.ndarray,
        train_y: np.ndarray,
        test_z: np.ndarray,
        hidden: tuple[int, ...] = probes.HIDDEN,
    ) -> np.ndarray:
        """Reads targets int32 ``[E]`` from latents ``[E, Z]`` by a probe, fitted on ``[S, Z]`` and targets ``[S]``.

        `hidden` are the widths of the probe's hidden layers; none makes it linear.
        """
        return np.asarray(probes.fit_probe(key, train_z, train_y, test_z, self.target_space.n, hidden))

    def constant_guess(self, train_y: np.ndarray, count: int) -> np.ndarray:
        """The most frequent of the targets ``[S]``, `count` times."""
        return np.full(count, np.bincount(train_y).argmax())

    def scores(self, guesses: np.ndarray, train_y: np.ndarray, test_y: np.ndarray) -> np.ndarray:
        """1 where a target ``[E]`` was guessed, else 0: float64 ``[E]``, whose mean is the accuracy."""
        del train_y
        return (guesses == test_y).astype(np.float64)

    def arrays(self, test_y: np.ndarray) -> dict[str, np.ndarray]:
        """What figures colour latents by: actions, their merged classes, and the names of both."""
        names = envs.ACTION_NAMES if self.env in envs.PROCGEN_GAMES else [str(a) for a in range(self.num_actions)]
        return {
            "actions": test_y,
            "merged": self.merged[test_y],
            "action_names": np.array(names),
            "merged_names": np.array(envs.merged_action_names(self.env, self.num_actions)),
        }


@dataclasses.dataclass(frozen=True)
class ContinuousActions:
    """Scores of continuous actions, float32 ``[E, D]``.

    Attributes:
      space: the actions' bounds.
    """

    space: Box

    def probe(
        self, key: jax.Array, train_z: np.ndarray, train_y: np.ndarray, test_z: np.ndarray, test_y: np.ndarray
    ) -> dict[str, float]:
        """R^2 of an MLP and a linear probe: fitted on latents ``[S, Z]``, tested on other levels' ``[E, Z]``."""
        return {
            f"{prefix}probe_r2": probes.r_squared(key, train_z, train_y, test_z, test_y, hidden)
            for prefix, hidden in (("", probes.HIDDEN), ("linear_", ()))
        }

    def constant(self, train_y: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
        """The mean-action baseline: R^2 of the training set's mean, 0 or below on other levels."""
        return {"mean_r2": probes.explained(np.broadcast_to(train_y.mean(0), test_y.shape), test_y, train_y.std(0))}

    def codes(self, codes: np.ndarray, test_y: np.ndarray, seed: int) -> dict[str, float]:
        """The share of variance that codes int ``[E, N, H]`` explain: see `probes.variance_between`."""
        return probes.variance_between(codes, test_y, seed)

    def head(self, outputs: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
        """How well stage 1's own action head predicts actions; `outputs` are half-ranges float32 ``[E, D]``."""
        predicted = np.asarray(self.space.mode(outputs))
        return {
            f"action_{self.space.score_name}": float(np.mean(self.space.score(predicted, test_y))),
            "action_r2": probes.explained(predicted, test_y, test_y.std(0)),
        }

    @property
    def target_space(self) -> Box:
        """The space of `targets`: the actions' bounds."""
        return self.space

    def targets(self, actions: np.ndarray) -> np.ndarray:
        """The actions themselves."""
        return actions

    def guess(
        self,
        key: jax.Array,
        train_z: np.ndarray,
        train_y: np.ndarray,
        test_z: np.ndarray,
        hidden: tuple[int, ...] = probes.HIDDEN,
    ) -> np.ndarray:
        """Reads targets ``[E, D]`` from latents ``[E, Z]`` by a probe, fitted on ``[S, Z]`` and targets ``[S, D]``.

        `hidden` are the widths of the probe's hidden layers; none makes it linear.
        """
        return probes.regress(key, train_z, train_y, test_z, hidden)

    def constant_guess(self, train_y: np.ndarray, count: int) -> np.ndarray:
        """The mean of the targets ``[S, D]``, `count` times."""
        return np.broadcast_to(train_y.mean(0), (count, train_y.shape[1]))

    def scores(self, guesses: np.ndarray, train_y: np.ndarray, test_y: np.ndarray) -> np.ndarray:
        """Numbers float64 ``[E]`` whose mean is the guesses' R^2 (`probes.explained_by_row`) on targets ``[E, D]``."""
        return probes.explained_by_row(guesses, test_y, train_y.std(0))

    def arrays(self, test_y: np.ndarray) -> dict[str, np.ndarray]:
        """What figures colour latents by: the actions."""
        return {"action_values": test_y}


class NoActions:
    """Scores for trajectories without actions: there are none."""

    def probe(
        self, key: jax.Array, train_z: np.ndarray, train_y: np.ndarray, test_z: np.ndarray, test_y: np.ndarray
    ) -> dict[str, float]:
        """Nothing."""
        return {}

    def constant(self, train_y: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
        """Nothing."""
        return {}

    def codes(self, codes: np.ndarray, test_y: np.ndarray, seed: int) -> dict[str, float]:
        """Nothing."""
        return {}

    def arrays(self, test_y: np.ndarray) -> dict[str, np.ndarray]:
        """No arrays, because there is nothing to colour latents by."""
        return {}


ActionProbe = DiscreteActions | ContinuousActions


def action_probe(env: str, space: ActionSpace) -> ActionProbe:
    """Returns the scores that suit an environment's action space."""
    return ContinuousActions(space) if isinstance(space, Box) else DiscreteActions(env, space.n)
