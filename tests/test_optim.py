import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lamjax.cloning import CloningConfig
from lamjax.dynamics import DynamicsConfig
from lamjax.optim import Packed, grads_as, optimizer, pack, pack_groups, unpack, unpack_groups
from lamjax.schedules import check_lengths, warmup_linear


def test_stage_one_of_lapo():
    """Step 0: 3e-5; step 50: 3e-4; step 50 001: 3e-6."""
    schedule = warmup_linear(peak=3e-4, start=0.1, end=0.01, warmup_steps=50, steps=50_001)
    for step, rate in [
        (0, 3e-5),
        (25, 1.65e-4),
        (50, 3e-4),
        (50 + 49_951 // 2, 3e-4 - 2.97e-4 * (49_951 // 2) / 49_951),
        (50_001, 3e-6),
        (60_000, 3e-6),
    ]:
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-4)


def test_stage_two_of_lapo():
    """Step 0: 2e-6; step 1000: 2e-4; step 60 001: 0."""
    schedule = jax.jit(warmup_linear(peak=2e-4, start=0.01, end=0.0, warmup_steps=1000, steps=60_001))
    np.testing.assert_allclose([schedule(0), schedule(1000)], [2e-6, 2e-4], rtol=1e-4)
    np.testing.assert_allclose(schedule(60_001), 0, atol=1e-10)
    np.testing.assert_allclose(schedule(500), 1.01e-4, rtol=1e-4)


def test_a_short_run_warms_up_for_half_of_it_at_most():
    schedule = warmup_linear(peak=1.0, start=0.0, end=0.0, warmup_steps=1000, steps=8)
    np.testing.assert_allclose([schedule(step) for step in range(9)], [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0])


def test_no_warmup_starts_at_the_peak():
    schedule = warmup_linear(peak=2.0, start=0.1, end=0.5, warmup_steps=0, steps=4)
    np.testing.assert_allclose([schedule(step) for step in range(6)], [2, 1.75, 1.5, 1.25, 1, 1])


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_the_shortest_runs_have_a_rate(steps):
    schedule = warmup_linear(peak=1.0, start=0.1, end=0.0, warmup_steps=50, steps=steps)
    rates = np.array([schedule(step) for step in range(steps + 1)])
    assert np.isfinite(rates).all() and rates.min() >= 0 and rates.max() == 1


def test_one_program_serves_every_length():
    traces = []

    @jax.jit
    def rate(step, warmup, steps):
        traces.append(1)
        return warmup_linear(3e-4, 0.1, 0.01, warmup, steps)(step)

    for warmup, steps in ((50, 1000), (7, 90), (50, 20)):
        schedule = warmup_linear(3e-4, 0.1, 0.01, warmup, steps)
        for step in (0, 3, 7, 20, 60, 1000):
            traced = rate(jnp.int32(step), jnp.int32(warmup), jnp.int32(steps))
            np.testing.assert_allclose(traced, schedule(step), rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("config", [DynamicsConfig(), CloningConfig()], ids=["stage 1", "stage 2"])
def test_programs_have_no_lengths(config):
    assert dataclasses.replace(config, steps=7, warmup_steps=2).program == config.program != config
    assert config.lengths == (config.warmup_steps, config.steps)
    with pytest.raises(ValueError, match="These settings have no lengths"):
        check_lengths(config.program.steps, None)
    check_lengths(config.program.steps, config.lengths)
    check_lengths(config.steps, None)


TREE = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.array(6.0), "more": {"w": jnp.array([[7.0]])}}


def test_packing_puts_leaves_end_to_end_and_back():
    packed = pack(TREE)
    np.testing.assert_array_equal(packed.values, [6, 7, 0, 1, 2, 3, 4, 5])  # in the order of the names
    assert jax.tree.leaves(packed) == [packed.values]
    jax.tree.map(np.testing.assert_array_equal, unpack(packed), TREE)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_optimizer_does_to_packed_groups_what_it_does_to_the_arrays(frozen):
    params = {"trained": TREE, "other": {"w": jnp.array([3.0, -4.0])}}
    grads = jax.tree.map(lambda x: jnp.cos(x) + 2, params)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.01))
    tx = adam
    if frozen:
        tx = optax.multi_transform({"a": adam, "b": optax.set_to_zero()}, {"trained": "a", "other": "b"})

    def steps(params, opt_state):
        for _ in range(3):
            updates, opt_state = tx.update(grads_as(params, grads), opt_state, params)
            params = optax.apply_updates(params, updates)
        return params, opt_state

    packed = pack_groups(params, tx.init(params))
    assert all(isinstance(group, Packed) for group in packed[0].values())
    kept = len(jax.tree.leaves(packed[1])) - len(jax.tree.leaves(tx.init({"trained": 0.0, "other": 0.0})))
    assert kept == 0  # every moment of a group lies in one array
    plain, back = steps(params, tx.init(params)), unpack_groups(steps(*packed))
    assert jax.tree.structure(plain) == jax.tree.structure(back)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain, back)
    assert (plain[0]["other"]["w"] == params["other"]["w"]).all() == frozen


def one_update(name, params, grads, rate=0.1, weight_decay=0.0):
    tx = optimizer(name, rate, weight_decay)
    return tx.update(grads, tx.init(params), params)[0]


def test_muon_moves_a_kernel_along_the_orthogonal_matrix_nearest_to_its_gradient():
    """Its size is AdamW's: 0.2 for each of the kernel's values, in the mean square, times the rate."""
    gradient = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32) * np.arange(1, 9, dtype=np.float32)
    step = one_update("muon", {"kernel": jnp.ones(gradient.shape)}, {"kernel": jnp.array(gradient)}, rate=0.1)["kernel"]
    u, _, v = np.linalg.svd(gradient.reshape(36, 8), full_matrices=False)
    nearest, ours = u @ v, -np.asarray(step).reshape(36, 8)
    assert (nearest * ours).sum() / np.linalg.norm(nearest) / np.linalg.norm(ours) > 0.97
    assert np.sqrt(np.square(ours).mean()) == pytest.approx(0.1 * 0.2, rel=0.15)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_muon_leaves_all_but_kernels_to_adamw_with_nesterov_momentum(decay):
    params = {"linear": jnp.ones((5, 3)), "bias": jnp.arange(3.0), "kernel": jnp.ones((1, 1, 2, 2))}
    grads = jax.tree.map(lambda x: jnp.cos(x) - 0.3, params)
    ours = one_update("muon", params, grads, weight_decay=decay)
    tx = optax.adamw(0.1, weight_decay=decay, nesterov=True)
    adamw, _ = tx.update(grads, tx.init(params), params)
    for name in ("linear", "bias"):
        np.testing.assert_allclose(ours[name], adamw[name], rtol=1e-6)
    assert not np.allclose(ours["kernel"], adamw["kernel"], rtol=0.01)


def test_weight_decay_shrinks_a_kernel_by_the_same_share_with_both():
    params = {"kernel": jnp.full((1, 1, 2, 2), 3.0)}
    still = {"kernel": jnp.zeros((1, 1, 2, 2))}
    for name in ("muon", "adamw"):
        np.testing.assert_allclose(one_update(name, params, still, 0.1, 0.5)["kernel"], -0.1 * 0.5 * 3, rtol=1e-6)


def test_nothing_is_packed_for_muon():
    params = {"trained": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.zeros(2)}}
    state = optax.chain(optax.clip_by_global_norm(1.0), optimizer("muon", 0.1, 0.0)).init(params)
    packed, moments = pack_groups(params, state)
    assert packed is params and moments is state
