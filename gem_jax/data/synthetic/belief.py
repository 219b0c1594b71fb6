"""What the history says of the hidden intents: an exact forward filter whose steps cost O(1) within a session.

Within a session nothing begins, every intent of a stage fades alike, and an event says the same of all categories but its
own. So the belief is kept as `scale[s] * stored[s, c]`: what all categories share moves `scale`, and an event touches
one category's cells. Only the start of a session, where new intents begin, goes through all of them.

Shape letters: n users, C categories, S stages, k users that start a session.
"""

import numpy as np

from gem_jax.data.synthetic.laws import CATEGORIES, PROGRESS, STAGES

SMALLEST_SCALE = 1e-12
"""Where a scale has fallen below this, it is multiplied in, long before float32 ends."""


class Belief:
    """Probabilities of each user's intent, float32; at first all are idle.

    Attributes:
      idle: [n], the probability of no intent.
    """

    def __init__(self, users: int):
        self.idle = np.ones(users, np.float32)
        self._scale = np.ones((STAGES, users), np.float32)
        self._stored = np.zeros((STAGES, users * CATEGORIES), np.float32)
        self._mass = np.zeros((STAGES, users), np.float32)  # of `_stored` over the categories
        self._row = np.arange(users) * CATEGORIES

    def of(self, category: np.ndarray) -> np.ndarray:
        """Probabilities of an intent for one category of each user, [S, n]; category int [n]."""
        return self._stored.take(self._row + category, axis=1) * self._scale

    def fade(self, survives: np.ndarray) -> None:
        """Time passes: an intent of stage s survives with probability `survives[s]`, [S, n] (1)."""
        kept = self._scale * survives
        self.idle += ((self._scale - kept) * self._mass).sum(axis=0)
        self._scale = kept

    def fold(self, rows: np.ndarray) -> None:
        """Multiplies the scales of some users in, and sums their cells anew."""
        cells = self._cells()
        of_rows = cells[:, rows] * self._scale[:, rows, None]
        cells[:, rows] = of_rows
        self._mass[:, rows] = of_rows.sum(axis=2)
        self._scale[:, rows] = 1.0

    def end(self, rows: np.ndarray, category: np.ndarray) -> None:
        """Ends the intents of users for one category each; users may repeat."""
        cells = self._cells()
        for row, c in zip(rows.tolist(), category.tolist(), strict=True):  # few
            self.idle[row] += (cells[:, row, c] * self._scale[:, row]).sum()
            self._mass[:, row] -= cells[:, row, c]
            cells[:, row, c] = 0.0

    def begin(self, rows: np.ndarray, chance: np.ndarray, categories: np.ndarray) -> None:
        """Intents begin among idle users whose scales have been folded in.

        Args:
          rows: int [k].
          chance: [k], that one begins.
          categories: [k, C], of which it is.
        """
        begun = self.idle[rows] * chance
        self._cells()[0, rows] += begun[:, None] * categories
        self._mass[0, rows] += begun
        self.idle[rows] -= begun

    def observe(self, category: np.ndarray, ratio: np.ndarray, others: np.ndarray | float = 1.0) -> None:
        """Bayes' rule after an event about one category of each user.

        Args:
          category: int [n].
          ratio: [S, n], how much likelier an intent of each stage for that category makes the event than an intent for another.
          others: how much likelier an intent for another category makes it than none.
        """
        cell = self._row + category
        old = self._stored.take(cell, axis=1)
        new = old * ratio
        self._stored[:, cell] = new
        self._mass += new - old
        self._scale *= others
        self._normalise()

    def progress(self, category: np.ndarray, moves: np.ndarray) -> None:
        """Some intents for one category of each user go on to the next stage.

        Args:
          category: int [n].
          moves: bool [S - 1, n], whether those of each stage go on, with probability `PROGRESS`.
        """
        rows = np.flatnonzero(moves.any(axis=0))
        if not len(rows):
            return
        cell = self._row[rows] + category[rows]
        share = PROGRESS[:, None].astype(np.float32) * moves[:, rows]
        moved = self._stored[:-1, cell] * share
        arrived = moved * (self._scale[:-1, rows] / self._scale[1:, rows])
        for change, stage in ((-moved, slice(0, -1)), (arrived, slice(1, None))):
            self._stored[stage, cell] += change
            self._mass[stage, rows] += change

    def _normalise(self) -> None:
        total = self.idle + (self._scale * self._mass).sum(axis=0)
        self.idle /= total
        self._scale /= total
        if self._scale.min() < SMALLEST_SCALE:
            self.fold(np.flatnonzero(self._scale.min(axis=0) < SMALLEST_SCALE))

    def _cells(self) -> np.ndarray:
        return self._stored.reshape(STAGES, len(self.idle), CATEGORIES)
