"""What metrics are computed from: the scored examples of one task, or sums over them.

Only examples that count are in either: the label is observed (not NaN) and the weight positive. Shape letters: n such examples.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num


class Sums(NamedTuple):
    """What can be added up over batches and processes without keeping the scores.

    Attributes:
      num_examples: examples that count.
      num_positives: those with label 1.
      weight: sum of w.
      positive: sum of w y.
      predicted: sum of w p.
      loss: sum of w times the log loss, nats.
    """

    num_examples: float
    num_positives: float
    weight: float
    positive: float
    predicted: float
    loss: float

    @classmethod
    def of(cls, logits: Num[np.ndarray, "n"], labels: Num[np.ndarray, "n"], weight: Num[np.ndarray, "n"]) -> "Sums":
        """The sums in float64 over examples that count."""
        z, y, w = (np.asarray(column, np.float64) for column in (logits, labels, weight))
        loss = np.logaddexp(0, z) - y * z  # = -y ln p - (1 - y) ln(1 - p), without ever rounding p to 0 or 1
        columns = (y, w, w * y, w * _sigmoid(z), w * loss)
        return cls(float(len(y)), *(float(column.sum()) for column in columns))

    @property
    def both_classes(self) -> bool:
        """Whether there are positive and negative examples; without both, nothing can be ranked or normalised."""
        return 0 < self.num_positives < self.num_examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """The examples of one task that count, of all domains or of one.

    Attributes:
      logits: [n], the model's.
      labels: [n], 0 or 1.
      weight: [n], positive.
      domain: [n], index into the schema's domains.
      user: [n], -1 where unknown.
      true_probability: [n], what generated the label; NaN where unknown.
    """

    logits: Num[np.ndarray, "n"]
    labels: Num[np.ndarray, "n"]
    weight: Num[np.ndarray, "n"]
    domain: Int[np.ndarray, "n"]
    user: Int[np.ndarray, "n"]
    true_probability: Float[np.ndarray, "n"]

    @functools.cached_property
    def sums(self) -> Sums:
        """Sums over these examples, computed once."""
        return Sums.of(self.logits, self.labels, self.weight)

    def select(self, examples: Bool[np.ndarray, "n"]) -> "Scores":
        """The examples under a mask."""
        columns = {field.name: getattr(self, field.name)[examples] for field in dataclasses.fields(self)}
        return Scores(**columns)


def counts(labels: Float[np.ndarray, "n"], weight: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Which examples count."""
    return ~np.isnan(labels) & (weight > 0)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-z) without overflow."""
    return np.exp(-np.logaddexp(0, -z))
