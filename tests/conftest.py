"""Strict settings for every test: two host devices, no silent rank promotion; setup.cfg turns warnings into errors.

Runs train on the first device, as on a user's CPU; tests of several devices say so.
The compilation cache halves the time of a second run; results are bit-identical with and without it.
"""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from lamjax import parallel

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True, scope="session")
def _one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "devices", lambda: tuple(jax.local_devices()[:1]))
        yield


@pytest.fixture(autouse=True, scope="module")
def _compiled():
    """Frees each module's compiled programs: thousands of them exhaust a process's memory maps, and XLA aborts."""
    yield
    jax.clear_caches()
