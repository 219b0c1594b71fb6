"""What a teacher's labels cost: its own training while it labels, and a student's training with them joined.

    python -m gem_jax.bench.transfer configs/gem_debug.py [a.b=c ...] [--student configs/gem_debug.py:dlrm] [--json FILE]

The config is the teacher's; a student has the teacher's data, and the objective of its own config, which leaves the labels alone:
what is measured is their way into the batch. A loop with and one without take turns, a block of steps each, and what is told is the
median of the ratios of neighbouring blocks, with the smallest and the largest. On a GPU the time is that of the clock, and the
machine should have nothing else to do; on a CPU it is the processor time of the process and its threads.
"""

import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import jax

from gem_jax.cli import Command, Request, run
from gem_jax.config import Config, load
from gem_jax.data.loader import Loader
from gem_jax.data.source import DataConfig
from gem_jax.errors import UserError
from gem_jax.files import commit, read_rows, write_rows
from gem_jax.parallel import xla_flags
from gem_jax.parallel.mesh import local_devices
from gem_jax.parallel.sharding import local_rows, place_batch
from gem_jax.run.observer import Observer
from gem_jax.run.plan import RunPlan
from gem_jax.run.program import Program
from gem_jax.training.progress import Progress
from gem_jax.transfer.joined import JoinedConfig
from gem_jax.transfer.manifest import EmbeddingConfig
from gem_jax.transfer.scoring import ProgressiveLabels

BLOCKS = 9
"""Pairs of blocks."""

type Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the bench takes beside the teacher's config and its fields."""

    student: str | None = None
    """Config of a student, whose data are the teacher's; the teacher's own unless given."""
    representation: str = "first"
    """Which of the teacher's representations is labelled with."""
    dim: int = 64
    """Components kept of it, as int8."""
    steps: int = 20
    """Steps of a block."""
    json: str | None = None
    """Write the rows there, after those it already has."""


class Loop:
    """A run's loop without its evaluations and saves: read, pack, place, step, look at the step before.

    Args:
      config: of the run.
      data: its data.
      observer: of its steps.
    """

    def __init__(self, config: Config, data: DataConfig, observer: Observer):
        splits = data.build()
        plan = RunPlan.of(config, splits.schema)
        self._program = Program.of(config, splits.schema, plan, observer.representations)
        self._observer = observer
        self._pending: jax.Array | None = None
        seed = config.train.seed if config.train.shuffle else None
        loader = Loader(splits.train, config.batch, seed=seed, num_epochs=1, num_devices=local_devices(plan.mesh))
        self._batches = iter(loader)
        self._state = self._program.init(config.train.seed)
        observer.begin(self._program, splits, Progress())

    def seconds(self, steps: int) -> float:
        """Of so many steps, until all that they left to do is done.

        Raises:
          UserError: the data end before.
        """
        clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
        start, outputs = clock(), None
        for _ in range(steps):
            if (item := next(self._batches, None)) is None:
                raise UserError("the training part is too short for so many steps; take fewer, or smaller batches")
            self._state, outputs = self._program.train_step(self._state, place_batch(item[0], self._program.mesh), 0.5)
            self._observer.step(outputs, item[1])
            if self._pending is not None:  # as the loop's window does
                local_rows(self._pending)
            self._pending = outputs["logits"]
        self._observer.flush()
        jax.block_until_ready(outputs)
        return clock() - start

    def close(self) -> None:
        """Ends its reading."""
        self._batches.close()


def measure(config: Config, student: Config, embedding: EmbeddingConfig, steps: int) -> list[Row]:
    """Rows: the teacher while it labels with and without an embedding, and the student with labels alone and with histories."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, kept in (("logits", None), ("embedding", embedding)):
            labels = ProgressiveLabels(pathlib.Path(folder) / name, kept)
            with_labels = Loop(config, config.data, labels)
            rows.append(_row(f"teacher, {name}", Loop(config, config.data, Observer()), with_labels, config, steps))
        store = str(pathlib.Path(folder) / "embedding")
        for name, joined in (
            ("logits", JoinedConfig(data=config.data, labels=store)),
            ("history", JoinedConfig(data=config.data, labels=store, embedding="history")),
        ):
            with_labels = Loop(student, joined, Observer())
            rows.append(_row(f"student, {name}", Loop(student, config.data, Observer()), with_labels, student, steps))
    return rows


def _row(what: str, without: Loop, with_labels: Loop, config: Config, steps: int) -> Row:
    for loop in (without, with_labels):
        loop.seconds(3)  # compiles, and fills the reader's queue
    pairs = []
    for block in range(BLOCKS):
        order = (without, with_labels) if block % 2 == 0 else (with_labels, without)
        times = {loop: loop.seconds(steps) for loop in order}
        pairs.append((times[without], times[with_labels]))
    for loop in (without, with_labels):
        loop.close()
    ratios = sorted(after / before for before, after in pairs)
    return {
        "bench": "transfer",
        "config": config.name,
        "what": what,
        "ratio": statistics.median(ratios),
        "ratio_from": ratios[0],
        "ratio_to": ratios[-1],
        "ms_without": statistics.median(before for before, _ in pairs) / steps * 1e3,
        "examples": config.batch.examples,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "commit": commit(),
    }


COMMAND = Command(name="gem_jax.bench.transfer", about="Measure what a teacher's labels cost.", options=Options)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit code: 0, or 2 where the user's input is wrong."""
    xla_flags.set_flags()
    return run(COMMAND, arguments, _body)


def _body(request: Request) -> int:
    options = request.options
    file = None if options.json is None else pathlib.Path(options.json)
    known = read_rows(file) if file is not None and file.exists() else []
    student = request.config if options.student is None else load(options.student)
    embedding = EmbeddingConfig(representation=options.representation, dim=options.dim, storage="int8")
    rows = measure(request.config, student, embedding, options.steps)
    for row in rows:
        print(
            f"{row['config']}: {row['what']}: {row['ratio']:.3f} of {row['ms_without']:.2f} ms a step "
            f"({row['ratio_from']:.3f} to {row['ratio_to']:.3f}), {row['device']}"
        )
    if file is not None:
        write_rows(file, [*known, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
