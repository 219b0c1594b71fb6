"""eta against its definition, its standard error against the bootstrap by user."""

import dataclasses

import numpy as np
import pytest

from gem_jax.evaluation.metrics import ne
from gem_jax.evaluation.scores import Scores
from gem_jax.transfer import eta as measures

NUM, USERS = 4000, 150


def four(seed=0, student_noise=0.7):
    """Scores of one set of examples by models that are worse and worse: teacher, student, plain distillation, scratch."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, USERS, NUM)
    truth = rng.normal(-1, 1.2, NUM) + rng.normal(0, 0.7, USERS)[user]
    labels = (rng.random(NUM) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    common, weight = rng.normal(0, 1, NUM), rng.uniform(0.5, 2, NUM).astype(np.float32)

    def of(noise):
        own = 0.8 * common + 0.6 * rng.normal(0, 1, NUM)
        return Scores(
            logits=truth + noise * own,
            labels=labels,
            weight=weight,
            domain=rng.integers(0, 2, NUM) * 0,
            user=user,
            example_id=np.arange(NUM),
            true_probability=np.full(NUM, np.nan, np.float32),
        )

    return [of(noise) for noise in (0.2, student_noise, 0.9, 1.5)]


def shuffled(scores, seed):
    return scores.select(np.random.default_rng(seed).permutation(NUM))


def test_the_value_is_that_of_the_definition_in_any_order():
    teacher, student, kd, scratch = four()
    t, s, k, c = (ne(x.sums) for x in (teacher, student, kd, scratch))
    found = measures.eta(shuffled(scratch, 1), shuffled(student, 2), teacher)
    assert found.value == pytest.approx((c - s) / (c - t), rel=1e-12)
    assert measures.gain_over(scratch, student, kd).value == pytest.approx((c - s) / (c - k), rel=1e-12)
    found = measures.transfer_ratio((kd, student), (scratch, teacher))
    assert found.value == pytest.approx((k - s) / (c - t), rel=1e-12)


@pytest.mark.parametrize("measure", ["eta", "gain"])
def test_the_standard_error_is_the_bootstraps(measure):
    teacher, student, kd, scratch = four()
    below = teacher if measure == "eta" else kd
    found = measures.ratio((scratch, student), (scratch, below))
    rng, drawn = np.random.default_rng(5), []
    rows = [np.flatnonzero(scratch.user == u) for u in range(USERS)]
    for _ in range(400):
        chosen = np.concatenate([rows[u] for u in rng.integers(0, USERS, USERS)])
        s, m, b = (ne(x.select(chosen).sums) for x in (scratch, student, below))
        drawn.append((s - m) / (s - b))
    # 400 draws know a standard deviation to 1 / sqrt(800) = 3.5 %; three of these, and the ratio's own curvature.
    assert found.standard_error == pytest.approx(np.std(drawn), rel=0.15)
    assert abs(found.value - np.mean(drawn)) < 0.2 * found.standard_error


def test_no_ratio_where_nothing_stands_below():
    teacher, student, kd, scratch = four()
    assert measures.eta(teacher, student, scratch) is None
    near = kd.select(np.arange(NUM))
    near = dataclasses.replace(near, logits=kd.logits - 1e-3 * np.random.default_rng(0).normal(size=NUM))
    assert measures.gain_over(kd, student, near) is None and measures.gain_over(near, student, kd) is None
    one_class = scratch.select(scratch.labels == 1)
    assert measures.eta(one_class, one_class, one_class) is None
    with pytest.raises(AssertionError):
        measures.eta(scratch, student.select(np.arange(10)), teacher)
