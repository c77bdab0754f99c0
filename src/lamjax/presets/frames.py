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

    A video's view may move, and the agent need not be in its middle, so both models see whole frames.
    """
    factor = 2 ** max(0, math.floor(math.log2(max(obs_shape[:2]) / USUAL)))
    presets = {
        "paper": procgen.PAPER,
        "reference": procgen.REFERENCE,
        "cpu": procgen.CPU_WHOLE_FRAMES,
        "smoke": procgen.SMOKE,
    }
    return {name: _folded(config, factor) for name, config in presets.items()}


def _folded(config: RunConfig, factor: int) -> RunConfig:
    """The settings of stages 1 and 2 with stems that fold `factor` times as many pixels along each side."""

    def fold(network: Any) -> Any:
        return dataclasses.replace(network, stem=factor * network.stem)

    dynamics = dataclasses.replace(config.dynamics, idm=fold(config.dynamics.idm), fdm=fold(config.dynamics.fdm))
    cloning = dataclasses.replace(config.cloning, trunk=fold(config.cloning.trunk))
    return dataclasses.replace(config, dynamics=dynamics, cloning=cloning)
