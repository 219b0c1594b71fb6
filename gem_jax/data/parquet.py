"""Any schema as Parquet files: read by row group with a small cache, so a data set may be larger than memory.

Columns of a file, by the names in the schema:

| column | type | meaning |
|---|---|---|
| `<categorical>` | integer | id in its table; null or -1 = absent |
| `<categorical>` with max_ids > 1 | list of integers | at most max_ids ids |
| `<dense>` | number | finite |
| `<vector>` | list of numbers, also of fixed size | exactly dim finite numbers |
| `<sequence>.<attribute>` | list of integers | one id an event, oldest first; -1 = absent |
| `<sequence>.age_s` | list of integers | seconds from the event to the example, 0 or more |
| `label.<task>` | number or bool | 0 to 1, or null = unobserved; optional when only scoring |
| `domain` | string or integer | name in `schema.domains` or place among them; optional where there is only one |
| `user` | integer | the user's id, for grouped metrics; null or -1 = unknown; optional |
| `example_id` | integer | 0 or more, unique in all files of all parts; optional |
| `time_s` | integer | seconds, 0 or more, null = unknown; optional |
| `weight` | number | 0 or more; optional, 1 if absent |
| `true_probability.<task>` | number | where the truth is known (synthetic data); optional |
| `training.<name>` | number, or list of dim numbers | NaN or null = unknown; optional when only scoring |

Other columns are ignored. A categorical feature `user` of the schema is the user's id: the one column is both. Where there is no
`example_id`, an example's id is its row in its part, the part folded in (`source.numbered`). Row groups of 1,000 to 100,000 rows
suit the cache.
"""

import collections
import dataclasses
import functools
import itertools
import pathlib
import threading
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tyro

from gem_jax.data.batch import Examples
from gem_jax.data.checks import check_labels, check_labels_differ, check_rows, existing_path
from gem_jax.data.columns import join_examples, take_examples
from gem_jax.data.example_ids import IdBounds, check_ids_differ, id_bounds
from gem_jax.data.identity import digest, file_digest
from gem_jax.data.loader import shuffle
from gem_jax.data.parquet_columns import check_columns, column_names, decode, encode, label_column
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, Source, Splits, numbered

_FOOTER_END = 8
"""Bytes after a Parquet footer: its length and the format's name."""

SHUFFLE_GROUPS = 4
"""Row groups whose rows are shuffled together."""
CACHED_GROUPS = 2 * SHUFFLE_GROUPS
"""Row groups kept decoded: those being read and those that a thread ahead has begun."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetConfig:
    """Training, test and perhaps validation files of one schema (columns: see `gem_jax.data.parquet`)."""

    path: str
    """Folder with train/ and test/, and perhaps valid/, of .parquet files; or with train.parquet and so on."""
    columns: Annotated[Schema, tyro.conf.Fixed, tyro.conf.Suppress]
    """What the columns mean."""

    def schema(self) -> Schema:
        """The schema given."""
        return self.columns

    def build(self) -> Splits:
        """Opens the files and checks columns and types; values are checked as they are read.

        Raises:
          DataError: a file is missing, empty or not Parquet, a column is missing or of the wrong type, a task's training labels
            are all the same, or two row groups surely share an example id.
        """
        folder = existing_path(self.path, "a folder with train/ and test/ of .parquet files")
        names = ("train", "test", *(("valid",) if _has(folder, "valid") else ()))
        parts = {part: ParquetSource(_files(folder, part), self.columns, part=part) for part in names}
        parts["train"].check_labels()
        check_ids_differ([bounds for source in parts.values() for bounds in source.id_bounds])
        return Splits(**parts)


class ParquetSource:
    """Random access to the rows of Parquet files, in the order of the files.

    Args:
      files: read one after the other.
      schema: names the columns.
      part: of the data set, for the ids of examples that have none.
      for_training: False opens files to score: labels and training columns that are absent are NaN.

    Raises:
      DataError: a file cannot be read, has no rows, or lacks a column, or two row groups surely share an example id.
    """

    def __init__(
        self, files: tuple[pathlib.Path, ...], schema: Schema, *, part: str = "train", for_training: bool = True
    ):
        self.schema = schema
        self.id_bounds: list[IdBounds] = []
        self._part = part
        self._footers: list[tuple[pathlib.Path, int]] = []  # file, bytes of its footer
        self._groups: list[tuple[pathlib.Path, int, int]] = []  # file, row group, first row in the file
        sizes = []
        has_ids = []
        for file in files:
            opened = _open(file)
            check_rows(file, opened.metadata.num_rows)
            check_columns(opened.schema_arrow, schema, file, for_training)
            has_ids.append("example_id" in opened.schema_arrow.names)
            self.id_bounds += id_bounds(opened.metadata, file)
            self._footers.append((file, opened.metadata.serialized_size + _FOOTER_END))
            first_row = 0
            for group in range(opened.metadata.num_row_groups):
                self._groups.append((file, group, first_row))
                sizes.append(opened.metadata.row_group(group).num_rows)
                first_row += sizes[-1]
        if len(set(has_ids)) > 1:
            raise DataError(
                f"{files[has_ids.index(False)]} has no column 'example_id' and {files[has_ids.index(True)]} has one; "
                "give it to all files or to none"
            )
        check_ids_differ(self.id_bounds)
        self._sizes = np.array(sizes, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._cache: collections.OrderedDict[int, Examples] = collections.OrderedDict()
        self._lock = threading.Lock()  # the loader's threads share the cache
        self._epoch_order = functools.lru_cache(maxsize=2)(self._make_epoch_order)

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def identity(self) -> str:
        """Digest of every file's footer and of blocks of its content (`identity.file_digest`), in the order of the files.

        Raises:
          DataError: a file cannot be read.
        """
        try:
            return digest([file_digest(file, footer_bytes) for file, footer_bytes in self._footers])
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror or error}") from error

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices`, in that order.

        Raises:
          DataError: a row group that holds one of them has a bad value.
        """
        group = np.searchsorted(self._starts, indices, side="right") - 1
        order = np.argsort(group, kind="stable")
        parts = [take_examples(self._group(int(g)), indices[group == g] - self._starts[g]) for g in np.unique(group)]
        joined = join_examples(parts)
        return joined if len(parts) == 1 else take_examples(joined, np.argsort(order))

    def shuffled_indices(self, positions: range, seed: int, epoch: int) -> np.ndarray:
        """The indices at `positions` of an epoch's order (see `loader.OrdersItself`).

        Row groups come in random order; of every `SHUFFLE_GROUPS` consecutive ones in that order the rows are shuffled
        together. So at any time only a few row groups are read, and an epoch decodes each of them once.
        """
        groups, window_ends = self._epoch_order(seed, epoch)
        parts = []
        start = positions.start
        while start < positions.stop:
            window = int(np.searchsorted(window_ends, start, side="right"))
            window_start = int(window_ends[window - 1]) if window else 0
            window_size = int(window_ends[window]) - window_start
            stop = min(positions.stop, window_start + window_size)
            places = shuffle(
                range(start - window_start, stop - window_start), window_size, (seed + epoch + 7919 * window) % 2**32
            )
            members = groups[window * SHUFFLE_GROUPS : (window + 1) * SHUFFLE_GROUPS]
            ends = np.cumsum(self._sizes[members])
            member = np.searchsorted(ends, places, side="right")
            parts.append(self._starts[members[member]] + places - (ends - self._sizes[members])[member])
            start = stop
        return np.concatenate(parts)

    def check_labels(self) -> None:
        """Reads label columns until both classes of every task have been seen.

        Raises:
          DataError: a label is not from 0 to 1 or null, or a task's labels are all the same.
        """
        seen = np.full((2, len(self.schema.tasks)), np.nan, np.float32)  # the smallest and the largest of each task
        names = [label_column(task) for task in self.schema.tasks]
        for group, (file, _, first_row) in enumerate(self._groups):
            table = self._table(group, names)
            columns = []
            for name in names:
                columns.append(table[name].cast(pa.float32()).to_numpy())
                check_labels(columns[-1], file, name, first_row)
            labels = np.stack(columns, axis=1)
            seen = np.stack([np.fmin(seen[0], np.fmin.reduce(labels)), np.fmax(seen[1], np.fmax.reduce(labels))])
            if (seen[0] < seen[1]).all():
                return
        check_labels_differ(seen, [task.name for task in self.schema.tasks], self._groups[0][0].parent)

    def _make_epoch_order(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Row groups in the epoch's order, and the position at which each window of them ends."""
        groups = np.random.default_rng((seed, epoch)).permutation(len(self._sizes))
        ends = np.cumsum(self._sizes[groups])
        return groups, np.append(ends[SHUFFLE_GROUPS - 1 : -1 : SHUFFLE_GROUPS], ends[-1])

    def _group(self, group: int) -> Examples:
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
            file, _, first_row = self._groups[group]
            row_ids = numbered(self._part, self._starts[group] + np.arange(self._sizes[group]))
            table = self._table(group, column_names(self.schema))
            self._cache[group] = decode(table, self.schema, file, first_row, row_ids)
            if len(self._cache) > CACHED_GROUPS:
                self._cache.popitem(last=False)
            return self._cache[group]

    def _table(self, group: int, columns: list[str]) -> pa.Table:
        """Those of the columns that the file has, of one row group."""
        file, number, _ = self._groups[group]
        opened = _open(file)
        now = opened.metadata
        if number >= now.num_row_groups or now.row_group(number).num_rows != self._sizes[group]:
            raise DataError(f"{file} changed while it was being read; leave a run's files as they are until it ends")
        present = set(opened.schema_arrow.names)
        try:
            return opened.read_row_group(number, columns=[name for name in columns if name in present])
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{file}, row group {number} cannot be read: {_first_line(error)}; write the file again"
            ) from error


def write_parquet(
    path: pathlib.Path, source: Source, indices: np.ndarray | None = None, rows_per_group: int = 8192
) -> None:
    """Writes examples of any source as one file, which `ParquetSource` reads back equal.

    Args:
      path: the file; it appears when it is complete.
      source: what to write.
      indices: int64 [n], the examples; all of them if not given.
      rows_per_group: rows of a row group, also what is held in memory at once.

    Raises:
      DataError: there are no examples, or the schema's feature `user` differs from the users' ids.
    """
    indices = np.arange(len(source)) if indices is None else indices
    if not len(indices):
        raise DataError(f"there are no examples to write to {path}; give at least one")
    unfinished = path.with_name(path.name + ".unfinished")
    starts = range(0, len(indices), rows_per_group)
    tables = (encode(source.read(indices[s : s + rows_per_group]), source.schema) for s in starts)
    first = next(tables)
    with pyarrow.parquet.ParquetWriter(unfinished, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)
    unfinished.rename(path)


def _has(folder: pathlib.Path, part: str) -> bool:
    return (folder / part).is_dir() or (folder / f"{part}.parquet").exists()


def _files(folder: pathlib.Path, part: str) -> tuple[pathlib.Path, ...]:
    if (folder / f"{part}.parquet").exists():
        return (folder / f"{part}.parquet",)
    files = tuple(sorted((folder / part).glob("*.parquet")))
    if not files:
        raise DataError(
            f"{folder} has neither {part}.parquet nor .parquet files in {part}/: data.path must hold both parts"
        )
    return files


def _open(file: pathlib.Path) -> pyarrow.parquet.ParquetFile:
    try:
        return pyarrow.parquet.ParquetFile(file)
    except pa.ArrowException as error:
        raise DataError(f"{file} is not a Parquet file: {_first_line(error)}") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read as a Parquet file: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
