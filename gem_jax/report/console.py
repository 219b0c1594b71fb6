"""What a run shows: a progress bar or lines, a line per evaluation, a table of results."""

import datetime
import html
import time

import rich.box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gem_jax.evaluation.metrics import METRICS, Measures, Metric
from gem_jax.report.formats import columns, format_measure, format_number, margins, values

PLAIN_INTERVAL_S = 10.0
"""Seconds between progress lines where no bar can be drawn (a file, a pipe)."""

NOTEBOOK_INTERVAL_S = 0.5
"""Seconds between two looks of a notebook's bar, each of which is a message to the browser."""

SPEED_WINDOW_S = 5.0
"""Examples per second are measured over at least this long."""

TABLE_WIDTH = 120
"""Characters of a line where there is no terminal to ask."""

NAMES_WIDTH = 12
"""Characters of a table that names of tasks and domains may claim where it is narrow."""

SPARE = ("logloss", "closed", "bayes_ne", "base_rate")
"""The columns that a narrow table does without, the first one first."""

IN_A_LINE = ("ne", "auc")
"""The metrics of an evaluation's line."""


class ProgressDisplay:
    """How far a run is: a bar on a terminal and in a notebook, elsewhere a line every 10 seconds.

    Args:
      total_examples: examples the run will have trained on at its end.
      console: where to show it.
    """

    def __init__(self, total_examples: int, console: Console):
        self._console = console
        self._total = total_examples
        self._speed = _Speed()
        self._next_line_s = 0.0
        self._bar = _bar(total_examples, console)

    def start(self) -> None:
        """Draws the bar."""
        if self._bar is not None:
            self._bar.start()

    def stop(self) -> None:
        """Leaves the bar as it is and the cursor below it."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, examples: int, *, loss: float, task: str, ne: float | None) -> None:
        """Shows the examples trained on since the start of the run, with loss and a task's NE of the latest window."""
        speed = self._speed.update(examples)
        texts = [f"loss {loss:.4f}", f"{task} NE {format_number(ne)}"]
        texts += [f"{speed:,.0f} examples/s"] if speed else []
        total = max(self._total, examples)  # the last batch is trained on whole, also where the epochs end within it
        if self._bar is not None:
            self._bar.update(examples, total, "  ".join(texts))
        elif time.monotonic() >= self._next_line_s or examples >= total:
            self._next_line_s = time.monotonic() + PLAIN_INTERVAL_S
            left = [f"{datetime.timedelta(seconds=round((total - examples) / speed))} left"] if speed else []
            self.print("  ".join([f"{examples:,} of {total:,} examples ({examples / total:.0%})", *texts, *left]))

    def print(self, message: str) -> None:
        """Shows a line as it is, above the bar if there is one."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)


class _Speed:
    """Examples per second over the last few seconds, so that compilation and evaluation are soon forgotten; None until measured."""

    def __init__(self):
        self._marks: list[tuple[float, int]] = []

    def update(self, examples: int) -> float | None:
        now = time.monotonic()
        self._marks.append((now, examples))
        while len(self._marks) > 2 and now - self._marks[1][0] >= SPEED_WINDOW_S:
            self._marks.pop(0)
        then, before = self._marks[0]
        return (examples - before) / (now - then) if now > then else None


class _TerminalBar:
    """A line that is redrawn."""

    def __init__(self, total: int, console: Console):
        columns = (
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}", markup=False),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(compact=True), console=console)
        self._task = self._progress.add_task("", total=total)

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def update(self, examples: int, total: int, text: str) -> None:
        self._progress.update(self._task, completed=examples, total=total, description=text)


class _NotebookBar:
    """A bar of HTML below the cell, replaced in place: rich's own needs a package of widgets, and a saved notebook loses it."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def start(self) -> None:
        from IPython.display import HTML, display  # only a notebook has it

        self._html = HTML
        self._handle = display(HTML(""), display_id=True)

    def stop(self) -> None:
        pass

    def update(self, examples: int, total: int, text: str) -> None:
        if time.monotonic() < self._next_s and examples < total:
            return
        self._next_s = time.monotonic() + NOTEBOOK_INTERVAL_S
        bar = f'<progress value="{examples}" max="{total}"></progress>'
        self._handle.update(self._html(f"{bar} {examples / total:.0%} {html.escape(text)}"))


def _bar(total: int, console: Console) -> _TerminalBar | _NotebookBar | None:
    if console.quiet:
        return None
    if console.is_jupyter:
        return _NotebookBar()
    return _TerminalBar(total, console) if console.is_terminal else None


def evaluation_line(part: str, examples: int, result: dict[str, Measures]) -> str:
    """An evaluation in one line, e.g. `valid after 80,000 examples:  click NE 0.8754, AUC 0.7012  buy NE 0.9120, AUC 0.6544`."""
    tasks = []
    for task, measures in result.items():
        values = (f"{METRICS[name].heading} {format_measure(METRICS[name], measures[name])}" for name in IN_A_LINE)
        tasks.append(f"{task} {', '.join(values)}")
    return "  ".join((f"{part} after {examples:,} examples:", *tasks))


def print_table(result: dict[str, Measures], console: Console | None = None) -> None:
    """Prints an evaluation by task and domain, with the columns that `columns` names, and below each task its 95 % margins.

    Where the terminal is too narrow, columns that others make up for are left out; the report has them all.
    """
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=TABLE_WIDTH, quiet=console.quiet)
    shown = columns(result)
    for name in SPARE:
        if _width(_table(result, shown, NAMES_WIDTH), console) > console.width:
            shown.pop(name, None)
    console.print(_table(result, shown), markup=False, highlight=False)


def _table(result: dict[str, Measures], shown: dict[str, Metric], names_width: int | None = None) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD, padding=0)
    table.add_column("task\n  domain", overflow="ellipsis", max_width=names_width)
    for metric in shown.values():
        table.add_column(_narrow(metric.heading or ""), justify="right", vertical="bottom", no_wrap=True)
    for task, measures in result.items():
        table.add_row(task, *values(shown, measures), style="bold")
        if any(margins(shown, measures)):
            table.add_row("  95 %", *margins(shown, measures), style="dim")
        domains = measures["by_domain"] if len(measures["by_domain"]) > 1 else {}
        for domain, of_domain in domains.items():
            table.add_row(f"  {domain}", *values(shown, of_domain))
    return table


def _narrow(heading: str) -> str:
    """A heading in lines: a word each, and long words in two."""
    return heading.replace(" ", "\n").replace("calib", "cali-\nb").replace("positives", "posi-\ntives")


def _width(table: Table, console: Console) -> int:
    """Characters that it takes with no cell cut."""
    return Measurement.get(console, console.options.update(max_width=1000), table).maximum
