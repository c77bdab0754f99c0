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


def test_the_table_of_the_action_information():
    information = {"share": 0.5, "share_stderr": 0.1, "untrained_share": 0.25, "windows": 9}
    information |= {"trained": 0.4, "untrained": 0.2, "supervised": 0.8, "majority": -0.001}
    headings, *rows = report_text.information_table(information, False)
    assert headings == ("the action is read by", "R² of continuous actions", "share of what the frames reveal")
    assert [row[1:] for row in rows] == [("0.40", "0.50 ± 0.10"), ("0.20", "0.25"), ("0.80", "1.00"), ("-0.00", "0.00")]
    assert rows[-1][0] == "the mean action"
    rows = report_text.information_table(information | {"supervised": -0.001}, True)
    assert rows[0][1] == "accuracy, aliases merged" and rows[3][2] == "–"  # nothing to know
