"""Histories that are stored once: logs of events sorted by user and time, and examples that are rows of them.

    log = EventLog(user=..., time=..., ids={"ad": ...})           one source of events, in memory or a memory map
    first, stop = log.earlier(users, times, most=100)             each example's history: rows first .. stop of the log
    LogSource(schema, examples, {"clicks": Past(log, first, stop, times)})

A user's events lie together and in order, so a history is a range of rows, and n examples take n pairs of numbers instead of n
lists. `gem_jax.data.movielens` and `gem_jax.prepare` read their histories this way.

Shape letters: n examples, E events.
"""

import dataclasses

import numpy as np

from gem_jax.data.batch import Examples, Histories
from gem_jax.data.columns import ragged_ranges
from gem_jax.data.identity import digest
from gem_jax.data.schema import Schema
from gem_jax.data.source import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventLog:
    """E events of one source, sorted by user, then time.

    Attributes:
      user: integer [E].
      time: int64 [E], ticks of the log's clock, or place in the user's order.
      ids: attribute -> int32 [E], -1 absent.
      ticks_per_s: ticks of a second; 1 where the time is a place.
    """

    user: np.ndarray
    time: np.ndarray
    ids: dict[str, np.ndarray]
    ticks_per_s: int = 1

    def __len__(self) -> int:
        return len(self.user)

    def first_rows(self) -> np.ndarray:
        """Row of the first event of each event's user, int64 [E]."""
        return np.searchsorted(self.user, self.user)

    def rank_from_end(self) -> np.ndarray:
        """1 for a user's last event, 2 for the one before, ..: int64 [E]."""
        return np.searchsorted(self.user, self.user, side="right") - np.arange(len(self.user))

    def earlier(self, users: np.ndarray, times: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows `first .. stop` of the newest `most` events that each user had strictly before a time.

        Args:
          users: int64 [n].
          times: int64 [n], in ticks; an event of the same tick is not before.
          most: events of a history.

        Returns:
          first and stop, int64 [n].
        """
        start, end = np.searchsorted(self.user, users), np.searchsorted(self.user, users, side="right")
        stop = _first_not_before(self.time, start, end, times)
        return np.maximum(start, stop - most), stop

    def histories(self, first: np.ndarray, stop: np.ndarray, times: np.ndarray) -> Histories:
        """The events of rows `first .. stop` [n], with their ages at `times` [n], in ticks."""
        lengths = (stop - first).astype(np.int32)
        rows = ragged_ranges(first, lengths)
        age = (np.repeat(times, lengths) - self.time[rows]) // self.ticks_per_s
        ids = {name: column[rows] for name, column in self.ids.items()}
        return Histories(ids=ids, age_s=age.astype(np.int32), lengths=lengths)


def _first_not_before(values: np.ndarray, start: np.ndarray, end: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """In each sorted run `start .. end` [n] of `values`, the first place whose value is not below the bound: int64 [n]."""
    low, high = start.astype(np.int64), end.astype(np.int64)
    while (low < high).any():
        middle = (low + high) // 2
        is_open = low < high
        below = is_open & (values[np.where(is_open, middle, 0)] < bounds)
        low, high = np.where(below, middle + 1, low), np.where(is_open & ~below, middle, high)
    return low


@dataclasses.dataclass(frozen=True)
class Past:
    """Where in a log the histories of n examples lie.

    Attributes:
      log: the events.
      first: int64 [n], row of the log at which a history begins.
      stop: int64 [n], row after its last.
      time: int64 [n], when the example happened, on the log's clock.
    """

    log: EventLog
    first: np.ndarray
    stop: np.ndarray
    time: np.ndarray

    def read(self, indices: np.ndarray) -> Histories:
        """Histories of the examples at `indices`, in that order."""
        return self.log.histories(self.first[indices], self.stop[indices], self.time[indices])


class LogSource:
    """Examples whose histories are ranges of event logs.

    Args:
      schema: of the examples.
      examples: the same examples without histories.
      pasts: sequence of the schema -> where the histories lie.
    """

    def __init__(self, schema: Schema, examples: Source, pasts: dict[str, Past]):
        self.schema = schema
        self._examples = examples
        self._pasts = pasts

    def __len__(self) -> int:
        return len(self._examples)

    def identity(self) -> str:
        """Digest of the examples, of the logs and of which histories are made of them."""
        return digest(self._examples.identity(), self._pasts)

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices`, in that order."""
        sequences = {name: past.read(indices) for name, past in self._pasts.items()}
        return dataclasses.replace(self._examples.read(indices), sequences=sequences)
