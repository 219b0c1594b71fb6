"""No metric is ever NaN, infinite or wrong: any weights, labels and logits, against 120-digit arithmetic."""

import decimal
import fractions
import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gem_jax.data.schema import Schema, Task
from gem_jax.evaluation.evaluator import Evaluator, ScoredExamples
from gem_jax.evaluation.metrics import METRICS, measure, streaming_measures
from gem_jax.evaluation.scores import Scores, Sums

EPS = float(np.finfo(np.float64).eps)

weights = st.one_of(
    st.floats(-30, 30).map(lambda x: float(np.float32(10.0**x))), st.sampled_from([1.0, 1e6, 1e-12, 1e-45, 3e38])
)
labels = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32))
logits = st.one_of(st.floats(-80, 80, width=32), st.sampled_from([0.0, -1.5]))
truths = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 1.0, 1e-9]))
users = st.integers(-1, 3)
examples = st.lists(st.tuples(logits, labels, weights, truths, users), min_size=1, max_size=8)


def scores_of(rows) -> Scores:
    z, y, w, q, user = (np.array(column) for column in zip(*rows, strict=True))
    columns = {"logits": z, "labels": y, "weight": w, "true_probability": q}
    rest = {"domain": np.zeros(len(z), np.int32), "user": user, "example_id": np.arange(len(z))}
    return Scores(**{name: column.astype(np.float32) for name, column in columns.items()}, **rest)


def exact(scores: Scores) -> dict[str, float | None]:
    """The metrics by their definitions in 120 digits, with exponents that never overflow."""
    with decimal.localcontext(decimal.Context(prec=120, Emin=-(10**6), Emax=10**6)):
        one = decimal.Decimal(1)
        z, y, w, q = (
            [decimal.Decimal(float(x)) for x in column]
            for column in (scores.logits, scores.labels, scores.weight, scores.true_probability)
        )

        def softplus(x):  # ln(1 + e^x)
            return (one + x.exp()).ln()

        def cross_entropy(p, x):
            return p * softplus(-x) + (one - p) * softplus(x)

        def entropy(p):
            return -sum(s * s.ln() for s in (p, one - p) if s > 0)

        total, positive = sum(w), sum(a * b for a, b in zip(w, y, strict=True))
        loss = sum(a * cross_entropy(b, x) for a, b, x in zip(w, y, z, strict=True)) / total
        predicted = sum(a / (one + (-x).exp()) for a, x in zip(w, z, strict=True))
        found = {
            "logloss": loss,
            "base_rate": positive / total,
            "calibration": predicted / positive if positive else None,
        }
        if 0 < positive < total:
            base = entropy(positive / total)
            clipped = [min(max(p, decimal.Decimal(1e-12)), one - decimal.Decimal(1e-12)) for p in q]
            bayes = sum(a * -(b * p.ln() + (one - b) * (one - p).ln()) for a, b, p in zip(w, y, clipped, strict=True))
            divergence = sum(a * (cross_entropy(p, x) - entropy(p)) for a, p, x in zip(w, q, z, strict=True))
            found |= {"ne": loss / base, "bayes_ne": bayes / total / base, "regret_ne": divergence / total / base}
            found |= {"auc": auc(scores, range(len(z))), "gauc": gauc(scores), "entropy": base}
        return {name: None if value is None else float(value) for name, value in found.items()}


def auc(scores: Scores, members) -> fractions.Fraction | None:
    """Over all pairs, in fractions."""
    won = pairs = fractions.Fraction(0)
    y, w = ([fractions.Fraction(float(x)) for x in column] for column in (scores.labels, scores.weight))
    for i in members:
        for j in members:
            mass = w[i] * y[i] * w[j] * (1 - y[j])
            pairs += mass
            won += mass * fractions.Fraction(int(np.sign(scores.logits[i] - scores.logits[j])) + 1, 2)
    return won / pairs if pairs else None


def gauc(scores: Scores) -> float | None:
    found = []
    for user in set(scores.user[scores.user != -1].tolist()):
        mine = np.flatnonzero(scores.user == user)
        if (of_user := auc(scores, mine)) is not None:
            found.append((of_user, sum(fractions.Fraction(float(w)) for w in scores.weight[mine])))
    if len(found) < 2:
        return None
    return sum(a * w for a, w in found) / sum(w for _, w in found)


@settings(max_examples=200, deadline=None)
@given(examples)
@example([(0.3, 1.0, 1e6, 0.5, 0), (-0.2, 0.0, 1e-12, 0.5, 1)])  # the base rate rounds to 1
@example([(0.3, 1.0, 1e-12, 0.5, 0), (-0.2, 0.0, 1e6, 0.5, 1)])  # ... to 0, once NaN, once -0.0
@example([(80.0, 1.0, 1e30, 1.0, 0), (-80.0, 0.0, 1e-30, 0.0, 0), (0.0, 1.0, 1e-30, 0.5, 1), (1.0, 0.0, 1e30, 0.5, 1)])
def test_metrics_are_finite_and_right(rows):
    scores = scores_of(rows)
    found = measure(scores)
    json.dumps(found, allow_nan=False)
    expected = exact(scores)
    base, n = expected.get("entropy"), len(rows)
    # Sums of at most 8 terms of one sign, each of a few roundings, and quotients of those: relative errors only.
    relative = {"abs": 0, "rel": 4 * (n + 10) * EPS}
    for name in ("logloss", "base_rate", "calibration", "ne"):
        assert found[name] == (None if expected.get(name) is None else pytest.approx(expected[name], **relative)), name
    for name in ("auc", "gauc"):
        close = {"abs": 4 * (n + 10) * EPS}
        assert found[name] == (None if expected.get(name) is None else pytest.approx(expected[name], **close)), name
    if base is not None:
        # 1 - 1e-12 has lost four digits of its distance to 1, and a divergence is a difference of numbers up to 80.
        assert found["bayes_ne"] == pytest.approx(expected["bayes_ne"], rel=1e-3, abs=1e-300)
        assert found["regret_ne"] == pytest.approx(expected["regret_ne"], rel=relative["rel"], abs=100 * EPS / base)
    streaming = streaming_measures(Sums.of(scores.logits, scores.labels, scores.weight))
    assert streaming == {name: found[name] for name, metric in METRICS.items() if metric.streaming}


@settings(max_examples=100, deadline=None)
@given(examples, examples)
def test_a_whole_result_is_strict_json(one, other):
    schema = Schema(tables=(), categoricals=(), tasks=(Task(name="click"),), domains=("feed", "reels"))
    evaluator = Evaluator(schema)
    for domain, rows in enumerate((one, other)):
        s = scores_of(rows)
        columns = {
            "logits": s.logits[:, None],
            "labels": s.labels[:, None],
            "true_probability": s.true_probability[:, None],
        }
        columns |= {"weight": s.weight, "user": s.user, "example_id": s.example_id}
        evaluator.add(ScoredExamples(**columns, domain=np.full(len(rows), domain, np.int32)))
    (click,) = evaluator.result().values()
    json.dumps(click, allow_nan=False)
    rates = [value for point in click["calibration_curve"] for value in (point["prediction"], point["observed"])]
    assert all(0 <= rate <= 1 + 4 * EPS for rate in rates)


def test_confident_and_right_is_not_rounded_to_no_loss():
    """1 - p = e^-80 is far below the resolution of p, and still what the loss is."""
    sums = Sums.of(np.array([80.0, -80.0]), np.array([1.0, 0.0]), np.ones(2))
    assert sums.loss == pytest.approx(2 * math.exp(-80), rel=1e-14)
