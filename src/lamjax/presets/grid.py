"""Presets for small grids, such as MinAtar's 10 x 10 cells. The environments are JAX, too: a run takes minutes."""

import dataclasses

from lamjax.cloning import CloningConfig
from lamjax.config import CLONED_RATES, NamedConfig, RecordConfig, RunConfig, ScratchConfig
from lamjax.decoding.online import DecoderConfig, OnlineConfig
from lamjax.dynamics import DynamicsConfig
from lamjax.models.grid import GridConfig, GridFDMConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.ppo import PPOConfig
from lamjax.presets import procgen

# A latent of few numbers: an untrained wide one, a random projection of the frames, already holds the action.
_NUMBERS = QuantizerConfig(enabled=False, codebooks=2, latents=1, dim=8, codes=16, decay=0.99)
_CODES = dataclasses.replace(_NUMBERS, enabled=True)
# No convolution: 40,000 PPO frames a second on one core, against 5,000 with one of 16 channels.
_POLICY = GridConfig(channels=(), hidden=(128,), features=128)
_PPO = PPOConfig(
    total_frames=524_288,
    num_steps=128,
    num_epochs=4,
    gamma=0.99,
    entropy_coef=0.01,
    bootstrap_truncation=True,
    learning_rates=(("", ((0.0, 5e-3), (1.0, 0.0))),),  # with 1e-3 one run of Breakout stays at 7, with 5e-3 at 81
)
# LAPO's schedules with one peak for every group.
_ONLINE_RATES = (
    ("policy_head", ((0.0, 0.0), (0.00875, 0.0), (0.0125, 2.5e-3), (1.0, 0.0))),
    ("value_head", ((0.0, 0.0), (0.00625, 0.0), (0.0125, 2.5e-3), (1.0, 0.0))),
    ("fc", ((0.0, 0.0), (0.0125, 0.0), (0.05, 2.5e-3), (1.0, 0.0))),
    ("convs", ((0.0, 0.0), (0.0125, 0.0), (0.05, 2.5e-3), (1.0, 0.0))),
)
CPU = RunConfig(
    record=RecordConfig(frames=262_144),
    dynamics=DynamicsConfig(
        steps=2000,
        learning_rate=2e-3,
        warmup_steps=50,
        idm=GridConfig(channels=(32,), features=128),
        fdm=GridFDMConfig(channels=32, blocks=2),
        quantizer=_CODES,
        idm_input="changes",
        loss_scale="copy_last",
    ),
    cloning=CloningConfig(steps=16_000, learning_rate=1e-3, warmup_steps=100, trunk=_POLICY),
    offline=dataclasses.replace(
        procgen.CPU.offline, methods=("policy", "bc", "idm"), bc_steps=500, noise=0.0, relabel_steps=0
    ),
    online=OnlineConfig(
        ppo=dataclasses.replace(_PPO, learning_rates=_ONLINE_RATES),
        decoder=DecoderConfig(start=0.0, dense_until=0.1, stop=0.5, every=8),
        train="all",
    ),
    named=NamedConfig(ppo=dataclasses.replace(_PPO, entropy_coef=0.0025, learning_rates=CLONED_RATES)),
    scratch=ScratchConfig(_POLICY, _PPO),
    expert=ScratchConfig(_POLICY, dataclasses.replace(_PPO, total_frames=8_388_608)),
    analysis=procgen.CPU.analysis,
    train_expert=True,
)

# What makes Breakout's policy as good as its demonstrator. On Space Invaders it is worse than `CPU` (docs/latents.md).
CPU_BREAKOUT = dataclasses.replace(
    CPU,
    dynamics=dataclasses.replace(
        CPU.dynamics,
        steps=5000,
        batch_size=64,
        learning_rate=4e-3,
        idm=GridConfig(channels=(32,), features=64),
        fdm=GridFDMConfig(channels=16, blocks=1),
        quantizer=_NUMBERS,
        loss_scale="log_channels",
    ),
    cloning=dataclasses.replace(CPU.cloning, learning_rate=5e-3),
    offline=dataclasses.replace(
        CPU.offline,
        methods=("policy", "bc", "idm", "relabel"),
        balance=True,
        relabel_steps=procgen.CPU.offline.relabel_steps,
    ),
    online=dataclasses.replace(
        CPU.online,
        decoder=DecoderConfig(start=0.0, dense_until=0.2, stop=1.0, every=4, label_smoothing=0.0),
        blend="sum",
    ),
)

# Space Invaders has more that moves by itself. Uncorrelated numbers keep the cannon's moves apart from the aliens', and
# then a linear decoder reads them from a few labels best.
CPU_SPACE_INVADERS = dataclasses.replace(
    CPU_BREAKOUT,
    dynamics=dataclasses.replace(CPU_BREAKOUT.dynamics, steps=8000, decorrelation=1.0),
    offline=dataclasses.replace(
        CPU_BREAKOUT.offline, learning_rate=3e-3, relabel_steps=CPU.offline.relabel_steps, relabel_hidden=()
    ),
)

_SMOKE_SCRATCH = ScratchConfig(
    GridConfig(channels=(), hidden=(16,), features=16),
    dataclasses.replace(procgen.SMOKE.scratch.ppo, learning_rates=(("", ((0.0, 1e-3), (1.0, 0.0))),)),
)
SMOKE = dataclasses.replace(
    procgen.SMOKE,
    dynamics=dataclasses.replace(
        procgen.SMOKE.dynamics,
        steps=50,
        optimizer="adamw",
        idm=GridConfig(channels=(4,), features=16),
        fdm=GridFDMConfig(channels=4, blocks=1),
        quantizer=_CODES,
        idm_input="changes",
    ),
    cloning=dataclasses.replace(procgen.SMOKE.cloning, steps=50, optimizer="adamw", trunk=_SMOKE_SCRATCH.trunk),
    scratch=_SMOKE_SCRATCH,
    expert=_SMOKE_SCRATCH,
)
