"""One complete run, made once, and the program as a user starts it."""

import os
import subprocess
import sys

import jax
import pytest

from lamjax.cli import main

TRAIN = ["train", "--env", "coinrun", "--preset", "smoke", "--policy", "random"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a complete, uninterrupted smoke run of coinrun."""
    root = tmp_path_factory.mktemp("whole")
    assert main([*TRAIN, "--runs", str(root / "runs"), "--data", str(root / "data")]) == 0
    return root / "runs" / "coinrun" / "smoke-s0"


@pytest.fixture(scope="session")
def start():
    """Starts ``lamjax`` in a process with the settings and the compilation cache of this one."""
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs")
    settings = {f"JAX_{name.upper()}": str(getattr(jax.config, f"jax_{name}")) for name in names}
    env = {**os.environ, **settings, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}

    def call(*argv):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, "-m", "lamjax", *argv], env=env, **pipes)

    return call


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """The store of a few hundred frames of random coinrun, for stages that are run alone."""
    path = tmp_path_factory.mktemp("recorded") / "store"
    argv = ["record", "--policy", "random", "--frames", "1024", "--num-envs", "16", "--out", str(path)]
    assert main(argv) == 0
    return path
