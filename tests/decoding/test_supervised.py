"""The inverse model with an action head: it is stage 1's own network, and it learns what a window shows."""

import jax
import numpy as np

from lamjax import dynamics
from lamjax.cloning import CloningConfig
from lamjax.decoding import behaviour_cloning, supervised
from lamjax.decoding.supervised import ActionIDM
from lamjax.models.mlp import MLPConfig
from lamjax.preprocess import with_stats
from lamjax.presets import VECTOR_PRESETS
from lamjax.spaces import Discrete
from lamjax.training.driver import jit_once

CONFIG = VECTOR_PRESETS["smoke"].dynamics
TRAINING = CloningConfig(60, 64, 1e-2, 5, trunk=MLPConfig((16,), 16))
STATS = {"mean": np.ones(4, np.float32), "scale": np.full(4, 2, np.float32)}


def test_it_reads_the_latents_of_stage_1s_network():
    rng = np.random.default_rng(0)
    windows = rng.normal(size=(5, 3, 4)).astype(np.float32)
    model = jit_once(dynamics.init, static_argnums=(1, 2))(jax.random.key(1), CONFIG, (4,), STATS)
    z = dynamics.infer_latents(model, windows).continuous
    kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((z.shape[1], 3), (3,)))
    params = {"model": {"idm": model.params["idm"]}, "head": {"linear": {"kernel": kernel, "bias": bias}}}
    outputs = ActionIDM(CONFIG, Discrete(3))(with_stats(params, STATS), windows)
    np.testing.assert_allclose(outputs, z @ kernel + bias[None], rtol=1e-4, atol=1e-5)


def test_it_learns_actions_that_a_change_shows():
    rng = np.random.default_rng(0)
    actions = rng.integers(3, size=256).astype(np.int32)
    windows = rng.normal(size=(256, 3, 4)).astype(np.float32)
    windows[:, 2] = windows[:, 1] + 4 * np.eye(3, 4, dtype=np.float32)[actions]
    init = jit_once(supervised.init, static_argnums=(1, 2, 3, 4))
    state = init(jax.random.key(0), CONFIG, TRAINING, Discrete(3), (4,), STATS)
    assert state.params["model"].keys() == {"idm"}  # no forward model
    step = jax.jit(behaviour_cloning.train_step)
    for _ in range(TRAINING.steps):
        rows = rng.integers(256, size=TRAINING.batch_size)
        state, metrics = step(state, windows[rows], actions[rows])
    assert metrics["accuracy"] > 0.95
