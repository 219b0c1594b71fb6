"""Batches in, metrics out: exact ones that keep every score, and those of a training window that keep sums only.

Shape letters: B batch, N tasks, n scored examples.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from gem_jax.data.batch import HostColumns
from gem_jax.data.schema import Schema
from gem_jax.evaluation.calibration import calibration_curve
from gem_jax.evaluation.errors import DivergedError
from gem_jax.evaluation.metrics import Measures, measure, streaming_measures
from gem_jax.evaluation.scores import Scores, Sums, counts


class WindowMetrics:
    """The streaming metrics of a training window.

    Attributes:
      sums: float64 [N, number of `Sums`]; those of several processes may be added.
    """

    def __init__(self, schema: Schema):
        self._tasks = tuple(task.name for task in schema.tasks)
        self.reset()

    def reset(self) -> None:
        """Begins a new window."""
        self.sums = np.zeros((len(self._tasks), len(Sums._fields)))

    def update(self, logits: Float[np.ndarray, "B N"], host: HostColumns) -> None:
        """Adds a batch; empty slots and unobserved labels contribute nothing."""
        for n in range(len(self._tasks)):
            some = counts(host.labels[:, n], host.weight)
            self.sums[n] += Sums.of(logits[some, n], host.labels[some, n], host.weight[some])

    def result(self) -> dict[str, Measures]:
        """Task -> streaming metrics since the last reset; NaN if the model has diverged."""
        return {task: streaming_measures(Sums(*row.tolist())) for task, row in zip(self._tasks, self.sums, strict=True)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredExamples:
    """Scored examples of all tasks; plain arrays that processes can exchange.

    Attributes:
      logits: float32 [n, N].
      labels: float32 [n, N], NaN unobserved.
      weight: float32 [n].
      domain: int32 [n].
      user: int64 [n], -1 where unknown.
      example_id: int64 [n].
      true_probability: float32 [n, N], NaN where unknown.
    """

    logits: Float[np.ndarray, "n N"]
    labels: Float[np.ndarray, "n N"]
    weight: Float[np.ndarray, "n"]
    domain: Int[np.ndarray, "n"]
    user: Int[np.ndarray, "n"]
    example_id: Int[np.ndarray, "n"]
    true_probability: Float[np.ndarray, "n N"]

    def task(self, n: int) -> Scores:
        """Task n of the examples for which it counts."""
        of_task = Scores(
            logits=self.logits[:, n],
            labels=self.labels[:, n],
            true_probability=self.true_probability[:, n],
            weight=self.weight,
            domain=self.domain,
            user=self.user,
            example_id=self.example_id,
        )
        return of_task.select(counts(of_task.labels, of_task.weight))


class Evaluator:
    """All metrics of an evaluation, by task and by domain.

    Keeps every score, about 60 bytes an example with three tasks, so that AUC is exact.

    Example:
      evaluator = Evaluator(schema)
      for logits, host in scored_batches:
          evaluator.update(logits, host)
      evaluator.result()["click"]["ne"]
    """

    def __init__(self, schema: Schema):
        self._schema = schema
        self._parts: list[ScoredExamples] = []

    def update(self, logits: Float[np.ndarray, "B N"], host: HostColumns) -> None:
        """Adds a batch; empty slots and unobserved labels contribute nothing.

        Args:
          logits: float32.
          host: the batch's labels, weights, domains, users, ids and true probabilities.

        Raises:
          DivergedError: the logit of an observed label is not finite.
        """
        assert logits.shape == host.labels.shape, (logits.shape, host.labels.shape)
        for n, task in enumerate(self._schema.tasks):
            broken = counts(host.labels[:, n], host.weight) & ~np.isfinite(logits[:, n])
            if broken.any():
                raise DivergedError(f"task '{task.name}': {broken.sum()} logits of an evaluated batch are not finite")
        columns = {f.name: getattr(host, f.name) for f in dataclasses.fields(ScoredExamples) if f.name != "logits"}
        filled = host.weight > 0
        self.add(ScoredExamples(**{name: column[filled] for name, column in {**columns, "logits": logits}.items()}))

    def add(self, scores: ScoredExamples) -> None:
        """Adds scored examples, e.g. gathered from all processes."""
        self._parts.append(scores)

    def scores(self) -> ScoredExamples:
        """All scored examples so far."""
        empty = np.zeros((0, len(self._schema.tasks)), np.float32)
        none = ScoredExamples(
            logits=empty, labels=empty, true_probability=empty, weight=np.zeros(0, np.float32),
            domain=np.zeros(0, np.int32), user=np.zeros(0, np.int64), example_id=np.zeros(0, np.int64),
        )  # fmt: skip
        parts = [none, *self._parts]
        return ScoredExamples(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(none)})

    def result(self) -> dict[str, Measures]:
        """Task -> every metric of `METRICS`, standard_error (of those that have one), by_domain (domain -> the same) and
        calibration_curve (see there)."""
        scores = self.scores()
        result = {}
        for n, task in enumerate(self._schema.tasks):
            of_task = scores.task(n)
            measures = measure(of_task)
            curve = calibration_curve(of_task.logits, of_task.labels, of_task.weight)
            result[task.name] = measures | {"by_domain": self._by_domain(of_task, measures), "calibration_curve": curve}
        return result

    def _by_domain(self, scores: Scores, of_all: Measures) -> dict[str, Measures]:
        domains = self._schema.domains
        if len(domains) == 1:
            return {domains[0]: of_all}
        return {domain: measure(scores.select(scores.domain == i)) for i, domain in enumerate(domains)}
