"""The presets: settings of whole runs, by name.

A preset is a value, not a branch: nothing else in the package asks which one it is. The shape of the observation
decides which networks fit, so there is a table each for images, grids and vectors (`presets_for`); nothing after that
asks which. An environment that needs other settings has an entry in `OWN_PRESETS`.
"""

import dataclasses
from typing import Literal

import jax

from lamjax.config import RunConfig
from lamjax.models.trunk import is_grid
from lamjax.presets import grid, procgen, vector
from lamjax.presets.frames import SMALLEST, presets_for_frames

PRESETS: dict[str, RunConfig] = {
    "paper": procgen.PAPER,
    "reference": procgen.REFERENCE,
    "cpu": procgen.CPU,
    "smoke": procgen.SMOKE,
}
GRID_PRESETS: dict[str, RunConfig] = {"cpu": grid.CPU, "smoke": grid.SMOKE}
VECTOR_PRESETS: dict[str, RunConfig] = {"cpu": vector.CPU, "smoke": vector.SMOKE}

# Replaces the presets for the shape, by the environment's name.
OWN_PRESETS: dict[str, dict[str, RunConfig]] = {
    "bigfish": {"cpu": procgen.CPU_AGENT},
    "bossfight": {"cpu": procgen.CPU_AGENT},
    "chaser": {"cpu": procgen.CPU_AGENT},
    "coinrun": {"cpu": procgen.CPU_COINRUN},
    "dodgeball": {"cpu": procgen.CPU_AGENT},
    "fruitbot": {"cpu": procgen.CPU_FRUITBOT},
    "jumper": {"cpu": procgen.CPU_JUMPER},
    "leaper": {"cpu": procgen.CPU_UNSTEADY},
    "minatar/breakout": {"cpu": grid.CPU_BREAKOUT},
    "minatar/space_invaders": {"cpu": grid.CPU_SPACE_INVADERS},
    "ninja": {"cpu": procgen.CPU_NINJA},
    "pendulum": {"cpu": vector.PENDULUM_CPU},
    "plunder": {"cpu": procgen.CPU_LOWEST_ROWS},
    "starpilot": {"cpu": procgen.CPU_STARPILOT},
}

PRESET_NOTES: dict[str, str] = {
    "paper": "LAPO's networks and budgets with the reference's defects mended; for a GPU or TPU, in bfloat16 there.",
    "reference": "LAPO as its released code runs, defects included; for comparisons on a GPU or TPU.",
    "cpu": "small networks and budgets; about ten minutes on two CPU cores with AVX-512.",
    "smoke": "the whole path in about three minutes, with results that mean nothing; for tests.",
    "cpu-agent": "for your own videos from a fixed camera: a network finds the agent, which stage 1 looks at.",
}


def with_dtype(config: RunConfig, dtype: Literal["float32", "bfloat16"]) -> RunConfig:
    """The settings with activations of this type in every stage; losses, statistics and optimizers stay float32."""
    parts = ("dynamics", "cloning", "online", "scratch", "expert")
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), dtype=dtype) for name in parts}
    )


def presets_for(
    obs_shape: tuple[int, ...], env: str | None = None, backend: str | None = None, *, video: bool = False
) -> dict[str, RunConfig]:
    """The presets for observations of a shape: images ``[H, W, C]``, grids (small images), or vectors ``[D]``.

    ``paper`` computes in bfloat16 on an accelerator, and in float32 on a CPU, whose units are no faster in bfloat16;
    `with_dtype` changes that. The three stages of ``reference`` stay float32. The expert of both, which LAPO does not
    describe, is bfloat16 on every backend.

    Args:
      obs_shape: the shape.
      env: the environment's name, because it may have its own presets.
      backend: the backend that will run it; by default JAX's.
      video: whether frames come from the user's own videos rather than an environment (`lamjax.presets.frames`).

    Raises:
      TypeError: if the shape is a name.
    """
    if isinstance(obs_shape, str):  # it has a length as well, and would get the presets for vectors
        call = f"presets_for(envs.obs_shape({obs_shape!r}), {obs_shape!r})"
        raise TypeError(f"presets_for takes the shape of observations first, not a name: {call}.")
    presets = VECTOR_PRESETS
    if len(obs_shape) == 3 and video and min(obs_shape[:2]) >= SMALLEST:
        presets = presets_for_frames(obs_shape)
    elif len(obs_shape) == 3:
        presets = GRID_PRESETS if is_grid(obs_shape) else PRESETS
    if "paper" in presets and (backend or jax.default_backend()) != "cpu":
        presets = presets | {"paper": with_dtype(presets["paper"], "bfloat16")}
    return presets | OWN_PRESETS[env] if env in OWN_PRESETS else presets


def default_preset(presets: dict[str, RunConfig] = PRESETS) -> str:
    """``cpu`` on a CPU, ``paper`` elsewhere if it is one of `presets`."""
    return "cpu" if jax.default_backend() == "cpu" or "paper" not in presets else "paper"
