"""A user's last embeddings by a teacher, pooled: what a student reads instead of the histories that it does not have.

As LoopFM (arXiv 2605.29280): of the user's earlier examples the newest <= L within an age limit, the example itself left out. They
are averaged, since sum pooling is published as nearly as good as attention; a mean stays of order one whatever their number.

Whatever lies at the very second of the example is left out too: which of such events came first is unknown, and one of them is
the example.

Shape letters: n embeddings, m examples asked for, d components, U users.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from gem_jax.errors import UserError

_BLOCK = 2**16
"""Rows whose embeddings are expanded at once."""

DAY_S = 86_400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reach:
    """How far back a history goes."""

    max_events: int = 200
    """Newest embeddings that count."""
    max_age_days: float = 30.0
    """None older than this counts."""

    def __post_init__(self):
        if self.max_events < 1 or self.max_age_days <= 0:
            raise UserError(
                f"a history of {self.max_events} events within {self.max_age_days:g} days holds nothing; "
                "history_len must be at least 1 and max_age_days above 0"
            )


class UserEmbeddings:
    """All embeddings of a store by user and time, to be pooled for any user at any time: in training, and where a student serves.

    Memory: 8 d + 16 bytes an embedding, since running sums are kept in float64, where their differences lose nothing that counts.

    Args:
      user: int64 [n], -1 unknown.
      time_s: int64 [n], -1 unknown; an embedding without user or time is in nobody's history.
      embeddings: rows of those given, float32 [rows, d].
      dim: d.
    """

    def __init__(
        self,
        user: Int[np.ndarray, " n"],
        time_s: Int[np.ndarray, " n"],
        embeddings: Callable[[np.ndarray], Float[np.ndarray, "rows d"]],
        dim: int,
    ):
        rows = np.flatnonzero((user >= 0) & (time_s >= 0))
        rows = rows[np.lexsort((time_s[rows], user[rows]))]
        self._users, codes = np.unique(user[rows], return_inverse=True)
        self._first = int(time_s[rows].min()) if len(rows) else 0
        self._span = int(time_s[rows].max(initial=0)) - self._first + 1
        if len(self._users) * self._span >= 2**62:
            raise UserError(
                f"{len(self._users):,} users over {self._span:,} seconds are more than a history's keys can tell apart; "
                "take a shorter stretch of labels"
            )
        self._keys = codes * self._span + (time_s[rows] - self._first)
        self._sums = np.zeros((len(rows) + 1, dim))
        for start in range(0, len(rows), _BLOCK):
            block = embeddings(rows[start : start + _BLOCK])
            stop = start + len(block)
            np.cumsum(block, axis=0, dtype=np.float64, out=self._sums[start + 1 : stop + 1])
            self._sums[start + 1 : stop + 1] += self._sums[start]

    def pooled(
        self, user: Int[np.ndarray, " m"], time_s: Int[np.ndarray, " m"], reach: Reach
    ) -> tuple[Float[np.ndarray, "m d"], Int[np.ndarray, " m"]]:
        """The mean of each user's embeddings before a time, float32, and of how many; zeros where there are none.

        Args:
          user: -1 unknown, whose history is empty.
          time_s: embeddings strictly before it count; -1 unknown, before which there is nothing.
          reach: how many count, and how old they may be.
        """
        if not len(self._users):
            return np.zeros((len(user), self._sums.shape[1]), np.float32), np.zeros(len(user), np.int64)
        code = np.minimum(np.searchsorted(self._users, user), len(self._users) - 1)
        known = (self._users[code] == user) & (time_s >= 0)
        stop = self._place(code, time_s)
        oldest = self._place(code, time_s - int(reach.max_age_days * DAY_S))
        start = np.where(known, np.maximum(oldest, stop - reach.max_events), stop)
        count = stop - start
        sums = self._sums[stop] - self._sums[start]
        return (sums / np.maximum(count, 1)[:, None]).astype(np.float32), count

    def _place(self, code: Int[np.ndarray, " m"], time_s: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Place of each user's first embedding at or after a time."""
        since = np.clip(time_s - self._first, 0, self._span)
        return np.searchsorted(self._keys, code * self._span + since)
