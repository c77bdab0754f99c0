import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import envs
from lamjax.envs import Gymnax
from lamjax.envs.evaluate import CHUNK, evaluate, evaluate_all, most_together, over_policies, side_by_side
from tests.envs.toys import Counter

LENGTHS = (3, 40, 7)  # the second is longer than a dispatch


def constant(policy, obs):
    """Logits that do not depend on what is seen."""
    return jnp.broadcast_to(policy, (obs.shape[0], 2))


def by_episode(policy, obs):
    """Action 1 in every other episode."""
    sign = 2 * (obs[:, 2] % 2) - 1
    return jnp.stack([-sign, sign], axis=-1) * 100


@pytest.fixture(scope="module")
def toy():
    return Gymnax(Counter(LENGTHS, [False, True, False]), 4)


def first_kinds(env, key):
    """Which kind of episode each environment starts with, as `evaluate` resets it."""
    return np.asarray(env.reset(jax.random.split(key)[0])[1].episode)


def test_counts_the_same_number_of_episodes_in_each_environment(toy):
    assert LENGTHS[1] > CHUNK
    key = jax.random.key(0)
    kinds = first_kinds(toy, key)
    assert len(set(kinds.tolist())) > 1  # environments that start with long and with short episodes
    returns, lengths = evaluate(constant, jnp.array([0.0, -100.0]), toy, 8, key)
    expected = [LENGTHS[(kind + k) % 3] for kind in kinds for k in range(2)]
    assert lengths.dtype == np.int32 and lengths.tolist() == expected
    assert returns.dtype == np.float32 and returns.tolist() == expected  # action 0 pays 1 a step


def test_short_episodes_are_not_favoured(toy):
    """With three episodes an environment every kind counts equally: the mean is the plain one."""
    returns, lengths = evaluate(constant, jnp.array([-100.0, 0.0]), toy, 12, jax.random.key(1))
    assert sorted(lengths.tolist()) == sorted(LENGTHS * 4)
    assert returns.mean() == pytest.approx(10 * np.mean(LENGTHS))


def test_returns_start_anew_with_each_episode(toy):
    key = jax.random.key(2)
    kinds = first_kinds(toy, key)
    returns, _ = evaluate(by_episode, None, toy, 16, key)
    episodes = np.array([[kind + k for k in range(4)] for kind in kinds]).ravel()
    pays = np.where(episodes % 2, 10, 1)
    assert returns.tolist() == [p * LENGTHS[e % 3] for p, e in zip(pays, episodes, strict=True)]


def test_greedy_takes_the_likeliest_and_sampling_draws_from_the_softmax():
    toy = Gymnax(Counter([100]), 4)
    logits = jnp.log(jnp.array([0.4, 0.6]))
    greedy, _ = evaluate(constant, logits, toy, 8, jax.random.key(0), greedy=True)
    assert greedy.tolist() == [1000] * 8
    sampled, lengths = evaluate(constant, logits, toy, 8, jax.random.key(0))
    assert lengths.tolist() == [100] * 8
    ones = (sampled.sum() / 800 - 1) / 9
    assert abs(ones - 0.6) < 5 * np.sqrt(0.24 / 800)
    assert len(set(sampled.tolist())) > 3  # environments and episodes draw on their own
    again, _ = evaluate(constant, logits, toy, 8, jax.random.key(0))
    np.testing.assert_array_equal(sampled, again)
    other, _ = evaluate(constant, logits, toy, 8, jax.random.key(1))
    assert (sampled != other).any()


def test_progress_counts_finished_episodes(toy):
    counts = []
    evaluate(constant, jnp.zeros(2), toy, 8, jax.random.key(0), progress=counts.append)
    assert counts[0] == 0 and counts == sorted(counts) and counts[-1] < 8


@pytest.mark.parametrize(("episodes", "nearest"), [(1, 4), (3, 4), (7, 8), (13, 12)])
def test_episodes_must_divide_among_the_environments(toy, episodes, nearest):
    message = rf"^episodes \({episodes}\) must be a multiple of the number of environments \(4\): ask for {nearest}\.$"
    with pytest.raises(ValueError, match=message):
        evaluate(constant, jnp.zeros(2), toy, episodes, jax.random.key(0))


def fifteen(policy, obs):
    return jnp.broadcast_to(policy, (obs.shape[0], 15))


def test_real_procgen_plays_the_same_levels_with_the_same_key():
    env = envs.make("bigfish", 2, num_threads=0)
    runs = [evaluate(fifteen, jnp.zeros(15), env, 4, jax.random.key(seed)) for seed in (3, 3, 4)]
    env.close()
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0][1] != runs[2][1]).any()
    for returns, lengths in runs:
        assert lengths.min() > 0 and returns.min() >= 0


# Several policies side by side


def threshold(policy, obs):
    """Logits of a tiny network: elementwise products and sums, so that no batch changes its rounding."""
    inputs = obs.reshape(obs.shape[0], -1).astype(jnp.float32)
    feature = jnp.sum(jnp.sin(inputs * policy["trunk"][None, : inputs.shape[1]]), -1, keepdims=True)
    return policy["head"][None] * feature


def players(count, actions, size, *, share):
    """Policies that differ in their heads, and in their trunks unless they share one."""
    rng = np.random.default_rng(count)
    trunk = jnp.asarray(rng.normal(size=size), jnp.float32)
    return [
        {
            "trunk": trunk if share else jnp.asarray(rng.normal(size=size), jnp.float32),
            "head": jnp.asarray(rng.normal(size=actions), jnp.float32),
        }
        for _ in range(count)
    ]


def alone_and_together(make, policies, greedy, episodes, key):
    """Returns and lengths of the policies one by one, and side by side."""
    env, wide = make(4), make(4 * len(policies))
    alone = [
        evaluate(threshold, policy, env, episodes, key, greedy=mode)
        for policy, mode in zip(policies, greedy, strict=True)
    ]
    together = evaluate_all(threshold, policies, env, episodes, key, greedy=greedy, wide=wide)
    env.close()
    wide.close()
    return [np.stack(column) for column in zip(*alone, strict=True)], together


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("name", "params", "actions", "size"),
    [
        ("bigfish", {"num_threads": 0}, 15, 64 * 64 * 3),
        ("maze", {"num_threads": 0, "distractor": "overlay"}, 15, 64 * 64 * 3),
        ("cartpole", {}, 2, 4),
        ("minatar/breakout", {"distractor": "jitter"}, 3, 400),
    ],
)
def test_side_by_side_each_policy_plays_exactly_what_it_plays_alone(name, params, actions, size, share):
    policies, greedy = players(3, actions, size, share=share), [False, True, False]
    make = lambda n: envs.make(name, n, **params)  # noqa: E731
    alone, together = alone_and_together(make, policies, greedy, 8, jax.random.key(5))
    np.testing.assert_array_equal(together[0], alone[0])
    np.testing.assert_array_equal(together[1], alone[1])
    assert len({lengths.tobytes() for lengths in together[1]}) > 1  # the policies differ


def glance(policy, obs):
    """`threshold` of every sixteenth pixel along both axes."""
    return threshold(policy, obs[:, ::16, ::16])


@pytest.mark.parametrize("count", [1, 2])
def test_few_environments_go_on_in_a_smaller_batch_with_the_same_results(count):
    """Of 8 environments the last 2 do; each plays what it plays beside the others."""
    policies, greedy, sizes = players(count, 15, 4 * 4 * 3, share=False), [False] * count, []

    def make(num_envs):
        sizes.append(num_envs)
        return envs.make("bigfish", num_envs, num_threads=0)

    def play(**options):
        env, wide = make(8), make(8 * count)
        with contextlib.closing(env), contextlib.closing(wide):
            return evaluate_all(glance, policies, env, 8, jax.random.key(6), greedy=greedy, wide=wide, **options)

    ours, theirs = play(), play(make=make, patience=0)
    assert sizes == [8, 8 * count, 8, 8 * count, 2 * count]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    longest = np.sort(ours[1])
    assert (longest[:, -1] > longest[:, -3] + CHUNK).all()  # two play on after the others


def test_policies_that_share_a_trunk_run_it_once_on_all_observations():
    alone = players(3, 5, 6, share=True)
    policies, axes = side_by_side(alone)
    assert axes == (0, None) and policies["head"].shape == (3, 5) and policies["trunk"] is alone[0]["trunk"]
    obs = jnp.ones((3, 4, 6))

    def logits(policy, obs):
        features = obs @ policy["trunk"][:, None]
        return features * policy["head"][None]

    outputs_of = jax.vmap(over_policies(logits, axes), ({"head": 0, "trunk": None}, 0))
    text = str(jax.make_jaxpr(outputs_of)(policies, obs))
    assert "scan" not in text and "f32[3,6]" not in text  # neither one by one, nor a copy of the trunk for each
    outputs = outputs_of(policies, obs)
    for number in range(3):
        np.testing.assert_allclose(outputs[number], logits(alone[number], obs[number]))
    apart, axes = side_by_side(players(3, 5, 6, share=False))
    assert axes == (0, 0)
    assert "scan" in str(jax.make_jaxpr(jax.vmap(over_policies(logits, axes)))(apart, obs))


def test_side_by_side_needs_an_environment_for_each(toy):
    with pytest.raises(ValueError, match=r"^2 policies in 4 environments each need 8, not 4\.$"):
        evaluate_all(constant, [jnp.zeros(2)] * 2, toy, 8, jax.random.key(0), greedy=[False] * 2)


def test_how_many_play_together_is_decided_by_the_machine():
    assert most_together(64, "cpu") == 1
    assert [most_together(num_envs, "gpu") for num_envs in (2, 64, 100, 4096)] == [16, 16, 10, 1]
