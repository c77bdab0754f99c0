"""Every setting of a run; `lamjax.presets` has their values."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from lamjax.checks import check_fields
from lamjax.cloning import CloningConfig
from lamjax.decoding.offline import OfflineConfig
from lamjax.decoding.online import OnlineConfig
from lamjax.dynamics import DynamicsConfig
from lamjax.envs.wrappers import Distractor, check_distractor
from lamjax.models.impala import ImpalaConfig
from lamjax.models.trunk import TrunkConfig
from lamjax.ppo import ActorCriticAgent, PPOConfig
from lamjax.schedules import Schedule
from lamjax.spaces import ActionSpace


@dataclasses.dataclass(frozen=True)
class PlayConfig:
    """How environments are played: how many at a time, on which levels, under which distractor.

    Attributes:
      num_envs: environments that play together.
      num_levels: levels to play; 0 means all.
      start_level: the first level's seed.
      distribution_mode: Procgen's difficulty.
      distractor: exogenous noise on every frame: "overlay" is a wandering square, "noise" is drawn anew for every
        pixel, "jitter" shifts the colour channels. The recorded demonstrator sees the frames without it.
      distractor_strength: in (0, 1]: the square's side as a share of the frame's, or the noise's deviation as a share
        of the pixels' range.
    """

    num_envs: int = 64
    num_levels: int = 0
    start_level: int = 0
    distribution_mode: Literal["easy", "hard"] = "easy"
    distractor: Distractor = "none"
    distractor_strength: float = 0.1

    def __post_init__(self):
        check_fields(self, "record", at_least_1=("num_envs",), at_least_0=("num_levels", "start_level"))
        check_distractor(self.distractor, self.distractor_strength)


@dataclasses.dataclass(frozen=True)
class RecordConfig(PlayConfig):
    """What a run records.

    Attributes:
      frames: how many frames to record.
      random_share: probability that a step's action is uniformly random instead of the policy's.
    """

    frames: int = 2_621_440
    random_share: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, "record", at_least_1=("frames",), shares=("random_share",))


@dataclasses.dataclass(frozen=True)
class InformationConfig:
    """How the action information of latents is measured on random play (`lamjax.analysis.action_information`).

    Attributes:
      frames: frames of random play, recorded once for all runs of an environment; 0 skips the measurement.
      num_envs: environments that play them. More environments visit more levels, but cut their episodes off sooner.
      steps: optimizer steps of the inverse network that is trained on the actions, the ceiling.
      batch_size: windows in a step.
      learning_rate: the peak; the rate warms up over a twentieth of the steps, then falls linearly to zero.
    """

    frames: int = 163_840
    num_envs: int = 256
    steps: int = 2_500
    batch_size: int = 128
    learning_rate: float = 5e-4

    def __post_init__(self):
        check_fields(
            self,
            "analysis.information",
            at_least_1=("num_envs", "steps", "batch_size"),
            at_least_0=("frames",),
            finite=("learning_rate",),
        )


@dataclasses.dataclass(frozen=True)
class AnalysisConfig:
    """How stage 1 is examined.

    Attributes:
      probe_train: windows of the training levels that a probe is fitted on.
      probe_test: windows of held-out levels on which the probe is tested and the held-out error is measured.
      eval_every: steps between evaluations on held-out windows.
      mask_boundaries: False lets training windows cross episode ends, as the reference does.
      mask_probes: False lets the probes' and held-out windows cross them too, as the reference does.
      information: how the action information is measured, on `probe_train` and `probe_test` windows of random play.
    """

    probe_train: int = 65_536
    probe_test: int = 16_384
    eval_every: int = 500
    mask_boundaries: bool = True
    mask_probes: bool = True
    information: InformationConfig = InformationConfig()

    def __post_init__(self):
        check_fields(self, "analysis", at_least_1=("probe_train", "probe_test", "eval_every"))


@dataclasses.dataclass(frozen=True)
class ScratchConfig:
    """PPO from scratch: the baseline of online decoding, and the way to train an expert.

    Attributes:
      trunk: the network.
      ppo: PPO's settings.
      dtype: type of the activations; losses, advantages and the optimizer stay float32.
    """

    trunk: TrunkConfig = ImpalaConfig()
    ppo: PPOConfig = PPOConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        check_fields(self, "scratch")

    def agent(self, space: ActionSpace) -> ActorCriticAgent:
        """The network to train, for these actions."""
        return ActorCriticAgent(self.trunk, space, getattr(jnp, self.dtype))


# A cloned policy's value head is untrained, so it learns first, by itself. At small rates the policy forgets less.
CLONED_RATES: tuple[tuple[str, Schedule], ...] = (
    ("value_head", ((0.0, 2.5e-3), (1.0, 0.0))),
    ("", ((0.0, 0.0), (0.05, 0.0), (0.07, 5e-4), (1.0, 0.0))),
)


@dataclasses.dataclass(frozen=True)
class NamedConfig:
    """Stage 3 with pseudo-labels, in LAPO+'s order (`lamjax.decoding.behaviour_cloning`), then PPO.

    Attributes:
      frames: frames of random play, on whose actions the inverse model's decoder is fitted; 0 skips the stage. The
        decoder has the settings of offline decoding, and cloning has those of stage 2.
      ppo: PPO's settings; its frames include those of random play.
    """

    frames: int = 0
    ppo: PPOConfig = PPOConfig(learning_rates=CLONED_RATES)

    def __post_init__(self):
        check_fields(self, "named", at_least_0=("frames",))
        update = self.ppo.frames_per_update
        if self.frames and self.ppo.total_frames - self.frames < update:
            raise ValueError(
                f"named.frames ({self.frames}) must leave PPO at least one update ({update} frames) of "
                f"named.ppo.total_frames ({self.ppo.total_frames})."
            )

    @property
    def after(self) -> PPOConfig:
        """PPO's settings for the frames that random play leaves."""
        return dataclasses.replace(self.ppo, total_frames=self.ppo.total_frames - self.frames)


# An expert for an accelerator. PPO on easy Procgen usually has IMPALA's own width (a quarter of LAPO's), 64
# environments of 256 steps, 3 epochs of 8 minibatches, gamma 0.999, an entropy bonus of 0.01, and 25M frames. A GPU
# waits for the environments, so 256 of them play 64 steps: an update has the same 16,384 transitions.
_EXPERT = ScratchConfig(
    ImpalaConfig(channels=(16, 32, 32)),
    PPOConfig(total_frames=25_000_000, num_envs=256, num_steps=64, entropy_coef=0.01),
    "bfloat16",
)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run: three stages, their baselines, and how stage 1 is examined.

    Attributes:
      seed: everything random follows from it.
      record: the data.
      dynamics: stage 1.
      cloning: stage 2.
      offline: stage 3 from labels.
      online: stage 3 by PPO.
      named: stage 3 with pseudo-labels from random play, then PPO.
      scratch: PPO from scratch, with as many frames as online decoding.
      expert: how `lamjax expert` trains a demonstrator.
      analysis: how stage 1 is examined.
      eval_episodes: episodes behind each reported return, a multiple of 64.
      log_every: steps between rows of metrics.
      checkpoint_every: seconds between checkpoints.
      max_in_flight: how many dispatches may be in flight before the host waits for the oldest.
      ring_frames: training frames that a device holds at a time, besides an eighth more that are on their way; the rest
        wait on disk for their turn (see `lamjax.data.ring`). 0 holds all of them.
      train_expert: if there is no expert, train one first, with the settings of `expert`, instead of recording a
        planner or random play.
    """

    seed: int = 0
    record: RecordConfig = RecordConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    cloning: CloningConfig = CloningConfig()
    offline: OfflineConfig = OfflineConfig()
    online: OnlineConfig = OnlineConfig()
    named: NamedConfig = NamedConfig()
    scratch: ScratchConfig = ScratchConfig()
    expert: ScratchConfig = _EXPERT
    analysis: AnalysisConfig = AnalysisConfig()
    eval_episodes: int = 128
    log_every: int = 50
    checkpoint_every: float = 120.0
    max_in_flight: int = 16
    ring_frames: int = 0
    train_expert: bool = False

    def __post_init__(self):
        check_fields(
            self,
            seeds=("seed",),
            at_least_1=("eval_episodes", "log_every", "max_in_flight"),
            at_least_0=("checkpoint_every", "ring_frames"),
        )
        for name, stage in (("dynamics", self.dynamics), ("cloning", self.cloning)):
            if not stage.steps:  # only `program` has none
                raise ValueError(f"{name}.steps must be at least 1, not 0.")
        if not (self.offline.labels or self.offline.label_shares):
            raise ValueError("offline.labels and offline.label_shares are both empty: give a number of labels.")
        if self.eval_episodes % self.eval_envs:
            raise ValueError(f"eval_episodes ({self.eval_episodes}) must be a multiple of {self.eval_envs}, or less.")

    @property
    def eval_envs(self) -> int:
        """The number of environments that play `eval_episodes`."""
        return min(64, self.eval_episodes)
