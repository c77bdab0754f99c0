"""Steps of the supervised stages as runs compile them; tests/pipeline holds those on windows to a loop on the host."""

import jax
import numpy as np
import pytest

from lamjax.cloning import CloningConfig
from lamjax.decoding import behaviour_cloning
from lamjax.models.mlp import MLPConfig
from lamjax.training import driver, steps
from tests.trees import close

CONFIG = CloningConfig(steps=60, batch_size=64, learning_rate=1e-2, warmup_steps=5, trunk=MLPConfig((16,), 16))


@pytest.mark.parametrize("fuse", [1, 4])
def test_steps_on_uploaded_labels_are_those_on_batches_from_the_host(fuse):
    rng = np.random.default_rng(0)
    obs, actions = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(3, size=30)
    rows = rng.integers(30, size=(10, 8)).astype(np.int32)
    state = ours = behaviour_cloning.init(jax.random.key(0), CONFIG, 3, (4,), False)
    step = jax.jit(behaviour_cloning.train_step)
    clone = driver.compile_steps(steps.labelled_step, tuple(jax.local_devices()[:1]), (None,) * 4)
    for batch in rows:
        state, metrics = step(state, obs[batch], actions[batch])
    for first in range(0, 10, fuse):
        ours, mean = clone(ours, obs, actions, rows, min(fuse, 10 - first))
    close(ours.params, state.params, rtol=1e-5, atol=1e-6)
    assert int(ours.step) == 10
    if fuse == 1:
        np.testing.assert_allclose(mean["loss"], metrics["loss"], rtol=1e-5)
