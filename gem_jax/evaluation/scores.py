"""What metrics are computed from: the scored examples of one task, or sums over them.

Only examples that count are in either: the label is observed (not NaN) and the weight positive. Shape letters: n such examples.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from gem_jax.evaluation.auc import Ranking, rank


class Sums(NamedTuple):
    """What can be added up over batches and processes without keeping the scores.

    Attributes:
      num_examples: examples that count.
      num_positives: those with label 1.
      positive: sum of w y.
      negative: sum of w (1 - y).
      predicted: sum of w p.
      loss: sum of w times the log loss, nats.
    """

    num_examples: float
    num_positives: float
    positive: float
    negative: float
    predicted: float
    loss: float

    @classmethod
    def of(cls, logits: Num[np.ndarray, "n"], labels: Num[np.ndarray, "n"], weight: Num[np.ndarray, "n"]) -> "Sums":
        """The sums in float64 over examples that count."""
        z, y, w = (np.asarray(column, np.float64) for column in (logits, labels, weight))
        columns = (y, w * y, w * (1 - y), w * _sigmoid(z), w * log_loss(z, y))
        return cls(float(len(y)), *(float(column.sum()) for column in columns))

    @property
    def weight(self) -> float:
        """The sum of w."""
        return self.positive + self.negative

    @property
    def both_classes(self) -> bool:
        """Whether there are positive and negative examples; without both, nothing can be ranked or normalised."""
        return 0 < self.num_positives < self.num_examples

    @property
    def entropy(self) -> float:
        """Of the base rate, in nats; needs both classes."""
        # In the odds, not in the rate, which one heavy example may round to 0 or 1.
        odds = self.positive / self.negative
        return float(self.positive * np.log1p(1 / odds) + self.negative * np.log1p(odds)) / self.weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """The examples of one task that count, of all domains or of one.

    Attributes:
      logits: [n], the model's.
      labels: [n], from 0 to 1.
      weight: [n], positive.
      domain: [n], index into the schema's domains.
      user: [n], -1 where unknown.
      example_id: [n].
      true_probability: [n], what generated the label; NaN where unknown.
    """

    logits: Num[np.ndarray, "n"]
    labels: Num[np.ndarray, "n"]
    weight: Num[np.ndarray, "n"]
    domain: Int[np.ndarray, "n"]
    user: Int[np.ndarray, "n"]
    example_id: Int[np.ndarray, "n"]
    true_probability: Float[np.ndarray, "n"]

    @functools.cached_property
    def sums(self) -> Sums:
        """Sums over these examples."""
        return Sums.of(self.logits, self.labels, self.weight)

    @property
    def cluster(self) -> Int[np.ndarray, "n"]:
        """Which examples belong together, 0 .. number of clusters - 1: those of a user, users first.

        An example of an unknown user is a cluster of its own, and so is every one where there are no users.
        """
        return self._clusters[0]

    @property
    def num_users(self) -> int:
        """Known users; 0 where there are fewer than two, since one user for all is how some logs say "no users"."""
        return self._clusters[1]

    @functools.cached_property
    def _clusters(self) -> tuple[np.ndarray, int]:
        known = self.user != -1
        users, of_known = np.unique(self.user[known], return_inverse=True)
        if len(users) < 2:
            return np.arange(len(self.user)), 0
        cluster = np.empty(len(self.user), np.int64)
        cluster[known] = of_known
        cluster[~known] = len(users) + np.arange(np.count_nonzero(~known))
        return cluster, len(users)

    @functools.cached_property
    def ranking(self) -> Ranking:
        """All examples ranked, as one group."""
        return rank(self.logits, self.labels, self.weight, np.zeros(len(self.labels), np.int64))

    @functools.cached_property
    def ranking_by_cluster(self) -> Ranking:
        """Examples ranked within their clusters."""
        return rank(self.logits, self.labels, self.weight, self.cluster)

    @functools.cached_property
    def divergence(self) -> Float[np.ndarray, "n"]:
        """KL(true || predicted) of each example, in nats; the truth must be known.

        It is 0 where the prediction is the truth, and what the model loses on average over labels that the truth draws.
        """
        z, q = np.asarray(self.logits, np.float64), np.asarray(self.true_probability, np.float64)
        entropy = -(_times_log(q) + _times_log(1 - q))
        return np.maximum(log_loss(z, q) - entropy, 0)

    def select(self, examples: Bool[np.ndarray, "n"] | Int[np.ndarray, "m"]) -> "Scores":
        """The examples under a mask, or at places in their order."""
        columns = {field.name: getattr(self, field.name)[examples] for field in dataclasses.fields(self)}
        return Scores(**columns)


def counts(labels: Float[np.ndarray, "n"], weight: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Which examples count."""
    return ~np.isnan(labels) & (weight > 0)


def log_loss(z: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """-y ln p - (1 - y) ln(1 - p) for the logit z of p, to full relative precision: nothing is rounded to 0 or 1 or cancels."""
    return np.log1p(np.exp(-np.abs(z))) + y * np.maximum(-z, 0) + (1 - y) * np.maximum(z, 0)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-z) without overflow."""
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, small) / (1 + small)


def _times_log(p: np.ndarray) -> np.ndarray:
    """p ln p, 0 at 0."""
    return p * np.log(p, out=np.zeros_like(p), where=p > 0)
