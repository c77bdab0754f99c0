"""Shares and their errors by hand; latents that are the action, and latents that are noise."""

import jax
import numpy as np
import pytest

from lamjax.analysis.action_information import MIN_KNOWABLE, WindowScores, action_information, share_of_knowable
from lamjax.analysis.action_probes import ActionProbe, ContinuousActions, DiscreteActions
from lamjax.spaces import Box, Discrete

SCORES = np.array([1, 1, 0, 1, 0, 0.0])
CEILING = np.array([1, 1, 1, 1, 0, 1.0])
MAJORITY = np.array([0, 1, 0, 0, 0, 0.0])
EPISODES = np.array([4, 4, 7, 7, 9, 9])


def test_a_share_and_its_error_by_hand():
    # Of six windows the ceiling gains 4 over the majority and the scores gain 2: a share of 1/2. With 4/6 below the
    # line, a window counts ((s - m) - (c - m) / 2) * 6 / 4: 3/4, 0, -3/4, 3/4, 0, -3/4. Episodes sum to 3/4, 0, -3/4.
    share, stderr = share_of_knowable(SCORES, CEILING, MAJORITY, EPISODES)
    assert share == pytest.approx(1 / 2)
    assert stderr == pytest.approx(np.sqrt(3 / 2 * 2 * (3 / 4) ** 2) / 6)
    alone = share_of_knowable(SCORES, CEILING, MAJORITY, np.zeros(6, int))  # one episode: by windows
    assert alone == (pytest.approx(1 / 2), pytest.approx(np.sqrt(6 / 5 * 4 * (3 / 4) ** 2) / 6))


def test_the_ceiling_holds_all_of_it_without_error():
    assert share_of_knowable(CEILING, CEILING, MAJORITY, EPISODES) == (1, 0)
    assert share_of_knowable(MAJORITY, CEILING, MAJORITY, EPISODES)[0] == 0


def test_where_nothing_can_be_known_the_share_stays_a_number():
    share, stderr = share_of_knowable(SCORES, MAJORITY, MAJORITY, EPISODES)
    assert share == pytest.approx(2 / 6 / MIN_KNOWABLE) and np.isfinite(stderr)
    assert share_of_knowable(MAJORITY, MAJORITY, MAJORITY, EPISODES) == (0, 0)


def test_the_error_is_that_of_drawing_other_episodes():
    rng = np.random.default_rng(0)

    def draw():
        """60 episodes of 8 windows; how well they can be read differs between episodes."""
        easy = np.repeat(rng.uniform(size=60), 8)
        gained = [(rng.uniform(size=480) < share * easy).astype(float) for share in (0.4, 0.8)]
        return share_of_knowable(gained[0], gained[1], np.zeros(480), np.repeat(np.arange(60), 8))

    shares, errors = np.array([draw() for _ in range(400)]).T
    assert shares.mean() == pytest.approx(0.5, abs=0.01)
    assert errors.mean() == pytest.approx(shares.std(), rel=0.1)


def test_results_have_the_names_of_a_summary():
    scores = WindowScores(SCORES, MAJORITY, CEILING, MAJORITY)
    share, stderr = share_of_knowable(SCORES, CEILING, MAJORITY, EPISODES)
    assert action_information(scores, EPISODES) == {
        **{"share": share, "share_stderr": stderr, "untrained_share": 0.0, "windows": 6},
        **{"trained": 0.5, "untrained": 1 / 6, "supervised": 5 / 6, "majority": 1 / 6},
    }


def measured(probe: ActionProbe, actions: np.ndarray, latents: np.ndarray) -> tuple[float, float]:
    """The share of latents where the ceiling is perfect, with two thirds of the windows to fit on."""
    train, test = slice(2000), slice(2000, None)
    targets = probe.targets(actions)
    guesses = probe.guess(jax.random.key(0), latents[train], targets[train], latents[test])
    constant = probe.constant_guess(targets[train], len(targets[test]))
    views = (guesses, targets[test], constant)
    scores = [probe.scores(view, targets[train], targets[test]) for view in views]
    return share_of_knowable(*scores, np.arange(1000) // 10)


def test_the_action_itself_is_everything_and_noise_is_nothing():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3000, 15)).astype(np.float32)
    actions = rng.integers(15, size=3000).astype(np.int32)
    probe = DiscreteActions("coinrun", 15)
    assert probe.target_space == Discrete(6) and probe.targets(np.array([0, 1, 14])).tolist() == [0, 0, 2]
    share, stderr = measured(probe, actions, np.eye(15, dtype=np.float32)[actions])
    assert share == pytest.approx(1, abs=2 * stderr + 1e-9)
    share, stderr = measured(probe, actions, noise)
    assert abs(share) < 2 * stderr + 0.05  # a probe on noise overfits, and so falls below the majority
    box = Box((-2.0, 0.0), (2.0, 1.0))
    torques = rng.uniform(box.low, box.high, (3000, 2)).astype(np.float32)
    probe = ContinuousActions(box)
    assert probe.target_space == box
    latents = np.concatenate([torques, noise[:, 2:]], axis=1)
    assert measured(probe, torques, latents)[0] == pytest.approx(1, abs=0.05)
    assert measured(probe, torques, noise)[0] == pytest.approx(0, abs=0.05)
