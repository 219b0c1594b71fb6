"""Standard errors in closed form against derivatives, the bootstrap, DeLong's formula, and the truth of simulated data."""

import dataclasses
import math

import numpy as np
import pytest

from gem_jax.evaluation import influence
from gem_jax.evaluation.intervals import Z, is_estimable, standard_error
from gem_jax.evaluation.metrics import METRICS, measure
from gem_jax.evaluation.scores import Scores
from tests.gem_jax.evaluation.simulated import draw, reweighted

WITH_ERROR = [name for name, metric in METRICS.items() if metric.influence is not None]


def value(name: str, scores: Scores) -> float:
    found = METRICS[name].of_scores(scores)
    assert found is not None
    return found


def test_which_metrics_have_one():
    assert WITH_ERROR == ["ne", "regret_ne", "auc", "gauc"]


@pytest.mark.parametrize("name", WITH_ERROR)
@pytest.mark.parametrize("soft", [False, True], ids=["hard labels", "soft labels"])
def test_influence_is_the_derivative_by_weight(name, soft):
    """w_i dT/dw_i by a central difference; gAUC's by whole users, as users are drawn whole."""
    scores, _ = draw(np.random.default_rng(1), 30)
    if soft:
        labels = np.random.default_rng(2).beta(0.3, 1, len(scores.labels))
        scores = dataclasses.replace(scores, labels=labels.astype(np.float32))
    found = METRICS[name].influence(scores)
    assert found.dtype == np.float64 and abs(found.sum()) < 1e-12
    groups = scores.cluster if name == "gauc" else np.arange(len(scores.labels))
    h = 1e-4  # the error of a central difference: h^2 of it for curvature, 1e-16 / h for rounding
    for g in np.unique(groups)[:40]:
        up, down = (value(name, reweighted(scores, np.where(groups == g, math.exp(s), 1))) for s in (h, -h))
        assert found[groups == g].sum() == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-10)


@pytest.mark.parametrize("name", WITH_ERROR)
def test_the_bootstrap_by_user_finds_the_same(name):
    """1,000 draws of 400 users: a standard deviation is then known to 1 / sqrt(2000) = 2.2 %; three of those, and a few per
    cent for what is not linear with 400 users."""
    scores, _ = draw(np.random.default_rng(3), 400)
    rng = np.random.default_rng(4)
    times = rng.multinomial(400, np.full(400, 1 / 400), 1000)
    drawn = [value(name, reweighted(scores, t[scores.cluster])) for t in times]
    assert measure(scores)["standard_error"][name] == pytest.approx(np.std(drawn), rel=3 * 0.022 + 0.03)


def test_without_users_the_bootstrap_is_by_example():
    scores, _ = draw(np.random.default_rng(5), 200)
    unknown = dataclasses.replace(scores, user=np.full(len(scores.user), -1))
    one = dataclasses.replace(scores, user=np.full(len(scores.user), 5))
    errors = measure(unknown)["standard_error"]
    assert errors == measure(one)["standard_error"] and errors["gauc"] is None
    rng, n = np.random.default_rng(6), len(scores.labels)
    drawn = [value("ne", reweighted(unknown, rng.multinomial(n, np.full(n, 1 / n)))) for _ in range(500)]
    assert errors["ne"] == pytest.approx(np.std(drawn), rel=3 / math.sqrt(1000) + 0.03)


def test_examples_that_say_the_same_count_once():
    """Every example four times: with users the errors stay, without they are halved, which is why users must be told."""
    once, _ = draw(np.random.default_rng(5), 200)
    once = dataclasses.replace(once, user=np.arange(len(once.user)))
    often = once.select(np.repeat(np.arange(len(once.user)), 4))
    unknown = dataclasses.replace(often, user=np.full(len(often.user), -1))
    expected, by_user, by_example = (measure(s)["standard_error"] for s in (once, often, unknown))
    for name in ("ne", "auc", "regret_ne"):
        assert by_user[name] == pytest.approx(expected[name], rel=1e-9)
        assert by_example[name] == pytest.approx(expected[name] / 2, rel=1 / len(once.user))


def test_an_unknown_user_stands_alone():
    """Some users known, some not: each example without one is a cluster of its own."""
    scores, _ = draw(np.random.default_rng(7), 60)
    some = scores.user % (2**41) == 0
    mixed = dataclasses.replace(scores, user=np.where(some, scores.user, -1))
    apart = dataclasses.replace(scores, user=np.where(some, scores.user, 2**50 + np.arange(len(some))))
    errors, expected = measure(mixed)["standard_error"], measure(apart)["standard_error"]
    assert {n: errors[n] for n in ("ne", "auc")} == pytest.approx({n: expected[n] for n in ("ne", "auc")}, rel=1e-12)


def test_auc_by_example_is_delongs():
    """DeLong, DeLong and Clarke-Pearson (1988), by its own formula: variances of placement values over class sizes."""
    scores, _ = draw(np.random.default_rng(8), 100)
    plain = dataclasses.replace(scores, user=np.arange(len(scores.user)), weight=np.ones(len(scores.user), np.float32))
    z, y = plain.logits, plain.labels == 1
    wins = (z[y, None] > z[~y]) + 0.5 * (z[y, None] == z[~y])
    delong = wins.mean(axis=1).var(ddof=1) / y.sum() + wins.mean(axis=0).var(ddof=1) / (~y).sum()
    # The jackknife divides by n - 1 over all where DeLong does by class.
    assert measure(plain)["standard_error"]["auc"] == pytest.approx(math.sqrt(delong), rel=1 / y.sum())


@pytest.fixture(scope="module")
def truth() -> dict[str, float]:
    """The metrics of the simulated users without end: 150,000 of them, which know each to a thirtieth of a draw's error."""
    everyone, _ = draw(np.random.default_rng(9), 150_000)
    return measure(everyone)


def test_a_95_percent_interval_holds_the_truth_in_95_of_100_draws(truth):
    held = dict.fromkeys(WITH_ERROR, 0)
    for seed in range(400):
        scores, _ = draw(np.random.default_rng((10, seed)), 150)
        found = measure(scores)
        for name in WITH_ERROR:
            held[name] += abs(found[name] - truth[name]) < Z * found["standard_error"][name]
    assert all(0.93 <= count / 400 <= 0.97 for count in held.values()), held


def test_where_examples_cannot_tell_there_is_none():
    scores, _ = draw(np.random.default_rng(11), 40)
    one_clicks = dataclasses.replace(
        scores, labels=np.where(scores.user == 2 * 2**40, scores.labels, 0).astype(np.float32)
    )
    assert one_clicks.labels.sum() > 0 and not is_estimable(one_clicks)
    assert set(measure(one_clicks)["standard_error"].values()) == {None} and measure(one_clicks)["ne"] is not None
    perfect = dataclasses.replace(scores, logits=scores.labels * 3 + scores.logits * np.float32(0.01))
    found = measure(perfect)
    assert found["auc"] == found["gauc"] == 1
    assert found["standard_error"]["auc"] is found["standard_error"]["gauc"] is None, "an AUC of 1 is not certain"
    assert found["standard_error"]["ne"] > 0


def test_two_clusters_are_the_fewest():
    assert standard_error(np.array([1.0, 2.0, -3.0]), np.array([0, 0, 1])) == pytest.approx(math.sqrt(2 * (9 + 9)))


def test_regret_is_ne_less_bayes_ne_without_the_luck():
    """On average the same, and many times surer: the labels' noise is in NE and Bayes NE, not in the regret."""
    scores, _ = draw(np.random.default_rng(12), 20_000)
    found = measure(scores)
    assert found["regret_ne"] == pytest.approx(found["ne"] - found["bayes_ne"], abs=0.003)
    assert found["standard_error"]["regret_ne"] < found["standard_error"]["ne"] / 2
    exact = dataclasses.replace(
        scores, logits=np.log(scores.true_probability.astype(float) / (1 - scores.true_probability.astype(float)))
    )
    assert measure(exact)["regret_ne"] == pytest.approx(0, abs=1e-12) and influence.regret_ne(exact) is not None
