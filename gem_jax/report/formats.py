"""Measured values as text, and the columns of a table of results: the same on the console and in the report."""

import math

from gem_jax.evaluation.intervals import Z
from gem_jax.evaluation.metrics import METRICS, Measures, Metric, Value

HUGE = 1e5
"""From here on a number is written in powers of ten: an NE of 1e60, of one heavy example, would fill the table."""


def columns(result: dict[str, Measures]) -> dict[str, Metric]:
    """The metrics that a table of this result shows, by name: those with a heading, and of the optional ones those with a value."""
    return {
        name: metric
        for name, metric in METRICS.items()
        if metric.heading is not None
        and (not metric.optional or any(measures.get(name) is not None for measures in result.values()))
    }


def cells(shown: dict[str, Metric], measures: Measures) -> list[str]:
    """One row of such a table, each value with its 95 % margin where it has one: `0.8754 ±.0041`."""
    both = zip(values(shown, measures), margins(shown, measures), strict=True)
    return [f"{value} {margin}".rstrip() for value, margin in both]


def values(shown: dict[str, Metric], measures: Measures) -> list[str]:
    """One row of such a table, values alone; a dash also where a result was written before there was the metric."""
    return [format_measure(metric, measures.get(name)) for name, metric in shown.items()]


def margins(shown: dict[str, Metric], measures: Measures) -> list[str]:
    """What goes with such a row: the 95 % margin of each value that has one, else nothing."""
    errors = {name: measures.get("standard_error", {}).get(name) for name in shown}
    return [
        "" if errors[name] is None else format_margin(Z * errors[name], metric.decimals)
        for name, metric in shown.items()
    ]


def format_margin(margin: float, decimals: int = 4) -> str:
    """Half an interval, e.g. `±.0041`."""
    return "±" + format_number(margin, decimals).removeprefix("0")


def format_measure(metric: Metric, value: Value) -> str:
    """A metric's value in its unit; a dash where it is undefined."""
    if value is None:
        return "-"
    match metric.unit:
        case "count":
            return f"{value:,}"
        case "rate":
            return format_rate(value)
        case "share":
            return f"{value:.0%}"
        case "number":
            return format_number(value, metric.decimals)


def format_number(value: Value, decimals: int = 4) -> str:
    """A number as text, in powers of ten where it is huge; a dash where it is undefined."""
    if value is None:
        return "-"
    return f"{value:.{decimals}f}" if abs(value) < HUGE else f"{value:.2g}"


def format_rate(value: Value) -> str:
    """A rate in per cent with three digits that count, e.g. 3.21 %, 0.321 %, 32.1 %; a dash where it is undefined."""
    if value is None:
        return "-"
    percent = 100 * value
    decimals = 2 - math.floor(math.log10(percent)) if percent > 0 else 2
    return f"{percent:.{min(max(decimals, 0), 5)}f} %"
