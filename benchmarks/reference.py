"""Measures the rates of the same work in PyTorch (`benchmarks.torch_lapo`), if the networks are LAPO's."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import coinrun, measure, torch_lapo
from benchmarks.acting import ppo_config
from benchmarks.settings import OBS, Settings
from lamjax.interop import golden

CONFIG = (4, 24, 2, 4, 16, 64)  # the paper's: scale, base width, N, H, D, M
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "lapo_small.npz"
LAYOUT = torch.channels_last  # the faster one on a CPU and on a GPU


def disagreements() -> list[str]:
    """Entries of the golden file that the program does not reproduce."""
    arrays = golden.read(GOLDEN)
    return [row.name for row in golden.compare(arrays, torch_lapo.recompute(arrays)) if not row.ok]


def _device() -> torch.device:
    return torch.device("cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu")


def _models() -> tuple[torch_lapo.Idm, torch_lapo.WorldModel, torch_lapo.Policy]:
    return tuple(model.to(_device(), memory_format=LAYOUT) for model in torch_lapo.make(CONFIG, 0))


def _frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, *OBS), dtype=torch.uint8, device=_device())


def _compiled_on_gpu(function: Callable) -> Callable:
    """Compiles a function on a GPU only. On two CPU cores compiling stage 2 (0.85 s against 0.83, batch 32) and stage 3
    (5.8 s against 5.2, minibatch 256) gains nothing; stage 1 takes 1.5 s compiled and 2.0 s otherwise.
    """
    return function if _device().type == "cpu" else torch.compile(function)


def _descending(loss: Callable[[], torch.Tensor], optimizer: Any, clipped: Any = (), limit: float = 0.0) -> Callable:
    """A training step that blocks until the loss is known."""

    def step() -> float:
        value = loss()
        torch_lapo.descend(value, optimizer, clipped, limit)
        return value.item()

    return step


def _stage1(settings: Settings) -> float:
    idm, wm, _ = _models()
    parameters = [*idm.parameters(), *wm.parameters()]
    loss = torch.compile(lambda obs: torch_lapo.dynamics_loss(idm, wm, obs, LAYOUT)[0])
    obs, optimizer = _frames(settings.batch_size, 3), torch_lapo.adamw(parameters, 3e-4)
    return _rate(_descending(lambda: loss(obs), optimizer, parameters, 2.0), settings)


def _stage2(settings: Settings) -> float:
    idm, _, policy = _models()
    idm.eval()
    loss = _compiled_on_gpu(lambda obs: torch_lapo.cloning_loss(idm, policy, obs, LAYOUT))
    parameters = [p for name, p in policy.named_parameters() if not name.startswith("value_head")]
    obs, optimizer = _frames(settings.batch_size, 3), torch_lapo.adamw(parameters, 2e-4)
    return _rate(_descending(lambda: loss(obs), optimizer), settings)


def _rate(step: Callable, settings: Settings) -> float:
    return 1e3 * settings.batch_size / float(np.median(measure.milliseconds(step, settings.repeats)))


def _ppo(settings: Settings, name: str) -> float:
    """Frames per second of whole updates, from the parts: a step of acting, and a minibatch."""
    config = ppo_config(name, settings)
    idm, _, policy = _models()
    idm.eval()
    if name == "stage3":
        agent = torch_lapo.Actor(policy, 15).to(_device(), memory_format=LAYOUT)
        trained = agent.trained()
    else:
        policy.policy_head = torch.nn.Linear(256, 15, device=_device())
        agent, trained = policy, list(policy.parameters())
    env = coinrun.native(config.num_envs)
    recent = _frames(config.num_envs, 3)
    act = torch.compile(functools.partial(torch_lapo.act, agent, layout=LAYOUT))
    infer = torch.compile(functools.partial(torch_lapo.infer, idm, layout=LAYOUT))

    def acting() -> None:
        obs = torch.from_numpy(env.observe()[1]["rgb"]).to(_device())
        action = act(obs)[0]
        if name == "stage3":  # the reference asks the inverse model at every step of the run
            recent[:] = torch.cat([recent[:, 1:], obs[:, None]], 1)
            infer(recent)
        env.act(action.cpu().numpy().astype(np.int32))

    size = config.frames_per_update // config.num_minibatches
    batch = {name: torch.randn(size, device=_device()) for name in ("log_prob", "value", "advantage", "target")}
    batch |= {"obs": _frames(size), "action": torch.randint(0, 15, (size,), device=_device())}
    loss = _compiled_on_gpu(lambda: torch_lapo.ppo_loss(agent, batch, LAYOUT))
    clipped = [p for p in agent.parameters() if p.requires_grad]
    learning = _descending(loss, torch.optim.Adam(trained, lr=5e-4), clipped, 0.5)
    act_ms, learn_ms = (float(np.median(measure.milliseconds(part, settings.repeats))) for part in (acting, learning))
    env.close()
    minibatches = config.num_epochs * config.num_minibatches
    return 1e3 * config.frames_per_update / (config.num_steps * act_ms + minibatches * learn_ms)


def rate(name: str, settings: Settings) -> float | None:
    """Windows or frames per second of a row, or None if PyTorch has no such program."""
    torch.set_num_threads(os.cpu_count() or 1)
    match name:
        case "stage1":
            return _stage1(settings)
        case "stage2":
            return _stage2(settings)
        case "stage3" | "ppo":
            return _ppo(settings, name)
    return None
