"""bfloat16 where it counts: the gradients of LAPO's own networks on frames of coinrun."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.accelerator import gradients
from lamjax.presets import PRESETS

# By module: the cosine to float32's gradient at least, and the relative error at most. Rounding nothing but the weights
# to bfloat16 already costs the trunks 0.04 to 0.12 here, because windows of one game at the start of training differ in
# little: no smaller error can be asked of them. With roundings inside of the batch norm and of the sums of biases the
# inverse model had a cosine of 0.47 and the forward model an error of 0.37.
BOUNDS = {
    "fdm": (0.998, 0.05),
    "latent_head": (0.9999, 0.01),
    "policy_head": (0.9999, 0.01),
    "value_head": (0.9999, 0.02),
}
TRUNKS = (0.99, 0.15)


@pytest.fixture(scope="module")
def problem():
    paper = PRESETS["paper"]
    # Without codes: one that rounding exchanges for its neighbour says nothing of gradients.
    plain = dataclasses.replace(paper.dynamics.quantizer, enabled=False)
    paper = dataclasses.replace(paper, dynamics=dataclasses.replace(paper.dynamics, quantizer=plain))
    return gradients.Problem.at_start(paper, gradients.coinrun_windows(8))


@pytest.mark.parametrize("stage", gradients.STAGES)
def test_gradients_of_the_papers_networks(problem, stage):
    device = jax.devices()[0]
    exact, rounded = (gradients.gradients(stage, problem, dtype, device) for dtype in ("float32", "bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {np.dtype("float32")}
    for module, error in gradients.gradient_errors(exact, rounded).items():
        cosine, relative_error = BOUNDS.get(module, TRUNKS)
        assert error["cosine"] > cosine and error["relative_error"] < relative_error, (module, error)
