"""How the report writes numbers."""

import pytest

from lamjax.analysis import report_text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seconds", 5.04, "5.0 s"),
        ("seconds", 3599.7, "1 h 0 min"),
        ("seconds", 59.99, "1 min 0 s"),
        ("total_seconds", 125, "2 min 5 s"),
        ("probe_accuracy", 0.6214, "62.1 %"),
        ("fdm_mse", 1.4e-4, "1.40 × 10⁻⁴"),
        ("mse", 0.25, "0.25"),
        ("frames", 1024000, "1,024,000"),
        ("frames_per_s", 1234.5, "1,234 per second"),
        ("return_mean", 8, "8.00"),
        ("return_mean", 8.126, "8.13"),
        ("x", 1e-7, "1.00 × 10⁻⁷"),
        ("x", True, "yes"),
        ("x", [], "–"),
        ("x", float("inf"), "–"),
        ("x", None, "–"),
    ],
)
def test_text_has_sensible_units_and_digits(key, value, expected):
    assert report_text.text(value, key) == expected
