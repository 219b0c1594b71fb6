"""The contract between readers and the rest: random access to examples by index, in columns."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gem_jax.data.batch import Examples
from gem_jax.data.identity import digest
from gem_jax.data.schema import Schema
from gem_jax.errors import UserError

PARTS = ("train", "valid", "test")
"""Parts of a data set, in the order in which their example ids are numbered."""


class DataError(UserError):
    """The user's data is wrong; the message is one sentence naming the file, row or field and what to change."""


class DataWarning(UserWarning):
    """Something about the user's data that stops no run, but that the user should know."""


def numbered(part: str, rows: np.ndarray) -> np.ndarray:
    """Ids of examples that have none of their own: place of the part in `PARTS` times 2^60, plus the row in the part, int64 [n]."""
    return (np.int64(PARTS.index(part)) << np.int64(60)) + rows.astype(np.int64)


@runtime_checkable
class Source(Protocol):
    """Examples `0 .. len(source)`, each a pure function of its index."""

    schema: Schema

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices` (int64 [n]), in that order; vectorised."""
        ...

    def identity(self) -> str:
        """Hex digest of the examples: the same on any machine and path for the same data, another one for other data."""
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

    def identity(self) -> str:
        whole = self._source.identity()
        return whole if len(self) == len(self._source) else digest(whole, len(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """The parts of a data set; `valid` is None where the set has no validation part of its own."""

    train: Source
    test: Source
    valid: Source | None = None

    @property
    def schema(self) -> Schema:
        return self.train.schema

    def identity(self) -> dict[str, dict[str, Any]]:
        """Of each part that there is: `examples`, how many, and `digest`, which (JSON-able)."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {
            name: {"examples": len(part), "digest": part.identity()} for name, part in parts.items() if part is not None
        }


@runtime_checkable
class DataConfig(Protocol):
    """What a run's `data` section is: it names a data set and opens it."""

    def schema(self) -> Schema:
        """The data's schema, equal to `build().schema`; from the config alone where that says enough, else from the files."""
        ...

    def build(self) -> Splits:
        """Opens the data."""
        ...
