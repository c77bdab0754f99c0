"""Presets for videos: those for images, with whole frames, and stems that grow with the frame.

A network's stem folds squares of pixels into channels first. If the squares grow with the frame, the rest of the
network is as large, and about as fast, as on 64 x 64 pixels.
"""

import dataclasses
import math
from typing import Any

from lamjax.config import RunConfig
from lamjax.presets import procgen

USUAL = 64  # longer side, in pixels, that the other presets are for
SMALLEST = 32  # shorter side; anything smaller is a grid


def presets_for_frames(obs_shape: tuple[int, int, int]) -> dict[str, RunConfig]:
    """The presets for frames of a shape ``(H, W, C)``, by name.

    A video's view may move, and the agent need not be in its middle, so both models of stage 1 see whole frames.
    ``cpu-agent`` is for a fixed camera, and an agent that looks the same everywhere: a network finds it, and both
    models see a square around it.
    """
    factor = _power_of_2(max(obs_shape[:2]) / USUAL)
    presets = {
        "paper": procgen.PAPER,
        "reference": procgen.REFERENCE,
        "cpu": procgen.CPU_WHOLE_FRAMES,
        "smoke": procgen.SMOKE,
    }
    presets = {name: _folded(config, factor, factor) for name, config in presets.items()}
    square = min(factor, _power_of_2(min(obs_shape[:2]) / SMALLEST))  # a narrow frame has less room
    return presets | {"cpu-agent": _folded(_larger_squares(procgen.CPU_AGENT_WITHOUT_PLAY, square), square, factor)}


def _power_of_2(ratio: float) -> int:
    """The largest power of 2 up to `ratio`, 1 at least."""
    return 2 ** max(0, math.floor(math.log2(ratio)))


def _folded(config: RunConfig, seen: int, factor: int) -> RunConfig:
    """The settings with stems that fold `factor` times as many pixels along each side, in stage 1 `seen` times."""

    def fold(network: Any, factor: int) -> Any:
        return dataclasses.replace(network, stem=factor * network.stem)

    idm, fdm = (fold(network, seen) for network in (config.dynamics.idm, config.dynamics.fdm))
    dynamics = dataclasses.replace(config.dynamics, idm=idm, fdm=fdm)
    cloning = dataclasses.replace(config.cloning, trunk=fold(config.cloning.trunk, factor))
    return dataclasses.replace(config, dynamics=dynamics, cloning=cloning)


def _larger_squares(config: RunConfig, factor: int) -> RunConfig:
    """The settings with squares, and cells of the network that finds the agent, `factor` times as large."""
    dynamics = config.dynamics
    dynamics = dataclasses.replace(
        dynamics,
        focus=factor * dynamics.focus,
        focus_jitter=factor * dynamics.focus_jitter,
        locator=dataclasses.replace(dynamics.locator, cell=factor * dynamics.locator.cell),
    )
    return dataclasses.replace(config, dynamics=dynamics)
