"""The metrics of click and conversion models: a registry, in which a metric is one function under its heading.

Results, tables, the report's definitions, the scalars of a log and the rows of a comparison all follow `METRICS`, in its order.

Over the examples that count (label y in {0, 1} observed, weight w > 0), with prediction p; in float64 on the host. An undefined
metric (one class only, no examples, no known truth) is None, never NaN, so results go to JSON as they are.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from gem_jax.errors import UserError
from gem_jax.evaluation.auc import grouped_auc
from gem_jax.evaluation.scores import Scores, Sums

type Value = float | int | None
"""Of a metric; None where it is undefined."""

type Measures = dict[str, Any]
"""Metric name -> float, int or None; of a whole task also `by_domain` and `calibration_curve`."""

type Unit = Literal["number", "count", "rate", "share"]
"""How a value is written: with fixed decimals; as a whole number; in per cent with three digits; in whole per cent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A registered metric.

    Attributes:
      function: computes it, of `Sums` for a streaming metric, else of `Scores`.
      heading: its column in tables; None keeps it out of them.
      streaming: sums suffice, so that training windows have it too.
      unit: how a value is written.
      decimals: digits after the point, for the unit "number".
      logged: whether it is a scalar of the log.
      optional: its column is hidden where no task has a value.
      better: which of two values of a model is the better one; None where that cannot be said, as of a calibration.
    """

    function: Callable[[Any], Value]
    heading: str | None
    streaming: bool = False
    unit: Unit = "number"
    decimals: int = 4
    logged: bool = True
    optional: bool = False
    better: Literal["lower", "higher"] | None = None

    @property
    def definition(self) -> str:
        """What it is, for the reader of a report: the function's docstring."""
        return " ".join((inspect.getdoc(self.function) or "").split())

    def of_scores(self, scores: Scores) -> Value:
        """The metric of a task's examples."""
        return self.function(scores.sums if self.streaming else scores)


METRICS: dict[str, Metric] = {}
"""Name -> metric, in the order of columns. The name is the key in results and a part of scalars' names, `eval/<name>/<task>`."""


def metric[F: Callable[..., Value]](heading: str | None, **attributes: Any) -> Callable[[F], F]:
    """Registers the function below it under the function's name; its docstring is the definition that reports print.

    Args:
      heading: its column in tables; None keeps it out of them.
      **attributes: the others of `Metric`.

    Example:
      @metric("accuracy")
      def accuracy(scores: Scores) -> float | None:
          '''The weighted share of examples on the right side of 1/2.'''
          if len(scores.labels) == 0:
              return None
          return float(np.average((scores.logits > 0) == (scores.labels > 0.5), weights=scores.weight))

    Raises:
      UserError: the name is taken, or there is no docstring.
    """

    def register(function: F) -> F:
        name = function.__name__
        taken = METRICS.get(name)
        # A config file that brings a metric may be loaded more than once.
        if name in ("by_domain", "calibration_curve") or (taken and _origin(taken.function) != _origin(function)):
            raise UserError(f"metric '{name}' of {function.__module__} has a name that is taken; name it otherwise")
        if not inspect.getdoc(function):
            raise UserError(f"metric '{name}' of {function.__module__} has no docstring; write what it measures in one")
        METRICS[name] = Metric(function=function, heading=heading, **attributes)
        return function

    return register


def measure(scores: Scores) -> Measures:
    """Every metric of one task's examples."""
    return {name: metric.of_scores(scores) for name, metric in METRICS.items()}


def streaming_measures(sums: Sums) -> Measures:
    """The metrics for which sums suffice."""
    return {name: metric.function(sums) for name, metric in METRICS.items() if metric.streaming}


def scalars(prefix: str, result: dict[str, Measures]) -> dict[str, Value]:
    """A result (task -> measures) as slash-named scalars for the log: `prefix/metric/task`, e.g. `eval/ne/click`."""
    return {
        f"{prefix}/{name}/{task}": measures[name]
        for task, measures in result.items()
        for name, metric in METRICS.items()
        if metric.logged and name in measures
    }


# --- The metrics, in the order of columns ---------------------------------------------------------------------------------------


@metric("examples", streaming=True, unit="count", logged=False)
def num_examples(sums: Sums) -> int:
    """The examples that count: those of positive weight whose label is observed."""
    return int(sums.num_examples)


@metric(None, streaming=True, unit="count", logged=False)
def num_positives(sums: Sums) -> int:
    """The examples that count and whose label is 1."""
    return int(sums.num_positives)


@metric("base rate", streaming=True, unit="rate")
def base_rate(sums: Sums) -> float | None:
    """The weighted share of positive examples."""
    return sums.positive / sums.weight if sums.num_examples > 0 else None


@metric("NE", streaming=True, better="lower")
def ne(sums: Sums) -> float | None:
    """Normalised entropy (He et al. 2014): weighted mean log loss divided by the entropy of the base rate of the evaluated examples
    (for a domain: of its own). 1 is no better than always predicting the base rate; lower is better."""
    # TorchRec, too, takes the base rate of the examples being measured.
    return sums.loss / sums.weight / _entropy(sums.positive / sums.weight) if sums.both_classes else None


@metric("Bayes NE", optional=True)
def bayes_ne(scores: Scores) -> float | None:
    """The NE of the probability that generated the labels, from its log loss on the same labels: the best any model can do but for
    chance. Known for synthetic data only."""
    # From the actual log loss, not its expectation: the luck of the draw is then the same in NE and Bayes NE.
    if not scores.sums.both_classes or np.isnan(scores.true_probability).any():
        return None
    # Float32 columns may have rounded a true probability to 0 or 1; 1e-12 is the bound that TorchRec's NE uses.
    p = np.clip(np.asarray(scores.true_probability, np.float64), 1e-12, 1 - 1e-12)
    loss = np.where(scores.labels > 0.5, -np.log(p), -np.log1p(-p))
    return float(np.average(loss, weights=scores.weight)) / _entropy(scores.sums.positive / scores.sums.weight)


@metric("closed", optional=True, unit="share", better="higher")
def closed(scores: Scores) -> float | None:
    """The share of the distance from NE 1 to the Bayes NE that the model has covered."""
    return share_closed(ne(scores.sums), bayes_ne(scores))


@metric("AUC", better="higher")
def auc(scores: Scores) -> float | None:
    """The chance that a positive example outscores a negative one, weighted, ties counting one half."""
    if not scores.sums.both_classes:
        return None
    everyone = np.zeros(len(scores.labels), np.int64)
    return float(grouped_auc(scores.logits, scores.labels, scores.weight, everyone)[0][0])


@metric("gAUC", better="higher")
def gauc(scores: Scores) -> float | None:
    """The AUC within each user who has both positive and negative examples, averaged over those users in proportion to their
    impressions (total example weight): the definition of DIN and FuxiCTR. Examples of unknown users take no part; with fewer than
    two known users it is undefined."""
    known = scores.select(scores.user != -1)
    if len(known.user) == 0 or (known.user == known.user[0]).all():  # one user for all is how some logs say "no users"
        return None
    auc_of_user, weight = grouped_auc(known.logits, known.labels, known.weight, known.user)
    defined = ~np.isnan(auc_of_user)
    return float(np.average(auc_of_user[defined], weights=weight[defined])) if defined.any() else None


@metric("calibration", streaming=True, decimals=3)
def calibration(sums: Sums) -> float | None:
    """The sum of predictions divided by the sum of labels, weighted; above 1 the model promises too much."""
    return sums.predicted / sums.positive if sums.num_positives > 0 else None


@metric("log loss", streaming=True, better="lower")
def logloss(sums: Sums) -> float | None:
    """The weighted mean of the negative natural logarithm of the probability given to what happened."""
    return sums.loss / sums.weight if sums.num_examples > 0 else None


def share_closed(ne: float | None, bayes_ne: float | None) -> float | None:
    """How much of the way from predicting the base rate (NE 1) to the Bayes NE a model has gone; 1 is all of it."""
    if ne is None or bayes_ne is None or bayes_ne >= 1:
        return None
    return (1 - ne) / (1 - bayes_ne)


def _origin(function: Callable) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _entropy(rate: float) -> float:
    """Of a coin that shows heads at this rate, in nats; 0 < rate < 1."""
    return float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))
