"""The report as a browser sees it: valid, self-contained, with the run's figures, whatever parts are missing."""

import html.parser
import json
import re

import numpy as np
import pytest

from gem_jax.errors import UserError
from gem_jax.report import charts
from gem_jax.report.charts import Axis, compact
from gem_jax.report.page import render, write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Checks that every element is closed in order, and keeps elements, ids and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"<{tag}> repeats an attribute"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.text.append(data.strip())

    def having(self, tag, **attributes):
        wanted = {"class": attributes.pop("kind", None)} | attributes
        return [a for t, a in self.elements if t == tag and all(v is None or a.get(k) == v for k, v in wanted.items())]


def measures(ne, bayes_ne=0.75, **changes):
    return {
        "ne": ne, "bayes_ne": bayes_ne, "closed": bayes_ne and (1 - ne) / (1 - bayes_ne),
        "auc": 0.7654321, "gauc": 0.7012, "calibration": 1.0234, "logloss": 0.1234567,
        "base_rate": 0.0321, "num_examples": 54321, "num_positives": 1743,
    } | changes  # fmt: skip


UNDEFINED = dict.fromkeys(measures(1.0)) | {"num_examples": 0, "num_positives": 0}
CURVE = [
    {"prediction": prediction, "observed": observed, "num_examples": 500}
    for prediction, observed in ((1e-9, 0.0), (0.002, 0.0), (0.01, 0.012), (0.2, 0.3))
]


def full_summary():
    by_domain = {"feed": measures(0.7876), "reels <b> & co": measures(0.8432), "empty": UNDEFINED}
    return {
        "config": {"name": "a <b> & co", "model": {"dim": 64, "layers": [1, 2]}, "train": {"shuffle": True}},
        "device": "cpu (8 devices)",
        "examples": 400000,
        "examples_per_s": 5213.4,
        "time_to_first_step_s": 7.31,
        "eval": {
            "click": measures(0.8123) | {"by_domain": by_domain, "calibration_curve": CURVE},
            "buy": measures(0.9456, None) | {"by_domain": by_domain, "calibration_curve": CURVE[2:]},
        },
    }  # fmt: skip


def metric_lines(num=300):
    lines = []
    for i in range(num):
        line = {"step": i, "examples": 1000 * (i + 1), "time": 0.0, "train/loss": 0.3 - 0.0001 * i}
        line |= {"train/ne/click": 0.95 - 0.0003 * i, "train/ne/buy": None if i % 3 else 0.99}
        if i % 100 == 99:
            line |= {"valid/ne/click": 0.93 - 0.0003 * i, "valid/ne/buy": None}
        lines.append(line)
    return lines


def write_run(run_dir, summary=None, lines=None):
    if summary is not None:
        (run_dir / "summary.json").write_text(json.dumps(summary))
    if lines is not None:
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    text = path.read_text()
    assert not re.search(r"https?:|//[a-z]|url\(|<script|<link|<img|@import", text), "not self-contained"
    assert "nan" not in re.findall(r"[a-z]+", " ".join(re.findall(r'"([^"]*)"', text)))
    return Page(text)


def all_text(page: Page) -> str:
    return " ".join(page.text)


def test_full_report(tmp_path):
    page = write_run(tmp_path, full_summary(), metric_lines())
    text = all_text(page)
    for figure in ("0.8123", "0.9456", "0.7876", "0.8432", "0.7654", "0.7012", "1.023", "0.1235", "3.21 %", "54,321"):
        assert figure in text, figure
    assert "75% of the distance closed" in text  # (1 - 0.8123) / (1 - 0.75)
    for fact in ("cpu (8 devices)", "400,000", "5,213", "7.31", "model.dim", "1, 2", "a <b> & co", "reels <b> & co"):
        assert fact in text, fact
    for term in ("base rate of the evaluated examples", "averaged over those users", "DIN and FuxiCTR"):
        assert term in text, term
    assert page.text.count("validation") == 1 and page.text.count("evaluation") == 2, "legends: click has both curves"
    labels = [svg["aria-label"] for svg in page.having("svg", kind="chart")]
    assert labels == [
        "Training loss over examples", "NE of click over examples", "NE of buy over examples",
        "NE of click by domain", "NE of buy by domain",
        "Observed against predicted rate of click", "Observed against predicted rate of buy",
    ]  # fmt: skip


def test_charts_stay_within_their_frame(tmp_path):
    page = write_run(tmp_path, full_summary(), metric_lines())
    for circle in page.having("circle"):
        assert 0 <= float(circle["cx"]) <= charts.WIDTH and 0 <= float(circle["cy"]) <= charts.HEIGHT
    for label in page.having("text", kind="tick"):
        assert 0 < float(label["x"]) <= charts.WIDTH


def test_without_known_truth_one_task_one_domain(tmp_path):
    only = measures(0.87, None)
    summary = full_summary() | {"eval": {"label": only | {"by_domain": {"all": only}, "calibration_curve": CURVE}}}
    page = write_run(tmp_path, summary, [])
    text = all_text(page)
    assert "0.8700" in text
    assert not any(term in text.split("Definitions")[0] for term in ("Bayes NE 0", "closed"))
    assert not any("by domain" in svg["aria-label"] for svg in page.having("svg", kind="chart"))
    # the summary's evaluation stands in for the missing log: a dot at the run's last example
    assert "NE of label over examples" in [svg["aria-label"] for svg in page.having("svg", kind="chart")]
    assert "400k: 0.8700" in page.text


def test_only_metrics_of_an_unfinished_run(tmp_path):
    page = write_run(tmp_path, lines=metric_lines(5))
    assert "No evaluation yet." in page.text and tmp_path.name in page.text
    assert len(page.having("svg", kind="chart")) == 3


def test_undefined_everything(tmp_path):
    nothing = UNDEFINED | {"by_domain": {"a": UNDEFINED, "b": UNDEFINED}, "calibration_curve": []}
    page = write_run(tmp_path, {"eval": {"click": nothing}}, [{"step": 0, "examples": 0, "train/loss": None}])
    assert page.having("svg", kind="chart") == []


def test_one_logged_step_and_constant_values(tmp_path):
    summary = full_summary()
    summary["eval"]["click"]["calibration_curve"] = [{"prediction": 1.0, "observed": 1.0, "num_examples": 1}]
    line = {"step": 0, "examples": 0, "time": 0.0, "train/loss": 0.0, "eval/ne/click": 1.0}
    write_run(tmp_path, summary, [line])


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="no summary.json and no metrics.jsonl"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_long_logs_are_averaged_not_dropped():
    lines = [{"examples": i, "train/loss": float(i % 2)} for i in range(1, 10_001)]
    text = render("run", {}, lines)
    (curve,) = re.findall(r'<polyline class="train" points="([^"]*)"', text)
    points = np.array([[float(v) for v in pair.split(",")] for pair in curve.split()])
    assert len(points) == 120 and points[-1, 0] == charts.WIDTH - 14
    # stretches of 83 or 84 average to between 41 / 83 and 42 / 83, where picking single steps would give 0 and 1
    y_ticks = re.findall(r'text-anchor="end">([0-9.]+)</text>', text)
    assert len(y_ticks) > 2 and all(41 / 83 - 0.001 <= float(tick) <= 42 / 83 + 0.001 for tick in y_ticks)


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        (Axis(low=0, high=400_000, start=0, end=1, unit="count"), ["0", "100k", "200k", "300k", "400k"]),
        (Axis(low=0.83, high=1.01, start=0, end=1, unit="number"), ["0.85", "0.90", "0.95", "1.00"]),
        (
            Axis(low=0.9, high=0.91, start=0, end=1, unit="number"),
            ["0.900", "0.902", "0.904", "0.906", "0.908", "0.910"],
        ),
        (Axis(low=-0.1, high=4, start=0, end=1, unit="number"), ["0", "1", "2", "3", "4"]),
        (Axis(low=0.004, high=0.06, start=0, end=1, unit="rate"), ["0.5%", "1%", "2%", "5%"]),
        (Axis(low=1e-5, high=1, start=0, end=1, unit="rate"), ["0.001%", "0.01%", "0.1%", "1%", "10%", "100%"]),
    ],
)
def test_ticks(axis, labels):
    assert [label for _, label in axis.ticks()] == labels


def test_pixels_and_compact():
    axis = Axis(low=0.01, high=1, start=10, end=30, unit="rate")
    assert [axis.pixel(v) for v in (0.01, 0.1, 1)] == pytest.approx([10, 20, 30])
    assert [compact(v) for v in (0, 950, 20_000, 1_500_000, 3e9)] == ["0", "950", "20k", "1.5M", "3B"]
