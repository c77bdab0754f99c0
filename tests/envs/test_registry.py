import contextlib
import io

import numpy as np
import pytest

from lamjax import envs
from lamjax.envs.registry import GYMNAX_ENVS, Game
from tests.envs.toys import Counter

CLASSES = {
    "bigfish": 9,
    "bossfight": 10,
    "caveflyer": 10,
    "chaser": 9,
    "climber": 6,
    "coinrun": 6,
    "dodgeball": 10,
    "fruitbot": 4,
    "heist": 9,
    "jumper": 6,
    "leaper": 5,
    "maze": 5,
    "miner": 5,
    "ninja": 10,
    "plunder": 4,
    "starpilot": 11,
}


# Names


@pytest.mark.parametrize(("name", "near"), [("coinrum", "coinrun"), ("Maze", "maze"), ("breakout", "minatar/breakout")])
def test_an_unknown_name_gets_near_names_in_one_sentence(name, near):
    for ask in (envs.check_name, lambda n: envs.make(n, 2)):
        with pytest.raises(envs.UnknownEnvError, match=rf"^[^\n.]*'{name}'[^\n.]*did you mean [^\n.]*{near}") as error:
            ask(name)
        assert isinstance(error.value, ValueError)


def test_a_name_far_from_all_gets_the_whole_list():
    with pytest.raises(envs.UnknownEnvError) as error:
        envs.check_name("zzzzzzzz")
    for name in envs.env_names():
        assert name in str(error.value)


def test_every_name_is_known():
    assert set(envs.env_names()) >= set(CLASSES) | set(GYMNAX_ENVS)
    assert len(envs.env_names()) == len(set(envs.env_names()))
    for name in envs.env_names():
        assert envs.check_name(name) == name


@pytest.mark.parametrize("name", sorted(GYMNAX_ENVS))
def test_gymnax_names_make_what_they_say(name):
    env = envs.make(name, 3)
    assert isinstance(env, envs.Gymnax)
    assert (env.name, env.num_envs) == (name, 3)
    assert len(env.obs_shape) == (1 if name in ("cartpole", "pendulum") else 3)
    assert env.action_space.num_outputs >= 2


def test_procgen_names_make_real_procgen():
    for name in CLASSES:
        env = envs.make(name, 3, num_levels=7, start_level=2, distribution_mode="hard")
        assert isinstance(env, envs.Procgen)
        assert (env.name, env.num_envs, env.num_actions, env.obs_shape) == (name, 3, 15, (64, 64, 3))
        assert env.time_limit == envs.PROCGEN_GAMES[name].time_limit
        assert env.env_params == {"num_levels": 7, "start_level": 2, "distribution_mode": "hard"}


def test_shapes_are_known_by_name():
    assert envs.obs_shape("maze") == envs.make("maze", 1).obs_shape == envs.PROCGEN_SHAPE
    assert envs.obs_shape("minatar/breakout") == (10, 10, 4)
    assert envs.obs_shape("cartpole") == (4,)
    with pytest.raises(envs.UnknownEnvError):
        envs.obs_shape("coinrum")


def test_an_environment_of_ones_own_is_known_by_its_name():
    toy = Counter([3, 2])
    assert envs.register(toy, name="mine") == "mine"
    assert envs.check_name("mine") == "mine" and "mine" in envs.env_names()
    env = envs.make("mine", 4)
    assert env.env is toy and (env.name, env.num_envs, env.obs_shape) == ("mine", 4, (3,))
    assert env == envs.make("mine", 4)
    envs.register(Counter([9]), name="mine")  # replaced
    assert envs.make("mine", 1).params.lengths.tolist() == [9]
    envs.register(toy, name="mine", params=Counter([7]).default_params)
    assert envs.make("mine", 1).params.lengths.tolist() == [7]
    assert (envs.merged_actions("mine", 2), envs.normalised_return("mine", 1.0)) == ((0, 1), None)
    with pytest.raises(ValueError, match=r"^'maze' is an environment of the package: [^.]*\.$"):
        envs.register(toy, name="maze")


# Returns


def test_normalised_return_is_zero_for_random_and_one_for_the_expert():
    for name, game in envs.PROCGEN_GAMES.items():
        assert envs.normalised_return(name, game.random_return) == 0
        assert envs.normalised_return(name, game.expert_return) == 1
        middle = (game.random_return + game.expert_return) / 2
        assert envs.normalised_return(name, middle) == pytest.approx(0.5)
    # Not clamped: (12.5 - 4.272629) / (9.969294 - 4.272629).
    assert envs.normalised_return("maze", 12.5) == pytest.approx(1.444243, abs=1e-5)
    assert envs.normalised_return("cartpole", 500.0) is None
    # Uniform play, and the expert that the preset trains.
    assert envs.normalised_return("pendulum", -1228.9) == 0 and envs.normalised_return("pendulum", -156.4) == 1


# Actions


@pytest.mark.parametrize(("name", "classes"), CLASSES.items())
def test_merged_actions_are_consecutive_classes_of_the_aliases(name, classes):
    merged = envs.merged_actions(name, 15)
    aliases = envs.PROCGEN_GAMES[name].aliases
    assert len(merged) == len(aliases) == len(envs.ACTION_NAMES) == 15
    assert sorted(set(merged)) == list(range(classes))
    for i in range(15):
        assert aliases[aliases[i]] == aliases[i]  # a representative stands for itself
        for j in range(15):
            assert (merged[i] == merged[j]) == (aliases[i] == aliases[j])


def test_merged_actions_by_hand():
    #                left-down ... right-up            D  A  W  S  Q  E
    assert envs.merged_actions("maze", 15) == (0, 0, 0, 1, 2, 3, 4, 4, 4, 2, 2, 2, 2, 2, 2)
    assert envs.merged_actions("fruitbot", 15) == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 1, 1, 1, 1, 1)
    assert envs.merged_actions("starpilot", 15) == (*range(9), 9, 10, 9, 9, 9, 9)
    assert envs.merged_actions("cartpole", 2) == (0, 1)


class Replay:
    """Frames that follow from one saved state under a repeated action, in a second native batch."""

    num_envs = 8

    def __init__(self, game: str):
        with contextlib.redirect_stderr(io.StringIO()):
            from procgen import ProcgenGym3Env
        kwargs = {"num": self.num_envs, "env_name": game, "distribution_mode": "easy", "num_threads": 0}
        self.source = ProcgenGym3Env(rand_seed=5, **kwargs)
        self.copy = ProcgenGym3Env(rand_seed=0, **kwargs)
        self.rng = np.random.default_rng(0)

    def wander(self, steps: int) -> None:
        for _ in range(steps):
            self.source.act(self.rng.integers(0, 15, self.num_envs).astype(np.int32))

    def frames(self, action: int, steps: int) -> np.ndarray:
        """``[N, T, H, W, C]`` from where the source stands; the source does not move."""
        self.copy.callmethod("set_state", self.source.callmethod("get_state"))
        frames = []
        for _ in range(steps):
            self.copy.act(np.full(self.num_envs, action, np.int32))
            frames.append(self.copy.observe()[1]["rgb"].copy())
        return np.stack(frames, axis=1)

    def close(self) -> None:
        self.source.close()
        self.copy.close()


@pytest.mark.parametrize("game", sorted(CLASSES))
def test_the_alias_table_is_what_the_engine_does(game):
    """Actions of one class give identical frames from every state; actions of two classes differ somewhere."""
    replay = Replay(game)
    aliases = envs.PROCGEN_GAMES[game].aliases
    differ = np.zeros((15, 15), int)  # in how many of the states two actions lead to different frames
    for steps in (10, 40, 40):
        replay.wander(steps)
        frames = [replay.frames(action, steps=6) for action in range(15)]
        for i in range(15):
            for j in range(i):
                differ[i, j] += (frames[i] != frames[j]).any((1, 2, 3, 4)).sum()
    replay.close()
    classes = np.array(aliases)
    same = classes[:, None] == classes[None]
    if game == "coinrun":
        # Merged although not identical: "down" lets the agent drop through a crate.
        down = np.isin(np.arange(15), (0, 3, 6))
        same &= down[:, None] == down[None]
    below = np.tril(np.ones((15, 15), bool), -1)
    np.testing.assert_array_equal(differ[same & below], 0)
    # Every two representatives differ at least once (the fewest seen in any game is 5 of the 24 states).
    representatives = np.isin(np.arange(15), classes)
    pairs = representatives[:, None] & representatives[None] & below
    assert differ[pairs].min() > 0


def test_coinruns_down_differs_on_crates_alone():
    """The one known inexact entry: most states do not tell "down" from "noop", and some do."""
    replay = Replay("coinrun")
    states = differ = 0
    for _ in range(6):
        replay.wander(60)
        noop, down, left, left_down = (replay.frames(action, steps=12) for action in (4, 3, 1, 0))
        states += 2 * replay.num_envs
        differ += (noop != down).any((1, 2, 3, 4)).sum() + (left != left_down).any((1, 2, 3, 4)).sum()
    replay.close()
    assert 0 < differ < states / 5


def test_games_are_frozen():
    with pytest.raises(AttributeError):
        envs.PROCGEN_GAMES["maze"].time_limit = 3
    assert isinstance(envs.PROCGEN_GAMES["maze"], Game)


def test_merged_classes_are_called_by_what_they_do():
    assert envs.merged_action_names("coinrun", 15) == ("left", "left-up", "noop", "up", "right", "right-up")
    assert envs.merged_action_names("plunder", 15) == ("left", "noop", "right", "special-D")
    assert envs.merged_action_names("cartpole", 2) == ("0", "1")
    for game in envs.PROCGEN_GAMES:
        assert len(envs.merged_action_names(game, 15)) == max(envs.merged_actions(game, 15)) + 1
