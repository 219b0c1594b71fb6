"""The contract between readers and the rest: random access to examples by index, in columns."""

import dataclasses
from typing import Protocol

import numpy as np

from gem_jax.data.batch import Examples
from gem_jax.data.schema import Schema


class DataError(ValueError):
    """The user's data is wrong; the message is one sentence naming the file, row or field and what to change."""


class Source(Protocol):
    """Examples `0 .. len(source)`, each a pure function of its index."""

    schema: Schema

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices` (int64 [n]), in that order; vectorised."""
        ...


class FirstExamples:
    """The first `limit` examples of a source."""

    def __init__(self, source: Source, limit: int):
        self.schema = source.schema
        self._source = source
        self._limit = limit

    def __len__(self) -> int:
        return min(self._limit, len(self._source))

    def read(self, indices: np.ndarray) -> Examples:
        return self._source.read(indices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """The parts of a data set; `valid` is None where the set has no validation part of its own."""

    train: Source
    test: Source
    valid: Source | None = None

    @property
    def schema(self) -> Schema:
        return self.train.schema
