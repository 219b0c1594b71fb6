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
| `label.<task>` | number or bool | 0, 1, or null = unobserved |
| `domain` | string or integer | name in `schema.domains` or place among them; optional where there is only one |
| `user` | integer | for grouped metrics; optional |
| `weight` | number | 0 or more; optional, 1 if absent |
| `true_probability.<task>` | number | where the truth is known (synthetic data); optional |

Other columns are ignored. Row groups of 1,000 to 100,000 rows suit the cache.
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
from gem_jax.data.checks import check_both_classes, check_labels, check_rows, existing_path
from gem_jax.data.columns import join_examples, take_examples
from gem_jax.data.loader import shuffle
from gem_jax.data.parquet_columns import check_columns, column_names, decode, encode, label_column
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, Source, Splits

SHUFFLE_GROUPS = 4
"""Row groups whose rows are shuffled together."""
CACHED_GROUPS = 2 * SHUFFLE_GROUPS
"""Row groups kept decoded: those being read and those that a thread ahead has begun."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetConfig:
    """Training, test and perhaps validation files of one schema (columns: see `gem_jax.data.parquet`)."""

    path: str
    """Folder with train/ and test/, and perhaps valid/, of .parquet files; or with train.parquet and so on."""
    schema: Annotated[Schema, tyro.conf.Fixed, tyro.conf.Suppress]
    """What the columns mean."""

    def build(self) -> Splits:
        """Opens the files and checks columns and types; values are checked as they are read.

        Raises:
          DataError: a file is missing, empty or not Parquet, a column is missing or of the wrong type, or a task's
            training labels are all the same.
        """
        folder = existing_path(self.path, "a folder with train/ and test/ of .parquet files")
        train, test = (ParquetSource(_files(folder, part), self.schema) for part in ("train", "test"))
        train.check_labels()
        valid = ParquetSource(_files(folder, "valid"), self.schema) if _has(folder, "valid") else None
        return Splits(train=train, test=test, valid=valid)


class ParquetSource:
    """Random access to the rows of Parquet files, in the order of the files.

    Args:
      files: read one after the other.
      schema: names the columns.

    Raises:
      DataError: a file cannot be read, has no rows, or lacks a column.
    """

    def __init__(self, files: tuple[pathlib.Path, ...], schema: Schema):
        self.schema = schema
        self._groups: list[tuple[pathlib.Path, int, int]] = []  # file, row group, first row in the file
        sizes = []
        for file in files:
            opened = _open(file)
            check_rows(file, opened.metadata.num_rows)
            check_columns(opened.schema_arrow, schema, file)
            first_row = 0
            for group in range(opened.metadata.num_row_groups):
                self._groups.append((file, group, first_row))
                sizes.append(opened.metadata.row_group(group).num_rows)
                first_row += sizes[-1]
        self._sizes = np.array(sizes, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._cache: collections.OrderedDict[int, Examples] = collections.OrderedDict()
        self._lock = threading.Lock()  # the loader's threads share the cache
        self._epoch_order = functools.lru_cache(maxsize=2)(self._make_epoch_order)

    def __len__(self) -> int:
        return int(self._sizes.sum())

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
          DataError: a label is not 0, 1 or null, or a task has one class only.
        """
        seen = np.zeros((0, len(self.schema.tasks)), np.float32)
        names = [label_column(task) for task in self.schema.tasks]
        for file, group, first_row in self._groups:
            table = _open(file).read_row_group(group, columns=names)
            columns = []
            for name in names:
                columns.append(table[name].cast(pa.float32()).to_numpy())
                check_labels(columns[-1], file, name, first_row)
            seen = np.unique(np.concatenate([seen, np.stack(columns, axis=1)]), axis=0)
            if (np.nanmin(seen, axis=0, initial=1) < np.nanmax(seen, axis=0, initial=0)).all():
                return
        check_both_classes(seen, [task.name for task in self.schema.tasks], self._groups[0][0].parent)

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
            file, number, first_row = self._groups[group]
            opened = _open(file)
            present = set(opened.schema_arrow.names)
            table = opened.read_row_group(number, columns=[n for n in column_names(self.schema) if n in present])
            self._cache[group] = decode(table, self.schema, file, first_row)
            if len(self._cache) > CACHED_GROUPS:
                self._cache.popitem(last=False)
            return self._cache[group]


def write_parquet(
    path: pathlib.Path, source: Source, indices: np.ndarray | None = None, rows_per_group: int = 8192
) -> None:
    """Writes examples of any source as one file, which `ParquetSource` reads back equal.

    Args:
      path: the file; it appears when it is complete.
      source: what to write.
      indices: int64 [n], the examples; all of them if not given.
      rows_per_group: rows of a row group, also what is held in memory at once.
    """
    indices = np.arange(len(source)) if indices is None else indices
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
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not a Parquet file: {str(error).splitlines()[0]}") from error
