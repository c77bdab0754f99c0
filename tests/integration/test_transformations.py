"""Steps under JAX's transformations: each computes what one device computes on the joined batch."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lamjax import cloning, dynamics, ppo
from lamjax.decoding import behaviour_cloning
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig, MLPFDMConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.unet import UNetConfig
from lamjax.ppo import ActorCriticAgent, PPOConfig
from lamjax.ppo.learner import Batch, Rollout, optimizer
from lamjax.ppo.rollout import EpisodeStats
from lamjax.training.driver import jit_once
from tests.trees import close, x64

AXIS = "shards"
B = 8

IMAGES = dynamics.DynamicsConfig(
    idm=ImpalaConfig(channels=(4,), strides=(2,), blocks=0, features=16),
    fdm=UNetConfig(channels=(4,), bottleneck=8),
    # Codes that nothing hits are moved onto vectors of the joined batch.
    quantizer=QuantizerConfig(codebooks=2, latents=2, dim=4, codes=16, decay=0.5, revive=1.0),
    augment="shift",
    augment_pixels=1,
    loss_scale="copy_last",
    optimizer="muon",
)
VECTORS = dynamics.DynamicsConfig(
    idm=MLPConfig((16,), 16),
    fdm=MLPFDMConfig((16,)),
    quantizer=QuantizerConfig(codebooks=1, latents=2, dim=4, codes=8),
    action_weight=0.5,
)
CLONING = cloning.CloningConfig(warmup_steps=2, trunk=MLPConfig((16,), 16))
AGENT = ActorCriticAgent(MLPConfig((16,), 16), space=3)
# One minibatch an epoch. Of several, each device draws its rows from its own share, not those of the joined batch.
PPO = PPOConfig(
    num_envs=4, num_steps=2, total_frames=800, num_epochs=2, num_minibatches=1, learning_rates=(("", ((0.0, 1e-3),)),)
)
KEY = jax.random.key(0)


def images():
    frames = np.random.default_rng(0).integers(0, 256, (B, 3, 4, 4, 3), np.uint8)
    frames[B // 2 :] //= 3  # so that batch statistics of a single shard would be wrong
    state = jit_once(dynamics.init, static_argnums=(1, 2))(KEY, IMAGES, frames.shape[2:])
    return dynamics.train_step, state, (frames,)


def labelled_vectors():
    rng = np.random.default_rng(1)
    windows, labelled = rng.normal(size=(2, B, 3, 5)).astype(np.float32)
    actions = np.where([1, 1, 1, 0, 0, 0, 1, 0], rng.integers(4, size=B), -1).astype(np.int32)  # three labels and one
    state = jit_once(dynamics.init, static_argnums=(1, 2, 4))(KEY, VECTORS, (5,), None, 4)
    return dynamics.train_step, state, (windows, (labelled, actions))


def latent_cloning():
    rng = np.random.default_rng(2)
    obs, latents = (rng.normal(size=(B, size)).astype(np.float32) for size in (5, 6))
    state = jit_once(cloning.init, static_argnums=(1, 2, 3))(KEY, CLONING, (5,), 6)
    return cloning.train_step, state, (obs, latents)


def action_cloning():
    rng = np.random.default_rng(3)
    state = behaviour_cloning.init(KEY, CLONING, 3, (5,), decays=False)
    batch = rng.normal(size=(B, 5)).astype(np.float32), rng.integers(3, size=B)
    return behaviour_cloning.train_step, state, batch


def improve(state, batch, *, axis_name=None):
    episodes = EpisodeStats(*jnp.float32([2, 3, 8]))
    rollout = Rollout(None, batch, None, None, jnp.zeros(len(batch.action), bool), episodes)
    return ppo.improve(state, AGENT, rollout, axis_name=axis_name)


def reinforcement():
    rng = np.random.default_rng(4)
    features = rng.normal(size=(B, 5)).astype(np.float32)
    log_prob, value, advantage, target = rng.normal(size=(4, B)).astype(np.float32)
    batch = Batch(features, rng.integers(3, size=B), log_prob - 1, value, advantage * np.arange(1, B + 1), target)
    params = AGENT.init(KEY, (5,))
    opt_state = optimizer(PPO).init(params)
    return improve, ppo.PPOState(params, opt_state, None, jnp.int32(0), KEY, PPO), (batch,)


CASES = (images, labelled_vectors, latent_cloning, action_cloning, reinforcement)


def mesh():
    return Mesh(jax.local_devices()[:2], (AXIS,))


def halves(batch):
    return jax.tree.map(lambda x: x.reshape(2, B // 2, *x.shape[1:]), batch)


def under_jit(step, state, batch):
    state, batch = (jax.device_put(x, NamedSharding(mesh(), spec)) for x, spec in ((state, P()), (batch, P(AXIS))))
    return jit_once(step)(state, *batch)


def under_vmap(step, state, batch):
    axes = (None, *(0 for _ in batch))
    step = functools.partial(step, axis_name=AXIS)
    return jit_once(jax.vmap(step, axes, None, axis_name=AXIS))(state, *halves(batch))


def under_pmap(step, state, batch):
    axes = (None, *(0 for _ in batch))
    step = functools.partial(step, axis_name=AXIS)
    return jax.pmap(step, AXIS, in_axes=axes, out_axes=None, devices=jax.local_devices()[:2])(state, *halves(batch))


def sharded(step, batch):
    step = functools.partial(step, axis_name=AXIS)
    specs = (P(), *(P(AXIS) for _ in batch))
    return jit_once(jax.shard_map(step, mesh=mesh(), in_specs=specs, out_specs=P()))


def under_shard_map(step, state, batch):
    return sharded(step, batch)(state, *batch)


def check(ours, theirs):
    """Asserts that two pairs of state and metrics are close.

    It leaves out parameters whose gradient is 0 up to rounding, such as a bias in front of a batch norm: Adam makes a
    whole step of the rounding. Its first moment shows which they are.
    """
    close(ours[1], theirs[1], rtol=1e-4, atol=1e-6)
    ours, theirs = (by_path(state) for state, _ in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for path, expected in theirs.items():
        moments = [x for name, x in theirs.items() if name.endswith("mu/" + path.removeprefix("params/"))]
        compared = np.abs(moments[0]) > 1e-6 if moments else np.ones(expected.shape, bool)
        np.testing.assert_allclose(ours[path][compared], expected[compared], rtol=1e-3, atol=1e-6, err_msg=path)


def by_path(state):
    """The arrays of a state by their path."""
    state = state.replace(key=jax.random.key_data(state.key)) if isinstance(state, ppo.PPOState) else state
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


@functools.cache
def on_one_device(case):
    """A step, its state and batch, and the new state and metrics."""
    step, state, batch = case()
    return step, state, batch, jit_once(step)(state, *batch)


@pytest.mark.parametrize("transform", [under_jit, under_vmap, under_pmap, under_shard_map])
@pytest.mark.parametrize("case", CASES)
def test_a_step_computes_what_one_device_computes_on_the_joined_batch(case, transform):
    step, state, batch, expected = on_one_device(case)
    check(transform(step, state, batch), expected)


@pytest.mark.parametrize("case", CASES)
def test_steps_can_be_scanned_inside_shard_map(case):
    """A step returns the types that it takes, also those by which `shard_map` knows what is the same on all devices."""
    step, state, batch = case()

    def scanned(state, *batch, axis_name):
        return jax.lax.scan(lambda state, _: step(state, *batch, axis_name=axis_name), state, length=2)

    new, metrics = jax.eval_shape(sharded(scanned, batch), state, *batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    assert {metric.shape for metric in metrics.values()} == {(2,)}


@pytest.mark.parametrize("case", CASES)
def test_states_keep_their_types_in_a_process_with_64_bits(case):
    step, state, batch, _ = on_one_device(case)
    with x64():
        new, _ = jax.eval_shape(step, state, *batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_states_begin_with_the_same_types_in_a_process_with_64_bits():
    begin = functools.partial(dynamics.init, KEY, IMAGES, (4, 4, 3))
    narrow = jax.eval_shape(begin)
    with x64():
        chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(begin), narrow)


@pytest.mark.parametrize("case", CASES)
def test_seeds_are_trained_side_by_side(case):
    step, state, batch, expected = on_one_device(case)
    other = jax.tree.map(lambda x: x * 0.9 if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
    seeds = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, other)
    trained = jit_once(jax.vmap(step, (0, *(None for _ in batch))))(seeds, *batch)
    for seed, alone in enumerate((expected, jit_once(step)(other, *batch))):
        check(jax.tree.map(lambda x, seed=seed: x[seed], trained), alone)
