"""Every setting of a run, and the presets.

A preset is a value, not a branch: nothing else in the package asks which one it is. Networks follow the shape of the
observation: each kind of it has a table of presets of its own (`presets_for`), and nothing after that asks which. An
environment that needs other settings has an entry in `OWN_PRESETS`.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from lamjax.cloning import CloningConfig
from lamjax.decoding.offline import OfflineConfig
from lamjax.decoding.online import LEARNING_RATES, DecoderConfig, OnlineConfig
from lamjax.dynamics import DynamicsConfig
from lamjax.envs.wrappers import Distractor, check_distractor
from lamjax.models.fdm import FDMConfig
from lamjax.models.grid import GridConfig, GridFDMConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig, MLPFDMConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.trunk import TrunkConfig, is_grid
from lamjax.models.unet import UNetConfig
from lamjax.ppo import ActorCriticAgent, PPOConfig
from lamjax.schedules import Schedule
from lamjax.spaces import ActionSpace


@dataclasses.dataclass(frozen=True)
class RecordConfig:
    """What is recorded.

    Attributes:
      frames: frames of the store.
      num_envs: environments that play.
      num_levels: levels to play; 0 means all.
      start_level: the first level's seed.
      distribution_mode: Procgen's difficulty.
      distractor: exogenous noise over every frame that is recorded and played on: "overlay" is a square that wanders,
        "noise" is new for every pixel, "jitter" shifts the colour channels. The demonstrator sees frames without it.
      distractor_strength: in (0, 1]: the square's side as a share of the frame's, or the noise's deviation as a share
        of the pixels' range.
    """

    frames: int = 2_621_440
    num_envs: int = 64
    num_levels: int = 0
    start_level: int = 0
    distribution_mode: Literal["easy", "hard"] = "easy"
    distractor: Distractor = "none"
    distractor_strength: float = 0.1

    def __post_init__(self):
        check_distractor(self.distractor, self.distractor_strength)


@dataclasses.dataclass(frozen=True)
class AnalysisConfig:
    """How stage 1 is examined.

    Attributes:
      probe_train: windows of the training levels that a probe is fitted on.
      probe_test: windows of held-out levels that it is tested on, and that the held-out error is taken over.
      eval_every: steps between evaluations on held-out windows.
      mask_boundaries: False lets training windows cross episode ends, as the reference does.
      mask_probes: False lets the probes' and held-out windows cross them too, as the reference does.
    """

    probe_train: int = 65_536
    probe_test: int = 16_384
    eval_every: int = 500
    mask_boundaries: bool = True
    mask_probes: bool = True


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

    def agent(self, space: ActionSpace) -> ActorCriticAgent:
        """What is trained, with these actions."""
        return ActorCriticAgent(self.trunk, space, getattr(jnp, self.dtype))


# The value head of a cloned policy knows nothing yet: it learns first, alone. At small rates the policy forgets less.
_NAMED_RATES: tuple[tuple[str, Schedule], ...] = (
    ("value_head", ((0.0, 2.5e-3), (1.0, 0.0))),
    ("", ((0.0, 0.0), (0.05, 0.0), (0.07, 5e-4), (1.0, 0.0))),
)


@dataclasses.dataclass(frozen=True)
class NamedConfig:
    """Stage 3 with labels of one's own: LAPO+'s order (`lamjax.decoding.behaviour_cloning`), and PPO from the clone.

    Attributes:
      frames: of random play, on whose actions the decoder of the inverse model is fitted; 0 leaves the stage out. The
        decoder's settings are those of offline decoding, and cloning's those of stage 2.
      ppo: PPO's settings; its frames count those of random play.
    """

    frames: int = 0
    ppo: PPOConfig = PPOConfig(learning_rates=_NAMED_RATES)

    def __post_init__(self):
        if not 0 <= self.frames < self.ppo.total_frames:
            raise ValueError(
                f"named.frames ({self.frames}) must be fewer than the frames that PPO shares with it "
                f"(named.ppo.total_frames, {self.ppo.total_frames})."
            )

    @property
    def after(self) -> PPOConfig:
        """PPO's settings for what is left of the frames."""
        return dataclasses.replace(self.ppo, total_frames=self.ppo.total_frames - self.frames)


def _named(ppo: PPOConfig) -> NamedConfig:
    """PPO as it is for other ends, with what a cloned policy needs."""
    return NamedConfig(ppo=dataclasses.replace(ppo, entropy_coef=PPOConfig.entropy_coef, learning_rates=_NAMED_RATES))


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
      train_expert: where there is no expert, trains one first, as `expert` says, instead of recording random play.
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
        counts = {name: getattr(self, name) for name in ("eval_episodes", "log_every", "max_in_flight")}
        counts |= {"analysis.eval_every": self.analysis.eval_every}
        counts |= {"dynamics.steps": self.dynamics.steps, "cloning.steps": self.cloning.steps}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}.")
        if self.ring_frames < 0:
            raise ValueError(f"ring_frames must not be negative, not {self.ring_frames}.")
        if self.eval_episodes % min(64, self.eval_episodes):
            raise ValueError(f"eval_episodes ({self.eval_episodes}) must be a multiple of 64, or less.")


# LAPO as the released code runs, defects included: the quantiser starts at zero counts, windows and the transitions of
# the online decoder cross episode ends.
_REFERENCE = RunConfig(
    dynamics=DynamicsConfig(quantizer=QuantizerConfig(start="reference")),
    online=OnlineConfig(decoder=DecoderConfig(mask_boundaries=False)),
    analysis=AnalysisConfig(mask_boundaries=False, mask_probes=False),
)

# Small strided networks that a laptop trains in minutes (docs/decisions.md says how they were found).
_CPU_TRUNK = ImpalaConfig(channels=(16, 32, 32), blocks=1, stem=2, pool=False)
_CPU_PPO = PPOConfig(total_frames=196_608, num_steps=64, entropy_coef=0.01, grad_chunks=16)
_CPU = RunConfig(
    record=RecordConfig(frames=65_536),
    dynamics=DynamicsConfig(
        steps=2000,
        batch_size=64,
        learning_rate=2e-3,
        idm=_CPU_TRUNK,
        fdm=UNetConfig(channels=(32, 48, 64), bottleneck=128, stem=4, latent_input="bias", predict="change", shift=8),
        quantizer=QuantizerConfig(decay=0.99),
        idm_input="changes",
        loss_scale="copy_last",
    ),
    cloning=CloningConfig(steps=1500, batch_size=64, learning_rate=1e-3, warmup_steps=100, trunk=_CPU_TRUNK),
    offline=OfflineConfig(
        labels=(16, 64, 256, 1024, 4096),
        label_shares=(),
        seeds=1,
        compare_at=(1024,),
        steps=2000,
        learning_rate=1e-3,
        episodes=64,
        bc_steps=200,
    ),
    online=OnlineConfig(
        ppo=dataclasses.replace(_CPU_PPO, grad_chunks=1, entropy_coef=0.0025, learning_rates=LEARNING_RATES),
        decoder=DecoderConfig(start=0.0, dense_until=0.2, stop=0.5, every=5),
    ),
    named=_named(_CPU_PPO),
    scratch=ScratchConfig(_CPU_TRUNK, _CPU_PPO),
    # One pass over each rollout: more frames a second teach more than more passes do.
    expert=ScratchConfig(
        _CPU_TRUNK,
        dataclasses.replace(_CPU_PPO, total_frames=3_000_000, num_epochs=1, gamma=0.995, entropy_coef=0.003),
    ),
    analysis=AnalysisConfig(probe_train=16_384, probe_test=4_096, eval_every=250),
    eval_episodes=128,
    log_every=25,
)

# Seconds, for tests: the same path with small numbers.
_SMOKE_TRUNK = ImpalaConfig(channels=(8, 16), strides=(2, 2), blocks=0, features=32, stem=4, pool=False)
_SMOKE_PPO = PPOConfig(total_frames=4096, num_envs=16, num_steps=64, num_epochs=1, num_minibatches=2)
_SMOKE = RunConfig(
    record=RecordConfig(frames=2048, num_envs=16),
    dynamics=DynamicsConfig(
        steps=20,
        batch_size=16,
        learning_rate=1e-3,
        warmup_steps=5,
        idm=_SMOKE_TRUNK,
        fdm=UNetConfig(channels=(8, 12), bottleneck=16, stem=8, latent_input="bias", predict="change"),
        quantizer=QuantizerConfig(codes=16, decay=0.9),
        loss_scale="copy_last",
    ),
    cloning=CloningConfig(steps=20, batch_size=16, learning_rate=1e-3, warmup_steps=5, trunk=_SMOKE_TRUNK),
    offline=OfflineConfig(
        labels=(16, 64),
        label_shares=(),
        seeds=1,
        compare_at=(64,),
        steps=50,
        batch_size=16,
        episodes=16,
        num_envs=16,
        bc_steps=5,
    ),
    online=OnlineConfig(
        ppo=dataclasses.replace(_SMOKE_PPO, learning_rates=LEARNING_RATES),
        decoder=DecoderConfig(start=0.0, dense_until=0.6, stop=0.8, every=2, batch_size=64, capacity=1024),
    ),
    named=_named(_SMOKE_PPO),
    scratch=ScratchConfig(_SMOKE_TRUNK, _SMOKE_PPO),
    expert=ScratchConfig(_SMOKE_TRUNK, _SMOKE_PPO),
    analysis=AnalysisConfig(probe_train=512, probe_test=64, eval_every=10),
    eval_episodes=16,
    log_every=5,
    checkpoint_every=1.0,
)

# Vectors and small grids: the environments are JAX, too, and minutes are enough for all of it.
_PURE_PPO = PPOConfig(
    num_envs=64,
    num_steps=128,
    num_epochs=4,
    num_minibatches=8,
    gamma=0.99,
    entropy_coef=0.01,
    bootstrap_truncation=True,
)


def _slow_rates(policy_head: float, fc: float, convs: float) -> tuple[tuple[str, Schedule], ...]:
    """For few updates, of which LAPO's schedules wait for less than one: PPO undid what the decoder had found."""

    def rising(peak: float) -> Schedule:
        return ((0.0, 0.0), (0.05, 0.0), (0.15, peak), (1.0, 0.0))

    return (
        ("policy_head", rising(policy_head)),
        ("value_head", ((0.0, 2.5e-3), (1.0, 0.0))),
        ("fc", rising(fc)),
        ("convs", rising(convs)),
    )


_PURE_CPU = RunConfig(
    record=RecordConfig(frames=65_536),
    dynamics=DynamicsConfig(
        steps=2000,
        learning_rate=2e-3,
        warmup_steps=50,
        idm_input="changes",
        loss_scale="copy_last",
    ),
    cloning=CloningConfig(steps=4000, learning_rate=1e-3, warmup_steps=100),
    offline=OfflineConfig(
        labels=(16, 64, 256, 1024, 4096),
        label_shares=(),
        seeds=1,
        compare_at=(256,),
        steps=2000,
        learning_rate=1e-3,
        episodes=64,
        bc_steps=500,
    ),
    online=OnlineConfig(decoder=DecoderConfig(start=0.0, dense_until=0.1, stop=0.5, every=8)),
    analysis=AnalysisConfig(probe_train=16_384, probe_test=4_096, eval_every=250),
    log_every=50,
    train_expert=True,
)
_PURE_SMOKE = dataclasses.replace(
    _SMOKE,
    cloning=dataclasses.replace(_SMOKE.cloning, steps=50),
    dynamics=dataclasses.replace(_SMOKE.dynamics, steps=50, idm_input="changes"),
)


def _with_networks(
    config: RunConfig,
    policy: TrunkConfig,
    idm: TrunkConfig,
    fdm: FDMConfig,
    quantizer: QuantizerConfig,
    ppo: PPOConfig,
    frames: int,
    expert_frames: int,
    learning_rate: float,
    online_rates: tuple[tuple[str, Schedule], ...] = LEARNING_RATES,
) -> RunConfig:
    """A preset with these networks: PPO for so many frames in stage 3 and from scratch, and for an expert."""
    ppo = dataclasses.replace(ppo, total_frames=frames, learning_rates=(("", ((0.0, learning_rate), (1.0, 0.0))),))
    return dataclasses.replace(
        config,
        named=_named(ppo),
        dynamics=dataclasses.replace(config.dynamics, idm=idm, fdm=fdm, quantizer=quantizer),
        cloning=dataclasses.replace(config.cloning, trunk=policy),
        online=dataclasses.replace(config.online, ppo=dataclasses.replace(ppo, learning_rates=online_rates)),
        scratch=ScratchConfig(policy, ppo),
        expert=ScratchConfig(policy, dataclasses.replace(ppo, total_frames=expert_frames)),
    )


def _with_peak(peak: float) -> tuple[tuple[str, Schedule], ...]:
    """LAPO's schedules, all of which rise as far as this."""
    return tuple((group, tuple((x, peak if rate else 0.0) for x, rate in points)) for group, points in LEARNING_RATES)


# A latent of few numbers: a wide one holds the action untrained, as a random projection of the frames.
_GRID_CODES = QuantizerConfig(codebooks=2, latents=1, dim=8, codes=16, decay=0.99)
_GRID_CPU = _with_networks(
    dataclasses.replace(
        _PURE_CPU,
        record=RecordConfig(frames=262_144),
        cloning=dataclasses.replace(_PURE_CPU.cloning, steps=16_000),
        online=dataclasses.replace(_PURE_CPU.online, train="all"),
    ),
    # No convolution: 40,000 PPO frames a second on one core, against 5,000 with one of 16 channels.
    policy=GridConfig(channels=(), hidden=(128,), features=128),
    idm=GridConfig(channels=(32,), features=128),
    fdm=GridFDMConfig(channels=32, blocks=2),
    quantizer=_GRID_CODES,
    ppo=_PURE_PPO,
    frames=524_288,
    expert_frames=8_388_608,
    learning_rate=5e-3,  # with 1e-3 one run ends on a plateau of Breakout's at 7, with 5e-3 at 81
    online_rates=_with_peak(2.5e-3),
)
_GRID_SMOKE = _with_networks(
    _PURE_SMOKE,
    policy=GridConfig(channels=(), hidden=(16,), features=16),
    idm=GridConfig(channels=(4,), features=16),
    fdm=GridFDMConfig(channels=4, blocks=1),
    quantizer=_GRID_CODES,
    ppo=_SMOKE_PPO,
    frames=4096,
    expert_frames=4096,
    learning_rate=1e-3,
)
_VECTOR_CODES = QuantizerConfig(codebooks=1, latents=1, dim=4, codes=16, decay=0.99)
_VECTOR_NETWORKS = {
    "policy": MLPConfig(hidden=(64,), features=64),
    "idm": MLPConfig(hidden=(128,), features=128),
    "fdm": MLPFDMConfig(hidden=(128, 128)),
}
_VECTOR_CPU = _with_networks(
    _PURE_CPU,
    **_VECTOR_NETWORKS,
    quantizer=_VECTOR_CODES,
    ppo=dataclasses.replace(_PURE_PPO, num_steps=32, entropy_coef=0.001),
    frames=131_072,
    expert_frames=262_144,
    learning_rate=3e-3,
    online_rates=_slow_rates(1e-3, 3e-4, 3e-4),
)
_VECTOR_SMOKE = _with_networks(
    _PURE_SMOKE,
    policy=MLPConfig(hidden=(16,), features=16),
    idm=MLPConfig(hidden=(16,), features=16),
    fdm=MLPFDMConfig(hidden=(16,)),
    quantizer=_VECTOR_CODES,
    ppo=_SMOKE_PPO,
    frames=4096,
    expert_frames=4096,
    learning_rate=1e-3,
)

# Pendulum (docs/decisions.md): codes would round a torque, which shows in little of what changes: it is learned late;
# episodes of 200 steps need less foresight than CartPole's; and PPO has so few updates that LAPO's peaks serve better.
_PENDULUM_CPU = _with_networks(
    dataclasses.replace(
        _PURE_CPU,
        dynamics=dataclasses.replace(_PURE_CPU.dynamics, steps=10_000),
        cloning=dataclasses.replace(_PURE_CPU.cloning, steps=20_000),
        # Of 16 updates.
        online=OnlineConfig(decoder=dataclasses.replace(_PURE_CPU.online.decoder, every=2)),
    ),
    **_VECTOR_NETWORKS,
    quantizer=dataclasses.replace(_VECTOR_CODES, enabled=False),
    ppo=dataclasses.replace(_PURE_PPO, num_steps=32, gamma=0.95, entropy_coef=0.0),
    frames=32_768,
    expert_frames=262_144,
    learning_rate=3e-3,
    online_rates=_slow_rates(2.5e-3, 1e-3, 5e-4),
)

PRESETS: dict[str, RunConfig] = {"paper": RunConfig(), "reference": _REFERENCE, "cpu": _CPU, "smoke": _SMOKE}

PRESET_NOTES: dict[str, str] = {
    "paper": "LAPO's networks and budgets with the reference's defects mended; for a GPU or TPU, in bfloat16 there.",
    "reference": "LAPO as its released code runs, defects included; for comparisons on a GPU or TPU.",
    "cpu": "small networks and budgets; 10 to 25 minutes on two CPU cores.",
    "smoke": "the whole path in seconds, with results that mean nothing; for tests.",
}


GRID_PRESETS: dict[str, RunConfig] = {"cpu": _GRID_CPU, "smoke": _GRID_SMOKE}
VECTOR_PRESETS: dict[str, RunConfig] = {"cpu": _VECTOR_CPU, "smoke": _VECTOR_SMOKE}

# What takes the place of the presets for the shape, by the environment's name.
OWN_PRESETS: dict[str, dict[str, RunConfig]] = {"pendulum": {"cpu": _PENDULUM_CPU}}


def with_dtype(config: RunConfig, dtype: Literal["float32", "bfloat16"]) -> RunConfig:
    """The settings with activations of this type in every stage; losses, statistics and optimizers stay float32."""
    parts = ("dynamics", "cloning", "online", "scratch", "expert")
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), dtype=dtype) for name in parts}
    )


def presets_for(obs_shape: tuple[int, ...], env: str | None = None, backend: str | None = None) -> dict[str, RunConfig]:
    """The presets for observations of a shape: images ``[H, W, C]``, grids (small images), or vectors ``[D]``.

    ``paper`` computes in bfloat16 on an accelerator, and in float32 on a CPU, whose units are no faster in bfloat16;
    `with_dtype` changes that. The three stages of ``reference`` stay float32. The expert of both, which LAPO does not
    describe, is bfloat16 on every backend.

    Args:
      obs_shape: the shape.
      env: the environment's name, where it may have presets of its own.
      backend: where it will run; by default JAX's.
    """
    presets = VECTOR_PRESETS
    if len(obs_shape) == 3:
        presets = GRID_PRESETS if is_grid(obs_shape) else PRESETS
    if "paper" in presets and (backend or jax.default_backend()) != "cpu":
        presets = presets | {"paper": with_dtype(presets["paper"], "bfloat16")}
    return presets | OWN_PRESETS[env] if env in OWN_PRESETS else presets


def default_preset(presets: dict[str, RunConfig] = PRESETS) -> str:
    """``cpu`` on a CPU, ``paper`` elsewhere if it is one of `presets`."""
    return "cpu" if jax.default_backend() == "cpu" or "paper" not in presets else "paper"
