"""Two models on the same examples: the difference of each metric, and how sure it is.

What makes an example easy or hard does so for both models, and cancels: the standard error of a difference is a small part of the
metrics' own where the models are alike.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from gem_jax.evaluation.intervals import Z, is_estimable, standard_error
from gem_jax.evaluation.metrics import METRICS, Metric
from gem_jax.evaluation.scores import Scores

OF_EXAMPLE = ("example_id", "labels", "weight", "user")
"""What scores of the same examples agree in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of one model less that of another.

    Attributes:
      value: the difference.
      standard_error: over the draw of the test examples, by user where users are known; 0 where no example is scored differently.
    """

    value: float
    standard_error: float


def differences(first: Scores, other: Scores) -> dict[str, Difference | None] | None:
    """The metrics of `other` less those of `first`, by name, for each metric that has an influence; None where one is undefined.

    None for all where the two are not scores of the same examples: ids, labels, weights and users must agree, in any order.
    """
    first, other = _by_id(first), _by_id(other)
    if not all(np.array_equal(vars(first)[name], vars(other)[name]) for name in OF_EXAMPLE):
        return None
    return {name: _difference(metric, first, other) for name, metric in METRICS.items() if metric.influence is not None}


def margin_over_seeds(values: Sequence[float], standard_errors: Sequence[float]) -> float:
    """Half the 95 % interval of a mean difference over seeds, for what chance draws twice: the test examples and the seeds.

    The squares of two half intervals add up (Graybill and Wang 1980): of the test examples, which all seeds share, and of the seeds
    by Student's t, since few seeds hardly tell their own spread: 12.7 standard errors for two of them, 4.3 for three. It is exact
    where one of the two decides, and holds a little more than 95 % between. One seed says nothing of the others: the interval is
    then that of the test examples.

    Args:
      values: the difference in each seed.
      standard_errors: of each, over the draw of the test examples.
    """
    # Errors that the seeds share do not average out. Were they independent, this would be too wide, never too narrow.
    of_examples = Z * statistics.fmean(standard_errors)
    if len(values) == 1:
        return of_examples
    of_seeds = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return math.hypot(of_examples, of_seeds)


def _difference(metric: Metric, first: Scores, other: Scores) -> Difference | None:
    assert metric.influence is not None
    of_first, of_other = metric.influence(first), metric.influence(other)
    values = metric.of_scores(first), metric.of_scores(other)
    if of_first is None or of_other is None or values[0] is None or values[1] is None or not is_estimable(first):
        return None
    return Difference(value=values[1] - values[0], standard_error=standard_error(of_other - of_first, first.cluster))


def _by_id(scores: Scores) -> Scores:
    return scores.select(np.argsort(scores.example_id, kind="stable"))
