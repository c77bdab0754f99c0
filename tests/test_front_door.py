"""What a user imports: public names, what they cost, and README's snippets as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lamjax

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def snippet(word):
    """The only snippet of README that contains a word."""
    (code,) = (code for code in SNIPPETS if word in code)
    return code


def imported_by(statement):
    """The modules that a statement imports in a new process."""
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_every_public_name_is_there():
    assert all(getattr(lamjax, name) is not None for name in lamjax.__all__)
    assert set(dir(lamjax)) == set(lamjax.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        lamjax.trian  # noqa: B018


def test_the_package_alone_imports_nothing():
    """So that ``import lamjax`` takes no time beside ``import flax``."""
    assert not {"jax", "flax", "numpy"} & imported_by("import lamjax")


def test_readmes_steps_run():
    windows = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64, 3), np.uint8)
    code = snippet("dynamics.train_step")
    assert code.count('PRESETS["paper"]') == 1
    names = {"windows": windows, "actions": np.array([0, 7, 7, 14], np.int32)}
    exec(code.replace("paper", "smoke"), names)  # the same code with smaller networks
    assert names["logits"].shape == (4, 15) and np.isfinite(names["loss"])
    assert np.isfinite(names["metrics"]["loss"]) and int(names["cloning"].step) == int(names["state"].step) == 1


def test_readmes_ppo_runs():
    names = {}
    exec(snippet("ppo.train").replace("200_000", "8_192"), names)
    assert names["metrics"]["policy_loss"].shape == (2,) and np.isfinite(names["metrics"]["entropy"]).all()


def test_readmes_linear_world_runs(capsys):
    code = snippet("linear.optimum")
    exec(code, {})
    printed = [f"{float(line):.2f}" for line in capsys.readouterr().out.split()]
    assert f"missing in the latents: {', '.join(printed)}" in code
