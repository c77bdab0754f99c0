"""Distractors change the frames and nothing else, as strongly as asked, and resume exactly."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import cli, envs, pipeline
from lamjax.config import RecordConfig
from lamjax.data import evaluation_actions, evaluation_distractor, open_store
from lamjax.data.record import record
from lamjax.envs import Disobedient, Distracted, Gymnax
from lamjax.envs.wrappers import MAX_SPEED
from lamjax.pipeline.evaluation import make_env
from lamjax.presets import PRESETS
from lamjax.training.run_folder import Run
from tests.envs.toys import Aim, Painter

N, STEPS, SIDE = 4, 60, 16
KINDS = ("overlay", "noise", "jitter")
KEY = jax.random.key(2)


@functools.partial(jax.jit, static_argnums=0)
def play(env, key, carry, actions):
    """Everything that ``step`` returns over int32 ``[T, N]`` actions, and the state that each step came to."""

    def step(carry, xs):
        key, action = xs
        obs, state, reward, terminated, truncated, info = env.step(key, carry[1], action)
        steps = {"obs": obs, "reward": reward, "terminated": terminated, "truncated": truncated, **info}
        if isinstance(env, Distracted):
            steps |= {"clean": state.clean, "state": state.distractor}
        return (obs, state), steps

    return jax.lax.scan(step, carry, (jax.random.split(key, len(actions)), actions))


def painter(lengths=(7, 11, 40)):
    return Gymnax(Painter(lengths), N)


def wrapped(kind, strength=0.25, env=None):
    return Distracted(env or painter(), kind, strength)


def actions(steps=STEPS):
    return np.random.default_rng(0).integers(0, 2, (steps, N)).astype(np.int32)


def history(env, count=STEPS):
    """First observation and state, and what followed, on the host."""
    obs, state = jax.jit(env.reset)(KEY)
    _, steps = play(env, KEY, (obs, state), actions(count))
    return np.asarray(obs), state, jax.device_get(steps)


@pytest.fixture(scope="module", params=KINDS)
def distracted(request):
    env = wrapped(request.param)
    return env, *history(env)


# The game underneath


def test_the_game_is_that_without_a_distractor(distracted):
    env, first, state, steps = distracted
    clean_first, _, clean = history(painter())
    np.testing.assert_array_equal(state.clean, clean_first)
    np.testing.assert_array_equal(steps["clean"], clean["obs"])
    for name in ("reward", "terminated", "truncated", "final_is_exact"):
        np.testing.assert_array_equal(steps[name], clean[name])
    assert (steps["terminated"]).sum() >= 10
    assert first.dtype == np.uint8 and first.shape == (N, *env.obs_shape)
    assert (first != clean_first).any((1, 2, 3)).all() and (steps["obs"] != clean["obs"]).any((2, 3, 4)).all()


def test_the_wrapper_is_a_vector_env(distracted):
    env = distracted[0]
    assert (env.name, env.num_envs, env.num_actions) == ("painter", N, 2)
    assert (env.obs_shape, env.obs_dtype) == ((16, 16, 3), jnp.uint8)
    assert env.env_params == {"distractor": env.kind, "distractor_strength": 0.25}
    assert env == Distracted(env.env, env.kind, 0.25) and hash(env) == hash(Distracted(env.env, env.kind, 0.25))
    assert env != Distracted(env.env, env.kind, 0.5)
    assert not hasattr(distracted[2], "level_seed")  # the painter has no levels


# What each kind does


def test_the_overlay_is_a_square_where_info_says():
    first, state, steps = history(wrapped("overlay"))
    side = 4  # a quarter of 16
    frames = np.concatenate([first[None], steps["obs"]])
    clean = np.concatenate([np.asarray(state.clean)[None], steps["clean"]])
    position = np.concatenate([np.asarray(state.distractor.position)[None], steps["distractor"][..., :2]])
    colour = np.concatenate([np.asarray(state.distractor.colour)[None], steps["state"].colour])
    for t in range(len(frames)):
        for n in range(N):
            y, x = np.round(position[t, n]).astype(int)
            expected = clean[t, n].copy()
            expected[y : y + side, x : x + side] = colour[t, n]
            np.testing.assert_array_equal(frames[t, n], expected)
    assert position.min() >= 0 and position.max() <= 16 - side


def test_the_overlay_moves_as_its_velocity_says_and_bounces():
    env = wrapped("overlay", 0.5, painter((1000,)))  # no episode ends
    _, state, steps = history(env, 300)
    overlay = np.concatenate(
        [np.concatenate([state.distractor.position, state.distractor.velocity], -1)[None], steps["distractor"]]
    )
    (position, velocity), room = np.split(overlay, 2, -1), 8
    moved = position[:-1] + velocity[:-1]
    mirrored = np.where(moved < 0, -moved, np.where(moved > room, 2 * room - moved, moved))
    np.testing.assert_allclose(position[1:], mirrored, atol=1e-5)
    bounced = (moved < 0) | (moved > room)
    assert bounced.sum() > 20
    kept = (np.abs(velocity[1:]) == np.abs(velocity[:-1])).all(-1)
    np.testing.assert_array_equal(velocity[1:][kept], np.where(bounced, -velocity[:-1], velocity[:-1])[kept])
    assert np.mean(~kept) == pytest.approx(0.25, abs=0.05)  # new velocities: what two frames do not tell
    assert 0.9 * 16 * MAX_SPEED < np.abs(velocity).max() <= 16 * MAX_SPEED
    assert len(np.unique(steps["state"].colour, axis=0)) == 1  # one colour an episode


@pytest.mark.parametrize("strength", [0.02, 0.06])
def test_noise_and_jitter_have_the_deviation_that_was_asked_for(strength):
    for kind in ("noise", "jitter"):
        env = wrapped(kind, strength, painter((5,)))
        _, _, steps = history(env, 100)  # grey from 40 up: next to nothing is clipped at these strengths
        added = steps["obs"].astype(float) - steps["clean"]
        assert added.std() == pytest.approx(255 * strength, rel=0.1)
        assert abs(added.mean()) < 0.1 * 255 * strength
        within = added.std((2, 3))  # over the pixels of a frame
        if kind == "jitter":
            assert within.max() == 0
            shifted = np.clip(np.round(steps["clean"] + steps["distractor"][:, :, None, None]), 0, 255)
            np.testing.assert_array_equal(steps["obs"], shifted)
        else:
            assert within.min() > 0.7 * 255 * strength
            assert steps["distractor"].shape == (100, N, 0)
        # New at every step, in every environment, and for every channel.
        flat = added.reshape(100, N, -1, 3)[:, :, :1]
        for axis in (0, 1, 3):
            assert np.abs(np.diff(flat, axis=axis)).mean() > 0.5 * 255 * strength


def test_strength_scales_the_overlay():
    for strength, side in ((0.25, 4), (0.5, 8), (1.0, 16), (0.001, 1)):
        obs, state = wrapped("overlay", strength).reset(KEY)
        assert ((np.asarray(obs) != np.asarray(state.clean)).any(-1).sum((1, 2)) == side**2).all()


def test_a_new_episode_gets_a_new_overlay():
    env = wrapped("overlay")
    _, state, steps = history(env)
    colour = np.concatenate([np.asarray(state.distractor.colour)[None], steps["state"].colour])
    ended = steps["terminated"]
    changed = (colour[1:] != colour[:-1]).any(-1)
    np.testing.assert_array_equal(changed, ended)


# The end of an episode


def test_an_exact_final_observation_carries_the_distractor_of_its_step():
    """The painter shows its last frame: the ground of that step under the overlay that was about to come."""
    env = wrapped("overlay")
    _, state, steps = history(env)
    before = np.concatenate([np.asarray(state.distractor.colour)[None], steps["state"].colour[:-1]])
    clean_final = history(painter())[2]["final_observation"]
    assert steps["final_is_exact"].all()
    for t, n in np.argwhere(steps["terminated"]):
        covered = (steps["final_observation"][t, n] != clean_final[t, n]).any(-1)
        assert covered.sum() == 16
        assert (steps["final_observation"][t, n][covered] == before[t, n]).all()
    going = ~steps["terminated"]
    np.testing.assert_array_equal(steps["final_observation"][going], steps["obs"][going])


# Saving and restoring


def test_a_saved_state_goes_on_exactly(distracted):
    env, _, state, steps = distracted
    half = STEPS // 2
    keys = jax.random.split(KEY, STEPS)
    step = jax.jit(env.step)
    carry = state
    for t in range(half):
        _, carry, *_ = step(keys[t], carry, actions()[t])
    saved = {name: np.array(leaf) for name, leaf in env.get_state(carry).items()}
    other = wrapped(env.kind)
    restored = other.set_state(saved)
    assert jax.tree.structure(restored) == jax.tree.structure(carry)
    jax.tree.map(np.testing.assert_array_equal, restored, carry)
    for t in range(half, half + 5):
        obs, restored, _, _, _, info = step(keys[t], restored, actions()[t])
        np.testing.assert_array_equal(obs, steps["obs"][t])
        np.testing.assert_array_equal(info["distractor"], steps["distractor"][t])


def test_distractors_follow_from_the_keys(distracted):
    env, first, _, steps = distracted
    again_first, _, again = history(env)
    np.testing.assert_array_equal(first, again_first)
    jax.tree.map(np.testing.assert_array_equal, steps, again)
    other, _ = env.reset(jax.random.key(9))
    assert (np.asarray(other) != first).any()
    assert len(np.unique(first.reshape(N, -1), axis=0)) == N  # environments have distractors of their own


# Procgen


@pytest.mark.parametrize("kind", KINDS)
def test_distracted_procgen_shows_the_last_seen_frame_and_resumes(kind):
    played = np.random.default_rng(1).integers(0, 15, (120, 2)).astype(np.int32)
    plain, env = (
        envs.make("bigfish", 2, num_threads=0, distractor=name, distractor_strength=0.2) for name in ("none", kind)
    )
    assert isinstance(plain, envs.Procgen) and isinstance(env, Distracted)
    assert env.env_params == {**plain.env_params, "distractor": kind, "distractor_strength": 0.2}
    first, state = env.reset(KEY)
    np.testing.assert_array_equal(state.level_seed, state.env.level_seed)
    (_, middle), steps = play(env, KEY, (first, state), played[:100])
    _, clean = play(plain, KEY, plain.reset(KEY), played[:100])
    steps, clean = jax.device_get((steps, clean))
    np.testing.assert_array_equal(steps["clean"], clean["obs"])
    np.testing.assert_array_equal(steps["reward"], clean["reward"])
    assert steps["terminated"].sum() >= 2
    frames = np.concatenate([np.asarray(first)[None], steps["obs"]])
    np.testing.assert_array_equal(steps["final_observation"], frames[:-1])
    saved = env.get_state(middle)
    _, expected = play(env, KEY, (frames[-1], middle), played[100:])
    _, resumed = play(env, KEY, (frames[-1], env.set_state(saved)), played[100:])
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)
    plain.close()
    env.close()


# Recording and runs


def test_a_demonstrator_does_not_see_the_distractor(tmp_path):
    """A policy that acts on what it sees plays as without; the store shows what it did not see."""

    def logits(policy, obs):
        bright = obs[:, 0, 0].astype(jnp.float32).sum(-1) - policy["border"]
        return jnp.stack([-bright, bright], axis=1)

    stores = []
    for kind, env in (("clean", painter()), ("jitter", wrapped("jitter"))):
        policy = {"border": jnp.float32(3 * 80)}
        record(tmp_path / kind, env, logits, policy, 400, KEY, source={"kind": "bright"})
        stores.append(open_store(tmp_path / kind))
    clean, distracted = stores
    every = np.arange(clean.num_frames)
    played = [evaluation_actions(store, every, length=2) for store in stores]
    np.testing.assert_array_equal(*played)
    assert 0.2 < played[0].mean() < 0.8
    np.testing.assert_array_equal(clean.episodes.length, distracted.episodes.length)
    assert np.mean(clean.observations_at(every) != distracted.observations_at(every)) > 0.8
    assert distracted.env_params == {"distractor": "jitter", "distractor_strength": 0.25}


def test_a_store_tells_where_the_overlay_is_in_each_frame(tmp_path):
    env = wrapped("overlay")
    record(tmp_path / "store", env, lambda params, obs: jnp.zeros((N, 2)), {}, 300, KEY, source={})
    store = open_store(tmp_path / "store")
    starts = store.starts("all")
    windows, corners = store.windows(starts), evaluation_distractor(store, starts)
    assert corners.shape == (len(starts), 2, env.distractor_dim) == (len(starts), 2, 2)
    for window, places in zip(windows, corners, strict=True):
        for frame, (y, x) in zip(window[1:], places.astype(int), strict=True):
            square = frame[y : y + 4, x : x + 4]
            assert square.shape[:2] == (4, 4) and (square == square[0, 0]).all()
    assert np.abs(np.diff(corners, axis=1)).max() > 0


def test_noise_has_no_state_to_tell(tmp_path):
    env = wrapped("noise")
    record(tmp_path / "store", env, lambda params, obs: jnp.zeros((N, 2)), {}, 64, KEY, source={})
    assert open_store(tmp_path / "store").distractor_dim == env.distractor_dim == 0


def test_jitter_tells_its_shift():
    env = wrapped("jitter")
    _, state = env.reset(KEY)
    np.testing.assert_array_equal(env.distractor_state(state), state.distractor.shift)
    assert env.distractor_dim == 3


def test_a_run_records_under_its_distractor(tmp_path):
    config = dataclasses.replace(
        PRESETS["smoke"],
        record=RecordConfig(frames=64, num_envs=2, distractor="overlay", distractor_strength=0.125),
    )
    with Run(tmp_path / "run", "maze", config, {}) as run:
        store = pipeline.record_stage(run, pipeline.find_source("maze", "random", tmp_path, 15), tmp_path / "data")
    assert store.path.name == "random-64-s0-overlay0.125"
    assert (store.env_params["distractor"], store.env_params["distractor_strength"]) == ("overlay", 0.125)
    environments = [make_env("maze", 2, config, distracted=distracted) for distracted in (True, False)]
    assert [type(env) for env in environments] == [Distracted, envs.Procgen]
    assert type(make_env("maze", 2, PRESETS["smoke"])) is envs.Procgen  # off by default
    assert all(preset.record.distractor == "none" for preset in PRESETS.values())


def test_demonstrators_are_measured_and_trained_without_the_distractor(tmp_path, monkeypatch):
    config = dataclasses.replace(PRESETS["smoke"], record=RecordConfig(distractor="noise"))
    played = {}

    def evaluate_policy(run, label, *args, distracted=True, **kwargs):
        played[label] = distracted
        return {"return_mean": 0.0, "return_stderr": 0.0, "episodes": 1}

    monkeypatch.setattr(pipeline.baselines, "evaluate_policy", evaluate_policy)
    source = pipeline.Source("checkpoint", lambda params, obs: obs, {}, {})
    with Run(tmp_path / "run", "maze", config, {}) as run:
        pipeline.baselines_stage(run, source, 15)
    assert played == {"the random policy": True, "the recorded policy (checkpoint)": False}

    trained = []

    def scratch_stage(run, stage, *args):
        trained.append((stage, run.config.record.distractor))
        run.finish(stage, dict.fromkeys(("return_mean", "return_stderr", "episodes", "normalised", "frames"), 0))

    monkeypatch.setattr(pipeline.expert, "scratch_stage", scratch_stage)
    argv = ["expert", "--env", "maze", "--preset", "smoke", "--record.distractor", "noise"]
    assert cli.main([*argv, "--runs", str(tmp_path)]) == 0
    assert trained == [("expert", "none")]


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wrapped("fog"), "distractor must be one of none, overlay, noise, jitter, not 'fog'"),
        (lambda: wrapped("none"), "is no distractor"),
        (lambda: wrapped("noise", 0.0), "distractor_strength must be above 0 and at most 1, not 0.0"),
        (lambda: wrapped("noise", 1.5), "at most 1, not 1.5"),
        (lambda: wrapped("noise", float("nan")), "at most 1, not nan"),
        (lambda: envs.make("cartpole", 2, distractor="noise"), r"needs uint8 frames, and cartpole shows float32"),
        (lambda: envs.make("coinrun", 2, distractor="fog"), "must be one of"),
        (lambda: RecordConfig(distractor="noise", distractor_strength=0), "must be above 0"),
    ],
)
def test_what_cannot_be_distracted_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Actions that are not obeyed


def disobeyed(steps=200, **chances):
    """The environment, the actions that were chosen, and what followed on the host."""
    env, chosen = Disobedient(painter(), **chances), actions(steps)
    obs, state = jax.jit(env.reset)(KEY)
    np.testing.assert_array_equal(state.executed, -1)
    return env, chosen, jax.device_get(play(env, KEY, (obs, state), chosen)[1])


def test_what_is_executed_is_what_the_game_plays():
    _, _, steps = disobeyed(sticky=0.3, random=0.3)
    first = jax.jit(painter().reset)(KEY)
    plain = jax.device_get(play(painter(), KEY, first, steps["executed_action"])[1])
    for name in ("obs", "reward", "terminated", "truncated", "final_observation"):
        np.testing.assert_array_equal(steps[name], plain[name])


def test_without_chances_every_action_is_obeyed():
    _, chosen, steps = disobeyed()
    np.testing.assert_array_equal(steps["executed_action"], chosen)


def test_sticky_actions_repeat_what_was_done_before_but_not_across_episodes():
    _, chosen, steps = disobeyed(sticky=1.0)
    before = np.concatenate([np.ones((1, N), bool), (steps["terminated"] | steps["truncated"])[:-1]])
    executed = steps["executed_action"]
    np.testing.assert_array_equal(executed[before], chosen[before])
    np.testing.assert_array_equal(executed[1:][~before[1:]], executed[:-1][~before[1:]])
    _, chosen, steps = disobeyed(steps=1000, sticky=0.4)
    kept = (steps["executed_action"] == chosen).mean()
    assert kept == pytest.approx(1 - 0.4 / 2, abs=0.03)  # of two actions a repeated one is the chosen one by chance


@pytest.mark.parametrize("chance", [0.4, 1.0])
def test_random_actions_replace_as_many_as_they_should(chance):
    _, chosen, steps = disobeyed(steps=1000, random=chance)
    assert (steps["executed_action"] == chosen).mean() == pytest.approx(1 - chance / 2, abs=0.03)


def test_a_saved_disobedient_environment_goes_on_bit_equally():
    env = Disobedient(painter(), sticky=0.5)
    (obs, state), _ = play(env, KEY, jax.jit(env.reset)(KEY), actions(10))
    again = env.set_state(env.get_state(state))
    jax.tree.map(np.testing.assert_array_equal, again, jax.device_get(state))
    key = jax.random.key(5)
    following = [jax.device_get(play(env, key, (obs, each), actions(20))[1]) for each in (state, again)]
    jax.tree.map(np.testing.assert_array_equal, *following)


def test_equal_disobedient_environments_compile_once():
    plain = painter()
    assert Disobedient(plain, sticky=0.5) == Disobedient(plain, sticky=0.5).stepper
    assert hash(Disobedient(plain, sticky=0.5)) == hash(Disobedient(plain, sticky=0.5))
    assert Disobedient(plain, sticky=0.5) != Disobedient(plain, random=0.5)


@pytest.mark.parametrize("chances", [{"sticky": -0.1}, {"random": 1.1}])
def test_chances_must_be_probabilities(chances):
    with pytest.raises(ValueError, match=f"{next(iter(chances))} must be a probability"):
        Disobedient(painter(), **chances)


def test_continuous_actions_are_always_obeyed():
    with pytest.raises(ValueError, match=r"^Only discrete actions [^\n]*, and aim takes continuous [^\n]*\.$"):
        Disobedient(Gymnax(Aim([3]), N), sticky=0.5)
