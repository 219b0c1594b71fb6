"""From examples to predictions: in the order of the data, batch by batch, or to a Parquet file of any length in constant memory.

The batches are those of the run's evaluation, in shape, packing and order, and so are the numbers: to the last bit on one device.

Shape letters: n examples, B batch slots, N tasks.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from gem_jax.data.batch import HostColumns
from gem_jax.data.packing import BatchConfig
from gem_jax.data.predictions import Predictions, open_predictions
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, Source
from gem_jax.evaluation.evaluate import Scorer, scored_batches


def predictions[State](
    program: Scorer[State], state: State, source: Source, batch: BatchConfig, tasks: Sequence[int]
) -> Iterator[Predictions]:
    """The predictions of every example, also of those of weight 0, in the order of the source.

    Args:
      program: of the run.
      state: of the program.
      source: of its schema.
      batch: size of a device's batch, the run's.
      tasks: places of the wanted tasks among the schema's.

    Raises:
      DataError: a logit is not finite, or a row cannot be read.
    """
    for logits, host in scored_batches(program, state, source, batch):
        yield _in_order(logits[np.ix_(host.slots, tasks)], host, program.schema, tasks)


def write_predictions(
    parts: Iterator[Predictions],
    path: pathlib.Path,
    schema: Schema,
    tasks: Sequence[int],
    on_rows: Callable[[int], None] = lambda count: None,
) -> int:
    """Writes predictions as they come (see `gem_jax.data.predictions`); the number of rows.

    Args:
      parts: from `predictions`.
      path: of the file, which appears when it is whole.
      schema: the run's.
      tasks: places of the tasks among the schema's.
      on_rows: told how many more rows are done.

    Raises:
      DataError: the file cannot be written.
    """
    total = 0
    with open_predictions(path, [schema.tasks[n].name for n in tasks], schema.domains) as writer:
        for part in parts:
            writer.write(part)
            total += len(part)
            on_rows(len(part))
    return total


def _in_order(logits: Float[np.ndarray, "n N"], host: HostColumns, schema: Schema, tasks: Sequence[int]) -> Predictions:
    """Of the filled slots of a batch, in the order of the stream."""
    slots = host.slots
    example_id = host.example_id[slots]
    broken = ~np.isfinite(logits)
    if broken.any():
        row, n = np.argwhere(broken)[0]
        raise DataError(
            f"the model's logit of '{schema.tasks[tasks[n]].name}' is {logits[row, n]} for the example with example_id "
            f"{example_id[row]}; look for numbers in that row that are far from those that it was trained on"
        )
    with np.errstate(over="ignore"):  # e^-z of a very negative logit is infinite, and its probability 0
        probabilities = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    probabilities[example_id < 0] = np.nan  # of an empty example, in the place of a bad row
    return Predictions(
        probabilities=probabilities,
        example_id=example_id,
        time_s=host.time_s[slots],
        user=host.user[slots],
        domain=host.domain[slots],
    )
