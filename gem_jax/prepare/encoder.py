"""Raw rows as records of examples and of events: the one way, when a log is prepared and when rows are scored."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gem_jax.data.checks import first_true
from gem_jax.data.source import DataError
from gem_jax.prepare.features import Feature, nearest
from gem_jax.prepare.log import Log
from gem_jax.prepare.records import event_dtype, example_dtype
from gem_jax.prepare.spec import DOMAIN, PAST, Spec
from gem_jax.prepare.types import family
from gem_jax.prepare.values import Column
from gem_jax.prepare.vocabulary import ABSENT, Vocabulary

_list_lengths = pc.list_value_length  # pyright: ignore[reportAttributeAccessIssue]

EXAMPLE_ID = "example_id"
"""Column of the raw log that, where there is one, has the examples' ids."""


class Encoder:
    """Makes records of a log's rows.

    Args:
      spec: how.
      vocabularies: table or `DOMAIN` -> its values.
    """

    def __init__(self, spec: Spec, vocabularies: dict[str, Vocabulary]):
        self.schema = spec.schema()
        self._spec = spec
        self._vocabularies = vocabularies
        self._dtype = example_dtype(self.schema)

    def example_columns(self, log: Log, *, with_labels: bool) -> list[str]:
        """The columns of a log that examples are made of.

        Raises:
          DataError: the log lacks one; labels may be absent unless `with_labels`.
        """
        spec = self._spec.columns
        features = [f.column for f in self._spec.features.log if f.kind != "ignore"]
        needed = [spec.time, spec.user, *features, *([] if spec.domain is None else [spec.domain])]
        optional = [*spec.label, EXAMPLE_ID]
        check_columns(log, [*needed, *(spec.label if with_labels else ())])
        return list(dict.fromkeys([*needed, *(name for name in optional if name in log.schema.names)]))

    def examples(self, log: Log, *, with_labels: bool) -> Iterator[np.ndarray]:
        """Records of `example_dtype`, in batches of the log's rows; histories are still to be found.

        Raises:
          DataError: a column is missing or of another type, or a value is not what its column says.
        """
        first_row = 0
        for columns in column_batches(log, self.example_columns(log, with_labels=with_labels)):
            count = len(columns[self._spec.columns.time].values)
            yield self._records(columns, count, first_row)
            first_row += count

    def events(self, source: str, log: Log) -> Iterator[np.ndarray]:
        """Records of `event_dtype` of a source, in the order of the rows; rows without a user are left out.

        Raises:
          DataError: as `examples`; past rows of the log need their labels, null where they are unobserved.
        """
        spec = self._spec
        attributes = spec.attributes(source)
        labels = dict(zip(spec.tasks, spec.columns.label, strict=True)) if source == PAST else {}
        needed = [spec.columns.time, spec.columns.user, *(f.column for f in attributes), *labels.values()]
        check_columns(log, needed)
        dtype = event_dtype(self.schema.sequence(source))
        for columns in column_batches(log, dict.fromkeys(needed)):
            users = columns[spec.columns.user].users()
            records = np.zeros(len(users), dtype)
            records["user"], records["time"] = users, spec.clock.ticks(columns[spec.columns.time])
            for feature in attributes:
                ids = category_ids(columns[feature.column], self._vocabularies[feature.table], max_ids=1)
                records["ids"][feature.name] = ids[:, 0]
            for task, label in labels.items():
                records["ids"][task] = outcomes(columns[label].labels())
            yield records[users >= 0]

    def past_events(self, records: np.ndarray) -> np.ndarray:
        """The events that records of examples are to later rows of the same users: what `events(PAST, log)` makes of their rows."""
        known = records[records["user"] >= 0]
        events = np.zeros(len(known), event_dtype(self.schema.sequence(PAST)))
        events["user"], events["time"] = known["user"], known["time"]
        for feature in self._spec.attributes(PAST):
            events["ids"][feature.name] = known["ids"][feature.name][:, 0]
        for place, task in enumerate(self._spec.tasks):
            events["ids"][task] = outcomes(known["labels"][:, place])
        return events

    def _records(self, columns: dict[str, Column], count: int, first_row: int) -> np.ndarray:
        spec = self._spec
        records = np.zeros(count, self._dtype)
        records["user"] = columns[spec.columns.user].users()
        records["time"] = spec.clock.ticks(columns[spec.columns.time])
        given = columns.get(EXAMPLE_ID)
        records["example_id"] = first_row + np.arange(count) if given is None else given.example_ids()
        if spec.columns.domain is not None:
            records["domain"] = np.maximum(self._vocabularies[DOMAIN].ids(columns[spec.columns.domain]), 0)
        for place, label in enumerate(spec.columns.label):
            records["labels"][:, place] = columns[label].labels() if label in columns else np.nan
        for feature in spec.of_kind("categorical"):
            vocabulary = self._vocabularies[feature.table]
            records["ids"][feature.name] = category_ids(columns[feature.column], vocabulary, feature.max_ids)
        missing = {}
        for place, feature in enumerate(spec.of_kind("dense")):
            values = columns[feature.column].reals()
            missing[feature.name] = np.isnan(values)
            records["dense"][:, place] = self._scaled(feature, values, columns[feature.column])
        for feature in spec.of_kind("vector"):
            records["vectors"][feature.name], missing[feature.name] = vector(columns[feature.column], feature.dim)
        for place, name in enumerate(spec.missing_names, start=len(spec.of_kind("dense"))):
            records["dense"][:, place] = missing[name]
        return records

    def _scaled(self, feature: Feature, values: np.ndarray, column: Column) -> np.ndarray:
        with np.errstate(over="ignore"):
            scaled = self._spec.scalings[feature.name].apply(values)
        if not np.isfinite(scaled).all():
            column.refuse(~np.isfinite(scaled), "it lies too far from the values that the log was prepared with")
        return scaled


def column_batches(log: Log, names: Iterable[str]) -> Iterator[dict[str, Column]]:
    """The batches of a log as columns by name."""
    first_row = 0
    for table in log.batches(names):
        yield {
            name: Column(values=table[name].combine_chunks(), name=name, log=log.name, first_row=first_row)
            for name in table.column_names
        }
        first_row += table.num_rows


def check_columns(log: Log, needed: list[str]) -> None:
    """Raises DataError where a log lacks a column."""
    for name in needed:
        if name not in log.schema.names:
            raise DataError(f"{log.name} has no column '{name}'; {nearest(name, log.schema.names)}")


def outcomes(labels: np.ndarray) -> np.ndarray:
    """Labels [n] as ids of events: 0, 1, or `ABSENT` where they are unobserved; int32 [n]."""
    return np.where(np.isnan(labels), ABSENT, labels).astype(np.int32)


def flat_column(column: Column) -> tuple[Column, np.ndarray]:
    """A list column's values, and how many each row has: int64 [n]; a null list is an empty one."""
    if column.family == "empty":
        return dataclasses.replace(column), np.zeros(len(column.values), np.int64)
    if column.family != "list":
        column.refuse_type("it was lists when the log was prepared")
    lengths = _list_lengths(column.values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = column.values
    if pa.types.is_fixed_size_list(values.type) and values.null_count:
        values = values.cast(pa.list_(values.type.value_type))
        lengths = np.where(np.asarray(values.is_null()), 0, lengths)
    return dataclasses.replace(column, values=values.flatten()), lengths


def category_ids(column: Column, vocabulary: Vocabulary, max_ids: int) -> np.ndarray:
    """Ids of a feature, int32 [n, max_ids], `ABSENT` where a row has fewer; a list keeps its first ones."""
    if max_ids == 1 and column.family != "list":
        return vocabulary.ids(column)[:, None]
    flat, lengths = flat_column(column)
    ids = np.full((len(lengths), max_ids), ABSENT, np.int32)
    if not lengths.any():
        return ids
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = place < max_ids
    ids[row[kept], place[kept]] = vocabulary.ids(flat)[kept]
    return ids


def vector(column: Column, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """A vector's numbers, float32 [n, dim], zeros where it is null, and whether it is: bool [n]."""
    flat, lengths = flat_column(column)
    is_null = np.asarray(column.values.is_null())
    bad = ~is_null & (lengths != dim)
    if bad.any():
        row = first_true(bad)
        raise DataError(
            f"{column.log}, row {column.first_row + row}: '{column.name}' has {lengths[row]} numbers, not {dim}"
        )
    vectors = np.zeros((len(lengths), dim), np.float32)
    if not is_null.all():
        numbers = flat.values.cast(pa.float32(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
        vectors[~is_null] = numbers.reshape(-1, dim)
        if not np.isfinite(vectors).all():
            column.refuse(~np.isfinite(vectors), "its numbers must be finite and known")
    return vectors, is_null


def check_kind(feature: Feature, kind: pa.DataType, where: str) -> None:
    """Raises DataError where a column of this type cannot become what a feature says."""
    found = family(kind)
    inner = family(kind.value_type) if found == "list" else found
    values = ("boolean", "integer", "unsigned", "number")
    fits = {
        "ignore": True,
        "categorical": inner in (*values, "string", "empty"),
        "dense": found in (*values, "empty"),
        "vector": found == "list" and inner in values,
    }[feature.kind]
    if not fits:
        raise DataError(
            f"{where}: column '{feature.column}' is {kind}, which cannot be {feature.kind}; make it another kind"
        )
    if feature.kind == "categorical" and found != "list" and feature.max_ids > 1:
        raise DataError(f"{where}: column '{feature.column}' is {kind}, which has one id a row; set max_ids to 1")
