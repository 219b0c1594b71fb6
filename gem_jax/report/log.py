"""Where a run is written down while it trains: metrics.jsonl and TensorBoard, and beside them what the console shows.

metrics.jsonl has one JSON object a line: `step`, `examples`, `time` (Unix seconds) and scalars with slash-named keys such as
`train/loss`, `train/ne/click`, `valid/auc/click`, `eval/auc/click`. The report and the notebooks read it.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from gem_jax import files
from gem_jax.evaluation.metrics import Measures, Value, scalars
from gem_jax.report.console import ProgressDisplay, evaluation_line


class RunLogger:
    """Writes a run's scalars and shows its progress; a context manager, whose files are complete however it is left.

    Args:
      run_dir: folder of the run, made if missing. None writes and shows nothing: for all processes but the first.
      total_examples: examples the run will have trained on at its end.
      resume_step: step of the checkpoint the run continues from; what was logged after it is dropped. None begins anew.
      console: where to show progress; standard output unless given.

    Example:
      with RunLogger(run_dir, total_examples=100_000) as log:
          log.progress(examples, loss=0.31, task="click", ne=0.92)
          log.log(step, examples, {"train/loss": 0.31, "train/ne/click": 0.92})
    """

    def __init__(
        self,
        run_dir: Path | None,
        *,
        total_examples: int,
        resume_step: int | None = None,
        console: Console | None = None,
    ):
        self._display = ProgressDisplay(total_examples, console or Console(quiet=run_dir is None))
        self._writer = None if run_dir is None else _Writer(run_dir, resume_step)

    def __enter__(self) -> "RunLogger":
        self._display.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._display.stop()
        if self._writer is not None:
            self._writer.close()

    def log(self, step: int, examples: int, values: Mapping[str, Value]) -> None:
        """Writes scalars; a value that is undefined (None) or not finite becomes null."""
        if self._writer is not None:
            self._writer.write(step, examples, values)

    def evaluation(self, step: int, examples: int, part: str, result: dict[str, Measures]) -> None:
        """Writes the scalars of an evaluation, and shows it in one line.

        Args:
          step: steps trained.
          examples: examples trained on.
          part: the scalars' prefix: "valid", or "eval" for the test examples.
          result: as `Evaluator.result` gives it.
        """
        self.log(step, examples, scalars(part, result))
        self._display.print(evaluation_line(part, examples, result))

    def progress(self, examples: int, *, loss: float, task: str, ne: float | None) -> None:
        """Shows how far the run is.

        Args:
          examples: examples trained on since the very start of the run.
          loss: of the latest window.
          task: the one whose NE is shown.
          ne: of the latest window and that task; None while undefined.
        """
        self._display.update(examples, loss=loss, task=task, ne=ne)

    def print(self, message: str) -> None:
        """Shows a line, above the bar if there is one."""
        self._display.print(message)


class _Writer:
    """The two files of scalars."""

    def __init__(self, run_dir: Path, resume_step: int | None):
        path = run_dir / "metrics.jsonl"
        kept = [] if resume_step is None else [line for line in read_metrics(path) if line["step"] <= resume_step]
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._jsonl = path.open("a", buffering=1, encoding="utf-8")  # line by line: a killed run loses at most one line
        from tensorboardX import SummaryWriter  # here, since --help and compare --table need no log

        purge = 0 if resume_step is None else resume_step + 1  # TensorBoard hides older events from here on
        self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge, flush_secs=10)

    def write(self, step: int, examples: int, values: Mapping[str, Value]) -> None:
        finite = {k: float(v) if v is not None and math.isfinite(v) else None for k, v in values.items()}
        line = {"step": step, "examples": examples, "time": round(time.time(), 3), **finite}
        self._jsonl.write(json.dumps(line, allow_nan=False) + "\n")
        for name, value in finite.items():
            if value is not None:
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        self._jsonl.close()
        self._tensorboard.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order; [] if there is none. A line that a killed run half wrote is skipped."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
