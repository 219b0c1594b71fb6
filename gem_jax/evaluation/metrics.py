"""Metrics of click and conversion models, on the host in float64: streaming, mergeable, exact.

Over the examples that are *observed* (label not NaN) and have weight w > 0, with label y in {0, 1} and prediction p:

- log loss: sum w [-y ln p - (1 - y) ln(1 - p)] / sum w.
- base rate: sum w y / sum w.
- NE, normalised entropy (He et al. 2014): log loss / entropy of the base rate. The base rate is that of the examples
  being measured (as in TorchRec), so a domain's NE compares with always predicting that domain's own rate. 1 is no
  better than that; lower is better.
- Bayes NE: the NE of the probability that generated the labels, from its actual log loss on these very labels, not its
  expectation; the luck of the draw is then the same in NE and Bayes NE.
- calibration: sum w p / sum w y; above 1 the model promises too much.
- AUC: weighted, a tie counts one half.
- gAUC: the AUC of each user who has both classes, averaged with the user's total weight (with weights of 1, the number
  of impressions: the definition of DIN and FuxiCTR). Where data has no users, readers give each example its own user;
  gAUC is then undefined.

An undefined metric (one class only, no examples, no known truth) is None, never NaN, so results go to JSON as they are.
"""

import dataclasses
from typing import Any

import numpy as np

from gem_jax.data.batch import HostColumns
from gem_jax.data.schema import Schema

type Measures = dict[str, Any]
"""Metric name -> float, int or None; of a whole task also `by_domain` and `calibration_curve`."""

NUM_SUMS = 6
NUM_CALIBRATION_BINS = 12


class WindowMetrics:
    """Sums for the metrics of a training window: no scores are kept, so no AUC.

    Attributes:
      sums: float64 [N, 6], see `example_sums`; add those of several hosts to merge them.
    """

    def __init__(self, schema: Schema):
        self._tasks = tuple(task.name for task in schema.tasks)
        self.reset()

    def reset(self) -> None:
        """Begins a new window."""
        self.sums = np.zeros((len(self._tasks), NUM_SUMS))

    def update(self, logits: np.ndarray, host: HostColumns) -> None:
        """Adds a batch: logits float32 [B, N]."""
        logits = np.asarray(logits)
        for n in range(len(self._tasks)):
            counts = _counts(host.labels[:, n], host.weight)
            self.sums[n] += example_sums(logits[counts, n], host.labels[counts, n], host.weight[counts])

    def merge(self, other: "WindowMetrics") -> None:
        """Adds what another window of the same schema has seen."""
        self.sums = self.sums + other.sums

    def result(self) -> dict[str, Measures]:
        """Task -> NE, calibration, log loss, base rate, num_examples, num_positives since the last reset; NaN
        if the model has diverged."""
        return {task: rates(sums) for task, sums in zip(self._tasks, self.sums, strict=True)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Scored examples, [n] each or [n, N] for N tasks; plain arrays that hosts can exchange."""

    logits: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    domain: np.ndarray
    user: np.ndarray
    true_probability: np.ndarray

    def select(self, examples: np.ndarray) -> "Scores":
        """The examples under a boolean mask [n]."""
        return Scores(**{name: column[examples] for name, column in vars(self).items()})

    def task(self, n: int) -> "Scores":
        """Task n of [n, N] columns: its observed examples, [n] each."""
        of_task = dataclasses.replace(
            self, logits=self.logits[:, n], labels=self.labels[:, n], true_probability=self.true_probability[:, n]
        )
        return of_task.select(_counts(of_task.labels, of_task.weight))


class Evaluator:
    """All metrics of an evaluation, by task and by domain.

    Keeps every score, about 50 bytes an example with three tasks, so that AUC is exact.

    Example:
      evaluator = Evaluator(schema)
      for logits, host in scored_batches:
          evaluator.update(logits, host)
      evaluator.result()["click"]["ne"]
    """

    def __init__(self, schema: Schema):
        self._schema = schema
        self._parts: list[Scores] = []

    def update(self, logits: np.ndarray, host: HostColumns) -> None:
        """Adds a batch; slots of weight 0 and unobserved labels contribute nothing.

        Args:
          logits: float32 [B, N].
          host: the batch's labels, weights, domains, users and true probabilities.

        Raises:
          ValueError: the logit of an observed label is not finite: the model has diverged.
        """
        logits = np.asarray(logits)
        assert logits.shape == host.labels.shape, (logits.shape, host.labels.shape)
        for n, task in enumerate(self._schema.tasks):
            broken = _counts(host.labels[:, n], host.weight) & ~np.isfinite(logits[:, n])
            if broken.any():
                raise ValueError(
                    f"task '{task.name}': {broken.sum()} logits of the evaluated batch are not finite, the model has "
                    "diverged; lower the learning rate or clip gradients harder"
                )
        columns = {f.name: getattr(host, f.name) for f in dataclasses.fields(Scores) if f.name != "logits"}
        self.add(Scores(logits=logits, **columns).select(host.weight > 0))

    def add(self, scores: Scores) -> None:
        """Adds the scores of another evaluator, e.g. gathered from another host; columns [n, N]."""
        self._parts.append(scores)

    def scores(self) -> Scores:
        """All scores so far, columns [n, N]."""
        empty = np.zeros((0, len(self._schema.tasks)), np.float32)
        none = Scores(
            logits=empty, labels=empty, true_probability=empty, weight=np.zeros(0, np.float32),
            domain=np.zeros(0, np.int32), user=np.zeros(0, np.int64),
        )  # fmt: skip
        parts = [none, *self._parts]
        return Scores(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(none)})

    def merge(self, other: "Evaluator") -> None:
        """Adds what another evaluator of the same schema has seen."""
        self.add(other.scores())

    def result(self) -> dict[str, Measures]:
        """Task -> ne, bayes_ne, auc, gauc, calibration, logloss, base_rate, num_examples, num_positives, by_domain
        (domain -> the same) and calibration_curve (see `calibration_curve`)."""
        scores = self.scores()
        result = {}
        for n, task in enumerate(self._schema.tasks):
            of_task = scores.task(n)
            by_domain = {d: measure(of_task.select(of_task.domain == i)) for i, d in enumerate(self._schema.domains)}
            curve = calibration_curve(of_task.logits, of_task.labels, of_task.weight)
            result[task.name] = measure(of_task) | {"by_domain": by_domain, "calibration_curve": curve}
        return result


def scalars(prefix: str, result: dict[str, Measures]) -> dict[str, float | None]:
    """A result as slash-named scalars for the log: `prefix/metric/task`, e.g. `eval/ne/click`; counts are left out."""
    return {
        f"{prefix}/{name}/{task}": value
        for task, measures in result.items()
        for name, value in measures.items()
        if name not in ("by_domain", "calibration_curve", "num_examples", "num_positives")
    }


def share_closed(ne: float | None, bayes_ne: float | None) -> float | None:
    """How much of the way from predicting the base rate (NE 1) to the Bayes NE a model has gone; 1 is all of it."""
    if ne is None or bayes_ne is None or bayes_ne >= 1:
        return None
    return (1 - ne) / (1 - bayes_ne)


def measure(scores: Scores) -> Measures:
    """Every metric of one task's observed examples, columns [n]."""
    sums = example_sums(scores.logits, scores.labels, scores.weight)
    measures: Measures = rates(sums) | {"bayes_ne": None, "auc": None, "gauc": None}
    if measures["ne"] is None:
        return measures
    if not np.isnan(scores.true_probability).any():
        bayes_loss = _probability_loss(scores.true_probability, scores.labels, scores.weight)
        measures["bayes_ne"] = bayes_loss / _entropy(measures["base_rate"])
    everyone = np.zeros(len(scores.labels), np.int64)
    measures["auc"] = float(grouped_auc(scores.logits, scores.labels, scores.weight, everyone)[0][0])
    auc, weight = grouped_auc(scores.logits, scores.labels, scores.weight, scores.user)
    defined = ~np.isnan(auc)
    if defined.any():
        measures["gauc"] = float(np.average(auc[defined], weights=weight[defined]))
    return measures


def example_sums(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What NE, calibration, log loss and base rate are made of.

    Args:
      logits, labels, weight: [n], observed examples of one task.

    Returns:
      float64 [6]: examples, positive examples, sum w, sum w y, sum w p, sum w loss.
    """
    z, y, w = (np.asarray(column, np.float64) for column in (logits, labels, weight))
    loss = np.logaddexp(0, z) - y * z  # = -y ln p - (1 - y) ln(1 - p), without ever rounding p to 0 or 1
    return np.array([len(y), y.sum(), w.sum(), (w * y).sum(), (w * _sigmoid(z)).sum(), (w * loss).sum()])


def rates(sums: np.ndarray) -> Measures:
    """The metrics that follow from `example_sums`."""
    num_examples, num_positives, weight, positive, predicted, loss = (float(s) for s in sums)
    measures: Measures = dict.fromkeys(("ne", "calibration", "logloss", "base_rate"))
    measures |= {"num_examples": int(num_examples), "num_positives": int(num_positives)}
    if num_examples > 0:
        measures |= {"logloss": loss / weight, "base_rate": positive / weight}
    if num_positives > 0:
        measures["calibration"] = predicted / positive
    if 0 < num_positives < num_examples:
        measures["ne"] = measures["logloss"] / _entropy(measures["base_rate"])
    return measures


def grouped_auc(
    scores: np.ndarray, labels: np.ndarray, weight: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weighted AUC within each group: the chance that a positive outscores a negative, a tie counting one half.

    Args:
      scores, labels, weight, group: [n], n > 0.

    Returns:
      (auc, weight), float64 [G] each, in ascending order of group; auc is NaN in groups of one class.
    """
    order = np.lexsort((scores, group))
    scores, group = scores[order], group[order]
    labels, weight = labels[order].astype(np.float64), weight[order].astype(np.float64)

    new_group = np.append(True, group[1:] != group[:-1])
    new_score = new_group | np.append(True, scores[1:] != scores[:-1])
    ties = np.flatnonzero(new_score)  # first example of each run of equal scores within a group
    positive = np.add.reduceat(weight * labels, ties)
    negative = np.add.reduceat(weight * (1 - labels), ties)

    group_of_tie = np.cumsum(new_group[ties]) - 1
    total_positive = np.bincount(group_of_tie, positive)
    total_negative = np.bincount(group_of_tie, negative)
    negative_in_earlier_groups = (np.cumsum(total_negative) - total_negative)[group_of_tie]
    negative_below = np.cumsum(negative) - negative - negative_in_earlier_groups
    won = np.bincount(group_of_tie, positive * (negative_below + negative / 2))

    pairs = total_positive * total_negative
    auc = np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return auc, total_positive + total_negative


def calibration_curve(logits: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> list[dict[str, float]]:
    """Predicted against observed rate, in up to 12 bins of about equal weight by ascending prediction.

    Equal predictions share a bin, so a constant model gives one bin.

    Args:
      logits, labels, weight: [n], observed examples of one task.

    Returns:
      For each bin `prediction` and `observed` (weighted means) and `num_examples`.
    """
    values, of_example = np.unique(logits, return_inverse=True)
    mass = np.bincount(of_example, weight, minlength=len(values))
    middle = (np.cumsum(mass) - mass / 2) / mass.sum() if len(values) else mass
    bins = np.minimum((middle * NUM_CALIBRATION_BINS).astype(int), NUM_CALIBRATION_BINS - 1)[of_example]
    curve = []
    for i in np.unique(bins):
        inside = bins == i
        num_examples, _, total, positive, predicted, _ = example_sums(logits[inside], labels[inside], weight[inside])
        point = {"prediction": float(predicted / total), "observed": float(positive / total)}
        curve.append(point | {"num_examples": int(num_examples)})
    return curve


def _counts(labels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Which examples count: bool [n]."""
    return ~np.isnan(labels) & (weight > 0)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-z) without overflow."""
    return np.exp(-np.logaddexp(0, -z))


def _entropy(rate: float) -> float:
    """Of a coin that shows heads at this rate, in nats; 0 < rate < 1."""
    return float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))


def _probability_loss(probability: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    """Weighted mean log loss of a given probability, [n] each."""
    # Float32 columns may have rounded a true probability to 0 or 1; 1e-12 is the bound that TorchRec's NE uses.
    p = np.clip(np.asarray(probability, np.float64), 1e-12, 1 - 1e-12)
    loss = np.where(labels > 0.5, -np.log(p), -np.log1p(-p))
    return float(np.average(loss, weights=weight))
