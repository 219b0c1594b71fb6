"""Numbers as text."""

import pytest

from gem_jax.evaluation.metrics import METRICS
from gem_jax.report.formats import format_measure, format_rate


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0321, "3.21 %"), (0.5, "50.0 %"), (1.0, "100 %"), (0.00321, "0.321 %"), (0.0, "0.00 %"), (None, "-")],
)
def test_format_rate(rate, text):
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("num_examples", 12345, "12,345"),
        ("base_rate", 0.0321, "3.21 %"),
        ("closed", 0.754, "75%"),
        ("ne", 0.81235, "0.8124"),
        ("calibration", 1.0234, "1.023"),
        ("auc", None, "-"),
        ("num_examples", None, "-"),
    ],
)
def test_format_measure(name, value, text):
    assert format_measure(METRICS[name], value) == text
