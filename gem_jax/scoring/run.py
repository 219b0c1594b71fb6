"""A trained run from its folder alone, to predict, to evaluate, and to look at its embeddings.

    run = load_run("runs/mine")
    run.predict("new.parquet")                 float32 [n, N], in the order of the rows
    run.predict(frame, tasks=["click"])        of a table in memory
    run.evaluate("labelled.parquet")["click"]["ne"]
    run.embeddings("ad")                       float32 [rows, dim]

The config file, the data and the mesh of its training are not needed, but for a model of the user's own its class.

Shape letters: n examples, N tasks.
"""

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gem_jax.checkpoint.checkpoints import Checkpoints
from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.checkpoint.manifest import Manifest
from gem_jax.checkpoint.restore import restore_values
from gem_jax.config import Config
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, Source
from gem_jax.errors import UserError
from gem_jax.evaluation.evaluate import evaluate
from gem_jax.evaluation.metrics import Measures
from gem_jax.run.program import Program
from gem_jax.run.saves import BEST, CHECKPOINTS
from gem_jax.scoring.examples import open_examples
from gem_jax.scoring.predictions import predictions
from gem_jax.scoring.saved import saved_config, saved_schema, scoring_program
from gem_jax.training.state import TrainState

type Which = str | int
"""A checkpoint of a run: "best" for the one that `train.keep_best` kept, "newest", or the step of one."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Run:
    """A trained run.

    Attributes:
      run_dir: its folder.
      checkpoint: folder of the checkpoint that was taken.
      manifest: of that checkpoint.
      config: what it was trained by; `data` and `objective` are `saved.Unloaded` where their class is the user's own and unknown.
      schema: of its examples.
      summary: the contents of its summary.json; None where the run has not ended.
      program: its functions on today's devices, made to score.
      state: what it knows.
    """

    run_dir: pathlib.Path
    checkpoint: pathlib.Path
    manifest: Manifest
    config: Config
    schema: Schema
    summary: dict[str, Any] | None
    program: Program
    state: TrainState

    def __repr__(self) -> str:
        tasks = ", ".join(task.name for task in self.schema.tasks)
        return f"Run({str(self.run_dir)!r}, {self.which()}, model={type(self.config.model).__name__}, tasks=({tasks}))"

    def which(self) -> str:
        """The checkpoint in words, e.g. 'best checkpoint, after 80,000 examples'."""
        kind = "best checkpoint" if self.checkpoint.parent.name == BEST else "checkpoint"
        return f"{kind} after {self.manifest.position['progress']['examples']:,} examples"

    def source(self, data: Any, *, events: Mapping[str, Any] | None = None) -> Source:
        """Examples to score; see `scoring.examples.open_examples` for what `data` and `events` may be.

        Raises:
          UserError: they are not there, cannot be read, or are not of the run's schema.
        """
        return open_examples(data, self.schema, self.run_dir, events)

    def predict(
        self, data: Any, *, tasks: Sequence[str] | None = None, events: Mapping[str, Any] | None = None
    ) -> np.ndarray:
        """The probability that each label is 1: float32 [n, N] in the order of the rows; NaN for rows that a source left out.

        Args:
          data: a Parquet file or a folder of them, a table in memory (pyarrow, Polars, pandas 2.2 or newer), or a source. Raw rows
            where the run was trained on a prepared log. Labels are not needed.
          tasks: names of the wanted columns; all of the schema's unless given.
          events: what has happened since the log was prepared: source of events -> a path or a table.

        Raises:
          UserError: a task is unknown, or the data cannot be read.
        """
        places = self.places(tasks)
        source = self.source(data, events=events)
        found = np.empty((len(source), len(places)), np.float32)
        done = 0
        for part in predictions(self.program, self.state, source, self.config.batch, places):
            found[done : done + len(part)] = part.probabilities
            done += len(part)
        return found

    def evaluate(self, data: Any, *, events: Mapping[str, Any] | None = None) -> dict[str, Measures]:
        """Task -> every metric, as in the run's summary, of all examples; arguments as for `predict`, with labels.

        Raises:
          UserError: the data cannot be read, or no example has a label and a positive weight.
          DivergedError: a logit is not finite.
        """
        result = evaluate(self.program, self.state, self.source(data, events=events), self.config.batch)
        if not any(measures["num_examples"] for measures in result.values()):
            columns = ", ".join(f"label.{task.name}" for task in self.schema.tasks)
            raise DataError(
                f"no example has a label and a positive weight, so there is nothing to evaluate; give labels (columns {columns}), "
                "or predict instead"
            )
        return result

    def embeddings(self, table: str) -> np.ndarray:
        """The rows of an embedding table: float32 [rows, dim], an id's at its index.

        Raises:
          UserError: there is no table of that name.
        """
        _check_known("table", table, [t.name for t in self.schema.tables])
        return self.program.parts.tables.export(self.state.tables, table)

    def places(self, tasks: Sequence[str] | None) -> list[int]:
        """Places of the named tasks among the schema's, in the order given; of all where none are.

        Raises:
          UserError: there is no task of a name.
        """
        names = [task.name for task in self.schema.tasks]
        for task in tasks or ():
            _check_known("task", task, names)
        return [names.index(task) for task in tasks or names]


def load_run(
    folder: str | pathlib.Path,
    *,
    checkpoint: Which | None = None,
    classes: Sequence[type] = (),
    devices: Iterable[jax.Device] | None = None,
    say: Callable[[str], None] = print,
) -> Run:
    """A trained run, or one in training, from its folder alone.

    Parameters and table rows are read; of the optimizer's state only the dense parameters' takes memory, as zeros. On one device,
    or as many as it was trained on, its numbers are those of the run's own evaluation to the last bit.

    Args:
      folder: of the run.
      checkpoint: which one to take; unless given the best where the run keeps one, else the newest.
      classes: of the user's own that its config names: a model's, if it is not of gem_jax, and what it is made of.
      devices: where it runs, all of this process unless given; the mesh of its training does not count.
      say: takes a line for the user where a checkpoint is damaged and the one before it is taken.

    Raises:
      UserError: it is no run's folder, no checkpoint in it is whole, its model's class is unknown, or it does not fit the devices.
    """
    if jax.process_count() > 1:
        raise UserError("a run is scored by one process, and this job has several; start one, on one host")
    run_dir = pathlib.Path(folder).expanduser()
    checkpoints, step = _find(run_dir, checkpoint)

    def program_of(manifest: Manifest) -> Program:
        return scoring_program(saved_config(manifest, classes), saved_schema(manifest), devices)

    program, restored = restore_values(checkpoints, program_of, say, step=step)
    return Run(
        run_dir=run_dir,
        checkpoint=checkpoints.path(restored.manifest.step),
        manifest=restored.manifest,
        config=saved_config(restored.manifest, classes),
        schema=program.schema,
        summary=_summary(run_dir),
        program=program,
        state=restored.state,
    )


def _find(run_dir: pathlib.Path, which: Which | None) -> tuple[Checkpoints, int | None]:
    """The checkpoints among which to look, and the step where a certain one is wanted."""
    places = {"best": Checkpoints(run_dir / BEST), "newest": Checkpoints(run_dir / CHECKPOINTS)}
    steps = {name: found for name, checkpoints in places.items() if (found := checkpoints.candidates())}
    if not steps:
        what = "has no checkpoint" if run_dir.is_dir() else "does not exist"
        raise CheckpointError(f"{run_dir} {what}; name the folder of a run that was saved, e.g. runs/gem_debug")
    if which is None:
        which = next(iter(steps))
    for name, found in steps.items():
        if which == name:
            return places[name], None
        if isinstance(which, int) and which in found:
            return places[name], which
    there_are = ", ".join([*steps, *map(str, sorted(set().union(*steps.values())))])
    hint = " (train.keep_best keeps the best)" if which == "best" else ""
    raise CheckpointError(f"{run_dir} has no checkpoint '{which}'; there are {there_are}{hint}")


def _summary(run_dir: pathlib.Path) -> dict[str, Any] | None:
    file = run_dir / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _check_known(what: str, name: str, names: Sequence[str]) -> None:
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"the run has no {what} '{name}'; {hint}there are {', '.join(names)}")
