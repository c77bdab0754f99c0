"""Presets for images, such as Procgen's 64 x 64 pixels."""

import dataclasses

from lamjax.cloning import CloningConfig
from lamjax.config import (
    CLONED_RATES,
    AnalysisConfig,
    InformationConfig,
    NamedConfig,
    RecordConfig,
    RunConfig,
    ScratchConfig,
)
from lamjax.decoding.offline import OfflineConfig
from lamjax.decoding.online import LEARNING_RATES, DecoderConfig, OnlineConfig
from lamjax.dynamics import DynamicsConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.unet import UNetConfig
from lamjax.ppo import PPOConfig

PAPER = RunConfig()

# LAPO as the released code runs, defects included: the quantiser starts at zero counts, windows and the transitions of
# the online decoder cross episode ends.
REFERENCE = RunConfig(
    dynamics=DynamicsConfig(quantizer=QuantizerConfig(start="reference")),
    online=OnlineConfig(decoder=DecoderConfig(mask_boundaries=False)),
    analysis=AnalysisConfig(mask_boundaries=False, mask_probes=False),
)

# Small strided networks that a laptop trains in minutes (docs/measurements/diary.md says how they were chosen).
_CPU_TRUNK = ImpalaConfig(channels=(16, 32, 32), blocks=1, stem=2, pool=False)
_CPU_PPO = PPOConfig(total_frames=196_608, num_steps=64, entropy_coef=0.01, grad_chunks=16)
# One pass over each rollout: experts, and PPO after a clone, gain more from new frames than from further passes.
_ONE_PASS = dataclasses.replace(_CPU_PPO, num_epochs=1, gamma=0.995, entropy_coef=0.003)
CPU = RunConfig(
    record=RecordConfig(frames=65_536),
    dynamics=DynamicsConfig(
        steps=2000,
        batch_size=64,
        learning_rate=2e-3,
        optimizer="muon",
        # Both models see a small square around what moves; docs/latents.md says what led to this.
        idm=dataclasses.replace(_CPU_TRUNK, strides=(2, 2, 1), stem=1),
        fdm=UNetConfig(channels=(16, 32), bottleneck=128, stem=2, latent_input="bias", predict="change", shift=8),
        # Demonstrators show few of the things that an action can do, so half of the windows are of random play.
        play_share=0.5,
        quantizer=QuantizerConfig(enabled=False, decay=0.99),
        idm_input="changes",
        focus=16,
        focus_jitter=2,
        loss_scale="copy_last",
        decorrelation=3.0,
    ),
    cloning=CloningConfig(
        steps=4000, batch_size=64, learning_rate=2e-3, warmup_steps=100, optimizer="muon", trunk=_CPU_TRUNK
    ),
    offline=OfflineConfig(
        labels=(16, 64, 256, 4096),
        label_shares=(),
        seeds=1,
        methods=("policy", "bc", "idm", "relabel"),
        compare_at=(256,),
        steps=2000,
        learning_rate=1e-3,
        episodes=64,
        bc_steps=200,
        noise=1.0,
        relabel_steps=1000,
    ),
    online=OnlineConfig(
        ppo=dataclasses.replace(_CPU_PPO, grad_chunks=1, entropy_coef=0.0025, learning_rates=LEARNING_RATES),
        # Few frames: a decoder at full confidence from the start, fitted to the end (docs/latents.md).
        decoder=DecoderConfig(start=0.0, dense_until=0.2, stop=1.0, every=4, label_smoothing=0.0, capacity=65_536),
        blend="sum",
    ),
    named=NamedConfig(ppo=dataclasses.replace(_ONE_PASS, learning_rates=CLONED_RATES)),
    scratch=ScratchConfig(_CPU_TRUNK, _CPU_PPO),
    expert=ScratchConfig(_CPU_TRUNK, dataclasses.replace(_ONE_PASS, total_frames=3_000_000)),
    analysis=AnalysisConfig(
        probe_train=16_384,
        probe_test=4_096,
        eval_every=250,
        information=InformationConfig(frames=40_960, steps=1_000, batch_size=64, learning_rate=1e-3),
    ),
    eval_episodes=128,
    log_every=25,
)

# For videos of one's own: the view may move, and the agent need not be in its middle, so both models see whole frames.
# Nobody can play them, so there is no random play.
CPU_WHOLE_FRAMES = dataclasses.replace(
    CPU,
    dynamics=dataclasses.replace(
        CPU.dynamics,
        focus=0,
        play_share=0.0,
        idm=_CPU_TRUNK,
        fdm=dataclasses.replace(CPU.dynamics.fdm, channels=(32, 48, 64), stem=4),  # type: ignore[arg-type]  # a U-Net
    ),
)

# Several things move or scroll steadily, and the agent is what starts and stops.
CPU_UNSTEADY = dataclasses.replace(CPU, dynamics=dataclasses.replace(CPU.dynamics, focus_at="unsteady"))

# The agent stays in the lowest rows, and what moves above them would draw the square away.
CPU_LOWEST_ROWS = dataclasses.replace(CPU, dynamics=dataclasses.replace(CPU.dynamics, focus_rows=(0.8, 1.0)))
CPU_UNSTEADY_LOWEST_ROWS = dataclasses.replace(
    CPU, dynamics=dataclasses.replace(CPU.dynamics, focus_at="unsteady", focus_rows=(0.8, 1.0))
)


def _many_frames(config: RunConfig, steps: int = 8000) -> RunConfig:
    """For demonstrators that a policy of this size needs many frames to follow.

    On fruitbot it returns 20 instead of 12 from four times as many, and on jumper half as many are too few. A few
    thousand frames of random play then give pseudo-labels (docs/latents.md). `steps` are those of stage 2; clones of
    pseudo-labels that a few labels of the demonstrator give take more steps, too.
    """
    return dataclasses.replace(
        config,
        record=dataclasses.replace(config.record, frames=262_144),
        cloning=dataclasses.replace(config.cloning, steps=steps),
        offline=dataclasses.replace(config.offline, relabel_steps=4000),
        named=dataclasses.replace(config.named, frames=8192),
    )


def _few_numbers(config: RunConfig) -> RunConfig:
    """For games whose action 32 numbers hold, which leave random features less room than 128 do (docs/latents.md)."""
    quantizer = dataclasses.replace(config.dynamics.quantizer, dim=4)
    return dataclasses.replace(config, dynamics=dataclasses.replace(config.dynamics, quantizer=quantizer))


# Several things move, and the agent looks the same everywhere: a network finds it.
CPU_AGENT = _few_numbers(dataclasses.replace(CPU, dynamics=dataclasses.replace(CPU.dynamics, focus_at="agent")))
CPU_AGENT_WITHOUT_PLAY = dataclasses.replace(
    CPU_AGENT, dynamics=dataclasses.replace(CPU_AGENT.dynamics, play_share=0.0)
)
CPU_JUMPER = _many_frames(_few_numbers(CPU))
CPU_NINJA = _few_numbers(CPU)
CPU_STARPILOT = _many_frames(CPU_AGENT, steps=12_000)
# Fruitbot's demonstrator shows what actions do: with random play as well, the latents hold no more.
CPU_FRUITBOT = _many_frames(
    dataclasses.replace(
        CPU_UNSTEADY_LOWEST_ROWS,
        dynamics=dataclasses.replace(CPU_UNSTEADY_LOWEST_ROWS.dynamics, play_share=0.0),
    )
)

# Half of the usual steps are enough for latents and returns as good.
_COINRUN = _few_numbers(CPU)
CPU_COINRUN = dataclasses.replace(
    _COINRUN,
    dynamics=dataclasses.replace(_COINRUN.dynamics, steps=1000),
    cloning=dataclasses.replace(_COINRUN.cloning, steps=2000),
)

# Seconds, for tests: the same path with small numbers.
_SMOKE_TRUNK = ImpalaConfig(channels=(8, 16), strides=(2, 2), blocks=0, features=32, stem=4, pool=False)
_SMOKE_PPO = PPOConfig(total_frames=4096, num_envs=16, num_steps=64, num_epochs=1, num_minibatches=2)
SMOKE = RunConfig(
    record=RecordConfig(frames=2048, num_envs=16),
    dynamics=DynamicsConfig(
        steps=20,
        batch_size=16,
        learning_rate=1e-3,
        warmup_steps=5,
        optimizer="muon",
        idm=_SMOKE_TRUNK,
        fdm=UNetConfig(channels=(8, 12), bottleneck=16, stem=8, latent_input="bias", predict="change"),
        quantizer=QuantizerConfig(codes=16, decay=0.9),
        loss_scale="copy_last",
    ),
    cloning=CloningConfig(
        steps=20, batch_size=16, learning_rate=1e-3, warmup_steps=5, optimizer="muon", trunk=_SMOKE_TRUNK
    ),
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
    named=NamedConfig(ppo=dataclasses.replace(_SMOKE_PPO, learning_rates=CLONED_RATES)),
    scratch=ScratchConfig(_SMOKE_TRUNK, _SMOKE_PPO),
    expert=ScratchConfig(_SMOKE_TRUNK, _SMOKE_PPO),
    analysis=AnalysisConfig(
        probe_train=512,
        probe_test=64,
        eval_every=10,
        information=InformationConfig(frames=2048, num_envs=64, steps=20, batch_size=16, learning_rate=1e-3),
    ),
    eval_episodes=16,
    log_every=5,
    checkpoint_every=1.0,
)
