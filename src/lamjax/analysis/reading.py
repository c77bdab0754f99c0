"""What a run asks of its latents about actions of either kind.

Discrete actions are classes: how many of them a probe names, with and without merging those that do the same, and
whether codes match them. Continuous ones are numbers: how much of their variance a probe, or the code alone, explains.

Dimension keys: S training windows, E test windows, Z latent size, A discrete actions, D numbers of a continuous one.
"""

import dataclasses
from typing import Protocol

import jax
import numpy as np

from lamjax import envs
from lamjax.analysis import probes
from lamjax.spaces import ActionSpace, Box


class Reading(Protocol):
    """How actions are read."""

    def probe(
        self, key: jax.Array, train_z: np.ndarray, train_y: np.ndarray, test_z: np.ndarray, test_y: np.ndarray
    ) -> dict[str, float]:
        """What an MLP and a linear probe, fitted on latents ``[S, Z]``, read from those of other levels ``[E, Z]``."""
        ...

    def constant(self, train_y: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
        """The same where nothing is looked at."""
        ...

    def codes(self, codes: np.ndarray, test_y: np.ndarray, seed: int) -> dict[str, float]:
        """What the codes int ``[E, N, H]`` tell, each beside its null."""
        ...

    def head(self, named: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
        """How well stage 1's own head, which said float32 ``[E, size]``, names actions."""
        ...

    def arrays(self, test_y: np.ndarray) -> dict[str, np.ndarray]:
        """What figures colour latents by."""
        ...


@dataclasses.dataclass(frozen=True)
class Classes:
    """Discrete actions, int32 ``[E]``.

    Attributes:
      env: whose actions they are; it knows which do the same.
      num_actions: A.
    """

    env: str
    num_actions: int

    @property
    def merged(self) -> np.ndarray:
        """The class of each action, int ``[A]``."""
        return np.asarray(envs.merged_actions(self.env, self.num_actions))

    def probe(self, key, train_z, train_y, test_z, test_y) -> dict[str, float]:
        """See `Reading.probe`: accuracies, raw and merged."""
        found = {}
        for prefix, hidden in (("", probes.HIDDEN), ("linear_", ())):
            raw, joined = probes.accuracies(key, train_z, train_y, test_z, test_y, self.merged, hidden)
            found |= {f"{prefix}probe_accuracy": raw, f"{prefix}probe_accuracy_merged": joined}
        return found

    def constant(self, train_y, test_y) -> dict[str, float]:
        """See `Reading.constant`: the most frequent action."""
        merged = self.merged
        return {
            "majority_accuracy": probes.majority_accuracy(train_y, test_y),
            "majority_accuracy_merged": probes.majority_accuracy(merged[train_y], merged[test_y]),
        }

    def codes(self, codes, test_y, seed) -> dict[str, float]:
        """See `Reading.codes`: mutual information and purity."""
        return probes.agreement(codes, test_y, self.merged, seed)

    def head(self, named, test_y) -> dict[str, float]:
        """See `Reading.head`: `named` are logits."""
        return probes.head_scores(named, test_y, self.merged)

    def arrays(self, test_y) -> dict[str, np.ndarray]:
        """See `Reading.arrays`: actions, their classes, and what both are called."""
        raw = envs.ACTION_NAMES if self.env in envs.PROCGEN_GAMES else [str(a) for a in range(self.num_actions)]
        return {
            "actions": test_y,
            "merged": self.merged[test_y],
            "action_names": np.array(raw),
            "merged_names": np.array(envs.merged_action_names(self.env, self.num_actions)),
        }


@dataclasses.dataclass(frozen=True)
class Values:
    """Continuous actions, float32 ``[E, D]``.

    Attributes:
      space: their bounds.
    """

    space: Box

    def probe(self, key, train_z, train_y, test_z, test_y) -> dict[str, float]:
        """See `Reading.probe`: shares of variance explained (`probes.r_squared`)."""
        return {
            f"{prefix}probe_r2": probes.r_squared(key, train_z, train_y, test_z, test_y, hidden)
            for prefix, hidden in (("", probes.HIDDEN), ("linear_", ()))
        }

    def constant(self, train_y, test_y) -> dict[str, float]:
        """See `Reading.constant`: the mean action, which explains nothing, and less than that of other levels."""
        return {"mean_r2": probes.explained(np.broadcast_to(train_y.mean(0), test_y.shape), test_y, train_y.std(0))}

    def codes(self, codes, test_y, seed) -> dict[str, float]:
        """See `Reading.codes`: the share of variance between codes."""
        return probes.variance_between(codes, test_y, seed)

    def head(self, named, test_y) -> dict[str, float]:
        """See `Reading.head`: `named` are half-ranges."""
        guess = np.asarray(self.space.mode(named))
        return {
            f"action_{self.space.score_name}": float(np.mean(self.space.score(guess, test_y))),
            "action_r2": probes.explained(guess, test_y, test_y.std(0)),
        }

    def arrays(self, test_y) -> dict[str, np.ndarray]:
        """See `Reading.arrays`: the actions."""
        return {"action_values": test_y}


def reading_of(env: str, space: ActionSpace) -> Reading:
    """How the actions of an environment are read."""
    return Values(space) if isinstance(space, Box) else Classes(env, space.n)
