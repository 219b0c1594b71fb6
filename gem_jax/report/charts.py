"""The report's charts as SVG text: no dependency, no script; colours come from the page's style sheet."""

import dataclasses
import math
from collections.abc import Sequence
from html import escape
from typing import Literal

WIDTH, HEIGHT = 420, 270
"""Of a chart, in its own units; the page scales it to the column."""

type Number = int | float
type Point = tuple[Number, Number]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """A curve of a line chart.

    Attributes:
      label: its entry in the legend.
      kind: its colour and form in the style sheet; "valid" and "eval" have a dot at each point, "reference" is dashed.
      points: (x, y), ascending in x.
    """

    label: str
    kind: Literal["train", "valid", "eval", "bayes", "reference"]
    points: Sequence[Point]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of a chart.

    Attributes:
      low: value at its start.
      high: value at its end.
      start: pixel of `low`.
      end: pixel of `high`.
      unit: what its values are; rates are on a logarithmic scale.
    """

    low: Number
    high: Number
    start: Number
    end: Number
    unit: Literal["count", "number", "rate"]

    def pixel(self, value: Number) -> float:
        """Where a value is drawn."""
        low, high = self.low, self.high
        if self.unit == "rate":
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[Number, str]]:
        """(value, label) of the round values within the axis."""
        if self.unit == "rate":
            decades = math.log10(self.high / self.low)
            steps = (1, 2, 5) if decades < 2.5 else (1,)
            values = [s * 10.0**e for e in range(-12, 1) for s in steps]
            return [(v, f"{100 * v:.10g}%") for v in values if self.low * 0.999 <= v <= self.high * 1.001]
        step = _round_step((self.high - self.low) / 5)
        values = [i * step for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]
        if self.unit == "count":
            return [(v, compact(v)) for v in values]
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(v, f"{v:.{decimals}f}") for v in values]


def compact(count: Number) -> str:
    """A count in few characters: 950, 20k, 1.5M, 3B."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.3g}{suffix}"
    return f"{count:.3g}"


def line_chart(*, title: str, series: Sequence[Series], x_label: str, y_range: tuple[Number, Number]) -> str:
    """Curves over a count such as examples; what lies outside `y_range` is cut off at the frame."""
    x_values = [x for s in series for x, _ in s.points]
    x, y = _axes(0, max(x_values), *y_range, x_unit="count", y_unit="number")
    marks = "".join(_curve(s, x, y) for s in series)
    return _svg(title, HEIGHT, _grid(x, y, x_label) + _clipped(x, y, marks)) + _legend(series)


def interval_chart(
    *, title: str, points: Sequence[tuple[Number, Number, Number, Number]], labels: tuple[str, str]
) -> str:
    """Rates against rates on logarithmic scales, with the diagonal.

    Args:
      title: what the chart shows, for readers who cannot see it.
      points: (x, y, low, high) with the vertical interval from low to high; what is below 1e-5 lies on the frame.
      labels: of the x and the y axis.
    """
    rates = [r for x, y, _, _ in points for r in (x, y) if r > 0]
    low, high = max(min(rates) / 1.5, 1e-5), min(max(rates) * 1.5, 1.0)
    x, y = _axes(low, high, low, high, x_unit="rate", y_unit="rate")
    in_frame = [tuple(max(value, low) for value in point) for point in points]
    corner = [(low, low), (high, high)]
    marks = f'<polyline class="reference" points="{_path(corner, x, y)}"/>'
    for (px, py, bottom, top), (rate, observed, _, _) in zip(in_frame, points, strict=True):
        hover = f"predicted {100 * rate:.3g}%, observed {100 * observed:.3g}%"
        across = f'x1="{x.pixel(px):.1f}" x2="{x.pixel(px):.1f}"'
        marks += f'<line class="eval" {across} y1="{y.pixel(bottom):.1f}" y2="{y.pixel(min(top, high)):.1f}"/>'
        marks += _dot("eval", x.pixel(px), y.pixel(py), hover)
    body = _grid(x, y, labels[0]) + _clipped(x, y, marks)
    body += f'<text class="label" x="{x.start}" y="14">{escape(labels[1])}</text>'
    return _svg(title, HEIGHT, body)


def row_chart(*, title: str, rows: Sequence[tuple[str, float | None, float | None]], x_label: str) -> str:
    """One row a name with a dot for the value, a bar mark for the best possible value if known, and 1 as the reference.

    Args:
      title: what the chart shows, for readers who cannot see it.
      rows: (name, value, best value); None where undefined.
      x_label: what the values are.
    """
    values = [v for _, *pair in rows for v in pair if v is not None] + [1.0]
    pad = 0.06 * (max(values) - min(values)) or 0.1
    height = 26 * len(rows) + 50
    x = Axis(low=min(values) - pad, high=max(values) + pad, start=112, end=WIDTH - 60, unit="number")
    y = Axis(low=len(rows), high=0, start=height - 40, end=height - 40 - 26 * len(rows), unit="number")
    body = _grid(x, y, x_label, y_ticks=False)
    body += f'<line class="reference" x1="{x.pixel(1):.1f}" x2="{x.pixel(1):.1f}" y1="{y.start}" y2="{y.end}"/>'
    body += "".join(_row(x, y.pixel(i + 0.5), *row) for i, row in enumerate(rows))
    return _svg(title, height, body)


def _row(x: Axis, at: float, name: str, value: float | None, best: float | None) -> str:
    """A row of `row_chart` at height `at`."""
    short = name if len(name) <= 14 else name[:13] + "…"
    text = "-" if value is None else f"{value:.4f}"
    parts = [
        f'<text class="name" x="104" y="{at + 4:.1f}">{escape(short)}<title>{escape(name)}</title></text>',
        f'<text class="value" x="{WIDTH - 52}" y="{at + 4:.1f}">{text}</text>',
    ]
    if value is not None and best is not None:
        span = f'x1="{x.pixel(best):.1f}" x2="{x.pixel(value):.1f}"'
        parts.append(f'<line class="gap" {span} y1="{at:.1f}" y2="{at:.1f}"/>')
    if best is not None:
        span = f'x1="{x.pixel(best):.1f}" x2="{x.pixel(best):.1f}"'
        parts.append(f'<line class="bayes" {span} y1="{at - 8:.1f}" y2="{at + 8:.1f}"><title>{best:.4f}</title></line>')
    if value is not None:
        parts.append(_dot("eval", x.pixel(value), at, f"{name}: {value:.4f}"))
    return "".join(parts)


def _axes(
    x_low: Number, x_high: Number, y_low: Number, y_high: Number, *, x_unit: Literal["count", "rate"],
    y_unit: Literal["number", "rate"],
) -> tuple[Axis, Axis]:  # fmt: skip
    x = Axis(low=x_low, high=x_high if x_high > x_low else x_low + 1, start=52, end=WIDTH - 14, unit=x_unit)
    return x, Axis(low=y_low, high=y_high, start=HEIGHT - 42, end=24, unit=y_unit)


def _round_step(step: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is no smaller."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def _grid(x: Axis, y: Axis, x_label: str, y_ticks: bool = True) -> str:
    """Frame, grid lines, tick labels and the x axis's label."""
    parts = []
    for value, label in x.ticks():
        at = x.pixel(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{y.start}" y2="{y.end}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{y.start + 17}" text-anchor="middle">{label}</text>')
    for value, label in y.ticks() if y_ticks else []:
        at = y.pixel(value)
        parts.append(f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{x.start - 7}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    parts.append(f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{y.start}" y2="{y.start}"/>')
    parts.append(f'<text class="label" x="{x.end}" y="{y.start + 35}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(parts)


def _curve(series: Series, x: Axis, y: Axis) -> str:
    line = f'<polyline class="{series.kind}" points="{_path(series.points, x, y)}"/>'
    if series.kind not in ("valid", "eval"):
        return line
    dots = [_dot(series.kind, x.pixel(at), y.pixel(v), f"{compact(at)}: {v:.4f}") for at, v in series.points]
    return line + "".join(dots)


def _path(points: Sequence[Point], x: Axis, y: Axis) -> str:
    return " ".join(f"{x.pixel(a):.1f},{y.pixel(b):.1f}" for a, b in points)


def _dot(kind: str, x: float, y: float, hover: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(hover)}</title></circle>'


def _clipped(x: Axis, y: Axis, body: str) -> str:
    """Draws `body` within the frame only, with room for a dot on its border."""
    box = f"{x.start - 5} {y.end - 5} {x.end - x.start + 10} {y.start - y.end + 10}".split()
    place = f'x="{box[0]}" y="{box[1]}" width="{box[2]}" height="{box[3]}"'
    return f'<svg {place} viewBox="{" ".join(box)}">{body}</svg>'


def _svg(title: str, height: int, body: str) -> str:
    name = escape(title, quote=True)
    return f'<svg class="chart" role="img" aria-label="{name}" viewBox="0 0 {WIDTH} {height}">{body}</svg>'


def _legend(series: Sequence[Series]) -> str:
    items = (f'<li><i class="{s.kind}"></i>{escape(s.label)}</li>' for s in series)
    return f'<ul class="legend">{"".join(items)}</ul>'
