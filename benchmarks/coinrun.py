"""Procgen's coinrun as itself, without JAX."""

import contextlib
import io
import os
from typing import Any


def native(num_envs: int) -> Any:
    """One native batch of coinrun, stepped by its own threads; the same levels each time."""
    with contextlib.redirect_stderr(io.StringIO()):  # procgen imports gym, which prints a notice
        from procgen import ProcgenGym3Env
    threads = min(os.cpu_count() or 1, 16)
    return ProcgenGym3Env(num=num_envs, env_name="coinrun", distribution_mode="easy", num_threads=threads, rand_seed=0)
