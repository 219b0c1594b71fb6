"""The training loop's view of its own steps: what a step returns is read one step late and logged by the window.

Shape letters: B batch, N tasks.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from gem_jax.data.batch import Batch, HostColumns
from gem_jax.data.implausible import implausible
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError
from gem_jax.errors import UserError
from gem_jax.evaluation.errors import DivergedError
from gem_jax.evaluation.evaluator import WindowMetrics
from gem_jax.evaluation.metrics import scalars
from gem_jax.parallel import processes
from gem_jax.parallel.sharding import local_rows
from gem_jax.report.log import RunLogger

LOG_EVERY = 20
"""Steps between two entries of metrics.jsonl."""


class _Step(NamedTuple):
    step: int
    examples: int
    outputs: dict[str, Any]
    batch: Batch  # without ids and events, which are most of it
    host: HostColumns


class Window:
    """Reads each step's outputs one step late, so that the host never waits for the device, and logs them by the window.

    The outputs of a step are a dictionary of
      loss, grad_norm, learning_rate, table_overflow: scalars; the last is 1 where an exchange of rows took the slow way.
      measures: name -> scalar, the objective's; each is logged as `train/<name>`, its mean over the window.
      logits: [B, N], of the batch on the mesh.
      representations: passed over.
    """

    def __init__(self, log: RunLogger, schema: Schema):
        self._log = log
        self._schema = schema
        self._metrics = WindowMetrics(schema)
        self._steps: list[dict[str, Any]] = []
        self._imbalance: list[float] = []
        self._pending: _Step | None = None
        self._before: _Step | None = None
        self._num_windows = self._num_counted = 0

    def add(self, step: int, examples: int, outputs: dict[str, Any], batch: Batch, host: HostColumns) -> None:
        """A step, what it returned, and its batch on the mesh; `examples` trained on up to and including it.

        Raises:
          DivergedError: the loss of the step before is not finite.
        """
        numbers = dataclasses.replace(batch, ids={}, sequences={})
        pending, self._pending = self._pending, _Step(step, examples, outputs, numbers, host)
        if pending is not None:
            self._take(pending)

    def flush(self) -> None:
        """Logs what is pending.

        Raises:
          DivergedError: a loss is not finite.
        """
        if self._pending is not None:
            self._take(self._pending, last=True)
            self._pending = None

    def check_counted(self) -> None:
        """Raises DataError where windows were logged and none of their examples counts for any task."""
        if self._num_windows and not self._num_counted:
            raise DataError(
                "no training example so far counts: each has weight 0 or no observed label; correct the weights or the labels"
            )

    def _take(self, taken: _Step, last: bool = False) -> None:
        of_examples = ("logits", "representations")
        read = jax.device_get({name: value for name, value in taken.outputs.items() if name not in of_examples})
        if not math.isfinite(read["loss"]):
            raise DivergedError(f"the loss is {read['loss']} at step {taken.step}", self._culprit(taken))
        self._before = taken
        self._steps.append(read)
        self._imbalance.append(taken.host.imbalance)
        self._metrics.update(local_rows(taken.outputs["logits"]), taken.host)
        if taken.step % LOG_EVERY == 0 or last:
            self._write(taken.step, taken.examples)

    def _culprit(self, taken: _Step) -> str | None:
        """The input that explains a broken loss: of the step before, which may have broken the weights, or of its own."""
        for suspect in (self._before, taken):
            if suspect is not None:
                batch = jax.tree.map(local_rows, suspect.batch)
                if (found := implausible(self._schema, batch, suspect.host.example_id)) is not None:
                    return found
        return None

    def _write(self, step: int, examples: int) -> None:
        """Logs the window and begins the next."""
        self._metrics.sums = processes.total(self._metrics.sums)
        result = self._metrics.result()
        newest = self._steps[-1]
        values = {name: float(newest[name]) for name in ("grad_norm", "learning_rate")}
        values["loss"] = _mean([read["loss"] for read in self._steps])
        values["table_overflows"] = sum(float(read["table_overflow"]) for read in self._steps)
        values["imbalance"] = float(processes.gather(np.array(np.mean(self._imbalance), np.float32)).max())
        measures = {name: _mean([read["measures"][name] for read in self._steps]) for name in newest["measures"]}
        ours = {f"train/{name}": value for name, value in values.items()} | scalars("train", result)
        for name in measures:
            if f"train/{name}" in ours:
                raise UserError(
                    f"the objective's measure '{name}' has the name of a scalar of every run; name it otherwise"
                )
        self._num_windows += 1
        self._num_counted += sum(measures["num_examples"] for measures in result.values())
        first = self._schema.tasks[0].name
        self._log.progress(examples, loss=values["loss"], task=first, ne=result[first]["ne"])
        self._log.log(step, examples, ours | {f"train/{name}": value for name, value in measures.items()})
        self._steps, self._imbalance = [], []
        self._metrics.reset()


def _mean(values: list[Any]) -> float:
    return sum(float(value) for value in values) / len(values)
