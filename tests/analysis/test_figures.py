"""What the figures compute and draw."""

import numpy as np
import pytest

from lamjax.analysis import drawing, figures, images


def test_values_colour_latents_and_bars_go_below_zero():
    values = np.linspace(-2, 2, 4000)[:, None]
    figure = figures.latents_by_value(np.random.default_rng(0).normal(size=(4000, 3)), values, "Trained IDM")
    marks = figure.axes[0].collections[0]
    assert len(marks.get_offsets()) == 3000
    np.testing.assert_allclose([marks.get_array().min(), marks.get_array().max()], [-2, 2])
    assert figure.axes[1].get_ylabel() == "action"
    bars = figures.probe_bars({"MLP": (0.9, 0.2, -0.5, 0.0)}, "variance explained", "mean action").axes[0]
    assert bars.get_ylabel() == "held-out variance explained (%)" and bars.get_ylim()[0] == pytest.approx(-60)


def test_pca_matches_the_covariance_and_fixes_signs():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 3)) * [5, 1, 0.1] + 7
    projected, explained = figures.pca(points)
    variances = np.sort(np.linalg.eigvalsh(np.cov(points.T)))[::-1]
    np.testing.assert_allclose(projected.var(0, ddof=1), variances[:2], rtol=1e-10)
    np.testing.assert_allclose(explained, variances[:2] / variances.sum(), rtol=1e-10)
    assert np.corrcoef(projected[:, 0], points[:, 0])[0, 1] > 0.99
    projected, explained = figures.pca(np.array([[1.0], [3.0]]))
    np.testing.assert_allclose(projected, [[-1, 0], [1, 0]])
    np.testing.assert_allclose(explained, [1, 0])
    np.testing.assert_array_equal(figures.pca(np.ones((1, 4)))[0], np.zeros((1, 2)))


def test_smooth_keeps_the_start_and_averages_the_rest():
    np.testing.assert_allclose(drawing.smooth(np.array([9.0, 0, 3, 6, 0]), 2), [9, 4, 3, 3, 3])
    np.testing.assert_allclose(drawing.smooth(np.array([4.0]), 10), [4])


@pytest.mark.parametrize("channels", [1, 3, 4, 10])
def test_frames_of_any_number_of_channels_can_be_shown(channels):
    frames = np.zeros((2, 5, 6, channels), np.uint8)
    frames[0, 1, 2, channels - 1] = 1 if channels > 3 else 200
    pixels = images.rgb(frames)
    assert pixels.shape == (2, 5, 6, 3) and pixels.dtype == np.uint8
    assert pixels[0, 1, 2].any() and np.count_nonzero(pixels.any(-1)) == 1
