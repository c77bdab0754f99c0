"""PPO's settings."""

import dataclasses
from collections.abc import Collection

from lamjax.checks import check_fields
from lamjax.schedules import Schedule, check_schedule


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """PPO's settings; the defaults are LAPO's (Procgen, easy).

    Attributes:
      total_frames: environment frames to train for; schedules are fractions of this number.
      num_envs: N, over all devices.
      num_steps: T, steps of each environment in an update.
      num_epochs: passes over an update's transitions.
      num_minibatches: minibatches in a pass.
      gamma: discount.
      gae_lambda: lambda of the advantage estimate.
      clip: clip of the probability ratio and of the value's change.
      entropy_coef: weight of the entropy bonus.
      value_coef: weight of the value loss.
      max_grad_norm: clip of the gradient's global norm over the trained parameters.
      reward_limit: clip of the rewards after scaling by their running deviation; 0 leaves rewards raw.
      bootstrap_truncation: whether to bootstrap from the last observation at a time-out (the reference does not).
      learning_rates: pairs of a top-level parameter group and its schedule; the group "" stands for all others.
      adam_eps: epsilon of Adam.
      grad_chunks: how many pieces a minibatch's gradient is summed from, which does not change it. On a CPU, where a
        convolution's gradients become slower with larger batches, pieces of a few dozen rows are fastest.
    """

    total_frames: int = 4_000_000
    num_envs: int = 64
    num_steps: int = 64
    num_epochs: int = 3
    num_minibatches: int = 8
    gamma: float = 0.999
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy_coef: float = 0.0025
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    reward_limit: float = 10.0
    bootstrap_truncation: bool = False
    learning_rates: tuple[tuple[str, Schedule], ...] = (("", ((0.0, 5e-4), (1.0, 0.0))),)
    adam_eps: float = 1e-8
    grad_chunks: int = 1

    def __post_init__(self):
        check_fields(
            self,
            "ppo",
            at_least_1=("total_frames", "num_envs", "num_steps", "num_epochs", "num_minibatches", "grad_chunks"),
            above_0=("clip", "max_grad_norm"),
            finite=("entropy_coef", "value_coef", "reward_limit", "adam_eps"),
            shares=("gamma", "gae_lambda"),
        )
        for group, points in self.learning_rates:
            check_schedule(f"ppo.learning_rates of {group!r}", points)
        batch = self.frames_per_update
        if batch % (self.num_minibatches * self.grad_chunks):
            raise ValueError(
                f"num_envs * num_steps = {batch} must divide into num_minibatches * grad_chunks = "
                f"{self.num_minibatches} * {self.grad_chunks} pieces."
            )
        if batch < 2 * self.num_minibatches:
            raise ValueError(
                f"num_minibatches ({self.num_minibatches}) must leave at least 2 of num_envs * num_steps = {batch} "
                "transitions to each: the advantages of one cannot be normalised."
            )
        if self.total_frames < batch:
            raise ValueError(
                f"ppo.total_frames ({self.total_frames}) must hold an update, num_envs * num_steps = {batch} frames."
            )

    def without_rates(self, group: str) -> "PPOConfig":
        """The settings without the schedule of a parameter group that PPO does not train."""
        return dataclasses.replace(self, learning_rates=tuple(pair for pair in self.learning_rates if pair[0] != group))

    @property
    def program(self) -> "PPOConfig":
        """The settings that compiled programs depend on; those that may differ between runs have neutral values."""
        return dataclasses.replace(self, total_frames=self.frames_per_update, learning_rates=())

    @property
    def frames_per_update(self) -> int:
        """T N, the transitions of an update."""
        return self.num_envs * self.num_steps

    @property
    def num_updates(self) -> int:
        """Whole updates in `total_frames`."""
        return self.total_frames // self.frames_per_update


def check_groups(config: PPOConfig, groups: Collection[str], name: str = "learning_rates") -> None:
    """Checks that each parameter group has one schedule, and that each schedule has a group.

    Args:
      config: the settings.
      groups: the names of the parameter groups.
      name: how messages call the schedules.

    Raises:
      ValueError: if they do not match; the message names the groups that exist.
    """
    scheduled = [group for group, _ in config.learning_rates]
    there_are = f"the parameter groups are {', '.join(sorted(groups))}"
    for group in scheduled:
        if group and group not in groups:
            raise ValueError(f"{name} has a schedule for {group!r}, and {there_are}: correct the name.")
        if scheduled.count(group) > 1:
            raise ValueError(f"{name} has {scheduled.count(group)} schedules for {group!r}: keep one.")
    missing = [group for group in groups if group not in scheduled]
    if missing and "" not in scheduled:
        raise ValueError(
            f"{name} has no schedule for the parameter group {missing[0]!r} ({there_are}): add one, or one named '' "
            "for all others."
        )
