"""The metrics of click and conversion models: a registry, in which a metric is one function under its heading.

Results, tables, the report's definitions, the scalars of a log and the rows of a comparison all follow `METRICS`, in its order.

Over the examples that count (label y in {0, 1} observed, weight w > 0), with prediction p; in float64 on the host. An undefined
metric (one class only, no examples, no known truth) is None, never NaN or infinite, so results go to JSON as they are.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from gem_jax.errors import UserError
from gem_jax.evaluation import influence
from gem_jax.evaluation.influence import Influence
from gem_jax.evaluation.intervals import RESOLUTION, is_estimable, standard_error
from gem_jax.evaluation.scores import Scores, Sums

type Value = float | int | None
"""Of a metric; None where it is undefined."""

type Measures = dict[str, Any]
"""Metric name -> float, int or None; `standard_error`, metric name -> float or None, of those that have one; and of a whole task
`by_domain` and `calibration_curve`."""

RESERVED = ("by_domain", "calibration_curve", "standard_error")
"""Keys of results that are no metrics."""

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
      influence: how much each example moves it, which gives it a standard error (`evaluation.influence`); None gives none.
      better: which of two values of a model is the better one; None where that cannot be said, as of a calibration.
    """

    function: Callable[[Any], Value]
    heading: str | None
    streaming: bool = False
    unit: Unit = "number"
    decimals: int = 4
    logged: bool = True
    optional: bool = False
    influence: Callable[[Scores], Influence] | None = None
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
        if name in RESERVED or (taken and _origin(taken.function) != _origin(function)):
            raise UserError(f"metric '{name}' of {function.__module__} has a name that is taken; name it otherwise")
        if not inspect.getdoc(function):
            raise UserError(f"metric '{name}' of {function.__module__} has no docstring; write what it measures in one")
        METRICS[name] = Metric(function=function, heading=heading, **attributes)
        return function

    return register


def measure(scores: Scores) -> Measures:
    """Every metric of one task's examples, with the standard errors of those that have one."""
    values: Measures = {name: metric.of_scores(scores) for name, metric in METRICS.items()}
    return values | {"standard_error": standard_errors(scores)}


def standard_errors(scores: Scores) -> dict[str, float | None]:
    """The standard error of each metric that has an influence: what a bootstrap by user would find, and by example where users
    are unknown. None where the metric is undefined, or where the examples cannot tell."""
    found: dict[str, float | None] = {name: None for name, metric in METRICS.items() if metric.influence is not None}
    if is_estimable(scores):
        for name in found:
            moved = METRICS[name].influence(scores)  # type: ignore[misc]
            error = 0.0 if moved is None else standard_error(moved, scores.cluster)
            found[name] = error if error > RESOLUTION else None
    return found


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


@metric("positives", streaming=True, unit="count", logged=False)
def num_positives(sums: Sums) -> int:
    """The examples that count and whose label is 1: what decides how sure the other columns are. Labels between 0 and 1 add up."""
    return round(sums.num_positives)


@metric("base rate", streaming=True, unit="rate")
def base_rate(sums: Sums) -> float | None:
    """The weighted share of positive examples."""
    return sums.positive / sums.weight if sums.num_examples > 0 else None


@metric("NE", streaming=True, influence=influence.ne, better="lower")
def ne(sums: Sums) -> float | None:
    """Normalised entropy (He et al. 2014): weighted mean log loss divided by the entropy of the base rate of the evaluated examples
    (for a domain: of its own). 1 is no better than always predicting the base rate; lower is better."""
    # TorchRec, too, takes the base rate of the examples being measured.
    return sums.loss / sums.weight / sums.entropy if sums.both_classes else None


@metric("Bayes NE", optional=True)
def bayes_ne(scores: Scores) -> float | None:
    """The NE of the probability that generated the labels, from its log loss on the same labels: the best any model can do but for
    chance. Known for synthetic data only."""
    # From the actual log loss, not its expectation: the luck of the draw is then the same in NE and Bayes NE.
    if not _truth_is_known(scores):
        return None
    # Float32 columns may have rounded a true probability to 0 or 1; 1e-12 is the bound that TorchRec's NE uses.
    p = np.clip(np.asarray(scores.true_probability, np.float64), 1e-12, 1 - 1e-12)
    loss = -scores.labels * np.log(p) - (1 - scores.labels) * np.log1p(-p)
    return _mean(loss, scores) / scores.sums.entropy


@metric("regret NE", optional=True, influence=influence.regret_ne, better="lower")
def regret_ne(scores: Scores) -> float | None:
    """What the model loses because it does not know the truth: the weighted mean of KL(true || predicted), divided by the entropy
    of the base rate. On average NE less Bayes NE, without the luck of the labels; 0 is perfect. Known for synthetic data only."""
    return _mean(scores.divergence, scores) / scores.sums.entropy if _truth_is_known(scores) else None


@metric("closed", optional=True, unit="share", better="higher")
def closed(scores: Scores) -> float | None:
    """The share of the distance from NE 1 to the Bayes NE that the model has covered."""
    return share_closed(ne(scores.sums), bayes_ne(scores))


@metric("AUC", influence=influence.auc, better="higher")
def auc(scores: Scores) -> float | None:
    """The chance that a positive example outscores a negative one, weighted, ties counting one half."""
    return float(scores.ranking.auc[0]) if scores.sums.both_classes else None


@metric("gAUC", influence=influence.gauc, better="higher")
def gauc(scores: Scores) -> float | None:
    """The AUC within each user who has both positive and negative examples, averaged over those users in proportion to their
    impressions (total example weight): the definition of DIN and FuxiCTR. Examples of unknown users take no part; with fewer than
    two such users it is undefined."""
    return scores.ranking_by_cluster.mean_auc(scores.num_users) if scores.sums.both_classes else None


@metric("calibration", streaming=True, decimals=3)
def calibration(sums: Sums) -> float | None:
    """The sum of predictions divided by the sum of labels, weighted; above 1 the model promises too much."""
    return sums.predicted / sums.positive if sums.num_positives > 0 else None


@metric("true calibration", optional=True, decimals=3)
def true_calibration(scores: Scores) -> float | None:
    """The sum of predictions divided by the sum of the true probabilities, weighted: calibration without the luck of the labels.
    Known for synthetic data only."""
    if not _truth_is_known(scores):
        return None
    expected = _mean(scores.true_probability, scores) * scores.sums.weight
    return scores.sums.predicted / expected if expected > 0 else None


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


def _truth_is_known(scores: Scores) -> bool:
    return scores.sums.both_classes and not np.isnan(scores.true_probability).any()


def _mean(values: np.ndarray, scores: Scores) -> float:
    return float(np.average(values, weights=np.asarray(scores.weight, np.float64)))
