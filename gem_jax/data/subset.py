"""A part of a data set: without some of its features and histories, of some domains, of some tasks, of its beginning."""

import dataclasses
from typing import Any

import numpy as np

from gem_jax.data.batch import Examples
from gem_jax.data.identity import digest
from gem_jax.data.loader import OrdersItself
from gem_jax.data.schema import Schema
from gem_jax.data.source import PARTS, DataConfig, DataError, FirstExamples, Source, Splits

CHUNK = 16_384
"""Examples read at once in search of those of a domain."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubsetConfig:
    """Another data set, of which less is shown. Ids, users and times of examples stay, so that labels and scores still join."""

    data: DataConfig
    """The whole."""
    without_sequences: tuple[str, ...] = ()
    """Histories that are left out."""
    without_features: tuple[str, ...] = ()
    """Features that are left out: categorical, dense and vectors."""
    domains: tuple[str, ...] = ()
    """Only examples of these; of all domains if none is named. A domain keeps its place among the schema's."""
    tasks: tuple[str, ...] = ()
    """Only labels of these; of all tasks if none is named."""
    first: int | None = None
    """Only so many training examples, the first ones; None for all."""

    def __post_init__(self):
        if self.first is not None and self.first < 1:
            raise DataError(f"data.first={self.first} must be at least 1")

    def schema(self) -> Schema:
        """The whole's schema without what is left out, tables included that nothing reads any more.

        Raises:
          DataError: a name is none of the data's.
        """
        return self._less(self.data.schema())

    def build(self) -> Splits:
        """Opens the data; where domains are named, reads all of it once.

        Raises:
          DataError: a name is none of the data's, or a part has no example of the domains.
        """
        splits = self.data.build()
        schema = self._less(splits.schema)
        parts = {name: getattr(splits, name) for name in PARTS}
        if self.first is not None:
            parts["train"] = FirstExamples(splits.train, self.first)
        return Splits(**{n: self._part(n, part, schema) for n, part in parts.items() if part is not None})

    def preparation(self) -> Any:
        """What was learned of a raw log, to be kept with the run; None where the data were not prepared from one."""
        made = getattr(self.data, "preparation", None)
        return None if made is None else made()

    def _less(self, schema: Schema) -> Schema:
        kinds = ("categoricals", "dense", "vectors")
        self._check("without_sequences", {s.name for s in schema.sequences})
        self._check("without_features", {f.name for kind in kinds for f in getattr(schema, kind)})
        self._check("domains", set(schema.domains))
        self._check("tasks", {t.name for t in schema.tasks})
        kept: dict[str, Any] = {
            kind: tuple(f for f in getattr(schema, kind) if f.name not in self.without_features) for kind in kinds
        }
        kept["sequences"] = tuple(s for s in schema.sequences if s.name not in self.without_sequences)
        read = {f.table for f in kept["categoricals"]} | {a.table for s in kept["sequences"] for a in s.attributes}
        kept["tables"] = tuple(t for t in schema.tables if t.name in read)
        kept["tasks"] = tuple(t for t in schema.tasks if not self.tasks or t.name in self.tasks)
        return schema.replace(**kept)

    def _check(self, field: str, known: set[str]) -> None:
        for name in getattr(self, field):
            if name not in known:
                raise DataError(
                    f"data.{field} names '{name}', which the data does not have; it has {', '.join(sorted(known))}"
                )

    def _part(self, name: str, source: Source, schema: Schema) -> "SubsetSource":
        rows = None
        if self.domains:
            wanted = [schema.domains.index(domain) for domain in self.domains]
            rows = _rows_of(source, wanted)
            if not len(rows):
                raise DataError(
                    f"the {name} part of the data has no example of {', '.join(self.domains)}; name other domains"
                )
        kind = SelfOrderedSubsetSource if rows is None and isinstance(source, OrdersItself) else SubsetSource
        return kind(source, schema, rows)


class SubsetSource:
    """The examples of a source at some rows, in the columns of a schema that has fewer.

    Args:
      source: the whole.
      schema: a part of the source's.
      rows: int64 [n], ascending; None for all.
    """

    def __init__(self, source: Source, schema: Schema, rows: np.ndarray | None):
        self.schema = schema
        self._source, self._rows = source, rows
        whole = source.schema
        self._dense = np.array([whole.dense.index(d) for d in schema.dense], np.int64)
        self._tasks = np.array([whole.tasks.index(t) for t in schema.tasks], np.int64)

    def __len__(self) -> int:
        return len(self._source) if self._rows is None else len(self._rows)

    def read(self, indices: np.ndarray) -> Examples:
        """Examples at `indices` (int64 [n]), in that order."""
        examples = self._source.read(indices if self._rows is None else self._rows[indices])
        schema = self.schema
        return dataclasses.replace(
            examples,
            ids={f.name: examples.ids[f.name] for f in schema.categoricals},
            dense=examples.dense[:, self._dense],
            vectors={v.name: examples.vectors[v.name] for v in schema.vectors},
            sequences={s.name: examples.sequences[s.name] for s in schema.sequences},
            labels=examples.labels[:, self._tasks],
            true_probability=examples.true_probability[:, self._tasks],
        )

    def identity(self) -> str:
        """Digest of the whole, the rows and the names of the columns."""
        schema = self.schema
        kinds = ("categoricals", "dense", "vectors", "sequences", "tasks")
        names = [[member.name for member in getattr(schema, kind)] for kind in kinds]
        return digest(self._source.identity(), self._rows, names)


class SelfOrderedSubsetSource(SubsetSource):
    """All rows of a source whose storage prefers a shuffle of its own."""

    def shuffled_indices(self, positions: range, seed: int, epoch: int) -> np.ndarray:
        """As of the whole."""
        assert isinstance(self._source, OrdersItself)
        return self._source.shuffled_indices(positions, seed, epoch)


def _rows_of(source: Source, domains: list[int]) -> np.ndarray:
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(source), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(source)))
        found.append(rows[np.isin(source.read(rows).domain, domains)])
    return np.concatenate(found)
