"""Predicted against observed rates, over the range of predictions."""

import numpy as np
from jaxtyping import Num

from gem_jax.evaluation.scores import Sums

NUM_BINS = 12


def calibration_curve(
    logits: Num[np.ndarray, "n"], labels: Num[np.ndarray, "n"], weight: Num[np.ndarray, "n"]
) -> list[dict[str, float]]:
    """Predicted against observed rate, in up to 12 bins of about equal weight by ascending prediction.

    Equal predictions share a bin, so a constant model gives one bin.

    Args:
      logits: [n], of examples that count for one task.
      labels: [n], 0 or 1.
      weight: [n], positive.

    Returns:
      For each bin `prediction` and `observed` (weighted means) and `num_examples`.
    """
    values, of_example = np.unique(logits, return_inverse=True)
    mass = np.bincount(of_example, weight, minlength=len(values))
    middle = (np.cumsum(mass) - mass / 2) / mass.sum() if len(values) else mass
    bins = np.minimum((middle * NUM_BINS).astype(int), NUM_BINS - 1)[of_example]
    curve: list[dict[str, float]] = []
    for i in np.unique(bins):
        sums = Sums.of(logits[bins == i], labels[bins == i], weight[bins == i])
        point = {"prediction": sums.predicted / sums.weight, "observed": sums.positive / sums.weight}
        curve.append(point | {"num_examples": int(sums.num_examples)})
    return curve
