"""The Criteo display advertising data: 13 counts, 26 hashed categories, a click label; no user, no history, no time.

Reads the published text (`label \\t i1 .. i13 \\t c1 .. c26`, categories in hexadecimal, empty = missing; also
gzipped) and a Parquet file with columns `label, i1 .. i13, c1 .. c26` (counts nullable, categories integers).

The published set has 45 million rows of about 330 bytes as prepared here; the whole of it is held in memory.
"""

import dataclasses
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from gem_jax.data.batch import Examples
from gem_jax.data.checks import Rows, check_labels, check_labels_differ, check_rows, existing_path, first_true
from gem_jax.data.columns import MemorySource, take_examples
from gem_jax.data.schema import Categorical, Dense, Schema, Table, Task
from gem_jax.data.source import DataError, Splits

COUNTS = tuple(f"i{k}" for k in range(1, 14))
CATEGORIES = tuple(f"c{k}" for k in range(1, 27))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriteoConfig:
    """A random split, and features fitted on its training part alone.

    Each count becomes a standardised logarithm, a 0/1 that says it is missing, and a quantile bucket (missing is a
    bucket too). Each category keeps an id where the training part has it `min_count` times, else shares the field's
    id 0, and gives the standardised logarithm of how often the training part has it: rare values mean little one by
    one, but that they are rare means much. "Missing" is a category like any other.

    An example's id is its row in the file; the data has no users and no times.
    """

    path: str
    """Criteo file: the published text (.txt, .tsv, .gz) or Parquet (.parquet)."""
    valid_fraction: float = 0.1
    """Share of the rows for validation."""
    test_fraction: float = 0.1
    """Share of the rows for test."""
    split_seed: int = 0
    """Seed of the random split."""
    min_count: int = 10
    """Training occurrences that a category needs for an id of its own."""
    num_buckets: int = 5
    """Quantile buckets of each count."""

    def schema(self) -> Schema:
        """The data's schema; reads and prepares the file, because the tables' sizes follow from its counts."""
        return self.build().schema

    def build(self) -> Splits:
        """Reads and prepares the file.

        Raises:
          DataError: the file is missing, empty or of another format, a label is not from 0 to 1, or the training part has
            the same label everywhere.
        """
        file = existing_path(self.path, "a Criteo text or Parquet file")
        table = _read(file)
        check_rows(file, len(table))
        labels = table["label"].to_numpy().astype(np.float32)
        check_labels(labels, Rows.first(file, len(table)), "label")
        order = np.random.default_rng(self.split_seed).permutation(len(labels))
        num_test, num_valid = (int(len(labels) * f) for f in (self.test_fraction, self.valid_fraction))
        test, valid, train = np.split(order, [num_test, num_test + num_valid])
        check_labels_differ(labels[train, None], ["click"], file)
        in_train = np.zeros(len(labels), bool)
        in_train[train] = True

        ids: dict[str, np.ndarray] = {}
        rows: dict[str, int] = {}
        dense: dict[str, np.ndarray] = {}
        for name in COUNTS:
            counts = table[name].to_numpy().astype(np.float64)
            _check_finite_counts(counts, file, name)
            dense[name], dense[f"{name}_missing"] = _log_count(counts, in_train)
            ids[f"{name}_bucket"], rows[f"{name}_bucket"] = _bucket(counts, in_train, self.num_buckets)
        for name in CATEGORIES:
            values = table[name].combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy()
            occurrences = np.bincount(values[in_train], minlength=int(values.max()) + 1)
            ids[name], rows[name] = _frequent_ids(values, occurrences, self.min_count)
            # A training row must not count itself: then a value seen nowhere else is as rare in training as in test.
            dense[f"{name}_frequency"] = _standardise(np.log1p(occurrences[values] - in_train), in_train)

        everything = _examples(ids, dense, labels)
        schema = _schema(rows, tuple(dense))
        parts = {"train": train, "valid": valid, "test": test}
        return Splits(
            **{
                name: MemorySource(schema=schema, examples=take_examples(everything, part))
                for name, part in parts.items()
            }
        )


def _schema(rows: dict[str, int], dense: tuple[str, ...]) -> Schema:
    # The fields' meanings are unpublished; "context" claims the least.
    return Schema(
        tables=tuple(Table(name=name, rows=count) for name, count in rows.items()),
        categoricals=tuple(Categorical(name=name, table=name, role="context") for name in rows),
        dense=tuple(Dense(name=name, role="context") for name in dense),
        tasks=(Task(name="click"),),
        domains=("display",),
    )


def _examples(ids: dict[str, np.ndarray], dense: dict[str, np.ndarray], labels: np.ndarray) -> Examples:
    count = len(labels)
    return Examples(
        ids={name: column[:, None].astype(np.int32) for name, column in ids.items()},
        dense=np.stack(list(dense.values()), axis=1).astype(np.float32),
        vectors={},
        sequences={},
        labels=labels[:, None],
        domain=np.zeros(count, np.int32),
        weight=np.ones(count, np.float32),
        user=np.full(count, -1, np.int64),
        example_id=np.arange(count),
        time_s=np.full(count, -1, np.int64),
        true_probability=np.full((count, 1), np.nan, np.float32),
    )


def _standardise(values: np.ndarray, in_train: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 over the training rows; all 0 where those are constant."""
    spread = values[in_train].std()
    return (values - values[in_train].mean()) / (spread if spread > 0 else 1.0)


def _log_count(counts: np.ndarray, in_train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised log(1 + count), 0 where missing, and the 0/1 of missing. The few negative counts give 0."""
    missing = np.isnan(counts)
    log = np.log1p(np.maximum(np.where(missing, 0, counts), 0))
    present = in_train & ~missing
    return np.where(missing | ~present.any(), 0, _standardise(log, present if present.any() else in_train)), missing


def _bucket(counts: np.ndarray, in_train: np.ndarray, num_buckets: int) -> tuple[np.ndarray, int]:
    """Quantile bucket of each count, the last one for missing, and their number."""
    missing = np.isnan(counts)
    present = counts[in_train & ~missing]
    edges = np.unique(np.quantile(present, np.arange(1, num_buckets) / num_buckets)) if len(present) else np.zeros(0)
    return np.where(missing, len(edges) + 1, np.searchsorted(edges, counts, side="right")), len(edges) + 2


def _frequent_ids(values: np.ndarray, occurrences: np.ndarray, min_count: int) -> tuple[np.ndarray, int]:
    """Ids 1, 2, .. for values with enough occurrences, 0 for all others, and the number of ids."""
    frequent = occurrences >= min_count
    return np.where(frequent, np.cumsum(frequent), 0)[values], int(frequent.sum()) + 1


def _read(file: pathlib.Path) -> pa.Table:
    """Columns label, i1 .. i13 as float64 (null = missing), c1 .. c26 as anything that compares."""
    try:
        is_parquet = file.suffix == ".parquet"
        table = pyarrow.parquet.read_table(file, page_checksum_verification=True) if is_parquet else _read_text(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as Criteo data: {str(error).splitlines()[0]}") from error
    for name in ("label", *COUNTS, *CATEGORIES):
        if name not in table.column_names:
            raise DataError(f"{file} has no column '{name}'; Criteo data has label, i1 .. i13, c1 .. c26")
        kind = table.schema.field(name).type
        if name in CATEGORIES and not (pa.types.is_integer(kind) or pa.types.is_string(kind)):
            raise DataError(f"{file}: column '{name}' is {kind}; a category must be integers or strings")
        if name not in CATEGORIES and not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise DataError(f"{file}: column '{name}' is {kind}; it must be numbers")
    if table["label"].null_count:
        row = first_true(np.asarray(table["label"].is_null()))
        raise DataError(f"{file}, row {row}: 'label' is null; give a number from 0 to 1")
    return table


def _read_text(file: pathlib.Path) -> pa.Table:
    types = {"label": pa.float64()} | dict.fromkeys(COUNTS, pa.float64()) | dict.fromkeys(CATEGORIES, pa.string())
    return pyarrow.csv.read_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(column_names=list(types)),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t"),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True),
    )


def _check_finite_counts(counts: np.ndarray, file: pathlib.Path, field: str) -> None:
    if np.isinf(counts).any():
        raise DataError(f"{file}, row {first_true(np.isinf(counts))}: '{field}' is infinite; leave it empty if unknown")
