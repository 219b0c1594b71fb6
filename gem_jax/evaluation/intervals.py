"""How sure a measured number is."""

import math
import statistics

import numpy as np
from jaxtyping import Float, Int

from gem_jax.evaluation.scores import Scores

Z = statistics.NormalDist().inv_cdf(0.975)
"""A 95 % interval reaches this many standard errors to either side."""

RESOLUTION = 1e-12
"""A smaller standard error is rounding: the examples show no spread, so they do not tell how sure the number is."""


def wilson(rate: float, num_examples: int) -> tuple[float, float]:
    """The 95 % confidence interval of a rate seen in `num_examples` draws (Wilson 1927)."""
    z2 = Z**2
    centre = (rate + z2 / (2 * num_examples)) / (1 + z2 / num_examples)
    half = math.sqrt(z2 * (rate * (1 - rate) / num_examples + z2 / (4 * num_examples**2))) / (1 + z2 / num_examples)
    return max(0.0, centre - half), min(1.0, centre + half)


def standard_error(influence: Float[np.ndarray, "n"], cluster: Int[np.ndarray, "n"]) -> float:
    """The standard error of a metric, or of a difference, from the influence of each example on it.

    Args:
      influence: [n], see `evaluation.influence`.
      cluster: [n], which examples were drawn together: 0 .. g - 1, at least two.
    """
    moved = np.bincount(cluster, influence)
    return math.sqrt(len(moved) / (len(moved) - 1) * float((moved**2).sum()))


def is_estimable(scores: Scores) -> bool:
    """Whether two clusters at least have positive examples, and two negative ones: one alone cannot show how clusters differ."""
    has_class = (np.bincount(scores.cluster, mass) > 0 for mass in (scores.labels, 1 - scores.labels))
    return all(np.count_nonzero(has) >= 2 for has in has_class)
