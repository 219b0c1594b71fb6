"""Random access to the rows of Parquet files, by row group with a small cache, and an order of their own for shuffling."""

import collections
import functools
import pathlib
import threading
import warnings

import numpy as np

from gem_jax.data.batch import Examples
from gem_jax.data.checks import LARGE, Rows, check_labels_differ, check_rows
from gem_jax.data.columns import join_examples, take_examples
from gem_jax.data.example_ids import check_ids_differ
from gem_jax.data.identity import digest
from gem_jax.data.loader import shuffle
from gem_jax.data.parquet.columns import column_names, label_column
from gem_jax.data.parquet.decode import decode, decode_good
from gem_jax.data.parquet.files import find_files
from gem_jax.data.parquet.row_groups import RowGroup, open_files
from gem_jax.data.parquet.values import float32, in_one, numbers
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, DataWarning, numbered

SHUFFLE_GROUPS = 4
"""Row groups whose rows are shuffled together."""
CACHED_GROUPS = 2 * SHUFFLE_GROUPS
"""Row groups kept decoded: those being read and those that a thread ahead has begun."""
CHECKED_GROUPS = 8
"""Row groups of a part, evenly spread, that `ParquetSource.check` decodes."""


class ParquetSource:
    """Random access to the rows of Parquet files, in the order of the files.

    Args:
      files: files, folders of them, or URLs of either, read one after the other (see `parquet.files`); files without rows are
        passed over.
      schema: names the columns.
      part: of the data set, for the ids of examples that have none.
      for_training: False opens files to score: labels and training columns that are absent are NaN.
      sort_histories: sort each history by age, oldest first, instead of refusing another order.
      max_bad_rows: None refuses the first row with a bad value. A number is how many such rows may become empty examples, which
        have weight 0 and count nowhere, so that no other row's place changes; a DataWarning tells them.

    Raises:
      DataError: a file cannot be read, has no rows, or lacks a column, or two row groups surely share an example id.
    """

    def __init__(
        self,
        files: tuple[pathlib.Path | str, ...],
        schema: Schema,
        *,
        part: str = "train",
        for_training: bool = True,
        sort_histories: bool = False,
        max_bad_rows: int | None = None,
    ):
        self.schema = schema
        self._part = part
        self._sort_histories = sort_histories
        self._max_bad_rows = max_bad_rows
        self._bad_rows: dict[int, int] = {}  # row group -> its bad rows
        self._warned: set[str] = set()
        if not files:
            raise DataError("no Parquet files are given; name at least one file or folder")
        found = tuple(found for file in files for found in find_files(file))
        self._groups, self.id_bounds = open_files(found, schema, for_training)
        self._given = str(files[0])
        check_rows(self._given, len(self._groups))
        check_ids_differ(self.id_bounds)
        self._sizes = np.array([group.size for group in self._groups], np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._cache: collections.OrderedDict[int, Examples] = collections.OrderedDict()
        self._lock = threading.Lock()  # the loader's threads share the cache
        self._epoch_order = functools.lru_cache(maxsize=2)(self._make_epoch_order)

    def __len__(self) -> int:
        return int(self._sizes.sum())

    @property
    def bad_rows(self) -> int:
        """Rows that became empty examples so far; each row is counted once, however often it is read."""
        return sum(self._bad_rows.values())

    def identity(self) -> str:
        """Digest of every file's footer and of blocks of its content (`identity.file_digest`), in the order of the files.

        Values from the names of folders count too.

        Raises:
          DataError: a file cannot be read.
        """
        files = {id(group.opened): group.opened for group in self._groups}
        return digest([opened.identity() for opened in files.values()])

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices`, in that order.

        Raises:
          DataError: a row group that holds one of them has a bad value, or cannot be read.
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

    def check(self) -> None:
        """Decodes a few row groups, evenly spread over the files, so that what is wrong everywhere shows before a run begins.

        Raises:
          DataError: one of them has a bad value, or cannot be read.
        """
        for group in np.unique(np.linspace(0, len(self._groups) - 1, CHECKED_GROUPS).astype(int)):
            self._group(int(group))

    def check_labels(self) -> None:
        """Reads label columns until both classes of every task have been seen.

        Raises:
          DataError: a task's labels are all the same, or none is a number from 0 to 1.
        """
        names = [label_column(task) for task in self.schema.tasks]
        seen = np.full((2, len(names)), np.nan, np.float32)  # the smallest and the largest of each task
        for group in self._groups:
            table = group.read(names)
            labels = np.stack([float32(in_one(table[name])) for name in names], axis=1)
            labels = np.where((labels >= 0) & (labels <= 1), labels, np.nan)
            seen = np.stack([np.fmin(seen[0], np.fmin.reduce(labels)), np.fmax(seen[1], np.fmax.reduce(labels))])
            if (seen[0] < seen[1]).all():
                return
        check_labels_differ(seen, [task.name for task in self.schema.tasks], self._given)

    def check_weights(self) -> None:
        """Reads the column of weights, where there is one, until one is positive.

        Raises:
          DataError: none is.
        """
        for group in self._groups:
            table = group.read(["weight"])
            if not table.num_columns or (numbers(in_one(table["weight"])) > 0).any():
                return
        raise DataError(
            f"{self._given}: every 'weight' is 0, so that nothing would count; give weights above 0, or none"
        )

    def _make_epoch_order(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Row groups in the epoch's order, and the position at which each window of them ends."""
        groups = np.random.default_rng((seed, epoch)).permutation(len(self._sizes))
        ends = np.cumsum(self._sizes[groups])
        return groups, np.append(ends[SHUFFLE_GROUPS - 1 : -1 : SHUFFLE_GROUPS], ends[-1])

    def _group(self, place: int) -> Examples:
        """The examples of the row group at `place` of all files'."""
        with self._lock:
            if place in self._cache:
                self._cache.move_to_end(place)
                return self._cache[place]
            self._cache[place] = self._decode(place)
            if len(self._cache) > CACHED_GROUPS:
                self._cache.popitem(last=False)
            return self._cache[place]

    def _decode(self, place: int) -> Examples:
        group = self._groups[place]
        table = group.read(column_names(self.schema))
        rows = Rows(file=group.opened.file.name, numbers=group.first_row + np.arange(group.size))
        row_ids = numbered(self._part, self._starts[place] + np.arange(group.size))
        if self._max_bad_rows is None:
            examples = decode(table, self.schema, rows, row_ids, self._sort_histories)
        else:
            examples, count, error = decode_good(table, self.schema, rows, row_ids, self._sort_histories)
            self._count_bad(place, count, error)
        self._warn_of_scale(examples, group)
        return examples

    def _count_bad(self, place: int, count: int, error: DataError | None) -> None:
        """Tells what was skipped the first time that a row group is read; more than the bound ends the reading every time."""
        if error is None:
            return
        known = place in self._bad_rows
        self._bad_rows[place] = count
        if self._max_bad_rows is not None and self.bad_rows > self._max_bad_rows:
            raise DataError(
                f"{self.bad_rows} bad rows in the part '{self._part}' are more than data.max_bad_rows={self._max_bad_rows}; "
                f"among them: {error}"
            ) from error
        if not known:
            size = self._groups[place].size
            message = f"{self._groups[place]}: {count} of {size} rows are bad and count nowhere; among them: {error}"
            warnings.warn(message, DataWarning, stacklevel=2)

    def _warn_of_scale(self, examples: Examples, group: RowGroup) -> None:
        """Tells once of every dense column that is far from order one."""
        columns = {feature.name: examples.dense[:, k] for k, feature in enumerate(self.schema.dense)}
        for name, values in {**columns, **examples.vectors}.items():
            largest = np.abs(values).max(initial=0)
            if largest > LARGE and name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"{group}: '{name}' goes up to {largest:g} in size, and models expect numbers of order one; scale it, "
                    "e.g. by python -m gem_jax.prepare",
                    DataWarning,
                    stacklevel=2,
                )
