"""One log of events, sorted by user and time, and examples that are rows of it: histories need no storage."""

import dataclasses

import numpy as np

from gem_jax.data.batch import Examples, Histories
from gem_jax.data.columns import ragged_ranges
from gem_jax.data.identity import digest
from gem_jax.data.schema import Schema

SEQUENCE = "past"
"""The one sequence of such examples: everything the user did before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventLog:
    """E events sorted by user, then time, with the features of users and items.

    Attributes:
      user: int32 [E], row of the user's features.
      item: int32 [E], row of the item's features.
      time: int64 [E], seconds, or place in the user's order.
      in_seconds: whether `time` is Unix seconds.
      event_ids: attribute -> int32 [E].
      user_ids: feature -> int32 [users, max_ids].
      item_ids: feature -> int32 [items, max_ids].
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    in_seconds: bool
    event_ids: dict[str, np.ndarray]
    user_ids: dict[str, np.ndarray]
    item_ids: dict[str, np.ndarray]

    def first_rows(self) -> np.ndarray:
        """Row of the first event of each event's user, int64 [E]."""
        return np.searchsorted(self.user, self.user)

    def rank_from_end(self) -> np.ndarray:
        """1 for a user's last event, 2 for the one before, ..: int64 [E]."""
        return np.searchsorted(self.user, self.user, side="right") - np.arange(len(self.user))


class LogSource:
    """Examples that are rows of an event log; the history is every earlier event of the same user.

    Args:
      schema: of the examples, with one sequence named `SEQUENCE`.
      log: the events.
      rows: int64 [n], log row at which each example stands.
      items: int32 [n], the item whose label the example asks for.
      labels: float32 [n].
      example_ids: int64 [n].
    """

    def __init__(
        self,
        schema: Schema,
        log: EventLog,
        rows: np.ndarray,
        items: np.ndarray,
        labels: np.ndarray,
        example_ids: np.ndarray,
    ):
        self.schema = schema
        self._example_ids = example_ids
        self.labels = labels
        self._log = log
        self._rows = rows
        self._items = items
        self._first_rows = log.first_rows()

    def __len__(self) -> int:
        return len(self._rows)

    def identity(self) -> str:
        """Digest of the log and of which examples are made of it."""
        return digest(self._log, self._rows, self._items, self.labels, self._example_ids)

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices`, in that order."""
        rows, items = self._rows[indices], self._items[indices]
        users = self._log.user[rows]
        lengths = (rows - self._first_rows[rows]).astype(np.int32)
        past = ragged_ranges(self._first_rows[rows], lengths)
        age = np.repeat(self._log.time[rows], lengths) - self._log.time[past]
        count = len(rows)
        return Examples(
            ids={name: column[users] for name, column in self._log.user_ids.items()}
            | {name: column[items] for name, column in self._log.item_ids.items()},
            dense=np.zeros((count, 0), np.float32),
            vectors={},
            sequences={
                SEQUENCE: Histories(
                    ids={name: column[past] for name, column in self._log.event_ids.items()},
                    age_s=age.astype(np.int32),
                    lengths=lengths,
                )
            },
            labels=self.labels[indices][:, None],
            domain=np.zeros(count, np.int32),
            weight=np.ones(count, np.float32),
            user=users.astype(np.int64),
            example_id=self._example_ids[indices],
            time_s=self._log.time[rows] if self._log.in_seconds else np.full(count, -1, np.int64),
            true_probability=np.full((count, 1), np.nan, np.float32),
        )
