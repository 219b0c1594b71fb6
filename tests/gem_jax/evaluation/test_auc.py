"""Grouped AUC against all pairs, one by one, and under changes that must not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_jax.evaluation.auc import grouped_auc
from gem_jax.evaluation.metrics import streaming_measures
from gem_jax.evaluation.scores import Sums

# Sums run on from group to group: an AUC is off by up to n eps times all weight (80) over its group's (0.5).
ATOL = 40 * 160 * np.finfo(np.float64).eps

few_examples = st.lists(
    st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 1.0]), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 2)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(few_examples)
def test_grouped_auc_is_the_share_of_pairs_won(examples):
    scores, labels, weight, group = (np.array(column) for column in zip(*examples, strict=True))
    auc, total = grouped_auc(scores, labels, weight, group)
    for i, g in enumerate(np.unique(group)):
        won = pairs = 0.0
        for s, y, w, in_g in zip(scores, labels, weight, group == g, strict=True):
            for s2, y2, w2, in_g2 in zip(scores, labels, weight, group == g, strict=True):
                if in_g and in_g2 and y == 1 and y2 == 0:
                    pairs += w * w2
                    won += w * w2 * ((s > s2) + 0.5 * (s == s2))
        assert total[i] == weight[group == g].sum()
        assert auc[i] == pytest.approx(won / pairs, abs=ATOL) if pairs else np.isnan(auc[i])


@settings(max_examples=100, deadline=None)
@given(few_examples, st.floats(0.1, 10))
def test_invariances(examples, scale):
    scores, labels, weight, group = (np.array(column) for column in zip(*examples, strict=True))
    auc = grouped_auc(scores, labels, weight, group)[0]
    # any increasing map of the scores, and any factor on the weights, leaves AUC alone
    np.testing.assert_array_equal(grouped_auc(scores**3 + 5, labels, weight, group)[0], auc)
    np.testing.assert_allclose(grouped_auc(scores, labels, weight * scale, group)[0], auc, atol=ATOL)
    # swapping the classes mirrors it
    np.testing.assert_allclose(grouped_auc(-scores, 1 - labels, weight, group)[0], auc, atol=ATOL)
    measures = streaming_measures(Sums.of(scores, labels, weight))
    rescaled = streaming_measures(Sums.of(scores, labels, weight * scale))
    for name in ("ne", "calibration", "logloss", "base_rate"):
        if measures[name] is None:
            assert rescaled[name] is None
        else:
            assert rescaled[name] == pytest.approx(measures[name], rel=1e-12)
