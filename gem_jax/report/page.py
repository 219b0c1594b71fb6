"""report.html: what a run learned, as one self-contained page made from its summary.json and metrics.jsonl."""

import itertools
import json
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from gem_jax import files
from gem_jax.errors import UserError
from gem_jax.evaluation.intervals import wilson
from gem_jax.evaluation.metrics import METRICS, Measures, share_closed
from gem_jax.report.charts import Point, Series, interval_chart, line_chart, row_chart
from gem_jax.report.formats import cells, columns, format_number
from gem_jax.report.log import read_metrics
from gem_jax.report.style import STYLE
from gem_jax.report.words import story

MAX_POINTS = 120
"""Points of a training curve; longer logs are averaged in stretches of equal length, which also smooths them."""

FACTS = {
    "device": "device",
    "examples": "training examples",
    "examples_per_s": "examples per second",
    "time_to_first_step_s": "seconds to the first step",
    "forward_flops_per_example": "forward FLOPs per example",
}
"""Known entries of summary.json and what the report calls them."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name} - gem_jax report</title>
<style>{style}</style>
</head>
<body>
<main>
<header><p class="kicker">gem_jax training report</p><h1>{name}</h1></header>
{sections}
</main>
</body>
</html>
"""

MARGIN_NOTE = (
    "Half a 95 % interval: what a bootstrap would find that draws the test users anew, or the examples where users are unknown, in "
    "closed form. It does not hold what another seed of the training changes."
)
INLINE_HEIGHT = 640
"""Pixels that a report takes below a notebook's cell; the rest is scrolled to."""

UNOBSERVED_NOTE = "They count neither as positive nor as negative; examples of weight 0 enter no metric."
CURVES_NOTE = "Training values are means over the examples since the point before; the first may lie above the frame."
DOMAINS_NOTE = "Dot: the model. Bar: the Bayes NE, where it is known. Dashed line: predicting the domain's base rate."
CALIBRATION_NOTE = (
    "Examples in bins of equal weight by prediction. On the dashed diagonal, predictions are right on average; the "
    "lines span 95% Wilson intervals of the observed rate."
)


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir/report.html` from `summary.json` and `metrics.jsonl`; either may be missing or lack parts.

    Returns:
      The report's path.

    Raises:
      UserError: the folder has neither file.
    """
    summary_path, metrics_path = run_dir / "summary.json", run_dir / "metrics.jsonl"
    if not summary_path.exists() and not metrics_path.exists():
        raise UserError(f"'{run_dir}' has no summary.json and no metrics.jsonl; name the folder of a run")
    summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.exists() else {}
    path = run_dir / "report.html"
    files.write_text(path, render(run_dir.name, summary, read_metrics(metrics_path)))
    return path


def render(run_name: str, summary: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """The page as text.

    Args:
      run_name: heading, if the config has no name.
      summary: contents of summary.json; `eval` as `Evaluator.result` gives it.
      metrics: lines of metrics.jsonl.
    """
    config, result = summary.get("config", {}), summary.get("eval", {})
    name = str(config.get("name", run_name))
    sections = [
        _tiles(result),
        _section("In words", "", *_story(summary)),
        _section("Results", "Final evaluation, by task and domain.", _results_table(result)),
        _section("Learning curves", CURVES_NOTE, *_learning_curves(summary, metrics)),
        _section("NE by domain", DOMAINS_NOTE, *_domain_charts(result)),
        _section("Calibration", CALIBRATION_NOTE, *_calibration_charts(result)),
        _section("Run", "", _pairs_table(_facts(summary))),
        _section("Definitions", "", _definitions()),
        _section("Configuration", "", _config(config)),
    ]
    return _page(name, sections)


def render_inline(run_dir: Path, summary: dict[str, Any]) -> str:
    """The headline numbers, the learning curves and the table of results, for a notebook: a frame, whose style stays its own.

    Args:
      run_dir: folder of the run, whose metrics.jsonl has the curves; they are left out if it is gone.
      summary: contents of its summary.json.
    """
    result = summary.get("eval", {})
    sections = [
        _tiles(result),
        _section("Learning curves", CURVES_NOTE, *_learning_curves(summary, read_metrics(run_dir / "metrics.jsonl"))),
        _section("Results", "Final evaluation, by task and domain.", _results_table(result)),
    ]
    page = escape(_page(run_dir.name, sections), quote=True)
    return f'<iframe srcdoc="{page}" width="100%" height="{INLINE_HEIGHT}" frameborder="0"></iframe>'


def _page(name: str, sections: Sequence[str]) -> str:
    return PAGE.format(name=escape(name), style=STYLE, sections="\n".join(s for s in sections if s))


def _section(title: str, note: str, *content: str) -> str:
    """A titled part of the page; nothing without content. Several figures stand side by side where the page is wide."""
    if not any(content):
        return ""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    body = "".join(content)
    body = f'<div class="columns">{body}</div>' if content[0].startswith("<figure") else body
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def _figure(title: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>"


def _tiles(result: dict[str, Measures]) -> str:
    """The headline numbers, one tile a task."""
    tiles = []
    for task, m in result.items():
        closed = share_closed(m["ne"], m["bayes_ne"])
        bayes = f"Bayes {m['bayes_ne']:.4f} · {closed:.0%} of the distance closed" if closed is not None else ""
        more = f"AUC {format_number(m['auc'])} · calibration {format_number(m['calibration'], 3)}"
        big = f'<p class="big">{format_number(m["ne"])}<small>NE</small></p>'
        lines = "".join(f"<p>{line}</p>" for line in (bayes, more) if line)
        tiles.append(f'<div class="tile"><h3>{escape(task)}</h3>{big}{lines}</div>')
    return f'<div class="columns tiles">{"".join(tiles)}</div>' if tiles else '<p class="note">No evaluation yet.</p>'


def _story(summary: dict[str, Any]) -> list[str]:
    """What was learnt, what is left and why; only where the truth is known."""
    parts = []
    for task, sentences in story(summary).items():
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
        parts.append(f"<h3>{escape(task)}</h3><ul>{items}</ul>")
    return parts


def _results_table(result: dict[str, Measures]) -> str:
    if not result:
        return ""
    shown = columns(result)
    headings = ("task", "domain", *(metric.heading or "" for metric in shown.values()))
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    rows = []
    for task, measures in result.items():
        rows.append(_row([task, "all", *cells(shown, measures)], "total"))
        domains = measures["by_domain"] if len(measures["by_domain"]) > 1 else {}
        rows += [_row(["", d, *cells(shown, m)], "") for d, m in domains.items()]
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _row(cells: Sequence[str], kind: str) -> str:
    return f'<tr class="{kind}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _learning_curves(summary: dict[str, Any], metrics: list[dict[str, Any]]) -> list[str]:
    figures = []
    loss = _thin(_points(metrics, "train/loss"))
    if loss:
        curve = Series(label="training window", kind="train", points=loss)
        chart = line_chart(
            title="Training loss over examples", series=[curve], x_label="examples", y_range=_y_range(loss, [])
        )
        figures.append(_figure("Training loss, nats, all tasks", chart))
    result = summary.get("eval", {})
    logged = [key.removeprefix("train/ne/") for line in metrics for key in line if key.startswith("train/ne/")]
    for task in dict.fromkeys([*result, *logged]):
        chart = _ne_curve(task, result.get(task, {}), summary.get("examples"), metrics)
        figures += [_figure(f"NE: {task}", chart)] if chart else []
    return figures


def _ne_curve(task: str, measures: Measures, examples: int | None, metrics: list[dict[str, Any]]) -> str:
    train = _thin(_points(metrics, f"train/ne/{task}"))
    valid, evaluated = (_points(metrics, f"{part}/ne/{task}") for part in ("valid", "eval"))
    if not evaluated and examples is not None and measures.get("ne") is not None:
        evaluated = [(examples, measures["ne"])]
    curves = [
        Series(label="training window", kind="train", points=train),
        Series(label="validation", kind="valid", points=valid),
        Series(label="evaluation", kind="eval", points=evaluated),
    ]
    series = [curve for curve in curves if curve.points]
    if not series:
        return ""
    end = max(x for curve in series for x, _ in curve.points)
    must_show = [ne for _, ne in [*valid, *evaluated]] + [1.0]
    if measures.get("bayes_ne") is not None:
        bayes = measures["bayes_ne"]
        must_show.append(bayes)
        series.append(Series(label=f"Bayes NE {bayes:.4f}", kind="bayes", points=[(0, bayes), (end, bayes)]))
    series.append(Series(label="base rate", kind="reference", points=[(0, 1), (end, 1)]))
    return line_chart(
        title=f"NE of {task} over examples", series=series, x_label="examples", y_range=_y_range(train, must_show)
    )


def _domain_charts(result: dict[str, Measures]) -> list[str]:
    figures = []
    for task, measures in result.items():
        domains = measures["by_domain"]
        if len(domains) > 1 and any(m["ne"] is not None for m in domains.values()):
            rows = [(domain, m["ne"], m["bayes_ne"]) for domain, m in [("all", measures), *domains.items()]]
            figures.append(_figure(task, row_chart(title=f"NE of {task} by domain", rows=rows, x_label="NE")))
    return figures


def _calibration_charts(result: dict[str, Measures]) -> list[str]:
    figures = []
    for task, measures in result.items():
        bins = measures["calibration_curve"]
        points = [(b["prediction"], b["observed"], *wilson(b["observed"], b["num_examples"])) for b in bins]
        if any(prediction > 0 for prediction, *_ in points):
            labels = ("predicted rate", "observed rate")
            chart = interval_chart(title=f"Observed against predicted rate of {task}", points=points, labels=labels)
            figures.append(_figure(f"{task}: calibration {format_number(measures['calibration'], 3)}", chart))
    return figures


def _points(metrics: list[dict[str, Any]], key: str) -> list[Point]:
    return [(line["examples"], line[key]) for line in metrics if line.get(key) is not None]


def _thin(points: list[Point]) -> list[Point]:
    """At most MAX_POINTS points: means over stretches of neighbours."""
    num_stretches = min(len(points), MAX_POINTS)
    bounds = [len(points) * i // num_stretches for i in range(num_stretches + 1)] if points else []
    stretches = [points[first:end] for first, end in itertools.pairwise(bounds)]
    return [(s[-1][0], statistics.fmean(value for _, value in s)) for s in stretches]


def _y_range(curve: list[Point], must_show: list[float]) -> tuple[float, float]:
    """Where a training curve lives once it has settled (its first tenth and its outliers left out), and `must_show`."""
    settled = sorted(value for _, value in curve[len(curve) // 10 :])
    margin = len(settled) // 20
    values = settled[margin : len(settled) - margin] + must_show
    pad = 0.06 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 0.1
    return min(values) - pad, max(values) + pad


def _facts(summary: dict[str, Any]) -> list[tuple[str, Any]]:
    facts = _flatten({k: v for k, v in summary.items() if k not in ("config", "eval", "oracle_ne")})
    return [(FACTS.get(key, key.replace("_", " ")), value) for key, value in facts]


def _config(config: dict[str, Any]) -> str:
    pairs = _pairs_table(_flatten(config))
    return f"<details><summary>All fields of the run's config</summary>{pairs}</details>" if pairs else ""


def _pairs_table(pairs: Sequence[tuple[str, Any]]) -> str:
    rows = (f'<tr><th scope="row">{escape(k)}</th><td>{escape(_text(v))}</td></tr>' for k, v in pairs)
    return f'<div class="scroll"><table class="pairs"><tbody>{"".join(rows)}</tbody></table></div>' if pairs else ""


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested dictionaries as (dotted name, value)."""
    pairs = []
    for key, value in tree.items():
        pairs += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return pairs


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_text(v) for v in value) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _definitions() -> str:
    terms = [(metric.heading, metric.definition) for metric in METRICS.values() if metric.heading is not None]
    terms += [("±", MARGIN_NOTE), ("unobserved labels", UNOBSERVED_NOTE)]
    items = (f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms)
    return f"<dl>{''.join(items)}</dl>"
