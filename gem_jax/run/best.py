"""Which evaluation of a run is its best, and when none has been better for too long."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from gem_jax.config import ConfigError
from gem_jax.data.source import Splits
from gem_jax.evaluation.metrics import METRICS, Measures
from gem_jax.report.formats import format_measure
from gem_jax.training.config import TrainConfig
from gem_jax.training.progress import Best, Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Criterion:
    """What `train.keep_best` and `train.patience` ask for.

    Attributes:
      scalar: as in metrics.jsonl, `valid/<metric>/<task>`.
      metric: its name in `METRICS`.
      task: its task.
      patience: evaluations without improvement after which a run stops; None for never.
    """

    scalar: str
    metric: str
    task: str
    patience: int | None

    @classmethod
    def of(cls, config: TrainConfig, splits: Splits) -> "Criterion | None":
        """The criterion of a run; None where it keeps no best.

        Raises:
          ConfigError: there are no validation examples, or the scalar is none of theirs that is better lower or higher.
        """
        if config.keep_best is None:
            return None
        if splits.valid is None:
            raise ConfigError(
                f"train.keep_best={config.keep_best} needs validation examples, which the data does not have; give it a valid part"
            )
        scalars = {
            f"valid/{name}/{task.name}": (name, task.name)
            for name, metric in METRICS.items()
            if metric.better is not None
            for task in splits.schema.tasks
        }
        if config.keep_best not in scalars:
            close = difflib.get_close_matches(config.keep_best, scalars, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"train.keep_best={config.keep_best} says not what is better; {hint}there are {', '.join(scalars)}"
            )
        metric, task = scalars[config.keep_best]
        return cls(scalar=config.keep_best, metric=metric, task=task, patience=config.patience)

    def is_best(self, result: Mapping[str, Measures], progress: Progress) -> bool:
        """Counts an evaluation in `progress`; whether it is the best so far. An undefined value is never better."""
        value, best = result[self.task][self.metric], progress.best
        if value is None or (best is not None and not self._is_better(value, best.value)):
            progress.stale_evaluations += 1
            return False
        progress.best = Best(metric=self.scalar, value=value, examples=progress.examples, step=progress.step)
        progress.stale_evaluations = 0
        return True

    def is_exhausted(self, progress: Progress) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and progress.stale_evaluations >= self.patience

    def _is_better(self, value: float, than: float) -> bool:
        return value < than if METRICS[self.metric].better == "lower" else value > than

    def line(self, progress: Progress) -> str:
        """For the user at the end: why it ended, and which parameters are tested."""
        ended, best = "", progress.best
        if self.is_exhausted(progress):
            ended = f"{self.scalar} was no better in {self.patience} evaluations: stopped early; "
        if best is None:
            return f"{ended}{self.scalar} was never defined: the last parameters are tested"
        return (
            f"{ended}best {self.scalar} {format_measure(METRICS[self.metric], best.value)} after {best.examples:,} examples: "
            "these parameters are tested"
        )

    def summary(self, progress: Progress) -> dict[str, Any]:
        """Entries of summary.json; JSON-able."""
        best = None if progress.best is None else dataclasses.asdict(progress.best)
        return {"best": best, "stopped_early": self.is_exhausted(progress)}
