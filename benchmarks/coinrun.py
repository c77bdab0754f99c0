"""Procgen's coinrun as itself, without JAX."""

import contextlib
import io
import os
from typing import Any


def native(num_envs: int) -> Any:
    """One native batch of coinrun, stepped by its own threads."""
    with contextlib.redirect_stderr(io.StringIO()):  # procgen imports gym, which prints a notice
        from procgen import ProcgenGym3Env
    return ProcgenGym3Env(
        num=num_envs, env_name="coinrun", distribution_mode="easy", num_threads=min(os.cpu_count() or 1, 16)
    )
