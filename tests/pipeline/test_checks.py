"""What does not fit is refused before anything is recorded or trained."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lamjax import envs, parallel, pipeline, policies
from lamjax.config import RecordConfig
from lamjax.models.mlp import MLPConfig, MLPFDMConfig
from lamjax.pipeline.checks import check_config, check_policy, check_recording, check_store, check_store_of
from lamjax.pipeline.sources import Source
from lamjax.pipeline.windows import training_stats
from lamjax.ppo import ActorCriticAgent
from lamjax.presets import GRID_PRESETS, PRESETS, VECTOR_PRESETS
from lamjax.training.run_folder import RunError

IMAGES, GRIDS, VECTORS = PRESETS["smoke"], GRID_PRESETS["smoke"], VECTOR_PRESETS["smoke"]


def env(shape, dtype=np.uint8, actions=2, name="toy"):
    """All that checks look at."""
    space = envs.make("cartpole", 1).action_space if actions == 2 else envs.make("pendulum", 1).action_space
    return SimpleNamespace(name=name, obs_shape=shape, obs_dtype=dtype, action_space=space)


def store(train=100, test=10, shape=(4,), dtype=np.float32, ending="terminated", obs=0.0):
    windows = {"train": train, "test": test}
    return SimpleNamespace(
        path="a store",
        obs_shape=shape,
        obs_dtype=dtype,
        starts=lambda split, length: np.arange(windows[split]),
        observations_at=lambda starts: np.full((len(starts), *shape), obs, dtype),
        episodes=SimpleNamespace(ending=np.array(["cut", ending])),
    )


def test_a_recording_without_an_end_is_told(capsys):
    check_store(store(), VECTORS)
    assert capsys.readouterr().err == ""
    check_store(store(ending="cut"), VECTORS)
    assert capsys.readouterr().err.startswith("none of the 2 recorded episodes has ended: ")


def test_observations_are_finite():
    assert training_stats(store(dtype=np.uint8)) is None
    np.testing.assert_array_equal(training_stats(store(obs=3.0))["mean"], np.full(4, 3.0))
    for obs in (np.nan, np.inf):
        with pytest.raises(RunError, match="a store holds observations that are NaN or infinite"):
            training_stats(store(obs=obs))


@pytest.mark.parametrize(
    ("shape", "config"), [((64, 64, 3), IMAGES), ((50, 37, 1), IMAGES), ((10, 10, 4), GRIDS), ((4,), VECTORS)]
)
def test_presets_fit_their_observations(shape, config):
    check_config(env(shape), config)
    check_recording(env(shape), config)


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((4,), IMAGES, "dynamics.idm is a ImpalaConfig, and toy shows observations of shape"),
        ((4,), GRIDS, "dynamics.idm is a GridConfig"),
        ((64, 64, 3), VECTORS, "dynamics.fdm is a MLPFDMConfig"),
        ((4,), dataclasses.replace(VECTORS, scratch=GRIDS.scratch), "scratch.trunk is a GridConfig"),
        (
            (4,),
            dataclasses.replace(VECTORS, dynamics=dataclasses.replace(VECTORS.dynamics, augment="shift")),
            "cannot be shifted: set --dynamics.augment none",
        ),
        (
            (24, 40, 3),
            dataclasses.replace(IMAGES, dynamics=dataclasses.replace(IMAGES.dynamics, focus=32)),
            "No 32 x 32 square fits into observations of shape",
        ),
    ],
)
def test_networks_that_do_not_fit_are_named(shape, config, message):
    with pytest.raises(RunError, match=message):
        check_config(env(shape), config)


def with_rates(config, stage, *groups):
    """A config whose PPO of a stage has schedules for these groups."""
    part = getattr(config, stage)
    ppo = dataclasses.replace(part.ppo, learning_rates=tuple((group, ((0.0, 1e-3),)) for group in groups))
    return dataclasses.replace(config, **{stage: dataclasses.replace(part, ppo=ppo)})


NAMED = dataclasses.replace(VECTORS, named=dataclasses.replace(VECTORS.named, frames=64))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            with_rates(VECTORS, "scratch", "", "value"),
            r"^scratch.ppo.learning_rates has a schedule for 'value', and the parameter groups are \w+, policy_head, ",
        ),
        (
            with_rates(VECTORS, "online", "fc", "value_head"),
            "^online.ppo.learning_rates has no schedule .* 'policy_head'",
        ),
        (
            with_rates(VECTORS, "online", "", "conv"),
            "the parameter groups are fc, policy_head, value_head: correct the",
        ),
        (with_rates(NAMED, "named", "policy_head"), "^named.ppo.learning_rates has no schedule for"),
    ],
)
def test_learning_rates_are_of_the_networks_groups(config, message):
    with pytest.raises(ValueError, match=message):
        check_config(env((4,)), config)


def test_learning_rates_of_what_a_run_does_not_train_may_wait():
    check_config(env((4,)), with_rates(VECTORS, "online", "", "convs"))  # as the presets have them, for --online.train
    check_config(env((4,)), with_rates(VECTORS, "named", "nobody"))
    check_config(env((4,)), with_rates(VECTORS, "expert", "nobody"))


def with_online(ppo=None, **decoder):
    online = VECTORS.online
    changes = {"decoder": dataclasses.replace(online.decoder, **decoder), "ppo": dataclasses.replace(online.ppo, **ppo)}
    return dataclasses.replace(VECTORS, online=dataclasses.replace(online, **changes))


def test_the_online_decoder_has_transitions_and_keeps_those_of_an_update():
    sizes = {"num_envs": 4, "num_steps": 8, "num_minibatches": 2}
    check_config(env((4,)), with_online(sizes, capacity=24))
    with pytest.raises(RunError, match=r"^--online.decoder.capacity \(23\) is smaller than the 24 transitions"):
        check_config(env((4,)), with_online(sizes, capacity=23))
    few = sizes | {"num_steps": 2}
    with pytest.raises(RunError, match=r"^--online.ppo.num-steps \(2\) is less than a window of stage 1 \(3 frames\)"):
        check_config(env((4,)), with_online(few))
    check_config(env((4,)), with_online(few, enabled=False))


def test_an_expert_is_trained_after_everything_that_needs_no_data_is_checked(tmp_path, monkeypatch):
    """Its hours would be lost: nothing is written before a setting of a later stage is refused."""
    monkeypatch.setattr(parallel, "devices", lambda: tuple(jax.local_devices()[:2]))
    odd = dataclasses.replace(VECTORS.cloning, batch_size=5)
    for config, message in (
        (dataclasses.replace(VECTORS, cloning=odd), "^--cloning.batch-size is 5 over all devices"),
        (with_rates(VECTORS, "online", "", "nobody"), "^online.ppo.learning_rates has a schedule for 'nobody'"),
        (with_rates(VECTORS, "expert", "", "nobody"), "^expert.ppo.learning_rates has a schedule for 'nobody'"),
    ):
        options = {"config": config, "expert_frames": 10**6, "runs": tmp_path / "runs", "data": tmp_path / "data"}
        with pytest.raises(ValueError, match=message):
            pipeline.train("cartpole", preset="smoke", **options)
    assert not (tmp_path / "runs").exists()


def test_an_mlp_takes_every_observation_but_predicts_vectors():
    trunk = MLPConfig(hidden=(4,), features=4)
    config = dataclasses.replace(GRIDS, cloning=dataclasses.replace(GRIDS.cloning, trunk=trunk))
    check_config(env((10, 10, 4)), config)
    with pytest.raises(RunError, match="MLPFDMConfig"):
        dynamics = dataclasses.replace(GRIDS.dynamics, fdm=MLPFDMConfig(hidden=(4,)))
        check_config(env((10, 10, 4)), dataclasses.replace(GRIDS, dynamics=dynamics))


def test_recordings_that_cannot_be_enough_are_refused():
    offline = dataclasses.replace(VECTORS.offline, labels=(10**6,))
    with pytest.raises(RunError, match=r"asks for 1000000 labels at least, and --record.frames gives 2048 frames"):
        check_recording(env((4,)), dataclasses.replace(VECTORS, offline=offline))
    cloning = dataclasses.replace(VECTORS.cloning, batch_size=2049)
    with pytest.raises(RunError, match=r"^--record.frames gives 2048 frames, too few for a batch of 2049: record more"):
        check_recording(env((4,)), dataclasses.replace(VECTORS, cloning=cloning))
    for levels, missing in ((RecordConfig(num_levels=1, frames=2048), "test"), (RecordConfig(num_levels=9), None)):
        config = dataclasses.replace(IMAGES, record=levels)
        check_recording(env((64, 64, 3)), config)  # an environment without levels has episodes instead
        if missing:
            with pytest.raises(RunError, match=f"None of the 1 levels from 0 on is in the {missing} split"):
                check_recording(env((64, 64, 3), name="coinrun"), config)
    check_recording(env((64, 64, 3), name="coinrun"), dataclasses.replace(IMAGES, record=RecordConfig(num_levels=200)))


def policy(obs_shape, space):
    agent = ActorCriticAgent(MLPConfig(hidden=(3,), features=3), space)
    params = jax.eval_shape(lambda: agent.init(jax.random.key(0), obs_shape))
    return Source("checkpoint", agent, params, {}, "01234567")


def test_policies_are_of_the_environment():
    discrete, continuous = env((4,), np.float32), env((3,), np.float32, actions=None)
    for one in (discrete, continuous):
        check_policy(one, Source("random", policies.UniformPolicy(one.action_space), {}, {}))
        check_policy(one, Source("store", None, {}, {}))
        check_policy(one, policy(one.obs_shape, one.action_space))
    with pytest.raises(RunError, match=r"checkpoint-01234567 does not fit toy, which shows float32 of shape \(4,\)"):
        check_policy(discrete, policy((5,), discrete.action_space))
    with pytest.raises(RunError, match="it gives 3 outputs, not 2"):
        check_policy(discrete, policy((4,), 3))


def test_stores_show_what_the_environment_shows():
    check_store_of(env((4,), np.float32), store())
    for wrong in (store(shape=(5,)), store(dtype=np.uint8)):
        with pytest.raises(RunError, match=r"a store holds observations .*, and toy shows float32\[4\]"):
            check_store_of(env((4,), np.float32), wrong)


@pytest.mark.parametrize(
    ("trajectories", "change", "message"),
    [
        (store(test=0), {}, "a store has no windows in its test split"),
        (store(train=15), {}, "a store has 15 windows in its train split, too few for a batch of 16"),
        (store(train=12), {"batch_size": 4}, "too few for a batch of 16"),  # of stage 2
        (
            store(),
            {"action_weight": 0.1, "labelled": 101},
            "--dynamics.labelled asks for 101 windows, and the store has 100",
        ),
    ],
)
def test_stores_are_enough(trajectories, change, message):
    check_store(store(), VECTORS)
    few = dataclasses.replace(VECTORS.offline, labels=(64, 128))
    with pytest.raises(RunError, match="The store has 63 labelled windows, fewer than any of"):
        check_store(store(train=63), dataclasses.replace(VECTORS, offline=few))
    config = dataclasses.replace(VECTORS, dynamics=dataclasses.replace(VECTORS.dynamics, **change))
    with pytest.raises(RunError, match=message):
        check_store(trajectories, config)
