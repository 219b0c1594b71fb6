"""What a run says while it trains and where it is written down: metrics.jsonl, TensorBoard, a progress bar, a table.

metrics.jsonl has one JSON object a line: `step`, `examples`, `time` (Unix seconds) and scalars with slash-named keys
such as `train/loss`, `train/ne/click`, `eval/auc/click`. The report and the notebooks read it.
"""

import datetime
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import rich.box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX import SummaryWriter

from gem_jax.evaluation.metrics import Measures, share_closed

PLAIN_INTERVAL_S = 10.0
"""Seconds between progress lines where no bar can be drawn (a file, a pipe, a notebook)."""

SPEED_WINDOW_S = 5.0
"""Examples per second are measured over at least this long."""

TABLE_WIDTH = 120
"""Characters of a line where there is no terminal to ask."""


class RunLogger:
    """Writes a run's metrics and shows its progress; a context manager, whose files are complete however it is left.

    Args:
      run_dir: folder of the run, made if missing. None writes and shows nothing: for all hosts but the first.
      total_examples: examples the run will have trained on at its end.
      resume_step: step of the checkpoint the run continues from; what was logged after it is dropped. None begins anew.
      console: where to show progress; standard output unless given.

    Example:
      with RunLogger(run_dir, total_examples=100_000) as logger:
          logger.progress(examples, loss=0.31, ne=0.92)
          logger.log(step, examples, {"train/loss": 0.31, "train/ne/click": 0.92})
    """

    def __init__(
        self,
        run_dir: Path | None,
        *,
        total_examples: int,
        resume_step: int | None = None,
        console: Console | None = None,
    ):
        self._console = console or Console(quiet=run_dir is None)
        self._total = total_examples
        self._speed = _Speed()
        self._next_line_s = 0.0
        self._bar = _progress_bar(self._console) if self._console.is_terminal else None
        self._jsonl = self._tensorboard = None
        if run_dir is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            path = run_dir / "metrics.jsonl"
            _keep_until(path, resume_step)
            self._jsonl = path.open("a", buffering=1)  # line by line: a killed run loses at most one line
            purge = 0 if resume_step is None else resume_step + 1  # TensorBoard hides older events from here on
            self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge, flush_secs=10)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("", total=self._total, loss="", ne="", speed="")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._jsonl is not None and self._tensorboard is not None:
            self._jsonl.close()
            self._tensorboard.close()

    def log(self, step: int, examples: int, values: Mapping[str, float | None]) -> None:
        """Writes scalars; a value that is undefined (None) or not finite becomes null."""
        if self._jsonl is None or self._tensorboard is None:
            return
        finite = {k: float(v) if v is not None and math.isfinite(v) else None for k, v in values.items()}
        line = {"step": step, "examples": examples, "time": round(time.time(), 3), **finite}
        self._jsonl.write(json.dumps(line, allow_nan=False) + "\n")
        for name, value in finite.items():
            if value is not None:
                self._tensorboard.add_scalar(name, value, step)

    def progress(self, examples: int, *, loss: float, ne: float | None) -> None:
        """Shows how far the run is: the bar, or without a terminal one line every 10 seconds.

        Args:
          examples: examples trained on since the very start of the run.
          loss: of the latest window.
          ne: of the latest window and the first task; None while undefined.
        """
        speed = self._speed.update(examples)
        loss_text, ne_text, speed_text = f"loss {loss:.4f}", f"NE {format_number(ne)}", f"{speed:,.0f} examples/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=examples, loss=loss_text, ne=ne_text, speed=speed_text)
        elif time.monotonic() >= self._next_line_s or examples >= self._total:
            self._next_line_s = time.monotonic() + PLAIN_INTERVAL_S
            left = f"{datetime.timedelta(seconds=round((self._total - examples) / speed))} left" if speed else ""
            share = f"{examples:,} of {self._total:,} examples ({examples / self._total:.0%})"
            self.print("  ".join((share, loss_text, ne_text, speed_text, left)).rstrip())

    def print(self, message: str) -> None:
        """Shows a line, above the bar if there is one."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


class _Speed:
    """Examples per second over the last few seconds, so that compilation and evaluation are soon forgotten."""

    def __init__(self):
        self._marks: list[tuple[float, int]] = []

    def update(self, examples: int) -> float:
        now = time.monotonic()
        self._marks.append((now, examples))
        while len(self._marks) > 2 and now - self._marks[1][0] >= SPEED_WINDOW_S:
            self._marks.pop(0)
        then, before = self._marks[0]
        return (examples - before) / (now - then) if now > then else 0.0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order; [] if there is none. A line that a killed run half wrote is skipped."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def print_table(result: dict[str, Measures], console: Console | None = None) -> None:
    """Prints an evaluation by task and domain; the columns on the Bayes NE only where it is known."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=TABLE_WIDTH)
    with_bayes = any(measures["bayes_ne"] is not None for measures in result.values())
    table = Table(box=rich.box.SIMPLE_HEAD, padding=0)  # ten columns should fit in 80 characters
    table.add_column("task\n  domain", overflow="ellipsis")
    for header in table_headers(with_bayes):
        narrow = header.replace(" ", "\n").replace("calib", "cali-\nb")
        table.add_column(narrow, justify="right", vertical="bottom", no_wrap=True)
    for task, measures in result.items():
        table.add_row(task, *table_cells(measures, with_bayes), style="bold")
        domains = measures["by_domain"] if len(measures["by_domain"]) > 1 else {}
        for domain, of_domain in domains.items():
            table.add_row(f"  {domain}", *table_cells(of_domain, with_bayes))
    console.print(table, markup=False, highlight=False)


def table_headers(with_bayes: bool) -> list[str]:
    """The columns of a table of results after task and domain."""
    bayes = ["Bayes NE", "closed"] if with_bayes else []
    return ["examples", "base rate", "NE", *bayes, "AUC", "gAUC", "calibration", "log loss"]


def table_cells(measures: Measures, with_bayes: bool) -> list[str]:
    """One row of a table of results, as text."""
    closed = share_closed(measures["ne"], measures["bayes_ne"])
    bayes = [format_number(measures["bayes_ne"]), "-" if closed is None else f"{closed:.0%}"] if with_bayes else []
    return [
        f"{measures['num_examples']:,}",
        format_rate(measures["base_rate"]),
        format_number(measures["ne"]),
        *bayes,
        format_number(measures["auc"]),
        format_number(measures["gauc"]),
        format_number(measures["calibration"], 3),
        format_number(measures["logloss"]),
    ]


def format_number(value: float | None, decimals: int = 4) -> str:
    """A metric as text; a dash where it is undefined."""
    return "-" if value is None else f"{value:.{decimals}f}"


def format_rate(value: float | None) -> str:
    """A base rate in per cent with three digits that count, e.g. 3.21 %, 0.321 %, 32.1 %."""
    if value is None:
        return "-"
    percent = 100 * value
    decimals = 2 - math.floor(math.log10(percent)) if percent > 0 else 2
    return f"{percent:.{min(max(decimals, 0), 5)}f} %"


def _progress_bar(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        *(TextColumn("{task.fields[" + name + "]}") for name in ("loss", "ne", "speed")),
        TimeRemainingColumn(compact=True),
        console=console,
    )


def _keep_until(path: Path, step: int | None) -> None:
    """Drops the lines after `step` (all of them for None), replacing the file in one move."""
    kept = [] if step is None else [line for line in read_metrics(path) if line["step"] <= step]
    partial = path.with_suffix(".jsonl.partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(partial, path)
