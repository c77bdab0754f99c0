"""Formats the numbers of a report."""

import math
from typing import Any

from lamjax.analysis.run_results import number

EN_DASH = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def text(value: Any, key: str = "") -> str:
    """Formats a value in the unit of its key; an en dash stands for a missing value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return EN_DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value or EN_DASH
    if isinstance(value, list):
        return ", ".join(text(item, key) for item in value) or EN_DASH
    if "seconds" in key:
        return _duration(value)
    if "accuracy" in key:
        return f"{100 * value:.1f} %"
    if "per_s" in key:
        return f"{_digits(value)} per second"
    if "mse" in key:
        return _scientific(value) if abs(value) < 0.1 else _digits(value)
    if key in {"mean", "stderr", "return_mean", "return_stderr"}:
        return f"{value:.2f}"
    if isinstance(value, int):
        return str(value) if key == "seed" else f"{value:,}"
    return _digits(value)


def _digits(value: float) -> str:
    """Three significant digits, without exponents where they can be avoided."""
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else _scientific(value)


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    if int(exponent) == 0 or value == 0:
        return mantissa
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def _duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


def short_count(count: Any) -> str:
    """Formats a number of frames in a few characters."""
    count = number(count)
    if math.isnan(count):
        return EN_DASH
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k" if count >= 1e3 else f"{count:.0f}"


def with_error(mean: Any, stderr: Any) -> str:
    """Formats a mean and its standard error, if that is known."""
    error = f" ± {stderr:.2f}" if math.isfinite(number(stderr)) else ""
    return text(number(mean), "mean") + error


def information_table(information: dict[str, Any], discrete: bool) -> list[tuple[str, str, str]]:
    """The action information (`lamjax.analysis.action_information`) as rows of text, the headings first.

    Args:
      information: the results.
      discrete: whether its scores are accuracies; otherwise they are R^2.
    """
    share = with_error(information.get("share"), information.get("share_stderr"))
    known = number(information.get("supervised")) > number(information.get("majority"))
    untrained_share = text(information.get("untrained_share"), "mean")
    rows = {
        "trained": ("a probe on the latents", share),
        "untrained": ("the same probe on an untrained IDM's latents", untrained_share),
        "supervised": ("the same IDM, trained on the actions themselves", text(1.0 if known else None, "mean")),
        "majority": (f"the {'most frequent' if discrete else 'mean'} action", text(0.0, "mean")),
    }
    measure = "accuracy, aliases merged" if discrete else "R² of continuous actions"
    key = "accuracy" if discrete else "mean"
    scores = [(label, text(information.get(name), key), held) for name, (label, held) in rows.items()]
    return [("the action is read by", measure, "share of what the frames reveal"), *scores]
