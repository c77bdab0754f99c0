"""Weights by the reference's names: sizes are read off them, and what is loaded comes out again to the bit."""

import dataclasses

import jax
import numpy as np
import pytest

from lamjax import dynamics
from lamjax.dynamics import DynamicsConfig
from lamjax.interop import golden, pytorch
from lamjax.interop.pytorch import WeightsError
from lamjax.models.impala import ImpalaConfig
from lamjax.presets import PRESETS


@pytest.fixture(scope="module")
def models(networks):
    """The inverse and the forward model."""
    return {f"{kind}.{name}": array for kind in ("idm", "wm") for name, array in networks[kind].items()}


@pytest.fixture(scope="module")
def policy(networks):
    return networks["policy"]


def test_sizes_are_read_off_the_weights(arrays, models, policy):
    config = pytorch.dynamics_config(models, DynamicsConfig(steps=7))
    want = golden.config_of(arrays)
    assert (config.idm, config.fdm, config.steps) == (want.idm, want.fdm, 7)
    assert config.quantizer == dataclasses.replace(want.quantizer, start="corrected")
    assert pytorch.impala_config(policy) == want.idm == ImpalaConfig(channels=(16, 32, 32))


def test_the_sizes_of_the_paper():
    """The preset's models have as many numbers as the released ones."""
    config = PRESETS["paper"].dynamics
    state = jax.eval_shape(lambda: dynamics.init(jax.random.key(0), config, (64, 64, 3)))
    arrays = jax.eval_shape(pytorch.dynamics_arrays, state)
    assert pytorch.dynamics_config(arrays, config) == config
    trained = {n: a for n, a in arrays.items() if n.endswith(("weight", "bias")) and ".vq." not in n}
    sizes = {part: sum(a.size for n, a in trained.items() if n.startswith(part)) for part in ("idm.", "wm.")}
    assert sizes == {"idm.": 3_685_376, "wm.": 7_814_139}


def test_models_come_back_to_the_bit(models):
    state = pytorch.dynamics_state(models, pytorch.dynamics_config(models, DynamicsConfig()))
    again = pytorch.dynamics_arrays(state)
    assert again.keys() == models.keys()
    for name, array in models.items():
        np.testing.assert_array_equal(again[name], array, strict=not name.endswith(pytorch.TRACKED))


def test_the_policy_comes_back_to_the_bit(policy):
    config = pytorch.impala_config(policy)
    again = pytorch.policy_arrays(pytorch.policy_params(policy, config, 32), config)
    assert again.keys() == policy.keys()
    for name, array in policy.items():
        np.testing.assert_array_equal(again[name], array, strict=True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"wm.up.3.norm.running_var": None}, "wm.up.3.norm.running_var is missing"),
        ({"wm.up.3.conv.weight": np.zeros((1, 2, 2, 2))}, r"wm.up.3.conv.weight has shape \[1, 2, 2, 2\]"),
        ({"idm.conv_stack.3.conv.weight": np.zeros((8, 4, 3, 3))}, "idm.conv_stack.3.conv.bias is missing"),
        ({"idm.lstm.weight": np.zeros(3)}, "idm.lstm.weight belongs to no network"),
        ({"idm.vq.embedding": np.zeros((3, 16, 4))}, "32 numbers cannot be cut into 3 groups of vectors of 4"),
        ({"idm.vq.embedding": np.zeros(3)}, r"idm.vq.embedding has shape \[3\]"),
        ({"wm.down.0.conv.weight": None}, "wm.down.0.conv.weight is missing"),
    ],
)
def test_other_weights_are_refused_by_name(models, change, sentence):
    wrong = {name: array for name, array in (models | change).items() if array is not None}
    with pytest.raises(WeightsError, match=sentence):
        pytorch.dynamics_state(wrong, pytorch.dynamics_config(wrong, DynamicsConfig()))


def test_other_networks_have_no_such_names():
    for preset, setting in (("cpu", "IMPALA trunks with pooling"), ("smoke", "IMPALA trunks with pooling")):
        with pytest.raises(WeightsError, match=setting):
            pytorch.check_reference_form(PRESETS[preset].dynamics)
    paper = DynamicsConfig()
    with pytest.raises(WeightsError, match=r"fdm\.predict='frame', this one 'change'"):
        pytorch.check_reference_form(dataclasses.replace(paper, fdm=dataclasses.replace(paper.fdm, predict="change")))
    without = dataclasses.replace(paper, quantizer=dataclasses.replace(paper.quantizer, enabled=False))
    with pytest.raises(WeightsError, match=r"quantizer\.enabled"):
        pytorch.check_reference_form(without)
