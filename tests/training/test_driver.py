import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import cloning, dynamics
from lamjax.models.grid import GridConfig, GridFDMConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig, MLPFDMConfig
from lamjax.models.unet import UNetConfig
from lamjax.training import driver


def step(carry, xs):
    total, count = carry
    return (total + xs["a"], count + 1), {"before": total, "twice": (2 * xs["b"],)}


CARRY = (jnp.zeros(2), jnp.zeros((), jnp.int32))
XS = {"a": jnp.arange(10.0).reshape(5, 2), "b": jnp.arange(5, dtype=jnp.int32)}


def test_host_scan_is_scan():
    (total, count), ys = driver.host_scan(step, CARRY, XS)
    np.testing.assert_array_equal(total, [20, 25])
    assert count == 5
    np.testing.assert_array_equal(ys["before"][:3], [[0, 0], [0, 1], [2, 4]])
    expected = jax.lax.scan(step, CARRY, XS)
    jax.tree.map(np.testing.assert_array_equal, ((total, count), ys), expected)
    assert jax.tree.structure(((total, count), ys)) == jax.tree.structure(expected)
    jax.tree.map(lambda x, y: x.dtype == y.dtype or pytest.fail("types differ"), ys, expected[1])


def test_host_scan_traces_a_jitted_step_once():
    traces = []

    @jax.jit
    def counted(carry, xs):
        traces.append(1)
        return step(carry, xs)

    driver.host_scan(counted, CARRY, XS)
    assert len(traces) == 1


def test_host_scan_takes_keys():
    keys = jax.random.split(jax.random.key(0), 3)

    def draw(carry, key):
        return carry, jax.random.normal(key)

    _, drawn = driver.host_scan(draw, None, keys)
    np.testing.assert_array_equal(drawn, jax.vmap(jax.random.normal)(keys))


@pytest.fixture
def accelerator(monkeypatch):
    """What is asked for the backend hears of an accelerator; what it computes runs on the CPU all the same."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


def test_repeated_steps_on_an_accelerator_are_those_on_a_cpu(request):
    windows = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 3, 5)), jnp.float32)
    networks = {"idm": MLPConfig((16,), 16), "fdm": MLPFDMConfig((16,))}
    config = dynamics.DynamicsConfig(steps=20, warmup_steps=2, learning_rate=1e-2, **networks)
    state = driver.jit_once(dynamics.init, static_argnums=(1, 2))(jax.random.key(0), config, (5,))

    def repeated(state):
        return driver.repeat(lambda s: dynamics.train_step(s, windows[s.step % 4]), state, 4)

    plain = jax.jit(repeated)(state)
    kernels = str(jax.make_jaxpr(lambda s: repeated(s))(state)).count("concatenate")
    request.getfixturevalue("accelerator")
    packed = jax.jit(lambda state: repeated(state))(state)
    assert str(jax.make_jaxpr(lambda s: repeated(s))(state)).count("concatenate") > kernels  # it did pack
    assert jax.tree.structure(plain) == jax.tree.structure(packed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, packed)


def test_repeated_steps_of_muon_on_an_accelerator_are_those_on_a_cpu(request):
    trunk = ImpalaConfig(channels=(4,), strides=(2,), blocks=0, features=8, stem=4, pool=False)
    config = cloning.CloningConfig(steps=20, warmup_steps=2, learning_rate=1e-2, optimizer="muon", trunk=trunk)
    state = driver.jit_once(cloning.init, static_argnums=(1, 2, 3))(jax.random.key(0), config, (16, 16, 3), 2)
    rng = np.random.default_rng(0)
    obs, latents = rng.integers(0, 256, (8, 16, 16, 3), np.uint8), rng.normal(size=(8, 2)).astype(np.float32)

    def repeated(state):
        return driver.repeat(lambda s: cloning.train_step(s, obs, latents), state, 3)

    plain = jax.jit(repeated)(state)
    request.getfixturevalue("accelerator")
    packed = jax.jit(lambda state: repeated(state))(state)
    assert jax.tree.structure(plain) == jax.tree.structure(packed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, packed)


def test_steps_of_convolutions_fuse_everywhere_but_on_a_cpu():
    backends = ("cpu", "gpu", "tpu")
    for network in (ImpalaConfig(), UNetConfig()):
        assert [driver.fuses_steps(network, backend=backend) for backend in backends] == [False, True, True]
        assert driver.fuses_steps(MLPConfig(), network) == (jax.default_backend() != "cpu")
    for network in (MLPConfig(), MLPFDMConfig(), GridConfig(), GridFDMConfig()):
        assert all(driver.fuses_steps(network, backend=backend) for backend in backends)


def test_jit_once_computes_the_same():
    key = jax.random.key(0)

    def draw(key, n):
        return jax.random.normal(key, (n,))

    np.testing.assert_allclose(driver.jit_once(draw, static_argnums=1)(key, 5), draw(key, 5), rtol=1e-6)


@pytest.mark.parametrize("n", [1, 3])
def test_repeat_steps_n_times_and_averages_metrics(n):
    def double(x):
        return 2 * x, {"before": x}

    state, metrics = jax.jit(driver.repeat, static_argnums=(0, 2))(double, jnp.float32(1), n)
    assert float(state) == 2**n
    assert float(metrics["before"]) == pytest.approx((2**n - 1) / n)


def test_a_question_about_no_network_is_refused():
    with pytest.raises(TypeError):
        driver.fuses_steps(backend="cpu")
