"""What an ads example is, declared once: readers fill it, packing lays it out, models are built from it.

A `Schema` names every feature with its role, so the same model code serves the synthetic stream, Criteo, MovieLens or a
company's own Parquet files.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal

Role = Literal["user", "context", "ad", "goal", "format", "measurement", "surface", "event"]
"""Which part of an ads example a feature describes.

`goal`: what the advertiser optimises for; `format`: the creative's form; `measurement`: which conversion signals the
advertiser sends; `surface`: the delivery channel; `event`: an attribute of a history event.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """An embedding table; features that name the same table share its rows."""

    name: str
    rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Categorical:
    """A feature of integer ids in `[0, rows of its table)`; -1 means absent.

    Up to `max_ids` ids an example (or an event): 1 for ordinary features, more for multi-valued ones, whose embeddings are
    averaged over the ids present.
    """

    name: str
    table: str
    role: Role
    max_ids: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """A real number per example; readers deliver it finite and of order one."""

    name: str
    role: Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vector:
    """A pretrained embedding per example, e.g. of the creative's image."""

    name: str
    dim: int
    role: Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequence:
    """A source of past events, oldest first; the newest `max_len` are kept.

    Each event has one id per attribute and a time.
    """

    name: str
    attributes: tuple[Categorical, ...]
    max_len: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A binary label. NaN means *unobserved*, which is not a zero: it adds nothing to loss or metrics."""

    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """All features, histories, labels and domains of a data set.

    Raises:
      ValueError: a name stands twice, a feature names an unknown table, or a size is not positive.
    """

    tables: tuple[Table, ...]
    categoricals: tuple[Categorical, ...]
    tasks: tuple[Task, ...]
    domains: tuple[str, ...]
    dense: tuple[Dense, ...] = ()
    vectors: tuple[Vector, ...] = ()
    sequences: tuple[Sequence, ...] = ()

    def __post_init__(self):
        _check_unique("table", (t.name for t in self.tables))
        features = (*self.categoricals, *self.dense, *self.vectors)
        _check_unique("feature", (f.name for f in features))
        _check_unique("sequence", (s.name for s in self.sequences))
        _check_unique("task", (t.name for t in self.tasks))
        _check_unique("domain", self.domains)
        if not self.tasks or not self.domains:
            raise ValueError("schema needs at least one task and one domain")
        for table in self.tables:
            if table.rows < 1:
                raise ValueError(f"table '{table.name}' has rows={table.rows}; it needs at least 1")
        for feature in (*self.categoricals, *(a for s in self.sequences for a in s.attributes)):
            if feature.table not in {t.name for t in self.tables}:
                raise ValueError(
                    f"feature '{feature.name}' names table '{feature.table}', which the schema does not declare"
                )
            if feature.max_ids < 1:
                raise ValueError(f"feature '{feature.name}' has max_ids={feature.max_ids}; it needs at least 1")
        for sequence in self.sequences:
            _check_unique(f"attribute of sequence '{sequence.name}'", (a.name for a in sequence.attributes))
            if sequence.max_len < 1 or not sequence.attributes:
                raise ValueError(f"sequence '{sequence.name}' needs max_len >= 1 and at least one attribute")
            for attribute in sequence.attributes:
                if attribute.max_ids != 1:
                    raise ValueError(f"attribute '{attribute.name}' of sequence '{sequence.name}' must have max_ids=1")

    def table(self, name: str) -> Table:
        return next(t for t in self.tables if t.name == name)

    def sequence(self, name: str) -> Sequence:
        return next(s for s in self.sequences if s.name == name)

    def replace(self, **changes) -> "Schema":
        return dataclasses.replace(self, **changes)


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} '{name}' is declared twice")
        seen.add(name)
