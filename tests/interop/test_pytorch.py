"""The reference's own numbers: weights by its names must compute what it computed (float32, CPU)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import dynamics
from lamjax.dynamics import DynamicsConfig
from lamjax.interop import pytorch
from lamjax.loops import jit_once
from lamjax.models import quantizer
from lamjax.models.impala import ImpalaConfig
from lamjax.models.policy import LatentPolicy, normalise_obs
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.unet import UNetConfig

init_dynamics = jit_once(dynamics.init, static_argnums=(1, 2))


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "lapo_small.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def trunk(golden) -> ImpalaConfig:
    return ImpalaConfig(channels=tuple(int(golden["config"][0]) * c for c in (16, 32, 32)))


@pytest.fixture(scope="module")
def state(golden, trunk) -> dynamics.DynamicsState:
    _, base, n, h, d, m = (int(x) for x in golden["config"])
    config = DynamicsConfig(
        steps=10**9,  # a constant learning rate
        warmup_steps=0,
        idm=trunk,
        fdm=UNetConfig(channels=tuple(base * 2**level for level in range(5)), bottleneck=base * 32),
        quantizer=QuantizerConfig(codebooks=n, latents=h, dim=d, codes=m, start="reference"),
    )
    return pytorch.load_dynamics(init_dynamics(jax.random.key(0), config, (64, 64, 3)), golden, "before/")


def test_evaluation_pass(golden, state):
    windows = jnp.asarray(golden["obs_u8"])
    found = jax.jit(dynamics.infer_latents)(state, windows)
    np.testing.assert_allclose(found.continuous, golden["eval/la"], atol=1e-5)
    np.testing.assert_allclose(found.quantized, golden["eval/la_q"], atol=1e-5)
    np.testing.assert_array_equal(found.codes, golden["eval/la_qinds"][..., 0])
    prediction = jax.jit(dynamics.predict_next)(state, windows[:, :2], found.quantized)
    np.testing.assert_allclose(prediction, golden["eval/wm_pred"], atol=1e-5)
    commitment = state.config.quantizer.commitment * quantizer.commitment_loss(found.continuous, found.quantized)
    np.testing.assert_allclose(commitment, golden["eval/vq_loss"], atol=1e-6)
    perplexity = quantizer.perplexity(quantizer.hits(found.codes, state.config.quantizer))
    np.testing.assert_allclose(perplexity.sum(), golden["eval/vq_perp"], rtol=1e-5)
    errors = jax.jit(dynamics.evaluate)(state, windows)
    np.testing.assert_allclose(errors["fdm_mse"], golden["eval/wm_loss"], atol=1e-6)


def test_three_training_steps(golden, state):
    windows = jnp.asarray(golden["obs_u8"])
    step = jax.jit(dynamics.train_step)
    for number in range(3):
        state, metrics = step(state, windows)
        name = f"train{number}/"
        np.testing.assert_allclose(metrics["fdm_mse"], golden[name + "wm_loss"], atol=1e-6)
        np.testing.assert_allclose(metrics["commitment"], golden[name + "vq_loss"], atol=1e-6)
        np.testing.assert_allclose(metrics["grad_norm"], golden[name + "grad_norm"], rtol=1e-4)
        np.testing.assert_allclose(state.codebooks.embedding, golden[name + "vq.embedding"], rtol=1e-4)
        np.testing.assert_allclose(state.codebooks.count, golden[name + "vq.ema_count"], rtol=1e-4)
        np.testing.assert_allclose(state.codebooks.total, golden[name + "vq.ema_weight"], rtol=1e-4, atol=1e-7)
    idm, fdm, stats = state.params["idm"], state.params["fdm"], state.batch_stats
    after = {
        "idm.policy_head.weight": idm["head"]["linear"]["kernel"].T,
        "idm.conv_stack.0.conv.weight": idm["Impala_0"]["convs"]["Conv_0"]["conv"]["kernel"].transpose(3, 2, 0, 1),
        "wm.down.0.conv.weight": fdm["DownBlock_0"]["Conv_0"]["conv"]["kernel"].transpose(3, 2, 0, 1),
        "wm.down.0.norm.running_mean": stats["DownBlock_0"]["BatchNorm_0"]["mean"],
        "wm.down.0.norm.running_var": stats["DownBlock_0"]["BatchNorm_0"]["var"],
        "wm.final_conv.3.weight": fdm["head_out"]["conv"]["kernel"].transpose(3, 2, 0, 1),
        "wm.up.0.conv.weight": fdm["UpBlock_0"]["ConvTranspose_0"]["conv"]["kernel"][::-1, ::-1].transpose(2, 3, 0, 1),
        "wm.up.5.norm.running_var": stats["UpBlock_5"]["BatchNorm_0"]["var"],
    }
    assert set(after) == {name.removeprefix("after3/") for name in golden if name.startswith("after3/")}
    errors = {name: np.abs(np.asarray(array) - golden[f"after3/{name}"]) for name, array in after.items()}
    assert {name: error.max() for name, error in errors.items() if error.max() > 5e-4} == {}
    # Over all elements: what a batch norm cancels has no gradient but rounding, which Adam amplifies.
    assert np.quantile(np.concatenate([error.ravel() for error in errors.values()]), 0.99) < 1e-4


def test_latent_policy(golden, trunk, state):
    params = pytorch.latent_policy_params(golden, "policy/", trunk)
    network = LatentPolicy(trunk, state.config.latent_dim)
    latent, value = jax.jit(network.apply)({"params": params}, normalise_obs(jnp.asarray(golden["obs_u8"][:, 1])))
    np.testing.assert_allclose(latent, golden["policy_out/latent"], atol=1e-5)
    np.testing.assert_allclose(value, golden["policy_out/value"][:, 0], atol=1e-5)
