"""Cleaning takes out the noise that has a form, and leaves the game."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import envs
from lamjax.preprocess import (
    clean,
    cut_squares,
    join_tiles,
    moving_squares,
    paste_squares,
    tiles,
    unsteady_squares,
    view_moves,
)

cleaned = jax.jit(clean, static_argnums=1)


def test_the_median_is_that_of_the_nine_pixels_around():
    windows = np.random.default_rng(0).integers(0, 256, (2, 3, 7, 6, 3), np.uint8)
    padded = np.pad(windows, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    around = np.stack([padded[:, :, y : y + 7, x : x + 6] for y in range(3) for x in range(3)])
    found = cleaned(windows, "median")
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, np.median(around, axis=0))


def test_the_median_keeps_what_is_two_pixels_wide_and_drops_single_pixels():
    windows = np.full((1, 2, 8, 8, 1), 50, np.uint8)
    windows[0, :, 2:4] = 200  # a bar
    with_pixel = windows.copy()
    with_pixel[0, 1, 6, 3] = 255
    np.testing.assert_array_equal(cleaned(with_pixel, "median"), windows)


def test_levelling_takes_the_light_and_leaves_the_motion():
    """Channels of each frame are lightened by hand; a square that moves through a third of the picture stays."""
    rng = np.random.default_rng(1)
    frames = np.broadcast_to(rng.integers(60, 190, (1, 1, 32, 32, 3)), (1, 3, 32, 32, 3)).astype(np.uint8)
    for t in range(3):
        frames[0, t, 4:20, 3 + 4 * t : 20 + 4 * t] = (200, 90, 60)
    light = np.array([[[5, -7, 0], [3, 2, -40], [0, 11, 30]]])
    found = cleaned((frames + light[:, :, None, None]).astype(np.uint8), "level")
    # Everything is brought to the light of o_t.
    np.testing.assert_array_equal(found, frames + light[:, 1, None, None][:, None])
    np.testing.assert_array_equal(cleaned(frames, "level"), frames)
    two = cleaned((frames + light[:, :, None, None]).astype(np.uint8)[:, :2], "level")
    np.testing.assert_array_equal(two, found[:, :2])


def test_none_leaves_everything_and_another_name_is_refused():
    windows = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 5, 3), np.uint8)
    np.testing.assert_array_equal(cleaned(windows, "none"), windows)
    with pytest.raises(ValueError, match="must be one of none, median, level, not 'wash'"):
        clean(windows, "wash")


def played(kind, strength, steps=24):
    """Windows of coinrun under a distractor and without it, uint8 ``[B, 3, 64, 64, 3]`` each."""
    env = envs.make("coinrun", 4, num_threads=0, distractor=kind, distractor_strength=strength)
    obs, state = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    shown, plain = [obs], [state.clean]
    actions = np.random.default_rng(0).integers(0, 15, (steps, 4)).astype(np.int32)
    for t in range(steps):
        obs, state, *_ = step(jax.random.key(t), state, actions[t])
        shown.append(obs)
        plain.append(state.clean)
    env.close()
    pairs = (np.stack([np.asarray(x) for x in frames], axis=1) for frames in (shown, plain))
    return [np.concatenate([x[:, t : t + 3] for t in range(steps - 1)]) for x in pairs]


def change(windows):
    return np.diff(np.asarray(windows, np.float64)[:, 1:], axis=1)


@pytest.mark.parametrize(
    ("kind", "how", "noise_left", "game_left"), [("noise", "median", 0.25, 0.6), ("jitter", "level", 0.05, 0.9)]
)
def test_cleaning_takes_the_distractors_share_of_the_change_and_leaves_the_games(kind, how, noise_left, game_left):
    """On real frames: the power of the change that the distractor adds, and of the game's own, after and before."""
    shown, plain = played(kind, 0.1)
    power = {
        name: (np.square(change(ours) - change(theirs)).mean(), np.square(change(theirs)).mean())
        for name, ours, theirs in (("before", shown, plain), ("after", cleaned(shown, how), cleaned(plain, how)))
    }
    (noise, game), (noise_after, game_after) = power["before"], power["after"]
    assert noise_after < noise_left * noise
    assert game_after > game_left * game


def test_before_a_fixed_view_the_square_lies_around_the_mean_place_of_the_change():
    """A dot of brightness 1 goes from column 4 to 6 to 8 of row 3; changes of 1, 2 and 1 lie there, so column 6."""
    windows = np.zeros((3, 3, 20, 24, 1), np.float32)
    for t, column in enumerate((4, 6, 8)):
        windows[0, t, 3, column] = 1
    windows[1, 1:, 19, 23] = 1  # beyond this corner there is no room for a square
    # A tie between two columns goes to the right; above row 3 there is no room. In the last window nothing moves.
    np.testing.assert_array_equal(moving_squares(windows, 8), [[0, 3], [12, 16], [6, 8]])


def test_where_the_view_moves_the_square_lies_in_the_middle():
    """A quarter of 16 x 16 pixels may change before the view counts as moving; one row more moves it."""
    windows = np.zeros((2, 3, 16, 16, 3), np.float32)
    windows[0, 2, :4] = 0.5
    windows[1, 2, :5] = 0.5
    np.testing.assert_array_equal(moving_squares(windows, 8), [[0, 4], [4, 4]])


def test_only_changes_in_some_rows_draw_the_square():
    """One thing moves in the upper half, another in the last four of 16 rows; a still window has the rows' middle."""
    windows = np.zeros((3, 2, 16, 20, 1), np.float32)
    windows[:2, 1, 2, 3] = 1.0
    windows[0, 1, 12, 15] = 1.0
    windows[2, 1, :3] = 1.0  # more than a quarter of the frame, and none of these rows
    squares = jax.jit(moving_squares, static_argnums=(1, 2))(windows, 4, (0.75, 1.0))
    np.testing.assert_array_equal(squares, [[11, 14], [12, 8], [12, 8]])
    np.testing.assert_array_equal(moving_squares(windows[:1], 4, (0.0, 0.5)), [[1, 2]])


def test_the_unsteady_square_lies_on_what_starts_or_stops():
    """Two equal things: one drives on by a column a step, the other starts or stops with a step of two columns."""
    windows = np.zeros((2, 3, 40, 40, 3), np.float32)
    for window, columns in zip(windows, [(20, 20, 22), (20, 22, 22)], strict=True):
        for t, column in enumerate(columns):
            window[t, 2:8, 4 + t : 10 + t] = (0.5, -0.5, 0.2)
            window[t, 28:34, column : column + 6] = (0.5, -0.5, 0.2)
    squares = jax.jit(unsteady_squares, static_argnums=(1, 2))(windows, 16, (0.0, 1.0))
    # Its columns 20, 21, 26 and 27 of rows 28 to 33 change, and 23.5, 30.5 is their middle.
    np.testing.assert_array_equal(squares, [[23, 16], [23, 16]])
    # The mean place of all change lies between the two, and so does no square on either.
    assert (moving_squares(windows, 16)[:, 0] < 16).all()
    # In the rows of the other there is nothing else.
    assert (unsteady_squares(windows, 16, (0.0, 0.5))[:, 0] == 0).all()


def test_a_still_window_has_the_unsteady_square_in_the_middle():
    windows = np.full((2, 3, 16, 20, 1), 0.25, np.float32)
    np.testing.assert_array_equal(unsteady_squares(windows, 8), [[4, 6], [4, 6]])


def test_a_square_is_cut_out_of_all_frames_of_its_window():
    windows = np.random.default_rng(2).random((2, 3, 10, 12, 3), np.float32)
    squares = cut_squares(windows, jnp.array([[1, 5], [9, -2]]), 4)
    np.testing.assert_array_equal(squares[0], windows[0, :, 1:5, 5:9])
    np.testing.assert_array_equal(squares[1], windows[1, :, 6:10, :4])  # moved back to the edge


def test_squares_are_pasted_where_they_are_cut():
    frames = jnp.arange(2 * 6 * 8, dtype=jnp.float32).reshape(2, 6, 8, 1)
    corners = jnp.array([[1, 5], [9, -2]])  # the last columns and rows; beyond the edge
    pasted = paste_squares(frames, -jnp.ones((2, 4, 4, 1)), corners)
    for frame, result, (y, x) in zip(frames, pasted, [(1, 4), (2, 0)], strict=True):
        expected = np.array(frame)
        expected[y : y + 4, x : x + 4] = -1
        np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(cut_squares(pasted[:, None], corners, 4), -np.ones((2, 1, 4, 4, 1)))


def test_the_view_moves_where_more_than_a_quarter_of_the_pixels_change():
    windows = np.zeros((3, 2, 8, 8, 1), np.float32)
    windows[0, 1, :2] = 1  # a quarter
    windows[1, 1, :2] = 1
    windows[1, 1, 2, 0] = 1
    assert view_moves(windows).tolist() == [False, True, False]
    assert view_moves(windows, (0.5, 1.0)).tolist() == [False, False, False]  # nothing changes in the lower half
    assert view_moves(windows[:, :1]).tolist() == [False] * 3


def test_tiles_cover_each_pixel_once():
    frames = np.random.default_rng(3).random((2, 3, 20, 24, 3), np.float32)
    squares = tiles(frames, 16)
    assert squares.shape == (2 * 3 * 3, 3, 16, 16, 3)
    np.testing.assert_array_equal(join_tiles(squares[:, 1], (20, 24)), frames[:, 1])
