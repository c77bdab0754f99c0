"""Online decoding: what is frozen stays, windows meet their actions, the schedule scales, the decoder decodes."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import cloning, dynamics, envs, policies, ppo
from lamjax.cloning import CloningConfig
from lamjax.decoding import online
from lamjax.decoding.hybrid import HybridAgent
from lamjax.decoding.online import LEARNING_RATES, DecoderConfig, OnlineConfig, Pairs
from lamjax.dynamics import DynamicsConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig, MLPFDMConfig
from lamjax.models.quantizer import QuantizerConfig
from lamjax.models.unet import UNetConfig
from lamjax.ppo import PPOConfig
from lamjax.spaces import Box, Discrete
from lamjax.training.driver import jit_once
from tests.envs.toys import Aim, Counter
from tests.trees import close

init_dynamics = jit_once(dynamics.init, static_argnums=(1, 2))
init_cloning = jit_once(cloning.init, static_argnums=(1, 2, 3))


TRUNK = ImpalaConfig(channels=(8, 16), strides=(2, 2), blocks=0, features=32, stem=4, pool=False)
STAGE1 = DynamicsConfig(
    idm=TRUNK,
    fdm=UNetConfig(channels=(8,), bottleneck=8, stem=16, latent_input="bias"),
    quantizer=QuantizerConfig(codebooks=1, latents=2, dim=4, codes=8),
)
PPO = PPOConfig(
    total_frames=1024, num_envs=4, num_steps=16, num_epochs=1, num_minibatches=2, learning_rates=LEARNING_RATES
)
CONFIG = OnlineConfig(PPO, DecoderConfig(start=0.0, dense_until=0.5, stop=0.8, every=4, batch_size=32, capacity=128))


@pytest.fixture(scope="module")
def model():
    return init_dynamics(jax.random.key(0), STAGE1, (64, 64, 3))


@pytest.fixture(scope="module")
def policy():
    return init_cloning(jax.random.key(1), CloningConfig(trunk=TRUNK), (64, 64, 3), STAGE1.latent_dim)


@pytest.fixture
def env():
    env = envs.make("coinrun", 4)
    yield env
    env.close()


@pytest.mark.parametrize(("blend", "strength"), [("mean", 0.5), ("sum", 1.0)])
def test_starts_as_the_decoded_latent_policy_at_half_or_full_strength(policy, blend, strength):
    agent = online.make_agent(policy, dataclasses.replace(CONFIG, blend=blend), 15)
    params, frozen = agent.init(jax.random.key(2), policy)
    obs = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
    logits, value = agent.apply(params, agent.encode(frozen, jnp.asarray(obs)))
    latent = cloning.predict_latents(policy, obs)
    expected = strength * agent.decoder.apply({"params": frozen["decoder"]}, latent)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert value.shape == (6,)
    assert set(params) == {"fc", "policy_head", "value_head"}
    assert not np.any(params["policy_head"]["kernel"])


def test_bfloat16_is_for_the_trunk_alone(policy):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    half, agent = (online.make_agent(policy, c, 15) for c in (config, CONFIG))
    params, frozen = half.init(jax.random.key(2), policy)
    params["policy_head"]["kernel"] = jnp.asarray(np.random.default_rng(1).normal(size=(32, 15)), jnp.float32)
    obs = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8))
    features = half.encode(frozen, obs)
    assert features["convs"].dtype == jnp.bfloat16 and features["decoded"].dtype == jnp.float32
    found, exact = half.apply(params, features), agent.apply(params, agent.encode(frozen, obs))
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=0.03 * np.abs(theirs).max())
    grads = jax.grad(lambda p: half.apply(p, features)[0].sum())(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_update_trains_the_heads_alone_and_stops_collecting(model, policy, env):
    agent = online.make_agent(policy, CONFIG, env.num_actions)
    # Copies: an update donates what it trains.
    state = online.init(jax.random.key(3), CONFIG, jax.tree.map(jnp.copy, policy), env)
    start = jax.device_get({"params": state.ppo.params, "frozen": state.frozen})
    written, learner = [], ppo.Driver(agent, env)
    for _ in range(CONFIG.ppo.num_updates):
        state, metrics = online.update(state, model, learner)
        written.append(int(state.pairs.written))
        assert np.isfinite(metrics["policy_loss"])
    per_update = (PPO.num_steps - 2) * PPO.num_envs
    # 16 updates of 64 frames; the decoder stops at 0.8 of the budget: updates 1 to 12 collect.
    assert written == [per_update * min(k, 12) for k in range(1, 17)]
    assert not online.collects(CONFIG, 13)
    chex.assert_trees_all_equal(
        {k: v for k, v in state.frozen.items() if k != "decoder"},
        {k: v for k, v in start["frozen"].items() if k != "decoder"},
    )
    changed = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), state.ppo.params, start["params"])
    assert all(any(jax.tree.leaves(group)) for group in changed.values())
    assert any(
        jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), state.frozen["decoder"], start["frozen"]["decoder"]))
    )


def test_without_a_decoder_the_rl_head_stands_alone_and_does_not_wait(policy):
    config = dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, enabled=False))
    agent = online.make_agent(policy, config, 15)
    params, frozen = agent.init(jax.random.key(2), policy)
    assert set(frozen) == {"convs"}
    obs = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    features = agent.encode(frozen, obs)
    params["policy_head"]["bias"] = jnp.arange(15.0)
    np.testing.assert_allclose(agent.apply(params, features)[0], np.tile(np.arange(15.0), (3, 1)))  # not halved
    assert not any(online.refits(config, k) or online.collects(config, k) for k in range(1, 17))
    rates = dict(online.ppo_config(config).learning_rates)
    assert rates["policy_head"] == ((0.0, 0.0), (pytest.approx(0.00375), 2.5e-3), (1.0, 0.0))
    assert rates["fc"] == ((0.0, 0.0), (pytest.approx(0.0375), 1e-3), (1.0, 0.0))
    assert online.ppo_config(CONFIG) == CONFIG.ppo


@pytest.mark.parametrize("supervised", [True, False])
def test_all_layers_start_as_the_last_ones_and_have_gradients(policy, supervised, tmp_path):
    head = HybridAgent(TRUNK, STAGE1.latent_dim, 15, (16,), supervised)
    every = dataclasses.replace(head, train="all")
    obs = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8))
    (params, frozen), (last, last_frozen) = every.init(jax.random.key(2), policy), head.init(jax.random.key(2), policy)
    assert set(params) == {"fc", "policy_head", "value_head", "convs"} == set(every.groups)
    assert set(last) == set(head.groups)
    features = every.encode(frozen, obs)
    assert features["obs"].dtype == jnp.uint8
    close(every.apply(params, features), head.apply(last, head.encode(last_frozen, obs)), rtol=1e-6)
    # A copy: moving the trained convolutions leaves what the decoder sees where it was.
    grads = jax.grad(lambda p: every.apply(p, features)[1].sum())(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads["convs"]))
    moved = {**params, "convs": jax.tree.map(lambda x: x + 0.1, params["convs"])}
    logits, value = every.apply(moved, features)
    assert np.any(np.abs(value - every.apply(params, features)[1]) > 1e-3)
    np.testing.assert_allclose(logits, every.apply(params, features)[0])  # the RL head is still zero
    # Also where nothing is frozen the actor is one that can be saved and played.
    policies.save_policy(tmp_path, every, {"params": moved, "frozen": frozen}, {})
    policy, loaded, _ = policies.load_policy(tmp_path)
    np.testing.assert_allclose(policy(loaded, obs), logits, atol=1e-6)


def test_refit_schedule_of_the_paper():
    """Facts of the reference: after updates 3 to 12, then 20, 40, 60 and 80."""
    fits = [k for k in range(1, 977) if online.refits(OnlineConfig(), k)]
    assert fits == [*range(3, 13), 20, 40, 60, 80]


def test_refit_schedule_scales_with_the_budget():
    half = OnlineConfig(ppo=dataclasses.replace(OnlineConfig().ppo, total_frames=2_000_000))
    fits = [k for k in range(1, 489) if online.refits(half, k)]
    assert fits[0] == 2
    assert max(fits) * 4096 < 0.1 * 2_000_000


def test_pairs_hold_the_action_between_the_last_two_frames_and_mask_episode_ends(model):
    steps, n = 6, 2
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 256, (steps, n, 64, 64, 3), np.uint8)
    action = np.arange(steps * n, dtype=np.int32).reshape(steps, n)
    done = np.zeros((steps, n), bool)
    done[2, 0] = True
    pairs = online.add_pairs(Pairs.init(16, STAGE1.latent_dim, Discrete(15)), model, obs, action, done)
    assert int(pairs.written) == (steps - 2) * n
    np.testing.assert_array_equal(pairs.action[:8], action[1:-1].ravel())
    # Environment 0 ends an episode in step 2: windows (1, 2, 3) and (2, 3, 4) cross it.
    np.testing.assert_array_equal(pairs.valid[:8], [True, True, False, True, False, True, True, True])
    window = obs[1:4, 1][None]
    expected = dynamics.infer_latents(model, window).continuous[0]
    np.testing.assert_allclose(pairs.latent[2 * 1 + 1], expected, atol=1e-5)


@pytest.mark.parametrize("context", [0, 2])
def test_pairs_of_models_with_another_context(context):
    """z of (o_{t-k}, ..., o_{t+1}) beside a_t, and no window across an episode's end unless asked for."""
    steps, n = 7, 2
    config = dataclasses.replace(STAGE1, context=context)
    model = init_dynamics(jax.random.key(0), config, (64, 64, 3))
    obs = np.random.default_rng(0).integers(0, 256, (steps, n, 64, 64, 3), np.uint8)
    action = np.arange(steps * n, dtype=np.int32).reshape(steps, n)
    done = np.zeros((steps, n), bool)
    done[3, 1] = True
    pairs = online.add_pairs(Pairs.init(16, STAGE1.latent_dim, Discrete(15)), model, obs, action, done)
    count = steps - 1 - context
    assert int(pairs.written) == count * n
    np.testing.assert_array_equal(pairs.action[: count * n], action[context:-1].ravel())
    # o_{t+1} of the step that ended the episode is already of the next one.
    crosses = [any(t <= 3 < t + context + 1 for t in [start]) for start in range(count)]
    np.testing.assert_array_equal(pairs.valid[1 : count * n : 2], ~np.array(crosses))
    assert pairs.valid[0 : count * n : 2].all()
    expected = dynamics.infer_latents(model, obs[1 : 3 + context, 1][None]).continuous[0]
    np.testing.assert_allclose(pairs.latent[2 * 1 + 1], expected, atol=1e-5)
    unmasked = online.add_pairs(Pairs.init(16, STAGE1.latent_dim, Discrete(15)), model, obs, action, done, masked=False)
    assert unmasked.valid[: count * n].all()


def test_ring_keeps_the_newest(model):
    obs = np.zeros((6, 2, 64, 64, 3), np.uint8)
    pairs = Pairs.init(12, STAGE1.latent_dim, Discrete(15))
    for base in (0, 100):
        action = np.full((6, 2), base, np.int32)
        pairs = online.add_pairs(pairs, model, obs, action, np.zeros((6, 2), bool))
    assert int(pairs.written) == 16
    np.testing.assert_array_equal(pairs.action, [100] * 4 + [0] * 4 + [100] * 4)
    with pytest.raises(ValueError, match="capacity"):
        online.add_pairs(Pairs.init(4, STAGE1.latent_dim, Discrete(15)), model, obs, action, np.zeros((6, 2), bool))


def test_decoder_learns_from_valid_pairs_alone():
    agent = HybridAgent(TRUNK, 8, 3, (32,))
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=512).astype(np.int32)
    latent = np.eye(8, dtype=np.float32)[truth] + 0.05 * rng.normal(size=(512, 8)).astype(np.float32)
    wrong = np.arange(512) % 2 == 1  # half of the pairs lie, and are marked
    action = np.where(wrong, (truth + 1) % 3, truth).astype(np.int32)
    pairs = Pairs(jnp.asarray(latent), jnp.asarray(action), jnp.asarray(~wrong), jnp.int32(512))
    config = DecoderConfig(hidden=(32,), epochs=40, batch_size=64)
    params, accuracy = online.fit_decoder(jax.random.key(0), pairs, agent, config)
    predicted = np.argmax(agent.decoder.apply({"params": params}, latent), -1)
    assert np.mean(predicted == truth) > 0.98
    assert accuracy > 0.9


# The loop on the host and the scan


VECTORS = MLPConfig(hidden=(8,), features=8)


def for_vectors(size):
    """Stages 1 and 2 as they start, for vectors of this size."""
    stage_1 = dataclasses.replace(STAGE1, idm=VECTORS, fdm=MLPFDMConfig(hidden=(8,)))
    model = init_dynamics(jax.random.key(0), stage_1, (size,))
    return model, init_cloning(jax.random.key(1), CloningConfig(trunk=VECTORS), (size,), stage_1.latent_dim)


@pytest.mark.parametrize("enabled", [True, False], ids=["with a decoder", "RL alone"])
def test_a_scan_of_updates_is_the_loop_of_them(enabled):
    """Six updates: 1 to 4 collect, 1, 2 and 4 refit."""
    model, policy = for_vectors(3)
    env = envs.Gymnax(Counter([3, 5, 7], [False, True, False]), 4)
    decoder = dataclasses.replace(CONFIG.decoder, enabled=enabled, hidden=(8,))
    config = OnlineConfig(dataclasses.replace(PPO, total_frames=6 * 64), decoder)
    agent = online.make_agent(policy, config, env.action_space)
    start = online.init(jax.random.key(3), config, policy, env)
    scanned, expected = jax.jit(lambda state: online.learn(state, model, agent, env))(start)
    state, rows, learner = start, [], ppo.Driver(agent, env)
    for _ in range(6):
        state, metrics = online.update(state, model, learner)
        rows.append(metrics)
    looped = jax.tree.map(lambda *values: np.stack(values), *rows)
    fits = [enabled and online.refits(config, number) for number in range(1, 7)]
    assert fits == [enabled and number in (1, 2, 4) for number in range(1, 7)]
    np.testing.assert_array_equal(np.isfinite(looped["decoder_accuracy"]), fits)
    assert int(state.pairs.written) == (4 * 14 * 4 if enabled else 0)
    assert ("decoder" in state.frozen) == enabled
    close(
        (looped, state.ppo.params, state.frozen, state.pairs),
        (expected, scanned.ppo.params, scanned.frozen, scanned.pairs),
        rtol=1e-3,
        atol=1e-4,
    )
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.ppo.params, agent.init(jax.random.key(2), policy)[0])
    assert all(any(jax.tree.leaves(group)) for group in moved.values())


# Continuous actions


BOX = Box(Aim.low, Aim.high)


def test_the_continuous_decoder_learns_from_valid_pairs_alone():
    agent = HybridAgent(TRUNK, 8, BOX, (32,))
    rng = np.random.default_rng(0)
    truth = rng.uniform(BOX.low, BOX.high, (512, 2)).astype(np.float32)
    latent = (truth @ rng.normal(size=(2, 8))).astype(np.float32)
    wrong = np.arange(512) % 2 == 1  # half of the pairs lie, and are marked
    action = np.where(wrong[:, None], 0, truth)
    pairs = Pairs(jnp.asarray(latent), jnp.asarray(action), jnp.asarray(~wrong), jnp.int32(512))
    config = DecoderConfig(hidden=(32,), epochs=60, batch_size=64)
    params, error = online.fit_decoder(jax.random.key(0), pairs, agent, config)
    outputs = agent.decoder.apply({"params": params}, latent)
    assert np.mean(BOX.score(BOX.mode(outputs), truth)) < 0.02 and error < 0.02
    # A share of each label is dealt to the whole box, so that there is something left to explore.
    drawn = np.asarray(BOX.sample(jax.random.key(1), outputs) - BOX.mode(outputs))
    assert 0.08 < np.std(drawn / np.array([2, 0.5])) < 0.4


def test_continuous_actors_start_as_the_decoder_and_pairs_hold_what_was_carried_out():
    model, policy = for_vectors(2)
    env = envs.Gymnax(Aim([9]), 4)
    agent = online.make_agent(policy, CONFIG, env.action_space)
    state = online.init(jax.random.key(3), CONFIG, policy, env)
    # A decoder that is far beyond the bounds: what it says is clipped, and its likelihood is not.
    last = state.frozen["decoder"][f"Dense_{len(CONFIG.decoder.hidden)}"]["linear"]
    last["bias"] = jnp.array([9.0, -9.0, 0.0, 0.0])
    obs = jnp.ones((3, 2))
    latent = cloning.predict_latents(policy, obs)
    outputs, _ = agent.apply(state.ppo.params, agent.encode(state.frozen, obs))
    np.testing.assert_allclose(outputs, agent.decoder.apply({"params": state.frozen["decoder"]}, latent), rtol=1e-5)
    rollout = ppo.Driver(agent, env).collect(state.ppo, state.frozen, keep_obs=True)
    np.testing.assert_array_equal(rollout.action, np.broadcast_to([2.0, 0.0], rollout.action.shape))
    sampled = rollout.batch.action
    assert sampled[:, 0].min() > 2 and sampled[:, 1].max() < 0
    held = agent.space.log_prob(agent.apply(state.ppo.params, rollout.batch.features)[0], sampled)
    np.testing.assert_allclose(rollout.batch.log_prob, held, rtol=1e-4, atol=1e-4)
    assert np.isfinite(rollout.batch.target).all()
    pairs = online.add_pairs(state.pairs, model, rollout.obs, rollout.action, rollout.done)
    written = int(pairs.written)
    np.testing.assert_array_equal(pairs.action[:written], rollout.action[1:-1].reshape(-1, 2))
