"""A teacher labels examples: while it trains, each before it has trained on it, or afterwards from its run's folder.

    train(config, observer=ProgressiveLabels("labels/teacher"))          the training part, in the teacher's own pass over it
    label(load_run("runs/teacher"), config.data, "labels/teacher", parts=("test", "valid"))

The first has no label by a teacher that knows the example's answer, and costs no pass of its own: a training step returns the
logits that it computed before its update. They are those of training: with dropout, where the model has some.

Shape letters: B batch, N tasks, d components kept of an embedding.
"""

import concurrent.futures
import dataclasses
import fnmatch
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gem_jax.checkpoint.manifest import as_json, now
from gem_jax.checkpoint.resume import differences
from gem_jax.config import to_dict
from gem_jax.data.batch import Batch, Examples, HostColumns
from gem_jax.data.identity import digest
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataConfig, Source, Splits
from gem_jax.errors import UserError
from gem_jax.evaluation.evaluate import scored_batches
from gem_jax.parallel.sharding import local_rows
from gem_jax.run.observer import Observer
from gem_jax.run.program import Program
from gem_jax.scoring.run import Run
from gem_jax.training.progress import Progress
from gem_jax.training.state import TrainState
from gem_jax.transfer.labels import Labels, LabelWriter
from gem_jax.transfer.manifest import EmbeddingConfig, LabelError, Manifest, Pass
from gem_jax.transfer.projection import Projection

EXAMPLES_PER_FILE = 2**17
"""Examples of a file of labels: what is held in memory, and repeated where a separate pass was killed."""

NOT_THE_TEACHER = (
    *("name", "runs_dir", "checkpoint.*", "mesh.*", "tables.*", "train.eval_*", "train.keep_best", "train.patience"),
    *("data.*path", "data.*labels"),
)
"""Patterns of config fields that say nothing of what a teacher learns; which data it learns from is said by their identity."""


def label(
    run: Run,
    data: DataConfig | Splits,
    folder: str | pathlib.Path,
    *,
    parts: Sequence[str] = ("train", "valid", "test"),
    embedding: EmbeddingConfig | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Pass]:
    """A trained run labels parts of a data set; part -> what the store's manifest says of it. An interrupted pass goes on.

    Args:
      run: the teacher.
      data: what it labels, of the schema that it was trained on.
      folder: of the store.
      parts: of the data; a validation part that is not there is passed over.
      embedding: which vector to keep of each example; none unless given.
      say: takes a line for the user.

    Raises:
      UserError: the folder has labels of another teacher or of other data, the data are of another schema, the teacher has no such
        representation, or a logit is not finite.
    """
    splits = data if isinstance(data, Splits) else data.build()
    projection = Projection.of(embedding, run.program)
    scorer = _Scorer(program=run.program, projection=projection)
    checksums = {name: array.checksum for name, array in run.manifest.arrays.items()}
    done = {}
    for part in parts:
        source = getattr(splits, part)
        if source is None:
            continue
        run.source(source)  # refuses another schema
        made = _pass(run.manifest.config, source, state=digest(checksums), step=run.manifest.step)
        writer = LabelWriter(_path(folder), part, _manifest(run.schema, projection, part, made))
        _label_rest(writer, scorer, run.state, source, len(run.schema.tasks))
        done[part] = writer.finish()
        say(f"Labelled {len(source):,} examples of {part} by {run.which()} of {run.run_dir}")
    return done


class ProgressiveLabels(Observer):
    """Labels the training part while the teacher trains on it: each example by the parameters of the step that has not seen it.

    Only the first pass over the data is labelled. A run that goes on from a checkpoint goes on labelling from there.

    Args:
      folder: of the store.
      embedding: which vector to keep of each example; none unless given.
    """

    def __init__(self, folder: str | pathlib.Path, embedding: EmbeddingConfig | None = None):
        self._folder, self._embedding = _path(folder), embedding
        self.representations = () if embedding is None else (embedding.representation,)
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._writing: concurrent.futures.Future[None] | None = None
        self._pending: _Step | None = None
        self._held: list[Labels] = []

    def begin(self, program: Program, splits: Splits, progress: Progress) -> None:
        """As for any observer.

        Raises:
          UserError: the folder has labels of another teacher or of other data, or the model has no such representation.
        """
        if jax.process_count() > 1:
            raise UserError("labels are written by one process, and this job has several; label in a separate pass")
        self._projection = Projection.of(self._embedding, program)
        self._size = len(splits.train)
        made = _pass(to_dict(program.config), splits.train, state=None, step=None)
        self._writer = LabelWriter(self._folder, "train", _manifest(program.schema, self._projection, "train", made))
        self._held, self._pending = [], None
        self._start = self._stop = min(progress.position, self._size)
        self._writer.forget_from(self._start)
        if self._writer.position < self._start:
            raise LabelError(
                f"{self._folder} has labels of the first {self._writer.position:,} training examples, and the teacher goes on "
                f"after {self._start:,}; begin its run anew, or label in a separate pass"
            )

    def step(self, outputs: dict[str, Any], host: HostColumns) -> None:
        """Takes a step's labels when the next one is under way, so that nothing waits for the device."""
        pending, self._pending = self._pending, None
        if host.position - host.num_examples < self._size:
            vectors = outputs["representations"]
            embedding = self._projection(vectors[self._projection.name]) if self._projection is not None else None
            self._pending = _Step(logits=outputs["logits"], embedding=embedding, host=host)
        if pending is not None:
            self._take(pending)

    def flush(self) -> None:
        """All labels so far are on disk when it returns.

        Raises:
          DataError: they cannot be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            self._take(pending)
        self._write()
        self._wait()
        self._writer.finish()

    def _take(self, step: "_Step") -> None:
        count = step.host.num_examples - max(step.host.position - self._size, 0)  # the rest is the next epoch's
        embedding = None if step.embedding is None else local_rows(step.embedding)
        self._held.append(_labels(local_rows(step.logits), embedding, step.host, step.host.slots[:count]))
        self._stop += count
        if self._stop - self._start >= EXAMPLES_PER_FILE:
            self._write()

    def _write(self) -> None:
        self._wait()
        if self._held:
            self._writing = self._thread.submit(_write, self._writer, self._start, self._stop, self._held)
            self._held, self._start = [], self._stop

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
    logits: jax.Array
    embedding: jax.Array | None
    host: HostColumns


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scorer:
    """A program whose scores are a batch's logits [B, N] and, behind them, what is kept of its embeddings [B, d]."""

    program: Program
    projection: Projection | None

    @property
    def schema(self) -> Schema:
        return self.program.schema

    @property
    def mesh(self) -> Mesh:
        return self.program.mesh

    def eval_step(self, state: TrainState, batch: Batch) -> jax.Array:
        if self.projection is None:
            return self.program.eval_step(state, batch)
        outputs = self.program.score(state, batch)
        kept = self.projection(outputs.representations[self.projection.name])
        return jnp.concatenate([outputs.logits, kept], axis=1)


class _From:
    """The examples of a source from `first` on."""

    def __init__(self, source: Source, first: int):
        self.schema = source.schema
        self._source, self._first = source, first

    def __len__(self) -> int:
        return len(self._source) - self._first

    def read(self, indices: np.ndarray) -> Examples:
        return self._source.read(indices + self._first)

    def identity(self) -> str:
        return digest(self._source.identity(), self._first)


def _label_rest(writer: LabelWriter, scorer: _Scorer, state: TrainState, source: Source, num_tasks: int) -> None:
    """Labels what no file of a part has yet."""
    start = stop = writer.position
    writer.forget_from(start)
    if start == len(source):
        return
    held: list[Labels] = []
    for scores, host in scored_batches(scorer, state, _From(source, start), scorer.program.config.batch):
        embedding = scores[:, num_tasks:] if scorer.projection is not None else None
        held.append(_labels(scores[:, :num_tasks], embedding, host, host.slots))
        stop += host.num_examples
        if stop - start >= EXAMPLES_PER_FILE or stop == len(source):
            _write(writer, start, stop, held)
            start, held = stop, []


def _labels(logits: np.ndarray, embedding: np.ndarray | None, host: HostColumns, slots: np.ndarray) -> Labels:
    """Of slots of a batch, but those of rows that a reader left out.

    Raises:
      LabelError: a number is not finite.
    """
    slots = slots[host.example_id[slots] >= 0]
    found = Labels(
        example_id=host.example_id[slots],
        user=host.user[slots],
        time_s=host.time_s[slots],
        logits=np.asarray(logits, np.float32)[slots],
        embedding=None if embedding is None else np.asarray(embedding, np.float32)[slots],
    )
    for what, values in (("logit", found.logits), ("embedding", found.embedding)):
        if values is not None and not np.isfinite(values).all():
            row = np.flatnonzero(~np.isfinite(values).all(axis=1))[0]
            raise LabelError(
                f"the teacher's {what} is not finite for the example with example_id {found.example_id[row]}; look for numbers in "
                "that row that are far from those that it was trained on"
            )
    return found


def _write(writer: LabelWriter, start: int, stop: int, parts: Sequence[Labels]) -> None:
    """Writes labels of examples `start .. stop` as one file."""
    ids, users, times, logits = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("example_id", "user", "time_s", "logits")
    )
    embeddings = [part.embedding for part in parts if part.embedding is not None]
    embedding = np.concatenate(embeddings) if embeddings else None
    writer.write(start, stop, Labels(example_id=ids, user=users, time_s=times, logits=logits, embedding=embedding))


def _pass(config: dict[str, Any], source: Source, *, state: str | None, step: int | None) -> Pass:
    """Of the teacher whose config is given as `Config.to_dict` gave it: classes of the user's own need not be known."""
    fields = differences(as_json(config), {})
    of_teacher = {
        name: value
        for name, (value, _) in fields.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in NOT_THE_TEACHER)
    }
    return Pass(
        run=config["name"],
        teacher=digest(of_teacher),
        state=state,
        step=step,
        data=source.identity(),
        jax=jax.__version__,
        written=now(),
    )


def _manifest(schema: Schema, projection: Projection | None, part: str, made: Pass) -> Manifest:
    return Manifest(
        tasks=tuple(task.name for task in schema.tasks),
        embedding=None if projection is None else projection.config,
        width=0 if projection is None else projection.width,
        passes={part: made},
    )


def _path(folder: str | pathlib.Path) -> pathlib.Path:
    return pathlib.Path(os.path.expanduser(folder))
