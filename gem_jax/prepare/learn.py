"""The second pass: vocabularies and scalings, from the training rows alone."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from gem_jax.data.checks import check_labels_differ
from gem_jax.data.source import DataError
from gem_jax.prepare.encoder import check_columns, check_kind, column_batches, flat_column, vector
from gem_jax.prepare.features import Feature, Features, nearest
from gem_jax.prepare.log import Log
from gem_jax.prepare.scaling import Moments, Scaling
from gem_jax.prepare.spec import DOMAIN, PAST, Columns
from gem_jax.prepare.values import Clock, Column
from gem_jax.prepare.vocabulary import ValueCounts, Vocabulary, as_values, value_family


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """What the training rows say.

    Attributes:
      vocabularies: table or `DOMAIN` -> its values.
      scalings: dense feature -> its scaling.
      missing: vectors that are null in some row.
    """

    vocabularies: dict[str, Vocabulary]
    scalings: dict[str, Scaling]
    missing: tuple[str, ...]


def check_features(features: Features, logs: dict[str, Log], columns: Columns, where: str) -> None:
    """Raises DataError where features and the columns of the logs do not agree, or a column cannot become what is said.

    Args:
      features: of the logs.
      logs: source of events -> its log; `PAST` is the log itself.
      columns: which are no features.
      where: names the features in messages.
    """
    if set(features.events) != set(logs) - {PAST}:
        raise DataError(
            f"{where} has events {sorted(features.events)} and --events names {sorted(set(logs) - {PAST})}; give the same"
        )
    labels = {*columns.label, columns.time}
    for source, log in logs.items():
        entries = features.log if source == PAST else features.events[source]
        place = where if source == PAST else f"{where}, events '{source}'"
        taken = labels if source == PAST else {columns.time, columns.user}
        for feature in entries:
            if feature.column not in log.schema.names:
                raise DataError(
                    f"{place}: {log.name} has no column '{feature.column}'; {nearest(feature.column, log.schema.names)}"
                )
            if feature.column in taken and feature.kind != "ignore":
                raise DataError(
                    f"{place}: '{feature.column}' is a label, the time or the user of events, and no feature; take it out"
                )
            check_kind(feature, log.schema.field(feature.column).type, place)
            if source != PAST and feature.kind not in ("categorical", "ignore"):
                raise DataError(f"{place}: '{feature.column}' is {feature.kind}; events have categorical columns only")
            if source != PAST and feature.max_ids > 1:
                raise DataError(
                    f"{place}: '{feature.column}' has max_ids {feature.max_ids}; an attribute of events has one id"
                )
        if source != PAST and not any(feature.kind == "categorical" for feature in entries):
            raise DataError(f"{place} has no categorical column; events need at least one")


class Learner:
    """Counts and sums over the training rows of all logs.

    Args:
      features: what is to be learned.
      samples: source -> its first rows, which say what kind of values a vocabulary has.
      columns: which columns mean what.
    """

    def __init__(self, features: Features, samples: dict[str, pa.Table], columns: Columns):
        self._features = features
        self._columns = columns
        self._families: dict[str, str] = {}
        for source, feature in self._categoricals():
            self._decide(feature.table, feature.column, samples[source])
        if columns.domain is not None:
            self._decide(DOMAIN, columns.domain, samples[PAST])
        self._counts = {table: ValueCounts(kind) for table, kind in self._families.items()}
        self._moments = {f.name: Moments(f.log) for f in features.log if f.kind == "dense"}
        self._missing: dict[str, bool] = {f.name: False for f in features.log if f.kind == "vector"}
        self._row_columns = (*columns.label, *([] if columns.domain is None else [columns.domain]))
        self._seen = np.full(
            (2, len(columns.label)), np.nan, np.float32
        )  # the smallest and the largest label of each task

    def read(self, source: str, log: Log, clock: Clock, before: int) -> None:
        """Learns from the rows of a source whose time is before the first one of the other parts.

        Raises:
          DataError: a value is not what its column says.
        """
        entries = self._features.log if source == PAST else self._features.events[source]
        used = [feature for feature in entries if feature.kind != "ignore"]
        more = self._row_columns if source == PAST else ()
        needed = list(dict.fromkeys([self._columns.time, *(f.column for f in used), *more]))
        check_columns(log, needed)
        for columns in column_batches(log, needed):
            training = clock.ticks(columns[self._columns.time]) < before
            for feature in used:
                self._add(feature, columns[feature.column], training)
            if source == PAST:
                self._add_labels([columns[name] for name in self._columns.label], training)
                if self._columns.domain is not None:
                    self._count(DOMAIN, columns[self._columns.domain], training)

    def learned(self, min_count: int, log: Log) -> Learned:
        """What was found.

        Raises:
          DataError: a task's training labels are all the same.
        """
        check_labels_differ(self._seen, list(self._columns.label), pathlib.Path(log.name))
        return Learned(
            vocabularies={table: counts.vocabulary(min_count) for table, counts in self._counts.items()},
            scalings={name: moments.scaling() for name, moments in self._moments.items()},
            missing=tuple(name for name, seen in self._missing.items() if seen),
        )

    def _categoricals(self) -> Iterator[tuple[str, Feature]]:
        for source, entries in ((PAST, self._features.log), *self._features.events.items()):
            yield from ((source, feature) for feature in entries if feature.kind == "categorical")

    def _decide(self, table: str, column: str, sample: pa.Table) -> None:
        values = Column(values=sample[column].combine_chunks(), name=column, log="")
        if values.family == "list":
            values, _ = flat_column(values)
        found = value_family(values.values)
        if self._families.setdefault(table, found) != found:
            raise DataError(
                f"table '{table}' is shared by columns of kind '{self._families[table]}' and '{found}' ('{column}'); "
                "give them tables of their own"
            )

    def _add(self, feature: Feature, column: Column, training: np.ndarray) -> None:
        if feature.kind == "categorical":
            self._count(feature.table, column, training)
        elif feature.kind == "dense":
            self._moments[feature.name].add(column.reals()[training])
        else:
            self._missing[feature.name] |= bool((vector(column, feature.dim)[1] & training).any())

    def _count(self, table: str, column: Column, training: np.ndarray) -> None:
        if column.family == "list":
            column, lengths = flat_column(column)
            training = np.repeat(training, lengths)
        self._counts[table].add(as_values(column, self._families[table]).filter(pa.array(training)))

    def _add_labels(self, columns: list[Column], training: np.ndarray) -> None:
        labels = np.stack([column.labels()[training] for column in columns], axis=1)
        if len(labels):
            smallest, largest = np.fmin.reduce(labels), np.fmax.reduce(labels)
            self._seen = np.stack([np.fmin(self._seen[0], smallest), np.fmax(self._seen[1], largest)])
