"""A metric registered by one function is in the console's table, the report and its definitions, and the log."""

import io
import json

import pytest
from rich.console import Console

from gem_jax.evaluation.evaluator import Evaluator
from gem_jax.evaluation.metrics import METRICS, metric
from gem_jax.evaluation.scores import Scores
from gem_jax.report.console import print_table
from gem_jax.report.log import RunLogger, read_metrics
from gem_jax.report.page import render
from tests.gem_jax.evaluation.scored import SCHEMA, random_batch


@pytest.fixture
def registered():
    @metric("max & log", unit="share", optional=True)
    def top(scores: Scores) -> float | None:
        """Something <new>: 25 % for a task with examples."""
        return 0.25 if len(scores.labels) else None

    yield
    METRICS.pop("top")


def shown(result) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_table(result, console)
    return console.file.getvalue()


def test_everywhere(registered, tmp_path):
    evaluator = Evaluator(SCHEMA)
    evaluator.update(*random_batch(0, 300))
    result = evaluator.result()

    headings, *rows = [line.split() for line in shown(result).splitlines() if "click" in line or "loss" in line]
    assert headings[-1] == "log" and [row[-1] for row in rows] == ["25%"]  # its heading is "max", "&", "log" in lines

    page = render("run", {"eval": json.loads(json.dumps(result, allow_nan=False))}, [])
    assert '<th scope="col">max &amp; log</th>' in page and page.count("<td>25%</td>") == 2 * 5
    assert "<dt>max &amp; log</dt><dd>Something &lt;new&gt;: 25 % for a task with examples.</dd>" in page

    with RunLogger(tmp_path, total_examples=1, console=Console(quiet=True)) as log:
        log.evaluation(1, 300, "valid", result)
    assert (
        read_metrics(tmp_path / "metrics.jsonl")[0].items() >= {"valid/top/click": 0.25, "valid/top/buy": 0.25}.items()
    )


def test_a_result_from_before_the_metric(registered):
    evaluator = Evaluator(SCHEMA)
    evaluator.update(*random_batch(0, 300))
    result = evaluator.result()
    for measures in result.values():
        del measures["top"]
    assert "max" not in shown(result), "an optional column without values is hidden"
    assert "max &amp; log</th>" not in render("run", {"eval": result}, [])
