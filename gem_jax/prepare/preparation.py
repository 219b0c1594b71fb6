"""What was learned from a log before training, kept beside a model so that raw rows can be scored with no code.

| file | holds |
|---|---|
| preparation.json | columns, features, scalings, sizes of vocabularies (`spec`) |
| vocabularies/n.parquet | values in the order of their ids; n is the table's place in preparation.json |
| last_events/source.npy | of every user the newest `max_kept` events before the test part, and all from there on |
"""

import dataclasses
import logging
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from gem_jax.data.batch import Examples
from gem_jax.data.checks import check_rows, first_true
from gem_jax.data.event_log import EventLog
from gem_jax.data.identity import digest
from gem_jax.data.schema import Schema
from gem_jax.data.source import DataError, Source
from gem_jax.errors import UserError
from gem_jax.prepare.encoder import Encoder
from gem_jax.prepare.features import nearest
from gem_jax.prepare.log import BATCH_ROWS, Log, open_log
from gem_jax.prepare.records import (
    event_dtype,
    event_order,
    example_dtype,
    examples_of,
    find_histories,
    log_of,
    open_records,
    save_records,
)
from gem_jax.prepare.spec import Spec
from gem_jax.prepare.vocabulary import VALUE_TYPES, Vocabulary

_log = logging.getLogger(__name__)

_CACHED_BATCHES = 4
"""Batches of raw rows kept as records: those being read, and those that threads ahead have begun."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Preparation:
    """How raw rows become examples.

    Attributes:
      spec: what preparation.json holds.
      vocabularies: table -> its values.
      last_events: source -> records [E] of each user's last events (`newest`), sorted.
    """

    spec: Spec
    vocabularies: dict[str, Vocabulary]
    last_events: dict[str, np.ndarray]

    def __repr__(self) -> str:
        events = {name: len(records) for name, records in self.last_events.items()}
        return f"Preparation(tasks={self.spec.tasks}, features={len(self.spec.features.log)}, last_events={events})"

    @property
    def schema(self) -> Schema:
        """The schema of the examples that `source` makes."""
        return self.spec.schema()

    def source(self, log: Any, *, events: dict[str, Any] | None = None) -> Source:
        """Raw rows as examples, the same numbers as for training.

        The history of a row is the newest `max_len` events of its user strictly before it: among the last events of the prepared
        log, and those given here, which are held in memory. From the log's test part on that is the whole history; of earlier rows
        it may lack events, which a log line says. The rows to score are no events of each other: give what has happened since as
        `events={"past": rows}`, with their labels. An event of the same user, time and ids as a kept one takes its place.

        Labels that are absent are NaN. An example's id is its `example_id`, or else its row, from 0.

        Args:
          log: a path or a table, as `prepare` takes; read in batches, in order, in constant memory.
          events: source ("past" is the log's own rows) -> a path or a table of its events.

        Raises:
          DataError: a column is missing or of another type; or, when rows are read, a value is not what its column says.
        """
        encoder = Encoder(self.spec, self.vocabularies)
        types = self._types_of_text()
        given = {name: open_log(raw, types) for name, raw in (events or {}).items()}
        for name in given:
            if name not in self.spec.sources:
                raise DataError(f"there is no source of events '{name}'; {nearest(name, self.spec.sources)}")
        logs = {name: self._events(name, encoder, given.get(name)) for name in self.spec.sources}
        kept_only = tuple(name for name in self.spec.sources if name not in given)
        return RawSource(self.spec, encoder, open_log(log, types), logs, kept_only)

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the preparation; its preparation.json comes last, and says that all is there.

        Raises:
          UserError: the folder cannot be written.
        """
        folder = pathlib.Path(folder)
        try:
            for name in ("vocabularies", "last_events"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            for place, table in enumerate(self.spec.rows):
                self.vocabularies[table].save(_vocabulary_file(folder, place))
            for source, records in self.last_events.items():
                save_records(_events_file(folder, source), records)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"'{folder}' cannot be written ({str(error).splitlines()[0]}); name a place that can"
            ) from error
        self.spec.save(folder)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> "Preparation":
        """What `save` wrote; a prepared folder holds one too.

        Raises:
          DataError: the folder holds no preparation, a damaged one, or one of another version.
        """
        folder = pathlib.Path(folder)
        spec = Spec.load(folder)
        schema = spec.schema()
        vocabularies = {}
        for place, (table, rows) in enumerate(spec.rows.items()):
            vocabularies[table] = Vocabulary.load(file := _vocabulary_file(folder, place))
            if vocabularies[table].rows != rows:
                raise DataError(f"{file} has {vocabularies[table].rows} ids, not {rows}; prepare the log again")
        last_events = {
            source: open_records(_events_file(folder, source), event_dtype(schema.sequence(source)))
            for source in spec.sources
        }
        return cls(spec=spec, vocabularies=vocabularies, last_events=last_events)

    def _events(self, source: str, encoder: Encoder, given: Log | None) -> EventLog:
        """The last events of a source, and those given."""
        records = self.last_events[source]
        if given is not None:
            names = tuple(feature.name for feature in self.spec.attributes(source))
            records = union(records, np.concatenate([records[:0], *encoder.events(source, given)]), names)
        return log_of(records, self.spec.clock.ticks_per_s)

    def _types_of_text(self) -> dict[str, pa.DataType]:
        """Columns of CSV text that are strings even where every cell of the file looks like a number."""
        spec = self.spec
        features = [f for source in spec.sources for f in spec.attributes(source)] + list(spec.of_kind("categorical"))
        return {f.column: VALUE_TYPES["string"] for f in features if spec.families[f.table] == "string"}


class RawSource:
    """Raw rows as examples, encoded batch by batch as they are read: in order once, out of order as often as must be.

    Args:
      spec: how rows become examples.
      encoder: of that spec.
      log: the rows.
      events: source -> the events among which histories are found.
      kept_only: sources of which these are the last events that were kept, so that early rows may lack some.
    """

    def __init__(
        self, spec: Spec, encoder: Encoder, log: Log, events: dict[str, EventLog], kept_only: tuple[str, ...] = ()
    ):
        self.schema = encoder.schema
        self._spec = spec
        self._encoder = encoder
        self._log = log
        self._events = events
        self._kept_only = kept_only
        self._has_warned = False
        self._length = log.count_rows()
        check_rows(log.name, self._length)
        encoder.example_columns(log, with_labels=False)  # raises where one is missing
        self._batches: Iterator[np.ndarray] = iter(())
        self._next = 0  # number of the batch that comes next
        self._cache: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()  # the loader's threads share the cache

    def __len__(self) -> int:
        return self._length

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices`, in that order.

        Raises:
          DataError: a value of their batches is not what its column says.
        """
        with self._lock:
            records = np.empty(len(indices), example_dtype(self.schema))
            numbers = indices // BATCH_ROWS
            for number in np.unique(numbers):
                here = numbers == number
                records[here] = self._batch(int(number))[indices[here] % BATCH_ROWS]
        find_histories(records, self._events, self._spec.max_len)
        self._warn_of_early_rows(records)
        return examples_of(records, self._spec, self.schema, self._events)

    def identity(self) -> str:
        """Digest of all examples; reads every row."""
        starts = range(0, len(self), BATCH_ROWS)
        parts = [digest(self.read(np.arange(start, min(start + BATCH_ROWS, len(self))))) for start in starts]
        return digest(parts)

    def _warn_of_early_rows(self, records: np.ndarray) -> None:
        """Says once that a history may be shorter than in training: its user has had more events than were kept."""
        kept, start = self._spec.max_kept, self._spec.complete_from
        early = records[(records["time"] < start) & (records["user"] >= 0)]
        if self._has_warned or not len(early):
            return
        for name in self._kept_only:
            first, stop = self._events[name].earlier(early["user"], np.full(len(early), start), kept)
            lengths = early["stop"][name] - early["first"][name]
            may_lack = (stop - first == kept) & (lengths < self._spec.max_len)
            if may_lack.any():
                self._has_warned = True
                message = "%s: rows from before the test part, e.g. that of id %d, may lack events of '%s' that training saw; "
                message += "give source() the whole log as events={'%s': ...} to have them"
                _log.warning(message, self._log.name, early["example_id"][first_true(may_lack)], name, name)
                return

    def _batch(self, number: int) -> np.ndarray:
        """Records of a batch, without histories."""
        if number not in self._cache:
            if number < self._next or self._next == 0:
                self._batches, self._next = self._encoder.examples(self._log, with_labels=False), 0
            while self._next <= number:
                self._cache[self._next] = self._following()
                self._next += 1
                if len(self._cache) > _CACHED_BATCHES:
                    del self._cache[next(iter(self._cache))]
        return self._cache[number]

    def _following(self) -> np.ndarray:
        try:
            return next(self._batches)
        except StopIteration as error:
            raise DataError(
                f"{self._log.name} changed while it was being read; leave it as it is until the end"
            ) from error
        except DataError:
            self._next = 0  # the batches end with an error; a later call meets it again
            raise


def newest(records: np.ndarray, most: int, complete_from: int) -> np.ndarray:
    """Of sorted records [E], every user's newest `most` before the tick `complete_from`, and all from there on.

    They give the whole history, of `most` events, of any row from that tick on.
    """
    kept = records["time"] >= complete_from
    kept[~kept] = log_of(records[~kept], 1).rank_from_end() <= most
    return records[kept]


def union(kept: np.ndarray, given: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """The events of two sets, sorted; one that is given takes the place of a kept one.

    Args:
      kept: records [E] of `event_dtype`.
      given: records of the same dtype.
      names: ids by which, beside user and time, two events are the same; outcomes may have changed since.
    """
    joined = np.concatenate([given, kept])
    if not len(joined):
        return joined
    is_kept = np.arange(len(joined)) >= len(given)
    keys = [joined["user"], joined["time"], *(joined["ids"][name] for name in names)]
    order = np.lexsort((is_kept, *reversed(keys)))
    is_first = np.append(True, np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0))
    group = np.cumsum(is_first) - 1
    place = np.arange(len(joined)) - np.flatnonzero(is_first)[group]
    num_given = np.bincount(group[~is_kept[order]], minlength=int(group[-1]) + 1)[group]
    # Given events come first in their group; of the kept ones after them, as many are the same events.
    merged = joined[order[~is_kept[order] | (place >= 2 * num_given)]]
    return merged[event_order(merged)]


def _vocabulary_file(folder: pathlib.Path, place: int) -> pathlib.Path:
    return folder / "vocabularies" / f"{place}.parquet"


def _events_file(folder: pathlib.Path, source: str) -> pathlib.Path:
    return folder / "last_events" / f"{source}.npy"
