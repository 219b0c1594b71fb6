"""Numbers as text."""

import pytest

from gem_jax.evaluation.metrics import METRICS
from gem_jax.report.formats import cells, format_margin, format_measure, format_rate, margins, values


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
        ("ne", 4.2e48, "4.2e+48"),
        ("ne", 99_999.5, "99999.5000"),
        ("num_examples", None, "-"),
    ],
)
def test_format_measure(name, value, text):
    assert format_measure(METRICS[name], value) == text


@pytest.mark.parametrize(("margin", "text"), [(0.00412, "±.0041"), (1.5, "±1.5000"), (0.0, "±.0000"), (2e9, "±2e+09")])
def test_format_margin(margin, text):
    assert format_margin(margin) == text


def test_cells_are_values_with_their_margins():
    shown = {name: METRICS[name] for name in ("num_examples", "ne", "auc", "gauc")}
    measures = {"num_examples": 7, "ne": 0.9, "auc": 0.7, "gauc": None, "standard_error": {"ne": 0.002, "auc": None}}
    assert values(shown, measures) == ["7", "0.9000", "0.7000", "-"]
    assert margins(shown, measures) == ["", "±.0039", "", ""]
    assert cells(shown, measures) == ["7", "0.9000 ±.0039", "0.7000", "-"]
    del measures["standard_error"]  # a result from before there were any
    assert cells(shown, measures) == ["7", "0.9000", "0.7000", "-"]
