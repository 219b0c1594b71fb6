"""Score examples with a trained run, from its folder alone; the same numbers as the run's own evaluation.

    python -m gem_jax.predict runs/mine new.parquet                                     new.predictions.parquet
    python -m gem_jax.predict runs/mine new/ --out scores.parquet --task click          a folder of files, one task
    python -m gem_jax.predict runs/mine rows.csv --events past=since.parquet            raw rows, of a run on a prepared log
    python -m gem_jax.predict runs/mine new.parquet --config mine.py                    a model of your own

Constant memory, however many rows there are. The columns of what it writes: `gem_jax.data.predictions`.
"""

import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gem_jax.errors import UserError, exit_code
from gem_jax.files import named_paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Score examples with a trained run, in the order of the rows."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A Parquet file, or a folder of them; raw rows, also as CSV, where the run was trained on a prepared log."""
    out: str | None = None
    """File to write; <name of the data>.predictions.parquet in this folder unless given."""
    task: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Score only this task; perhaps several times."""
    events: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """name=path of what has happened since the log was prepared; perhaps several times."""
    checkpoint: str | None = None
    """best, newest, or a step; the best where the run keeps one unless given, else the newest."""
    config: str | None = None
    """The config file (and :variant) of a run whose model is a class of your own."""
    overwrite: bool = False
    """Replace the file where it exists."""


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code: 0, 2 (the user's input is wrong), 130 (interrupted)."""
    options = tyro.cli(
        Options, args=arguments, prog="python -m gem_jax.predict", config=(tyro.conf.FlagCreatePairsOff,)
    )
    try:
        return exit_code(lambda: _predict(options, Console()))
    except KeyboardInterrupt:
        print("interrupted: stopped at once; nothing was written", file=sys.stderr)
        return 130


def _predict(options: Options, console: Console) -> int:
    # JAX takes seconds to import, which --help need not wait for.
    from gem_jax.config import load
    from gem_jax.parallel import processes, xla_flags
    from gem_jax.scoring.predictions import predictions, write_predictions
    from gem_jax.scoring.run import load_run
    from gem_jax.scoring.saved import classes_of

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    out, events, checkpoint = _out(options), named_paths(options.events), options.checkpoint
    xla_flags.set_flags()
    processes.start()
    classes = classes_of(load(options.config)) if options.config is not None else ()
    which = int(checkpoint) if checkpoint is not None and checkpoint.isdecimal() else checkpoint
    run = load_run(options.run, checkpoint=which, classes=classes, say=say)
    places = run.places(options.task or None)
    source = run.source(options.data, events=events)
    say(f"{options.run}: {run.which()}")
    started = time.perf_counter()
    with _advancing(console, len(source)) as advance:
        parts = predictions(run.program, run.state, source, run.config.batch, places)
        total = write_predictions(parts, out, run.schema, places, advance)
    say(f"{out}: {total:,} rows in {time.perf_counter() - started:.1f} s")
    return 0


def _out(options: Options) -> pathlib.Path:
    """Where to write; found before anything is scored."""
    name = pathlib.Path(options.data).name.partition(".")[0]
    out = pathlib.Path(options.out if options.out is not None else f"{name}.predictions.parquet").expanduser()
    if out.is_dir():
        raise UserError(f"{out} is a folder; give --out the name of a file")
    if out.exists() and not options.overwrite:
        raise UserError(f"{out} exists; give --overwrite to replace it, or --out <another file>")
    if not out.parent.is_dir():
        raise UserError(f"the folder {out.parent} does not exist; make it, or give --out another place")
    return out


@contextlib.contextmanager
def _advancing(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rows per second on a terminal; what it gives is told how many more rows are done."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        started, first = 0.0, 0

        def advance(count: int) -> None:
            nonlocal started, first
            bar.advance(task, count)
            if not started:  # compiling the first batch's step is no measure of speed
                started, first = time.perf_counter(), count
                return
            speed = (bar.tasks[task].completed - first) / (time.perf_counter() - started)
            bar.update(task, description=f"{speed:,.0f} rows/s")

        yield advance


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
