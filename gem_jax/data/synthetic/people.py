"""Who the users are: what is known of them (features), and the signs of their tastes in styles, which only responses show.

Everything is a pure function of (seed, user).

Shape letters: n users.
"""

import numpy as np

from gem_jax.data.synthetic import hashing, laws

MAX_INTERESTS = 3


class People:
    """Attributes of n users.

    Attributes:
      age, country, language, device: int64 [n].
      interests: int32 [n, 3], distinct categories, -1 absent; the first is always there.
    """

    def __init__(self, seed: int, user: np.ndarray):
        self._seed, self._user = seed, user
        fields = hashing.fields(self._bits("person"))
        sizes = (laws.AGES, laws.COUNTRIES, laws.LANGUAGES, len(laws.DEVICES))
        self.age, self.country, self.language, self.device = (
            field % np.int64(size) for field, size in zip(fields, sizes, strict=True)
        )
        self.interests = self._interests()

    def _bits(self, what: str) -> np.ndarray:
        return hashing.bits(hashing.stream(self._seed, what), self._user)

    def _interests(self) -> np.ndarray:
        first, second, third, count = hashing.fields(self._bits("interests"))
        c = laws.CATEGORIES
        a = first % np.int64(c)
        b = (a + 1 + second % np.int64(c - 1)) % c
        low, high = np.minimum(a, b), np.maximum(a, b)
        d = third % np.int64(c - 2)  # a place among the categories that are left
        d += d >= low
        d += d >= high
        out = np.stack([a, b, d], axis=1).astype(np.int32)
        out[np.arange(MAX_INTERESTS) > (count % np.int64(MAX_INTERESTS))[:, None]] = -1
        return out

    def taste(self) -> np.ndarray:
        """Long-run share of each category in what users turn to, float32 [n, C]."""
        share = np.full((len(self.age), laws.CATEGORIES), (1 - laws.TASTE) / laws.CATEGORIES, np.float32)
        rows, places = np.nonzero(self.interests >= 0)
        count = (self.interests >= 0).sum(axis=1)
        share[rows, self.interests[rows, places]] += (laws.TASTE / count[rows]).astype(np.float32)
        return share

    def likes(self) -> np.ndarray:
        """Whether users like each style at heart, bool [n, STYLES]."""
        places = np.arange(laws.STYLES, dtype=np.uint64)
        return (self._bits("style signs")[:, None] >> places & np.uint64(1)).astype(bool)
