"""Predictions in columns, and as a Parquet file that is written as they come: in constant memory, by a thread of its own.

Columns of the file, one row for every example in the order of the data:

| column | type | meaning |
|---|---|---|
| `example_id` | int64 | the example's; null where the reader left a bad row out |
| `time_s` | int64 | when it happened, in seconds; null = unknown |
| `user` | int64 | the user's id; null = unknown |
| `domain` | string, by a dictionary | its domain |
| `p.<task>` | float32 | the predicted probability of the task's label 1; null where the reader left a bad row out |

Shape letters: n examples, N tasks.
"""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from gem_jax.data.source import DataError

ROWS_PER_GROUP = 2**17
"""Rows of a row group: what is held in memory, and once more while it is written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Scored examples in the order of the data.

    Attributes:
      probabilities: float32 [n, N], NaN for a row that the reader left out.
      example_id: int64 [n], -1 for a row that the reader left out.
      time_s: int64 [n], -1 unknown.
      user: int64 [n], -1 unknown.
      domain: int32 [n], place among the schema's domains.
    """

    probabilities: np.ndarray
    example_id: np.ndarray
    time_s: np.ndarray
    user: np.ndarray
    domain: np.ndarray

    def __len__(self) -> int:
        return len(self.example_id)


class PredictionsWriter:
    """Collects predictions into row groups, each of which is written while the next one is collected.

    Args:
      write_group: writes one.
      thread: in which it does so.
    """

    def __init__(self, write_group: Callable[[list[Predictions]], None], thread: concurrent.futures.Executor):
        self._write_group, self._thread = write_group, thread
        self._held: list[Predictions] = []
        self._num_held = 0
        self._writing: concurrent.futures.Future[None] | None = None

    def write(self, predictions: Predictions) -> None:
        """Adds rows, whose arrays must not change afterwards.

        Raises:
          DataError: the disk failed at earlier rows.
        """
        self._held.append(predictions)
        self._num_held += len(predictions)
        if self._num_held >= ROWS_PER_GROUP:
            self._flush()

    def finish(self) -> None:
        """Waits until everything is written; raises as `write` does."""
        if self._held:
            self._flush()
        self._wait()

    def _flush(self) -> None:
        self._wait()
        self._writing = self._thread.submit(self._write_group, self._held)
        self._held, self._num_held = [], 0

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()


@contextlib.contextmanager
def open_predictions(path: pathlib.Path, tasks: Sequence[str], domains: Sequence[str]) -> Iterator[PredictionsWriter]:
    """A writer of a new file, which appears when it is whole, and not at all where the block ends in an error.

    Args:
      path: of the file; one that is there is replaced.
      tasks: names of the N columns of probabilities, in their order.
      domains: the schema's.

    Raises:
      DataError: the file cannot be written.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    with _named(path):
        file = pyarrow.parquet.ParquetWriter(
            unfinished,
            _table([], tasks, domains).schema,
            compression="snappy",
            use_dictionary=["domain"],
            column_encoding={"example_id": "DELTA_BINARY_PACKED", "time_s": "DELTA_BINARY_PACKED"},
            write_page_checksum=True,
        )

    def write_group(parts: list[Predictions]) -> None:
        with _named(path):
            file.write_table(_table(parts, tasks, domains))

    try:
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            writer = PredictionsWriter(write_group, thread)
            yield writer
            writer.finish()
        with _named(path):
            file.close()
            unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):  # what fails here has failed before, and was told
            file.close()
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"'{path}' cannot be written ({error.strerror or error}); name a place that can") from error


def _table(parts: Sequence[Predictions], tasks: Sequence[str], domains: Sequence[str]) -> pa.Table:
    def column(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *(getattr(part, name) for part in parts)])

    example_id = column("example_id", np.int64)
    columns = {"example_id": pa.array(example_id, mask=example_id < 0)}
    for name in ("time_s", "user"):
        values = column(name, np.int64)
        columns[name] = pa.array(values, mask=values == -1)
    places = pa.array(column("domain", np.int32), mask=example_id < 0)
    columns["domain"] = pa.DictionaryArray.from_arrays(places, pa.array(domains, pa.string()))
    for n, task in enumerate(tasks):
        values = np.concatenate([np.zeros(0, np.float32), *(part.probabilities[:, n] for part in parts)])
        columns[f"p.{task}"] = pa.array(values, mask=np.isnan(values))
    return pa.table(columns)
