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
      distractor: exogenous noise over every frame: "overlay" is a square that wanders, "noise" is new for every pixel,
        "jitter" shifts the colour channels. A demonstrator that is recorded sees the frames without it.
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
    """What is recorded.

    Attributes:
      frames: frames of the store.
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
      frames: frames of random play, recorded once for all runs of an environment; 0 leaves the measure out.
      num_envs: environments that play them. The more there are, the more levels there are, and the sooner they are cut.
      steps: optimizer steps of the inverse network that is trained on the actions, the ceiling.
      batch_size: windows in a step.
      learning_rate: the peak; warmed up over a twentieth of the steps, then linear down to zero.
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
      probe_test: windows of held-out levels that it is tested on, and that the held-out error is taken over.
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
    """PPO from scratch: what online decoding is held against, and what trains an expert.

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
        """What is trained, with these actions."""
        return ActorCriticAgent(self.trunk, space, getattr(jnp, self.dtype))


# The value head of a cloned policy knows nothing yet: it learns first, alone. At small rates the policy forgets less.
CLONED_RATES: tuple[tuple[str, Schedule], ...] = (
    ("value_head", ((0.0, 2.5e-3), (1.0, 0.0))),
    ("", ((0.0, 0.0), (0.05, 0.0), (0.07, 5e-4), (1.0, 0.0))),
)


@dataclasses.dataclass(frozen=True)
class NamedConfig:
    """Stage 3 with actions that random play labels: LAPO+'s order (`lamjax.decoding.behaviour_cloning`), then PPO.

    Attributes:
      frames: of random play, on whose actions the decoder of the inverse model is fitted; 0 leaves the stage out. The
        decoder's settings are those of offline decoding, and cloning's those of stage 2.
      ppo: PPO's settings; its frames count those of random play.
    """

    frames: int = 0
    ppo: PPOConfig = PPOConfig(learning_rates=CLONED_RATES)

    def __post_init__(self):
        check_fields(self, "named", at_least_0=("frames",))
        update = self.ppo.num_envs * self.ppo.num_steps
        if self.frames and self.ppo.total_frames - self.frames < update:
            raise ValueError(
                f"named.frames ({self.frames}) must be fewer than the frames that PPO shares with it "
                f"(named.ppo.total_frames, {self.ppo.total_frames}), by an update ({update}) at least."
            )

    @property
    def after(self) -> PPOConfig:
        """PPO's settings for what is left of the frames."""
        return dataclasses.replace(self.ppo, total_frames=self.ppo.total_frames - self.frames)


# An expert for an accelerator. PPO on easy Procgen usually takes IMPALA's own width (a quarter of LAPO's), 64
# environments of 256 steps, 3 epochs of 8 minibatches, gamma 0.999, an entropy bonus of 0.01, and 25M frames. A GPU
# waits for the environments, so 256 of them play 64 steps: an update has the same 16,384 transitions.
_EXPERT = ScratchConfig(
    ImpalaConfig(channels=(16, 32, 32)),
    PPOConfig(total_frames=25_000_000, num_envs=256, num_steps=64, entropy_coef=0.01),
    "bfloat16",
)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A run: three stages, what they are held against, and how they are examined.

    Attributes:
      seed: everything random follows from it.
      record: the data.
      dynamics: stage 1.
      cloning: stage 2.
      offline: stage 3 from labels.
      online: stage 3 by PPO.
      named: stage 3 by actions that random play names, and PPO.
      scratch: PPO from scratch at the frames of stage 3.
      expert: how `lamjax expert` trains a demonstrator.
      analysis: how stage 1 is examined.
      eval_episodes: episodes behind each reported return, a multiple of 64.
      log_every: steps between rows of metrics.
      checkpoint_every: seconds between checkpoints.
      max_in_flight: dispatches that may be un-awaited.
      ring_frames: training frames that a device keeps at a time, besides an eighth more on their way; the others wait
        on disk and come in turn (see `lamjax.data.ring`). 0 keeps all of them.
      train_expert: where there is no expert, trains one first, as `expert` says, instead of recording a planner or
        random play.
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
        if self.eval_episodes % min(64, self.eval_episodes):
            raise ValueError(f"eval_episodes ({self.eval_episodes}) must be a multiple of 64, or less.")
