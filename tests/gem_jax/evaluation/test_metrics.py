"""Each metric against scikit-learn or a float64 formula written out example by example."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from gem_jax.errors import UserError
from gem_jax.evaluation.auc import rank
from gem_jax.evaluation.errors import DivergedError
from gem_jax.evaluation.evaluator import Evaluator, ScoredExamples, WindowMetrics
from gem_jax.evaluation.metrics import METRICS, RESERVED, Measures, metric, scalars, share_closed, streaming_measures
from gem_jax.evaluation.scores import Scores, Sums
from tests.gem_jax.evaluation.scored import DOMAINS, SCHEMA, Scored, random_batch

# Sums of n float64 terms in another order differ by at most about n eps relative to the sum of magnitudes: 1e-12 for
# the 4000 examples here.
RTOL = 1e-12


def evaluate(*batches: Scored) -> dict[str, Measures]:
    evaluator = Evaluator(SCHEMA)
    for logits, host in batches:
        evaluator.update(logits, host)
    return evaluator.result()


def observed(logits, host, task: int, domain: int | None = None):
    """(z, y, w, user, true p) in float64 of the examples that count."""
    keep = ~np.isnan(host.labels[:, task]) & (host.weight > 0)
    if domain is not None:
        keep &= host.domain == domain
    columns = logits[:, task], host.labels[:, task], host.weight, host.user, host.true_probability[:, task]
    return tuple(c[keep] if c.dtype == np.int64 else c[keep].astype(np.float64) for c in columns)


def expected_measures(z, y, w, user, true_p) -> dict:
    """The same metrics from scikit-learn and plain loops."""
    p = 1 / (1 + np.exp(-z))
    base = np.average(y, weights=w)
    entropy = -(base * math.log(base) + (1 - base) * math.log(1 - base))
    aucs, user_weights = [], []
    for u in np.unique(user):
        mine = user == u
        if 0 < y[mine].sum() < mine.sum():
            aucs.append(roc_auc_score(y[mine], z[mine], sample_weight=w[mine]))
            user_weights.append(w[mine].sum())
    logloss = log_loss(y, p, sample_weight=w)
    divergence = true_p * np.log(true_p / p) + (1 - true_p) * np.log((1 - true_p) / (1 - p))
    return {
        "logloss": logloss,
        "ne": logloss / entropy,
        "bayes_ne": log_loss(y, true_p, sample_weight=w) / entropy,
        "regret_ne": np.average(divergence, weights=w) / entropy,
        "closed": (1 - logloss / entropy) / (1 - log_loss(y, true_p, sample_weight=w) / entropy),
        "auc": roc_auc_score(y, z, sample_weight=w),
        "gauc": np.average(aucs, weights=user_weights),
        "calibration": (w * p).sum() / (w * y).sum(),
        "true_calibration": (w * p).sum() / (w * true_p).sum(),
        "base_rate": base,
        "num_examples": len(y),
        "num_positives": y.sum(),
    }


def assert_measures(actual: dict, expected: dict, rtol: float = RTOL):
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=rtol), name


@pytest.mark.parametrize("weighted", [True, False])
def test_every_metric_by_task_and_domain(weighted):
    logits, host = random_batch(0, 4000, weighted=weighted)
    result = evaluate((logits, host))
    assert list(result) == ["click", "buy"]
    for n, task in enumerate(result):
        assert_measures(result[task], expected_measures(*observed(logits, host, n)))
        assert list(result[task]["by_domain"]) == list(DOMAINS)
        for d in range(len(DOMAINS) - 1):
            of_domain = result[task]["by_domain"][DOMAINS[d]]
            assert_measures(of_domain, expected_measures(*observed(logits, host, n, d)))


def test_empty_domain_and_no_update_are_none_not_nan():
    expected = {"num_examples": 0, "num_positives": 0} | dict.fromkeys(
        (
            "ne",
            "bayes_ne",
            "regret_ne",
            "closed",
            "auc",
            "gauc",
            "calibration",
            "true_calibration",
            "logloss",
            "base_rate",
        )
    )
    expected["standard_error"] = dict.fromkeys(("ne", "regret_ne", "auc", "gauc"))
    assert evaluate(random_batch(1, 50))["click"]["by_domain"]["empty"] == expected
    nothing = evaluate()["buy"]
    assert {name: nothing[name] for name in expected} == expected
    assert nothing["calibration_curve"] == []


def test_a_metric_is_one_function():
    """Registered, it is in results, windows and scalars; `report/test_registry.py` has the tables and the report."""
    try:

        @metric("accuracy")
        def accuracy(scores: Scores) -> float | None:
            """The weighted share of examples on the right side of 1/2."""
            right = (scores.logits > 0) == (scores.labels > 0.5)
            return float(np.average(right, weights=scores.weight)) if len(right) else None

        @metric(None, streaming=True, logged=False)
        def mean_prediction(sums: Sums) -> float | None:
            """The weighted mean of the predictions."""
            return sums.predicted / sums.weight if sums.weight else None

        logits, host = random_batch(20, 200)
        result = evaluate((logits, host))
        z, y, w, *_ = observed(logits, host, 1)
        assert_measures(result["buy"], {"accuracy": np.average((z > 0) == y, weights=w)})
        assert_measures(result["buy"], {"mean_prediction": np.average(1 / (1 + np.exp(-z)), weights=w)})
        assert result["buy"]["by_domain"]["empty"].items() >= {"accuracy": None, "mean_prediction": None}.items()
        json.dumps(result, allow_nan=False)
        flat = scalars("eval", result)
        assert "eval/accuracy/click" in flat and "eval/mean_prediction/click" not in flat
        window = WindowMetrics(SCHEMA)
        window.update(logits, host)
        of_window = window.result()["buy"]
        assert of_window["mean_prediction"] == result["buy"]["mean_prediction"] and "accuracy" not in of_window
    finally:
        METRICS.pop("accuracy", None)
        METRICS.pop("mean_prediction", None)


def test_a_metric_cannot_take_anothers_name_and_needs_a_definition():
    def ne(sums: Sums) -> None:
        """Not that one."""

    def calibration_curve(sums: Sums) -> None:
        """A key of results that is no metric."""

    def standard_error(sums: Sums) -> None:
        """Another one."""

    def unexplained(sums: Sums) -> None:
        return None

    builtin = METRICS["ne"]
    for function, message in (
        (ne, "'ne' of .* is taken"),
        (calibration_curve, "is taken"),
        (standard_error, "is taken"),
        (unexplained, "no docstring"),
    ):
        with pytest.raises(UserError, match=message):
            metric("x")(function)
    assert METRICS["ne"] is builtin and "unexplained" not in METRICS
    again = metric("NE", streaming=True, influence=builtin.influence, better="lower")(builtin.function)
    assert again is builtin.function, "a module may be loaded again"
    assert METRICS["ne"] == builtin


def test_every_metric_has_a_definition():
    for name, registered in METRICS.items():
        assert registered.definition.endswith(".") and "\n" not in registered.definition, name


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_only(label):
    logits, host = random_batch(2, 100)
    host.labels[~np.isnan(host.labels)] = label
    click = evaluate((logits, host))["click"]
    assert click["ne"] is click["bayes_ne"] is click["regret_ne"] is click["auc"] is click["gauc"] is None
    assert set(click["standard_error"].values()) == {None}
    assert click["logloss"] > 0 and click["base_rate"] == label
    assert (click["calibration"] is None) == (label == 0)


def test_result_is_strict_json():
    json.dumps(evaluate(random_batch(3, 30)), allow_nan=False)


def test_unknown_truth_leaves_bayes_undefined_only():
    logits, host = random_batch(4, 500)
    host.true_probability[np.flatnonzero(~np.isnan(host.labels[:, 0]) & (host.weight > 0))[0], 0] = np.nan
    result = evaluate((logits, host))
    assert result["click"]["bayes_ne"] is result["click"]["regret_ne"] is None and result["click"]["ne"] is not None
    assert result["buy"]["bayes_ne"] is not None


def only_one_user_of_both_classes(host) -> np.ndarray:
    """Half of the examples are user 7's, the other positives user 9's, the other negatives user 8's."""
    of_class = np.where(np.nan_to_num(host.labels[:, 0]) == 1, 9, 8)
    return np.where(np.arange(len(of_class)) % 2 == 0, 7, of_class)


@pytest.mark.parametrize(
    "users",
    [
        lambda host: np.full(len(host.labels), -1),
        lambda host: np.full(len(host.labels), 12),  # one for all, as logs say that have no users
        lambda host: np.arange(len(host.labels)),
        only_one_user_of_both_classes,
    ],
    ids=["unknown", "one", "each its own", "only one of both classes"],
)
def test_where_users_say_nothing_gauc_is_undefined_and_not_the_auc(users):
    logits, host = random_batch(5, 400)
    host.user[:] = users(host)
    click = evaluate((logits, host))["click"]
    assert click["gauc"] is click["standard_error"]["gauc"] is None
    assert click["auc"] is not None and click["standard_error"]["auc"] is not None


def test_examples_of_unknown_users_take_no_part_in_gauc():
    logits, host = random_batch(6, 600, num_users=30)
    unknown = np.random.default_rng(6).random(600) < 0.3
    host.user[unknown] = -1
    result = evaluate((logits, host))
    for n, task in enumerate(result):
        z, y, w, user, true_p = observed(logits, host, n)
        known = user != -1
        assert 0 < known.sum() < len(known)
        expected = expected_measures(z[known], y[known], w[known], user[known], true_p[known])
        assert_measures(result[task], {"gauc": expected["gauc"]})
        assert_measures(result[task], {"auc": roc_auc_score(y, z, sample_weight=w), "num_examples": len(y)})


def test_extreme_logits_are_exact():
    # p(1 | -800) underflows in float64; the loss is still 800 nats. Ranking is by logit, where sigmoids would tie.
    sums = Sums.of(np.array([-800.0, 800.0, 40.0, 41.0]), np.array([1.0, 0.0, 0.0, 1.0]), np.ones(4))
    assert streaming_measures(sums)["logloss"] == pytest.approx((800 + 800 + 40) / 4, rel=1e-15)
    assert rank(np.array([40.0, 41.0]), np.array([0.0, 1.0]), np.ones(2), np.zeros(2, int)).auc[0] == 1.0


def test_diverged_model_is_named():
    logits, host = random_batch(6, 20)
    logits[np.flatnonzero(~np.isnan(host.labels[:, 1]) & (host.weight > 0))[0], 1] = np.nan
    with pytest.raises(DivergedError, match="task 'buy': 1 logits .* not finite; lower optimizer.learning_rate"):
        Evaluator(SCHEMA).update(logits, host)


def test_batching_and_gathering_do_not_matter():
    batches = [random_batch(seed, size) for seed, size in ((7, 300), (8, 1), (9, 700))]
    left, right, gathered = Evaluator(SCHEMA), Evaluator(SCHEMA), Evaluator(SCHEMA)
    left.update(*batches[0])
    right.update(*batches[1])
    right.update(*batches[2])
    both = [vars(left.scores()), vars(right.scores())]
    gathered.add(ScoredExamples(**{name: np.concatenate([part[name] for part in both]) for name in both[0]}))
    gathered.add(Evaluator(SCHEMA).scores())
    assert gathered.result() == evaluate(*batches)


def test_evaluator_keeps_its_own_copy():
    logits, host = random_batch(10, 100)
    evaluator = Evaluator(SCHEMA)
    evaluator.update(logits, host)
    before = evaluator.result()
    host.labels[:] = 0
    logits[:] = 0
    assert evaluator.result() == before


def test_window_agrees_with_the_evaluator_adds_up_and_resets():
    a, b = random_batch(11, 400), random_batch(12, 300)
    window, other = WindowMetrics(SCHEMA), WindowMetrics(SCHEMA)
    window.update(*a)
    other.update(*b)
    window.sums = window.sums + other.sums  # as processes do
    expected = evaluate(a, b)
    for task, measures in window.result().items():
        assert measures.keys() == {"num_examples", "num_positives", "base_rate", "ne", "calibration", "logloss"}
        assert_measures(measures, {name: expected[task][name] for name in measures})
    window.reset()
    assert window.result()["click"]["num_examples"] == 0 and window.result()["click"]["ne"] is None
    assert other.result()["click"]["num_examples"] > 0


def test_scalars_and_share_closed():
    flat = scalars("eval", evaluate(random_batch(13, 200)))
    assert {"eval/ne/click", "eval/gauc/buy", "eval/bayes_ne/click", "eval/regret_ne/buy"} <= set(flat)
    assert all(isinstance(value, float) for value in flat.values())
    assert not any(key in name for name in flat for key in ("num_", *RESERVED))
    assert share_closed(0.9, 0.8) == pytest.approx(0.5)
    assert share_closed(None, 0.8) is share_closed(0.9, None) is share_closed(0.9, 1.0) is None


@settings(max_examples=50, deadline=None)
@given(st.floats(0.001, 0.999), st.integers(2, 50))
def test_predicting_the_base_rate_has_ne_1(rate, n):
    labels = (np.arange(n) < max(1, int(rate * n))).astype(float)
    weight = np.linspace(1, 2, n)
    base = np.average(labels, weights=weight)
    if 0 < labels.sum() < n:
        measures = streaming_measures(Sums.of(np.full(n, math.log(base / (1 - base))), labels, weight))
        assert measures["ne"] == pytest.approx(1, rel=1e-12)
        assert measures["calibration"] == pytest.approx(1, rel=1e-12)
