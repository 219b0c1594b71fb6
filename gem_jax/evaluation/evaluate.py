"""One pass over a source without training: its scores batch by batch, or over all processes its scores or every metric.

Shape letters: B batch, N tasks.
"""

import contextlib
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from gem_jax.data.batch import Batch, HostColumns
from gem_jax.data.loader import Loader
from gem_jax.data.packing import BatchConfig
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, FirstExamples, Source
from gem_jax.evaluation.evaluator import Evaluator, ScoredExamples
from gem_jax.evaluation.metrics import Measures
from gem_jax.parallel import processes
from gem_jax.parallel.mesh import local_devices
from gem_jax.parallel.sharding import local_rows, place_batch


@runtime_checkable
class Scorer[State](Protocol):
    """What an evaluation needs of a program."""

    @property
    def schema(self) -> Schema:
        """Of the data that the model reads."""
        ...

    @property
    def mesh(self) -> Mesh:
        """The devices that score."""
        ...

    def eval_step(self, state: State, batch: Batch) -> Float[Array, "B N"]:
        """The logits of a batch that lies on the mesh."""
        ...


def evaluate[State](
    program: Scorer[State], state: State, source: Source, batch: BatchConfig, limit: int | None = None
) -> dict[str, Measures]:
    """Metrics of one pass over the first `limit` examples of `source`, as `Evaluator.result` gives them; the same in every process.

    Raises:
      DivergedError: a logit is not finite.
    """
    evaluator = Evaluator(program.schema)
    evaluator.add(scored_examples(program, state, source, batch, limit))
    return evaluator.result()


def scored_examples[State](
    program: Scorer[State], state: State, source: Source, batch: BatchConfig, limit: int | None = None
) -> ScoredExamples:
    """The scores of one pass over the first `limit` examples of `source`, of all processes in every process; in no certain order.

    Raises:
      DivergedError: a logit is not finite.
    """
    evaluator = Evaluator(program.schema)
    first = source if limit is None else FirstExamples(source, limit)
    for logits, host in scored_batches(program, state, first, batch):
        evaluator.update(logits, host)
    own = evaluator.scores()
    return ScoredExamples(**{name: processes.gather_rows(column) for name, column in vars(own).items()})


def check_counts(result: dict[str, Measures], part: str) -> None:
    """Raises DataError where no example of a part counts for any task, so that nothing was measured."""
    if all(measures["num_examples"] == 0 for measures in result.values()):
        raise DataError(
            f"no example of the {part} part counts: each has weight 0 or no label of any task; "
            f"give some of the {part} part's examples a label and a weight above 0"
        )


def scored_batches[State](
    program: Scorer[State], state: State, source: Source, batch: BatchConfig
) -> Iterator[tuple[Float[np.ndarray, "B N"], HostColumns]]:
    """The logits and host columns of this process's batches, in order; a batch is read while the next one runs."""
    loader = Loader(
        source,
        batch,
        seed=None,
        num_epochs=1,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        num_devices=local_devices(program.mesh),
    )
    pending = None
    with contextlib.closing(iter(loader)) as batches:  # its reading threads end also where the caller stops early
        for device_batch, host, _ in processes.side_by_side(batches, loader.empty_batch):
            logits = program.eval_step(state, place_batch(device_batch, program.mesh))
            if pending is not None:
                yield local_rows(pending[0]), pending[1]
            pending = (logits, host)
    if pending is not None:
        yield local_rows(pending[0]), pending[1]
