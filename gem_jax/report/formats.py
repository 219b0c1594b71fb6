"""Measured values as text, and the columns of a table of results: the same on the console and in the report."""

import math

from gem_jax.evaluation.metrics import METRICS, Measures, Metric, Value


def columns(result: dict[str, Measures]) -> dict[str, Metric]:
    """The metrics that a table of this result shows, by name: those with a heading, and of the optional ones those with a value."""
    return {
        name: metric
        for name, metric in METRICS.items()
        if metric.heading is not None
        and (not metric.optional or any(measures.get(name) is not None for measures in result.values()))
    }


def cells(shown: dict[str, Metric], measures: Measures) -> list[str]:
    """One row of such a table; a dash also where a result was written before there was the metric."""
    return [format_measure(metric, measures.get(name)) for name, metric in shown.items()]


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
    """A number as text; a dash where it is undefined."""
    return "-" if value is None else f"{value:.{decimals}f}"


def format_rate(value: Value) -> str:
    """A rate in per cent with three digits that count, e.g. 3.21 %, 0.321 %, 32.1 %; a dash where it is undefined."""
    if value is None:
        return "-"
    percent = 100 * value
    decimals = 2 - math.floor(math.log10(percent)) if percent > 0 else 2
    return f"{percent:.{min(max(decimals, 0), 5)}f} %"
