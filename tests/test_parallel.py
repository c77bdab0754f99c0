import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lamjax import parallel

on_each = functools.partial(jax.pmap, axis_name="devices")


def test_without_an_axis_the_collectives_do_nothing():
    tree = {"a": jnp.arange(3.0), "b": (jnp.float32(2),)}
    for reduce in (parallel.pmean, parallel.psum):
        jax.tree.map(np.testing.assert_array_equal, reduce(tree, None), tree)
    key = jax.random.key(3)
    assert parallel.device_key(key, None) is key


def test_mean_and_sum_over_two_devices():
    tree = {"a": jnp.array([[1.0, 2.0], [5.0, 10.0]]), "b": jnp.array([1.0, -1.0])}
    mean = on_each(lambda tree: parallel.pmean(tree, "devices"))(tree)
    total = on_each(lambda tree: parallel.psum(tree, "devices"))(tree)
    for device in range(2):
        np.testing.assert_array_equal(mean["a"][device], [3, 6])
        np.testing.assert_array_equal(total["a"][device], [6, 12])
        assert (mean["b"][device], total["b"][device]) == (0, 0)


def test_mean_and_variance_are_those_of_all_the_numbers():
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    x[1] += 1000
    expected = x.mean(dtype=np.float64), x.var(dtype=np.float64)
    mean, var = parallel.mean_and_var(jnp.array(x), None)
    assert mean.shape == var.shape == ()
    np.testing.assert_allclose((mean, var), expected, rtol=1e-5)
    # 250 000: the variance between the devices, which the mean of two variances (about 1) would miss.
    for of_device in zip(*on_each(lambda x: parallel.mean_and_var(x, "devices"))(x), strict=True):
        np.testing.assert_allclose(of_device, expected, rtol=1e-5)


def test_variance_survives_a_large_mean():
    """Computed in two passes: E[x^2] - E[x]^2 would be lost in float32."""
    x = jnp.array([10_000.0, 10_001.0, 10_002.0, 10_003.0])
    np.testing.assert_allclose(parallel.mean_and_var(x, None), [10_001.5, 1.25], rtol=1e-6)


def test_each_device_has_its_own_key():
    @functools.partial(on_each, in_axes=(None, 0))
    def keys(key, _):
        return jax.random.key_data(parallel.device_key(key, "devices"))

    first, again, other = (np.asarray(keys(jax.random.key(seed), jnp.zeros(2))) for seed in (3, 3, 4))
    assert (first[0] != first[1]).any()
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_same_function_runs_under_vmap():
    x = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    mean, var = jax.vmap(lambda x: parallel.mean_and_var(x, "seeds"), axis_name="seeds")(x)
    np.testing.assert_allclose(mean, [3, 3])
    np.testing.assert_allclose(var, [3.5, 3.5])


def gradient(w, x, axis_name):
    loss = lambda w: jnp.mean(jnp.square(x @ w))  # noqa: E731
    return parallel.pmean(jax.grad(loss)(parallel.vary(w, axis_name)), axis_name)


def sharded(function, **specs):
    return jax.jit(jax.shard_map(function, mesh=Mesh(jax.local_devices()[:2], ("devices",)), **specs))


@pytest.mark.parametrize("check_vma", [True, False])
def test_the_gradient_by_shared_parameters_is_that_of_the_joined_batch(check_vma):
    x, w = jnp.arange(12.0).reshape(4, 3), jnp.array([1.0, -2.0, 0.5])
    expected = gradient(w, x, None)
    over = functools.partial(gradient, axis_name="devices")
    specs = {"in_specs": (P(), P("devices")), "out_specs": P(), "check_vma": check_vma}
    np.testing.assert_allclose(sharded(over, **specs)(w, x), expected, rtol=1e-6)
    # Parameters that are marked already stay so.
    twice = sharded(lambda w, x: over(parallel.vary(w, "devices"), x), **specs)
    np.testing.assert_allclose(twice(w, x), expected, rtol=1e-6)
    for seed, of_seed in enumerate(sharded(jax.vmap(over, (0, None)), **specs)(jnp.stack([w, 2 * w]), x)):
        np.testing.assert_allclose(of_seed, (1 + seed) * expected, rtol=1e-6)


def test_marked_parameters_are_the_parameters():
    w, x = {"w": jnp.array([-0.0, jnp.nan, jnp.inf, 3.0])}, jnp.zeros(2)
    assert parallel.vary(w, None) is w
    jax.vmap(lambda _: chex.assert_trees_all_equal(parallel.vary(w, "devices"), w), axis_name="devices")(x)
    marked = sharded(lambda w: parallel.vary(w, "devices"), in_specs=P(), out_specs=P("devices"))(w)["w"]
    np.testing.assert_array_equal(marked, np.tile(w["w"], 2))
    np.testing.assert_array_equal(np.signbit(marked), np.tile(np.signbit(w["w"]), 2))


def _sgd(params, batch, scale, rounds, axis_name=None):
    """A few steps towards the mean of a batch over all devices; the spread of the batch beside it."""
    for _ in range(rounds):
        gradient = parallel.pmean(params["w"] - batch.mean(0), axis_name)
        params = {"w": params["w"] - scale * gradient}
    return params, {"index": jnp.int32(parallel.place(axis_name)["axis_index"]), "mean": batch.mean()}


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_over_devices_is_the_step_on_the_joined_batch(count):
    devices = jax.local_devices()[:count]
    step = parallel.map_step(
        _sgd, devices, in_axes=(None, 0, None), out_axes=(None, 0), static_argnums=(3,), donate_argnums=(0,)
    )
    batch = np.arange(24, dtype=np.float32).reshape(4, 6)
    params = {"w": jnp.full(6, 2.0)}
    expected = jax.jit(_sgd, static_argnums=3)(params, jnp.asarray(batch), 0.5, 3)[0]
    before = parallel.replicate(params, devices)
    after, seen = step(before, batch if count == 1 else batch.reshape(2, 2, 6), 0.5, 3)
    assert before["w"].is_deleted()
    # Read from a copy: numpy's view of an array on a CPU may keep it from being given away.
    np.testing.assert_allclose(jnp.copy(after["w"]), expected["w"], rtol=1e-6)
    assert after["w"].shape == (6,)
    assert after["w"].sharding.device_set == set(devices)
    np.testing.assert_array_equal(np.atleast_1d(seen["index"]), np.arange(count))
    np.testing.assert_allclose(np.mean(seen["mean"]), batch.mean())
    # What it gave goes in again without a copy or a second trace.
    again, _ = step(after, batch if count == 1 else batch.reshape(2, 2, 6), 0.5, 3)
    assert after["w"].is_deleted()
    alone = parallel.on_one(again, devices)
    assert alone["w"].sharding.device_set == {devices[0]}
    np.testing.assert_array_equal(alone["w"], again["w"])


def test_the_place_of_the_only_device():
    assert parallel.place(None) == {"axis_index": 0, "axis_size": 1}


def test_shares_of_a_count():
    devices = jax.local_devices()[:2]
    assert parallel.share(6, devices, "--n") == 3 and parallel.share(7, devices[:1], "--n") == 7
    with pytest.raises(
        ValueError, match=r"^--n is 7 over all devices, which does not divide by their number, 2: choose a multiple"
    ):
        parallel.share(7, devices, "--n")


@pytest.mark.parametrize("count", [1, 2])
def test_dealt_trees_come_back(count):
    devices = jax.local_devices()[:count]
    parts = [{"x": jnp.arange(3.0) + i, "n": jnp.int32(i)} for i in range(count)]
    dealt = parallel.deal(parts, devices)
    assert dealt["x"].shape == ((3,) if count == 1 else (2, 3))
    for shard in dealt["x"].addressable_shards if count == 2 else ():
        assert shard.device == devices[shard.index[0].start]
    for ours, theirs in zip(parallel.collected(dealt, devices), parts, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# Several hosts; two of them train in test_pipeline.py


def test_one_process_is_the_first_and_only_one():
    assert parallel.from_first(lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(KeyError):
        parallel.from_first(lambda: {}["a"])
    assert parallel.anywhere(True) and not parallel.anywhere(False)
    assert parallel.local(jax.devices()) == jax.local_devices()


def test_hosts_are_joined_only_when_asked(monkeypatch):
    started = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **numbers: started.append(numbers))
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    parallel.join_hosts(False)
    assert started == []
    parallel.join_hosts(True)
    for name, value in {"COORDINATOR_ADDRESS": "a:1", "NUM_PROCESSES": "4", "PROCESS_ID": "3"}.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    parallel.join_hosts(False)
    assert started == [{}, {"num_processes": 4, "process_id": 3}]
    monkeypatch.setenv("JAX_PROCESS_ID", "three")
    with pytest.raises(ValueError, match=r"^The other hosts were not found \(.*three.*\): set JAX_COORDINATOR_ADDRESS"):
        parallel.join_hosts(True)
