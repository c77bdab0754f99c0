"""Presets for vectors, such as CartPole's four numbers, and those of Pendulum."""

import dataclasses

from lamjax.cloning import CloningConfig
from lamjax.config import CLONED_RATES, NamedConfig, RecordConfig, ScratchConfig
from lamjax.decoding.online import OnlineConfig
from lamjax.models.mlp import MLPConfig, MLPFDMConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.presets import grid

_CODES = QuantizerConfig(codebooks=1, latents=1, dim=4, codes=16, decay=0.99)
_POLICY = MLPConfig(hidden=(64,), features=64)
_PPO = dataclasses.replace(
    grid.CPU.scratch.ppo,
    total_frames=131_072,
    num_steps=32,
    entropy_coef=0.001,
    learning_rates=(("", ((0.0, 3e-3), (1.0, 0.0))),),
)
# For few updates, of which LAPO's schedules wait for less than one: PPO undid what the decoder had learned.
_ONLINE_RATES = (
    ("policy_head", ((0.0, 0.0), (0.05, 0.0), (0.15, 1e-3), (1.0, 0.0))),
    ("value_head", ((0.0, 2.5e-3), (1.0, 0.0))),
    ("fc", ((0.0, 0.0), (0.05, 0.0), (0.15, 3e-4), (1.0, 0.0))),
    ("convs", ((0.0, 0.0), (0.05, 0.0), (0.15, 3e-4), (1.0, 0.0))),
)
CPU = dataclasses.replace(
    grid.CPU,
    record=RecordConfig(frames=65_536),
    dynamics=dataclasses.replace(
        grid.CPU.dynamics,
        idm=MLPConfig(hidden=(128,), features=128),
        fdm=MLPFDMConfig(hidden=(128, 128)),
        quantizer=_CODES,
    ),
    cloning=CloningConfig(steps=4000, learning_rate=1e-3, warmup_steps=100, trunk=_POLICY),
    online=OnlineConfig(
        ppo=dataclasses.replace(_PPO, learning_rates=_ONLINE_RATES),
        decoder=grid.CPU.online.decoder,
    ),
    named=NamedConfig(ppo=dataclasses.replace(_PPO, entropy_coef=0.0025, learning_rates=CLONED_RATES)),
    scratch=ScratchConfig(_POLICY, _PPO),
    expert=ScratchConfig(_POLICY, dataclasses.replace(_PPO, total_frames=262_144)),
)

_SMOKE_SCRATCH = ScratchConfig(MLPConfig(hidden=(16,), features=16), grid.SMOKE.scratch.ppo)
SMOKE = dataclasses.replace(
    grid.SMOKE,
    dynamics=dataclasses.replace(
        grid.SMOKE.dynamics,
        idm=MLPConfig(hidden=(16,), features=16),
        fdm=MLPFDMConfig(hidden=(16,)),
        quantizer=_CODES,
    ),
    cloning=dataclasses.replace(grid.SMOKE.cloning, trunk=_SMOKE_SCRATCH.trunk),
    scratch=_SMOKE_SCRATCH,
    expert=_SMOKE_SCRATCH,
)

# Pendulum (docs/decisions.md): codes would round a torque, which shows in little of what changes: it is learned late;
# episodes of 200 steps need less foresight than CartPole's; and PPO has so few updates that LAPO's peaks serve better.
_PENDULUM_PPO = dataclasses.replace(_PPO, total_frames=32_768, gamma=0.95, entropy_coef=0.0)
_PENDULUM_RATES = (
    ("policy_head", ((0.0, 0.0), (0.05, 0.0), (0.15, 2.5e-3), (1.0, 0.0))),
    ("value_head", ((0.0, 2.5e-3), (1.0, 0.0))),
    ("fc", ((0.0, 0.0), (0.05, 0.0), (0.15, 1e-3), (1.0, 0.0))),
    ("convs", ((0.0, 0.0), (0.05, 0.0), (0.15, 5e-4), (1.0, 0.0))),
)
PENDULUM_CPU = dataclasses.replace(
    CPU,
    dynamics=dataclasses.replace(CPU.dynamics, steps=10_000, quantizer=dataclasses.replace(_CODES, enabled=False)),
    cloning=dataclasses.replace(CPU.cloning, steps=20_000),
    online=OnlineConfig(
        ppo=dataclasses.replace(_PENDULUM_PPO, learning_rates=_PENDULUM_RATES),
        decoder=dataclasses.replace(CPU.online.decoder, every=2),  # of 16 updates
    ),
    named=NamedConfig(ppo=dataclasses.replace(_PENDULUM_PPO, entropy_coef=0.0025, learning_rates=CLONED_RATES)),
    scratch=ScratchConfig(_POLICY, _PENDULUM_PPO),
    expert=ScratchConfig(_POLICY, dataclasses.replace(_PENDULUM_PPO, total_frames=262_144)),
)
