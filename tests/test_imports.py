"""What an import costs: stage 1 needs no store, no checkpoint library and no file locks."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import chex, flax, optax
before = set(sys.modules)
import {module}
print(*sorted({{name.split(".")[0] for name in set(sys.modules) - before}}))
"""


@pytest.mark.parametrize("module", ["lamjax.dynamics", "lamjax.cloning", "lamjax.preprocess"])
def test_a_pure_stage_imports_neither_stores_nor_checkpoints(module):
    """Beyond what JAX's libraries import themselves: the standard library's subprocess needs fcntl."""
    run = subprocess.run([sys.executable, "-c", PROGRAM.format(module=module)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    imported = set(run.stdout.split())
    assert "lamjax" in imported and not imported & {"tensorstore", "orbax", "fcntl", "tyro", "matplotlib"}


def test_the_command_line_touches_no_device_on_import():
    """With a platform that does not exist, whatever asks for a device fails."""
    environment = os.environ | {"JAX_PLATFORMS": "nowhere"}
    for program, fails in (("import lamjax.cli", False), ("import jax; jax.devices()", True)):
        run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
        assert bool(run.returncode) is fails
