"""The training loop's view of its own steps: outputs read one step late, logged by the window."""

import math

import jax
import numpy as np

from gem_jax.data.batch import HostColumns
from gem_jax.evaluation.metrics import WindowMetrics, scalars
from gem_jax.parallel import processes
from gem_jax.parallel.sharding import local_rows
from gem_jax.report.console import RunLogger
from gem_jax.training.state import Setup

LOG_EVERY = 20
"""Steps between two entries of metrics.jsonl."""

DIVERGED_ADVICE = "lower optimizer.learning_rate or optimizer.table_learning_rate, or clip harder (optimizer.clip_norm)"


class DivergedError(RuntimeError):
    """The loss or an evaluated logit is no longer finite."""


class Window:
    """Reads each step's outputs one step late, so that the host never waits for the device, and logs them by the window."""

    def __init__(self, log: RunLogger, setup: Setup):
        self._log = log
        self._setup = setup
        self._metrics = WindowMetrics(setup.schema)
        self._losses: list[float] = []
        self._overflows = 0.0
        self._imbalance: list[float] = []
        self._pending: tuple[int, int, dict[str, jax.Array], HostColumns] | None = None

    def add(self, step: int, examples: int, outputs: dict[str, jax.Array], host: HostColumns) -> None:
        """A step and what it returned; `examples` trained on up to and including it."""
        pending, self._pending = self._pending, (step, examples, outputs, host)
        if pending is not None:
            self._take(*pending)

    def flush(self) -> None:
        """Logs what is pending.

        Raises:
          DivergedError: a loss is not finite.
        """
        if self._pending is not None:
            self._take(*self._pending, last=True)
            self._pending = None

    def _take(self, step: int, examples: int, outputs: dict, host: HostColumns, last: bool = False) -> None:
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} at step {step}; {DIVERGED_ADVICE}")
        self._losses.append(loss)
        self._overflows += float(outputs["table_overflow"])
        self._imbalance.append(host.imbalance)
        self._metrics.update(local_rows(outputs["logits"]), host)
        if step % LOG_EVERY and not last:
            return
        self._metrics.sums = processes.total(self._metrics.sums)
        result = self._metrics.result()
        values = {"loss": sum(self._losses) / len(self._losses), "table_overflows": self._overflows}
        values["imbalance"] = float(processes.gather(np.array(np.mean(self._imbalance), np.float32)).max())
        values |= {name: float(outputs[name]) for name in ("grad_norm", "learning_rate")}
        self._log.progress(examples, loss=values["loss"], ne=result[self._setup.schema.tasks[0].name]["ne"])
        self._log.log(step, examples, {f"train/{k}": v for k, v in values.items()} | scalars("train", result))
        self._losses, self._imbalance, self._overflows = [], [], 0.0
        self._metrics.reset()
