"""Pieces of the pipeline that a whole run would not notice: what it runs on, and what it keeps in memory."""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from lamjax import cloning, dynamics, parallel, pipeline, policies, ppo
from lamjax.analysis import examine
from lamjax.config import NamedConfig, RunConfig, ScratchConfig
from lamjax.data import Buffer, LabelledSubset, StoreWriter, open_store, sample_labelled, upload_labels, valid_starts
from lamjax.decoding import behaviour_cloning, offline
from lamjax.decoding import online as online_decoding
from lamjax.decoding.online import DecoderConfig, OnlineConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.pipeline import pseudo_labels, windows
from lamjax.pipeline.checks import check_shares
from lamjax.ppo import PPOConfig
from lamjax.presets import PRESETS, VECTOR_PRESETS
from lamjax.spaces import Box, Discrete
from lamjax.training import checkpoint, driver, steps
from lamjax.training.run_folder import InterruptedRunError, Run, RunError, stage_key
from tests.trees import close

SMALL = ImpalaConfig(channels=(8,), strides=(4,), blocks=0, features=8, stem=4, pool=False)
CONVOLVES = dataclasses.replace(
    PRESETS["smoke"],
    dynamics=dataclasses.replace(
        PRESETS["smoke"].dynamics,
        idm=SMALL,
        fdm=dataclasses.replace(PRESETS["smoke"].dynamics.fdm, channels=(8,), bottleneck=8, stem=16),
    ),
    cloning=dataclasses.replace(PRESETS["smoke"].cloning, trunk=SMALL),
)


def test_still_windows_show_the_middle_frame_alone():
    windows = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8, 3), np.uint8)
    still = examine.still(windows)
    assert still.shape == windows.shape
    for frame in range(3):
        np.testing.assert_array_equal(still[:, frame], windows[:, 1])
    assert np.shares_memory(still, windows)
    longer = examine.still(np.concatenate([windows[:, :1], windows], axis=1))
    np.testing.assert_array_equal(longer, windows[:, 1:2].repeat(4, axis=1))  # o_t is the last frame but one


@pytest.mark.parametrize(("n", "count"), [(1, 1), (3, 1), (1, 2)])
@pytest.mark.parametrize("stage", ["dynamics", "cloning"])
def test_training_stays_on_the_device_and_is_traced_once(stage, n, count, monkeypatch):
    config, obs, key = CONVOLVES, (64, 64, 3), jax.random.key(0)
    devices = tuple(jax.local_devices()[:count])
    state = driver.jit_once(dynamics.init, static_argnums=(1, 2))(key, config.dynamics, obs)
    advance = driver.compile_steps(steps.dynamics_step, devices, (None, 0, 0, None, None))
    lengths = parallel.replicate(steps.traced(getattr(config, stage).lengths), devices)
    last, static = (None, key, lengths), ()  # no labels
    if stage == "cloning":
        latents = jax.device_put(np.zeros((100, config.dynamics.latent_dim), np.float32))
        last, static = (key, latents, lengths), (config.dynamics.window,)
        state = driver.jit_once(cloning.init, static_argnums=(1, 2, 3))(
            key, config.cloning, obs, config.dynamics.latent_dim
        )
        advance = driver.compile_steps(steps.cloning_step, devices, (None, 0, None, None, None), 1)
    frames = np.random.default_rng(0).integers(0, 256, (100, *obs), np.uint8)
    buffer = parallel.deal([jax.device_put(Buffer(frames, valid_starts(np.arange(100) % 25 == 0)))] * count, devices)
    state, last = parallel.replicate((state, last), devices)
    module = {"dynamics": dynamics, "cloning": cloning}[stage]
    traced, train_step = [], module.train_step
    monkeypatch.setattr(module, "train_step", lambda *a, **k: traced.append(1) or train_step(*a, **k))
    with jax.transfer_guard("disallow"):
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            state.step + 1  # the guard is on, also on a CPU
        for _ in range(3):
            state, metrics = advance(state, buffer, *last, *static, n)
        jax.block_until_ready(metrics)
    assert int(state.step) == 3 * n
    assert np.isfinite(metrics["loss"])
    assert len(traced) == 1


# Several devices


LABELS = {"action_weight": 0.5, "labelled": 12, "labelled_batch": 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """40 episodes of 20 steps in the plane: an action says where the next one goes."""
    rng, moves = np.random.default_rng(0), np.array([(1, 0, 0, 0), (0, -1, 0, 0)])
    path = tmp_path_factory.mktemp("walks") / "store"
    with StoreWriter(path, env="cartpole", obs_shape=(4,), obs_dtype="float32", num_actions=2) as writer:
        for level in range(40):
            actions = rng.integers(2, size=20)
            walked = np.cumsum(moves[actions], 0) + rng.normal(size=(20, 4)) / 9
            writer.append_episode(walked.astype(np.float32), actions, np.zeros(20), level, "terminated")
    return open_store(path)


def settings(*, steps: int = 40, labels: bool = False, **changes) -> RunConfig:
    """A run on vectors, whose stages fuse: seconds, most of them compilation."""
    config, stage_1 = VECTOR_PRESETS["smoke"], {"steps": steps, "batch_size": 4, **(LABELS if labels else {})}
    return dataclasses.replace(
        config,
        dynamics=dataclasses.replace(config.dynamics, **stage_1),
        cloning=dataclasses.replace(config.cloning, steps=10, batch_size=4),
        analysis=dataclasses.replace(config.analysis, probe_test=16),
        checkpoint_every=1000.0,
        **changes,
    )


@contextlib.contextmanager
def open_run(folder, config, count, env="cartpole"):
    with Run(folder, env, config, {}) as run:
        run.devices = tuple(jax.local_devices()[:count])
        yield run


@pytest.fixture
def briefly(monkeypatch):
    """Stages that only train."""
    monkeypatch.setattr(pipeline.dynamics, "examine_dynamics", lambda *args: {})
    monkeypatch.setattr(pipeline.reinforcement, "finish_ppo", lambda run, stage, *args, **counts: run.finish(stage, {}))


def test_stages_on_two_devices_are_those_of_one_on_the_joined_batch(store, tmp_path, briefly):
    count = 10
    config = settings(steps=count, labels=True)
    with open_run(tmp_path, config, 2) as run:
        untrained = pipeline.dynamics.init_dynamics(run, store)
        model = pipeline.dynamics_stage(run, store)
        policy = pipeline.cloning_stage(run, store, model)
        subset = LabelledSubset(store, 12, seed=run.config.seed)
        stream = [windows.training_stream(run, store, 4, run.config.seed + k, 1) for k in range(3)]
        nothing = np.zeros((2, model.config.latent_dim), np.float32)
        decoder, _ = offline.fit(jax.random.key(0), nothing, np.arange(2), config.offline, 2)
        frames, key = windows.TrainingFrames(run, store), jax.random.key(1)
        clone = pseudo_labels.clone_pseudo_labels(run, "named", key, model, decoder, frames, (4,), 2)
    labels = jax.device_get(upload_labels(subset, run.devices))
    labels = [jax.tree.map(lambda x, d=d: jax.device_put(x[d]), labels) for d in (0, 1)]

    def joined(stream, step):
        return np.concatenate(np.asarray(stream.windows(step)))

    def labelled(step):
        parts = [sample_labelled(labels[d], stream[0].key, step, 4, axis_index=d, axis_size=2) for d in (0, 1)]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    step, state = jax.jit(dynamics.train_step), untrained.replace(config=config.dynamics)
    for number in range(count):
        state, metrics = step(state, joined(stream[0], number), tuple(labelled(number)))
    assert metrics["action_loss"] > 0
    close((model.params, model.codebooks), (state.params, state.codebooks), rtol=1e-3, atol=1e-5)

    infer, step = jax.jit(dynamics.infer_latents), jax.jit(cloning.train_step)
    expected = driver.jit_once(cloning.init, static_argnums=(1, 2, 3))(
        stage_key(config.seed, "cloning"), config.cloning, (4,), model.config.latent_dim, model.obs_stats
    )
    for number in range(config.cloning.steps):
        batch = joined(stream[1], number)
        expected, _ = step(expected, batch[:, -2], infer(model, batch).continuous)
    close(policy.params, expected.params, rtol=1e-3, atol=1e-5)

    step = jax.jit(behaviour_cloning.train_step)
    pseudo_labels_of = jax.jit(behaviour_cloning.pseudo_labels, static_argnums=(2, 3))
    expected = pseudo_labels.init_clone(jax.random.key(1), config.cloning, 2, (4,), True, model.obs_stats)
    for number in range(config.cloning.steps):
        batch = joined(stream[2], number)
        actions = pseudo_labels_of(decoder, infer(model, batch).continuous, config.offline, 2)
        expected, _ = step(expected, batch[:, -2], actions)
    close(clone.policy_params, expected.policy_params, rtol=1e-3, atol=1e-5)


def test_a_short_clone_of_pseudo_labels_begins_with_the_trunk_of_the_latent_policy(store, tmp_path, briefly):
    config = settings(steps=2)
    with open_run(tmp_path, config, 1) as run:
        model = pipeline.dynamics_stage(run, store)
        policy = pipeline.cloning_stage(run, store, model)
        nothing = np.zeros((2, model.config.latent_dim), np.float32)
        decoder, _ = offline.fit(jax.random.key(0), nothing, np.arange(2), config.offline, 2)
        frames, key = windows.TrainingFrames(run, store), jax.random.key(1)
        args = run, "relabel", key, model, decoder, frames, (4,), 2
        clone = pseudo_labels.clone_pseudo_labels(*args, policy=policy, steps=3)
        stream = windows.training_stream(run, store, 4, run.config.seed + 2, 1)
        batches = [np.asarray(stream.windows(number)) for number in range(3)]

    # Fewer steps, the same warm-up in proportion, and another start.
    shorter = dataclasses.replace(config.cloning, steps=3, warmup_steps=0)
    expected = pseudo_labels.init_clone(key, shorter, 2, (4,), True, model.obs_stats)
    assert expected.params.keys() == {"MLPTrunk_0", "policy_head", "value_head"}
    expected = expected.replace(params=expected.params | {"MLPTrunk_0": policy.params["trunk_net"]})
    step = jax.jit(behaviour_cloning.train_step)
    infer = jax.jit(dynamics.infer_latents)
    pseudo_labels_of = jax.jit(behaviour_cloning.pseudo_labels, static_argnums=(2, 3))
    for batch in batches:
        actions = pseudo_labels_of(decoder, infer(model, batch).continuous, config.offline, 2)
        expected, _ = step(expected, batch[:, -2], actions)
    assert clone.step == 3
    close(clone.policy_params, expected.policy_params, rtol=1e-4, atol=1e-6)


def test_stages_that_share_frames_infer_latents_once_for_each_model(store, tmp_path, briefly, monkeypatch):
    inferred, infer = [], windows.infer_store
    monkeypatch.setattr(windows, "infer_store", lambda model, *a, **k: inferred.append(model) or infer(model, *a, **k))
    with open_run(tmp_path, settings(steps=2), 1) as run:
        model = pipeline.dynamics_stage(run, store)
        frames = windows.TrainingFrames(run, store)
        pipeline.cloning_stage(run, store, model, frames)
        nothing = np.zeros((2, model.config.latent_dim), np.float32)
        decoder, _ = offline.fit(jax.random.key(0), nothing, np.arange(2), run.config.offline, 2)
        pseudo_labels.clone_pseudo_labels(run, "named", jax.random.key(1), model, decoder, frames, (4,), 2)
        assert len(inferred) == 1
        frames.free()  # frees the device, and keeps what is in host memory
        before = frames.latents(model)
        assert len(inferred) == 1
        other = model.replace(params=jax.tree.map(lambda x: 2 * x, model.params))
        assert not np.allclose(frames.latents(other), before) and len(inferred) == 2


def test_pseudo_labels_know_one_action_for_each_effect():
    actions, box = np.arange(15), Box((-1.0,), (1.0,))
    # Fruitbot moves only sideways: actions 0 to 2 move left, 6 to 8 right, 9 shoots, the others do nothing.
    expected = [1, 1, 1, 4, 4, 4, 7, 7, 7, 9, 4, 4, 4, 4, 4]
    np.testing.assert_array_equal(pseudo_labels.same_effect("fruitbot", actions, Discrete(15)), expected)
    np.testing.assert_array_equal(pseudo_labels.same_effect("cartpole", actions[:2], Discrete(2)), [0, 1])
    assert pseudo_labels.same_effect("pendulum", np.ones((2, 1)), box).tolist() == [[1.0], [1.0]]


def test_relabelling_merges_effects_and_fits_its_decoder_with_noise(store, tmp_path, briefly):
    config = settings(steps=2)
    changes = {"steps": 300, "learning_rate": 1e-2, "noise": 100.0, "relabel_steps": 3, "relabel_hidden": (4,)}
    config = dataclasses.replace(config, offline=dataclasses.replace(config.offline, **changes))
    with open_run(tmp_path, config, 1) as run:
        model = pipeline.dynamics_stage(run, store)
        policy = pipeline.cloning_stage(run, store, model)
        frames, space = windows.TrainingFrames(run, store), Discrete(2)
        labelled = pipeline.offline.draw_labels(run, store, model, policy, 64, 0)
        key = jax.random.fold_in(run.key("offline"), 64)

        def relabelled():
            chunk = [offline.Candidate(0, 64, "relabel", ("sampled",))]
            return pipeline.offline.offline_policies(run, chunk, labelled, model, policy, frames, space)[1][0]

        def by_hand(name, actions, decoder_settings):
            decoder, _ = offline.fit(key, labelled.latents["idm"], actions, decoder_settings, space)
            args = run, name, key, model, decoder, frames, (4,), space
            return pseudo_labels.clone_pseudo_labels(*args, policy=policy, steps=3).policy_params

        noisy, certain = (dataclasses.replace(config.offline.pseudo_labels, noise=noise) for noise in (100.0, 0.0))
        ours = relabelled()
        close(ours, by_hand("noisy", labelled.actions, noisy), rtol=1e-3, atol=1e-5)
        with pytest.raises(AssertionError):
            close(ours, by_hand("certain", labelled.actions, certain), rtol=1e-3, atol=1e-5)
        shutil.rmtree(run.folder / "checkpoints")
        run.config = dataclasses.replace(config, offline=dataclasses.replace(config.offline, noise=0.0))
        run.env = "fruitbot"  # there, both actions move left
        close(relabelled(), by_hand("merged", np.ones(64, np.int32), certain), rtol=1e-3, atol=1e-5)


def interrupted(patch, module, name, calls):
    """Sends the run a signal when a function is called for the so many-th time."""
    original, count = getattr(module, name), itertools.count(1)

    def function(*args, **kwargs):
        if next(count) == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    patch.setattr(module, name, function)


def saved(folder, stage):
    """Step, shapes and digests of the newest checkpoint."""
    step, arrays, note = checkpoint.restore_arrays(folder / "checkpoints" / stage)
    return step, {name: array.shape for name, array in arrays.items()}, note["digests"]


RING = settings(ring_frames=320)


@pytest.fixture(scope="module")
def on_rings(store, tmp_path_factory):
    """Stage 1 on one device and on two, uninterrupted, with half of the frames in memory or less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.dynamics, "examine_dynamics", lambda *args: {})
        checkpoints = {}
        for count in (1, 2):
            folder = tmp_path_factory.mktemp(f"ring{count}")
            with open_run(folder, RING, count) as run:
                stream = windows.training_stream(run, store, 4, 0, 25)
                assert stream.steps_per_phase == {1: 5, 2: 15}[count]  # rows cut dispatches of 25 to 5 steps
                pipeline.dynamics_stage(run, store)
            checkpoints[count] = saved(folder, "dynamics")
        return checkpoints


def test_a_share_of_random_play_needs_random_play(store, tmp_path, briefly):
    config = settings()
    config = dataclasses.replace(config, dynamics=dataclasses.replace(config.dynamics, play_share=0.5))
    with open_run(tmp_path, config, 1) as run, pytest.raises(RunError, match="needs random play"):
        pipeline.dynamics_stage(run, store)


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_on_a_ring_resumes_exactly(count, store, on_rings, tmp_path, briefly, monkeypatch):
    with monkeypatch.context() as patch, open_run(tmp_path, RING, count) as run:
        interrupted(patch, pipeline.dynamics, "held_out_errors", 2)  # at step 20; the next dispatch ends at 25
        with pytest.raises(InterruptedRunError):
            pipeline.dynamics_stage(run, store)
    assert saved(tmp_path, "dynamics")[0] == 25
    with open_run(tmp_path, RING, count) as run:
        pipeline.dynamics_stage(run, store)
    assert saved(tmp_path, "dynamics") == on_rings[count]


def test_a_run_on_two_devices_may_be_resumed_on_one(store, on_rings, tmp_path, briefly, monkeypatch):
    with monkeypatch.context() as patch, open_run(tmp_path, RING, 2) as run:
        interrupted(patch, pipeline.dynamics, "held_out_errors", 1)
        with pytest.raises(InterruptedRunError):
            pipeline.dynamics_stage(run, store)
    assert saved(tmp_path, "dynamics")[:2] == (15, on_rings[1][1])  # one form
    with open_run(tmp_path, RING, 1) as run:
        model = pipeline.dynamics_stage(run, store)
    assert saved(tmp_path, "dynamics")[0] == int(model.step) == 40
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model.params))


def with_ppo(config: RunConfig, stage: str, **changes) -> RunConfig:
    part = getattr(config, stage)
    return dataclasses.replace(
        config, **{stage: dataclasses.replace(part, ppo=dataclasses.replace(part.ppo, **changes))}
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            dataclasses.replace(settings(), cloning=dataclasses.replace(settings().cloning, batch_size=5)),
            "^--cloning.batch-size is 5 over all devices, which does not divide by their number, 2: choose a multiple",
        ),
        (with_ppo(settings(), "scratch", num_envs=9, num_minibatches=1), "^--scratch.ppo.num-envs is 9 over all"),
        (
            with_ppo(settings(), "online", num_envs=4, num_steps=3, num_minibatches=4),
            r"^--online.ppo: the 2 environments of a device, times num-steps \(3\), do not divide into",
        ),
    ],
)
def test_what_does_not_divide_by_the_devices_is_refused_at_once(config, message):
    with pytest.raises(ValueError, match=message):
        check_shares(config, jax.local_devices()[:2])


PPO = PPOConfig(total_frames=4 * 64, num_envs=8, num_steps=8, num_epochs=2, num_minibatches=2)


def online(run: Run) -> None:
    """Stage 3 of models that were not trained, on real Procgen: networks that convolve take a loop on the host."""
    config, key = run.config, jax.random.key(0)
    model = driver.jit_once(dynamics.init, static_argnums=(1, 2))(key, config.dynamics, (64, 64, 3))
    policy = driver.jit_once(cloning.init, static_argnums=(1, 2, 3))(
        key, config.cloning, (64, 64, 3), config.dynamics.latent_dim
    )
    pipeline.online_stage(run, model, policy)


def scratch(run: Run) -> None:
    pipeline.scratch_stage(run, "ppo_scratch", run.config.scratch)


DECODER = DecoderConfig(start=0.0, dense_until=1.1, stop=1.1, batch_size=32, capacity=256)
ON_DEVICES = {
    "ppo_scratch": (settings(scratch=ScratchConfig(settings().scratch.trunk, PPO)), "cartpole", scratch, "update"),
    "decode_online": (
        dataclasses.replace(CONVOLVES, online=OnlineConfig(PPO, DECODER)),
        "coinrun",
        online,
        "update",
    ),
}


@pytest.fixture
def go_on(tmp_path, briefly):
    """Runs a stage on so many devices in a folder, from where it stopped; its newest checkpoint."""

    def run(stage, folder, count):
        config, env, run_stage, _ = ON_DEVICES[stage]
        with open_run(tmp_path / folder, config, count, env) as opened:
            run_stage(opened)
        return saved(tmp_path / folder, stage)

    def stopped(stage, folder):
        module = ppo.Driver if stage == "ppo_scratch" else online_decoding
        with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedRunError):
            interrupted(patch, module, ON_DEVICES[stage][-1], 2)
            run(stage, folder, 2)
        assert saved(tmp_path / folder, stage)[0] == 2

    run.stopped = stopped
    return run


@pytest.mark.parametrize("stage", ON_DEVICES)
def test_ppo_on_two_devices_resumes_exactly(stage, go_on, tmp_path):
    whole = go_on(stage, "whole", 2)
    assert whole[0] == PPO.num_updates == 4
    go_on.stopped(stage, "stopped")
    assert go_on(stage, "stopped", 2) == whole
    if stage == "decode_online":
        arrays = checkpoint.restore_arrays(tmp_path / "whole" / "checkpoints" / stage)[1]
        assert arrays["pairs.written"] == 4 * (PPO.num_steps - 2) * PPO.num_envs  # of both devices


def test_ppo_on_two_devices_goes_on_with_one(go_on):
    """The same environments with other draws of actions; the state has one form."""
    whole = go_on("ppo_scratch", "whole", 2)
    go_on.stopped("ppo_scratch", "moved")
    step, shapes, digests = go_on("ppo_scratch", "moved", 1)
    assert (step, shapes) == whole[:2] and digests != whole[2]


# Pseudo-labels of a decoder that random play fits


NAMED = settings(
    named=NamedConfig(512, dataclasses.replace(PPO, total_frames=512 + 256, learning_rates=(("", ((0.0, 1e-3),)),)))
)


def decode_named(folder, store, config=NAMED):
    with open_run(folder, config, 1) as run:
        model = pipeline.dynamics.init_dynamics(run, store)
        pipeline.pseudo_label_stage(run, store, model, store.action_space)
        return run.summary["stages"]["decode_named"]


@pytest.fixture(scope="module")
def decoded(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    return folder, decode_named(folder, store)


def test_random_play_labels_the_recording(decoded, store):
    folder, results = decoded
    played = open_store(folder / "play")
    assert played.num_frames == 512 and played.policy["kind"] == "random"
    assert results["frames"] == 512 + 256
    assert results["frames_per_s"] == pytest.approx(256 / results["seconds"])  # of PPO alone
    assert [frames for frames, _ in results["curve"]][-1] == 512 + 256
    final, clone = (policies.load_policy(folder / "policies" / name) for name in ("decode_named", "named"))
    assert final[0] == clone[0] and results["start_return"] == clone[2]["return_mean"]
    # PPO goes on from the clone's weights; how observations are standardised is not among what it trains.
    close(final[1]["obs_stats"], clone[1]["obs_stats"])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), final[1], clone[1])
    assert 0 < moved["policy_head"]["kernel"] < 0.1
    before = saved(folder, "decode_named")
    assert decode_named(folder, store) == results and saved(folder, "decode_named") == before


def test_a_policy_names_only_the_start_of_its_own_training(decoded, tmp_path):
    folder = shutil.copytree(decoded[0], tmp_path / "copy")
    with open_run(folder, NAMED, 1) as run:
        assert run.summary["start"]["stage"] == "named"
        scratch(run)
    clone, other = (policies.load_policy(folder / "policies" / name)[2] for name in ("decode_named", "ppo_scratch"))
    assert clone["start"] == run.summary["start"] and "start" not in other
    assert clone.keys() - other.keys() == {"start"}


def test_random_play_has_one_label_for_each_effect_and_a_fit_with_noise(store, tmp_path, monkeypatch):
    fits, fit = [], offline.fit
    monkeypatch.setattr(offline, "fit", lambda *args: fits.append(args) or fit(*args))
    monkeypatch.setattr(pseudo_labels.envs, "representatives", lambda env, count: (1,) * count)
    settings_of_decoder = dataclasses.replace(NAMED.offline, noise=2.0, relabel_hidden=(4,), learning_rate=0.1)
    cloning_settings = dataclasses.replace(NAMED.cloning, steps=100, learning_rate=1e-2)
    decode_named(tmp_path, store, dataclasses.replace(NAMED, offline=settings_of_decoder, cloning=cloning_settings))
    (_, latents, actions, used, space), *others = fits
    assert not others and space == Discrete(2)
    assert len(latents) == len(actions) > 400 and set(actions) == {1}  # uniform play draws both
    assert (used.noise, used.hidden) == (2.0, (4,))
    policy, params, _ = policies.load_policy(tmp_path / "policies" / "named")
    assert (np.asarray(policy(params, np.zeros((1, 4), np.float32))).argmax(-1) == 1).all()


@pytest.mark.parametrize(("module", "name", "calls"), [(driver, "compile_steps", 1), (ppo.Driver, "update", 2)])
def test_the_pseudo_label_stage_resumes_exactly(module, name, calls, decoded, store, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        interrupted(patch, module, name, calls)
        decode_named(tmp_path, store)
    assert (tmp_path / "policies" / "named").exists() == (name == "update")
    assert decode_named(tmp_path, store)["return_mean"] == decoded[1]["return_mean"]
    for stage in ("named", "decode_named"):
        assert saved(tmp_path, stage) == saved(decoded[0], stage)


def test_stages_share_one_upload_of_the_frames(store, tmp_path):
    with open_run(tmp_path, settings(), 2) as run:
        frames = windows.TrainingFrames(run, store)
        first, second = frames.stream(4, 0, 1), frames.stream(8, 1, 1)
        assert first.buffer(0) is second.buffer(0)
        np.testing.assert_array_equal(second.windows(3), windows.training_stream(run, store, 8, 1, 1).windows(3))
        frames.free()
        assert frames.stream(4, 0, 1).buffer(0) is not first.buffer(0)
    with open_run(tmp_path / "ring", RING, 1) as run:
        frames = windows.TrainingFrames(run, store)
        first, second = frames.stream(4, 0, 25), frames.stream(4, 1, 25)
        assert first.steps_per_phase and first.buffer(0).frames is not second.buffer(0).frames


def test_clones_of_labels_see_the_rows_of_the_runs_seed(store, tmp_path):
    """They are the clones of a loop that takes each batch from the host, of the first labels alone."""
    rng, key = np.random.default_rng(3), jax.random.key(1)
    obs, actions = rng.normal(size=(9, 4)).astype(np.float32), rng.integers(2, size=9).astype(np.int32)
    with open_run(tmp_path, settings(), 1) as run:
        config = run.config
        clone = pipeline.offline.clone_labels(run, key, jax.device_put(obs), actions, 6, 2)
    state = pseudo_labels.init_clone(key, config.cloning, 2, (4,), False, None)
    rows, step = np.random.default_rng(config.seed), jax.jit(behaviour_cloning.train_step)
    for _ in range(config.offline.bc_steps):
        batch = rows.integers(6, size=config.cloning.batch_size)
        state, _ = step(state, obs[batch], actions[batch])
    close(clone.policy_params, state.policy_params, rtol=1e-5, atol=1e-6)


def test_random_play_leaves_frames_for_ppo():
    with pytest.raises(ValueError, match=r"^named.frames \(768\) must leave PPO at least one update"):
        dataclasses.replace(NAMED.named, frames=768)


# Several hosts


HOST = """
import os, signal, sys
from lamjax.analysis import diagnosis
from lamjax.cli import main
from lamjax.pipeline import dynamics

dynamics.examine_dynamics = lambda *args: {}
diagnosis.diagnose = lambda summary: []
errors = dynamics.held_out_errors
def stopped(*args):
    if sys.argv[1] == "1":
        os.kill(os.getpid(), signal.SIGTERM)  # one of them gets a signal: both stop
    return errors(*args)
dynamics.held_out_errors = stopped
first = main(sys.argv[2:])
dynamics.held_out_errors = errors
sys.exit(10 * main(sys.argv[2:]) + (first != 128 + signal.SIGTERM))
"""


def test_two_processes_train_what_one_trains_on_the_joined_batch(store, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    argv = ["train", "--env", "cartpole", "--preset", "smoke", "--store", str(store.path), "--runs", str(tmp_path)]
    argv += [
        "--dynamics.steps",
        "20",
        "--dynamics.batch-size",
        "4",
        "--cloning.steps",
        "5",
        "--cloning.batch-size",
        "4",
    ]
    argv += ["--analysis.probe-test", "16", "--log-every", "5", "--analysis.eval-every", "10"]
    shared = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    shared |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs")
    shared |= {f"JAX_{name.upper()}": str(getattr(jax.config, f"jax_{name}")) for name in names}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(index), *argv],
            env={**os.environ, **shared, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    for output in outputs:
        assert "everything is saved" in output and "the others run on one host" in output
    # The first process alone wrote, one run.
    (folder,) = (tmp_path / "cartpole").iterdir()
    assert set(json.loads((folder / "summary.json").read_text())["stages"]) == {"record", "dynamics", "cloning"}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "dynamics"] == [5, 10, 15, 20]

    config = settings(steps=20)
    with open_run(tmp_path / "one", config, 2) as run:
        state = pipeline.dynamics.init_dynamics(run, store).replace(config=config.dynamics)
        stream = windows.training_stream(run, store, 4, 0, 1)
    step = jax.jit(dynamics.train_step)
    for number in range(20):
        state, _ = step(state, np.concatenate(np.asarray(stream.windows(number))))
    arrays = checkpoint.restore_arrays(folder / "checkpoints" / "dynamics")[1]
    for name, expected in checkpoint.flatten(state).items():
        np.testing.assert_allclose(arrays[name], expected, rtol=1e-3, atol=1e-5, err_msg=name)
