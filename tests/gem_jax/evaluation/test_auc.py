"""Ranking within groups against all pairs, one by one, and under changes that must not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_jax.evaluation.auc import rank
from gem_jax.evaluation.metrics import streaming_measures
from gem_jax.evaluation.scores import Sums

# Running sums of at most 40 masses that are scaled to at most 1, then quotients of numbers from 1/2 to 1.
ATOL = 4 * 40 * np.finfo(np.float64).eps

few_examples = st.lists(
    st.tuples(
        st.integers(-3, 3),
        st.sampled_from([0.0, 0.25, 1.0]),
        st.sampled_from([1e-30, 0.5, 1.0, 1e30]),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=40,
)


def columns(examples) -> tuple[np.ndarray, ...]:
    scores, labels, weight, group = (np.array(column) for column in zip(*examples, strict=True))
    return scores, labels, weight, np.unique(group, return_inverse=True)[1]


@settings(max_examples=150, deadline=None)
@given(few_examples)
def test_auc_is_the_share_of_pairs_won(examples):
    """Also where a group weighs 1e60 times another; a label between 0 and 1 is a positive and a negative in shares."""
    scores, labels, weight, group = columns(examples)
    ranking = rank(scores, labels, weight, group)
    wins = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
    for g in range(len(ranking.auc)):
        mine = group == g
        positive, negative = (weight * labels)[mine], (weight * (1 - labels))[mine]
        of_pairs = wins[np.ix_(mine, mine)]
        assert ranking.weight[g] == pytest.approx(weight[mine].sum(), rel=1e-14)
        if not positive.sum() or not negative.sum():
            assert np.isnan(ranking.auc[g])
            continue
        expected = (positive / positive.sum()) @ of_pairs @ (negative / negative.sum())
        assert ranking.auc[g] == pytest.approx(expected, abs=ATOL)
        np.testing.assert_allclose(ranking.outscores[mine], of_pairs @ (negative / negative.sum()), atol=ATOL)
        np.testing.assert_allclose(ranking.outscored[mine], (positive / positive.sum()) @ of_pairs, atol=ATOL)


def test_whole_weights_are_ranked_exactly():
    """The quotient of two whole numbers, rounded once, however many groups were summed before."""
    rng = np.random.default_rng(0)
    group = np.sort(rng.integers(0, 500, 20_000))
    scores, labels = rng.integers(0, 50, 20_000), (rng.random(20_000) < 0.3).astype(np.float32)
    weight = rng.integers(1, 4, 20_000).astype(np.float32)
    auc = rank(scores, labels, weight, np.unique(group, return_inverse=True)[1]).auc
    for g, found in zip(np.unique(group), auc, strict=True):
        z, y, w = scores[group == g], labels[group == g] == 1, weight[group == g].astype(int)
        twice = (2 * (z[y, None] > z[~y]) + (z[y, None] == z[~y])) * w[y, None] * w[~y]
        assert found == int(twice.sum()) / (2 * int(w[y].sum()) * int(w[~y].sum()))


@settings(max_examples=100, deadline=None)
@given(few_examples, st.floats(0.1, 10))
def test_invariances(examples, scale):
    scores, labels, weight, group = columns(examples)
    auc = rank(scores, labels, weight, group).auc
    # any increasing map of the scores, and any factor on the weights, leaves AUC alone
    np.testing.assert_array_equal(rank(scores**3 + 5, labels, weight, group).auc, auc)
    np.testing.assert_allclose(rank(scores, labels, weight * scale, group).auc, auc, atol=ATOL)
    # swapping the classes mirrors it
    np.testing.assert_allclose(rank(-scores, 1 - labels, weight, group).auc, auc, atol=ATOL)
    measures = streaming_measures(Sums.of(scores, labels, weight))
    rescaled = streaming_measures(Sums.of(scores, labels, weight * scale))
    for name in ("ne", "calibration", "logloss", "base_rate"):
        if measures[name] is None:
            assert rescaled[name] is None
        else:
            assert rescaled[name] == pytest.approx(measures[name], rel=1e-12)
